"""Atom Mixer."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..sparse_core.addresses import AddressError
from ..sparse_core.controls import SparseAdapter
from ..sparse_core.mixer import mix as mixed
from ..sparse_core.mixer import panel_data, parse_mix
from .types import CONTROLS, checked, dictionary_input, dictionary_output

PERSISTENT = (
    {"has_intermediate_output": True} if "has_intermediate_output" in {f.name for f in fields(io.Schema)} else {}
)
"""Has the host send the panel its atoms in every run, also in one that finds this node cached: the page may have been loaded
anew since. Older hosts don't know it."""


class AtomMixer(io.ComfyNode):
    """A mixing desk; its panel is in web/mixer/."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Mixer",
            display_name="Atom Mixer",
            category=CONTROLS,
            description="A mixing desk with a strip for every atom: turn it up or down, hear it alone, silence it. The strips "
            "are in the workflow, so a shared picture brings them along.",
            search_aliases=["sparse atoms", "mixing desk", "sliders", "atom weights"],
            inputs=[
                dictionary_input("The dictionary whose atoms to mix, from Load, Train or another control."),
                io.String.Input(
                    "mix",
                    multiline=True,
                    default="",
                    tooltip="What the strips say, one line each: L3.v[7] = 0.5 shows half of an atom, mute L3.v[2] takes it out "
                    "of the picture, solo top:25% leaves only the most important quarter. The panel writes it; you may too.",
                ),
            ],
            outputs=[dictionary_output()],
            **PERSISTENT,
        )

    @classmethod
    def validate_inputs(cls, mix: str | None) -> bool | str:
        return checked(parse_mix, mix)

    @classmethod
    def execute(cls, dictionary: SparseAdapter, mix: str) -> io.NodeOutput:
        said = {"sparse_atoms": [panel_data(dictionary)]}
        try:
            return io.NodeOutput(mixed(dictionary, mix), ui=said)
        except AddressError:
            _show(said)
            raise


def _show(said: dict[str, Any]) -> None:
    """Gives the panel what a run would, in one that stops here: only with the atoms that came in can it tell which strips
    have none."""
    from server import PromptServer

    server, context = PromptServer.instance, get_executing_context()
    if server.client_id is not None:
        names = {"node": context.node_id, "display_node": context.node_id, "prompt_id": context.prompt_id}
        server.send_sync("executed", {**names, "output": said}, server.client_id)
