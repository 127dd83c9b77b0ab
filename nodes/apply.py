"""Apply Sparse Dictionary."""

from __future__ import annotations

import comfy.sd
from comfy.hooks import HookGroup
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import apply_adapter, hook_adapter, speak
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
            "before or after. The model's weights are not touched. A CLIP, where one is connected, reads the taught word as it was "
            "learnt.",
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
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that reads the prompt. Of a dictionary that was trained with Teach Word, prompts "
                    "encoded with the CLIP that comes out mean the new thing by the word, and the picture follows them better. "
                    "Masks can't reach this part.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model"), io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def execute(
        cls, model: ModelPatcher, dictionary: SparseAdapter, strength: float, clip: comfy.sd.CLIP | None = None
    ) -> io.NodeOutput:
        adapter = dictionary.at_strength(strength)
        applied, words = apply_adapter(model, adapter), adapter.words
        if not words:
            return io.NodeOutput(applied, clip)
        named = " and ".join(map(repr, words))
        if clip is None:
            said = f"It was taught the word {named}: connect a CLIP, and encode the prompt with the one that comes out."
            return io.NodeOutput(applied, None, ui=ui.PreviewText(said))
        said = f"Prompts through the CLIP that comes out read {named} as it was taught."
        return io.NodeOutput(applied, speak(clip, words), ui=ui.PreviewText(said))


class SparseDictionaryHook(io.ComfyNode):
    """A dictionary onto a conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Hook",
            display_name="Sparse Dictionary Hook",
            category=CATEGORY,
            description="Hangs a dictionary on prompts instead of on the model, through ComfyUI's own hooks: connect it to Cond "
            "Set Props and the like. Each prompt with other hooks costs a model run of its own; Atom Mask does regions in "
            "one run.",
            search_aliases=["sparse atoms", "hook lora", "create hook"],
            inputs=[
                dictionary_input("What the hooked prompts add to the picture."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of it the hooked prompts show; hook keyframes multiply it step by step.",
                ),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Hooks that act together with this one."),
            ],
            outputs=[io.Hooks.Output(display_name="hooks")],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, strength: float, prev_hooks: HookGroup | None = None) -> io.NodeOutput:
        hooks = hook_adapter(dictionary.at_strength(strength))
        return io.NodeOutput(hooks if prev_hooks is None else prev_hooks.clone_and_combine(hooks))
