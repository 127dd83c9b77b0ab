"""Apply Sparse Dictionary."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import apply_adapter
from .types import CATEGORY, dictionary_input


class ApplySparseDictionary(io.ComfyNode):
    """A dictionary onto a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Apply",
            display_name="Apply Sparse Dictionary",
            category=CATEGORY,
            description="Gives a model what a dictionary has learnt. Apply several in a row to combine them; LoRAs may come "
            "before or after. The model's weights are not touched.",
            search_aliases=["sparse atoms", "apply adapter", "lora loader"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to draw with, from any checkpoint loader of the same family."
                ),
                dictionary_input("What to add to the model, with whatever controls hang on it."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it the picture shows: 0 is the plain model, 1 as trained, above 1 exaggerates, "
                    "below 0 pushes the picture away from it.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, dictionary: SparseAdapter, strength: float) -> io.NodeOutput:
        return io.NodeOutput(apply_adapter(model, dictionary.at_strength(strength)))
