"""New dictionaries from old ones."""

from __future__ import annotations

from comfy_api.latest import io

from ..sparse_core.addresses import parse_selection
from ..sparse_core.compose import combine, extract, interpolate
from ..sparse_core.controls import SparseAdapter
from .controls import ControlNode
from .types import COMPOSE, SparseDictionaryType, atoms_input, dictionary_input, dictionary_output


class CombineDictionaries(io.ComfyNode):
    """Two dictionaries into one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Combine",
            display_name="Combine Dictionaries",
            category=COMPOSE,
            description="Joins two dictionaries into one that can be saved, pruned and shared as a whole. Put several in a row to "
            "join more. Weights and density of the controls before it become part of it.",
            search_aliases=["sparse atoms", "merge lora", "merge", "join"],
            inputs=[
                SparseDictionaryType.Input("first", tooltip="What the picture shows, such as a character."),
                SparseDictionaryType.Input(
                    "second", tooltip="What it shows too, such as another character or a style."
                ),
                io.Float.Input(
                    "first_weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the first the picture shows: 0 leaves it out, 1 is as it was, below 0 avoids it.",
                ),
                io.Float.Input(
                    "second_weight",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="The same for the second. Where one drowns out the other, lower that one.",
                ),
                io.Int.Input(
                    "budget",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="How many atoms the result has at most. The most important of both stay: the picture loses little "
                    "at first. 0 keeps all.",
                ),
                io.Float.Input(
                    "merge_above",
                    default=0.95,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How alike two atoms must be to become one. 1 merges none and draws exactly what two Apply nodes draw; "
                    "lower values save atoms and may blur what tells the two apart.",
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(
        cls,
        first: SparseAdapter,
        second: SparseAdapter,
        first_weight: float,
        second_weight: float,
        budget: int,
        merge_above: float,
    ) -> io.NodeOutput:
        joined = combine([first, second], [first_weight, second_weight], budget or None, merge_above)
        return io.NodeOutput(SparseAdapter(joined))


class ExtractAtoms(ControlNode):
    """A part of a dictionary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Extract",
            display_name="Extract Atoms",
            category=COMPOSE,
            description="Makes a new, smaller dictionary of the chosen atoms, such as just the hat. It remembers where they came "
            "from. Send it into Save Sparse Dictionary.",
            search_aliases=["sparse atoms", "split", "subset", "prune"],
            inputs=[
                dictionary_input("The dictionary to take from, with the weights of the controls before it."),
                atoms_input("top:32", "Which atoms the new dictionary can show; all others are not in it."),
                io.String.Input(
                    "title",
                    default="",
                    tooltip="What the new dictionary is called in lists; empty makes a title of the old one and the selection. "
                    "Does not change the picture.",
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, atoms: str, title: str) -> io.NodeOutput:
        return io.NodeOutput(SparseAdapter(extract(dictionary, parse_selection(atoms), title)))


class InterpolateDictionaries(io.ComfyNode):
    """Between two dictionaries."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Interpolate",
            display_name="Interpolate Dictionaries",
            category=COMPOSE,
            description="Goes from one dictionary to another atom by atom: between two stages of one training, or between one "
            "dictionary under two settings of its controls. Dictionaries of different trainings are refused; combine those.",
            search_aliases=["sparse atoms", "blend", "lerp", "morph"],
            inputs=[
                SparseDictionaryType.Input("first", tooltip="What the picture shows at 0."),
                SparseDictionaryType.Input("second", tooltip="What it shows at 1. It must have the same atoms."),
                io.Float.Input(
                    "position",
                    default=0.5,
                    min=-2.0,
                    max=3.0,
                    step=0.05,
                    tooltip="0 draws the first, 1 the second, 0.5 what lies between. Below 0 and above 1 their difference is "
                    "exaggerated.",
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, first: SparseAdapter, second: SparseAdapter, position: float) -> io.NodeOutput:
        return io.NodeOutput(SparseAdapter(interpolate(first, second, position)))


COMPOSE_NODES = [CombineDictionaries, ExtractAtoms, InterpolateDictionaries]
