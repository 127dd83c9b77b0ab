"""Atom Mixer."""

from __future__ import annotations

from comfy_api.latest import io

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.mixer import mix as mixed
from ..sparse_core.mixer import panel_data, parse_mix
from .types import CONTROLS, checked, dictionary_input, dictionary_output


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
        )

    @classmethod
    def validate_inputs(cls, mix: str | None) -> bool | str:
        return checked(parse_mix, mix)

    @classmethod
    def execute(cls, dictionary: SparseAdapter, mix: str) -> io.NodeOutput:
        return io.NodeOutput(mixed(dictionary, mix), ui={"sparse_atoms": [panel_data(dictionary)]})
