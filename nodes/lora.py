"""Load LoRA as Dictionary."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import import_lora, patch_clip
from .types import CATEGORY, checked, dictionary_output, file_fingerprint


class LoadLoraAsDictionary(io.ComfyNode):
    """A LoRA file into the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_LoadLora",
            display_name="Load LoRA as Dictionary",
            category=CATEGORY,
            description="Opens a LoRA from models/loras so that masks, weights and schedules act on it: several LoRAs in "
            "several regions of one picture, in one pass. Without a control the picture is that of ComfyUI's own loader. "
            "Connect the dictionary to Apply Sparse Dictionary.",
            search_aliases=[
                "sparse atoms",
                "load lora",
                "regional lora",
                "masked lora",
                "lora mask",
                "lora block weight",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model the LoRA is for; it tells which parts there are and is not changed."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="Which LoRA the picture shows. It must belong to the model's family (SD1.x, SD2.x, SDXL).",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="How much of the LoRA the reading of the prompt shows. Masks can't reach this part; set it to 0 "
                    "where trigger words should act in one region only. Matters if a CLIP is connected.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that reads the prompt. Many LoRAs change it too; prompts encoded with the CLIP "
                    "that comes out show the LoRA more strongly.",
                ),
            ],
            outputs=[
                dictionary_output(),
                io.Clip.Output(display_name="clip"),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None) -> bool | str:
        return checked(resolve, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name: str | None, **_: object) -> str:
        return file_fingerprint(resolve, lora_name)

    @classmethod
    def execute(
        cls, model: ModelPatcher, lora_name: str, strength_clip: float, clip: comfy.sd.CLIP | None = None
    ) -> io.NodeOutput:
        lora = import_lora(model, resolve(lora_name))
        if clip is not None and lora.text and strength_clip:
            clip = patch_clip(clip, lora, strength_clip)
        report = lora.report()
        return io.NodeOutput(SparseAdapter(lora.dictionary), clip, report, ui=ui.PreviewText(report))


def resolve(name: str) -> Path:
    """The path of a listed LoRA.

    :raises FileNotFoundError: no such file is in the folders.
    """
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise FileNotFoundError(
            f"There is no LoRA {name!r} in models/loras. Refresh the node list (R) and pick another."
        )
    return Path(path)
