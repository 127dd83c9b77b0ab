"""Demo Pictures: a few pictures with captions, to train on without a download."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..sparse_core.demo.lessons import lessons, load_lesson
from .types import CATEGORY


class DemoPictures(io.ComfyNode):
    """What a lesson holds."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_DemoPictures",
            display_name="Demo Pictures",
            category=CATEGORY,
            description="Six captioned pictures of a creature, or in a style, that the demo model has never seen. Send the "
            "pictures through VAE Encode and the captions through CLIP Text Encode into Train Sparse Dictionary.",
            search_aliases=["sparse atoms", "dataset", "training images"],
            inputs=[
                io.Combo.Input(
                    "lesson",
                    options=lessons(),
                    tooltip="What the pictures teach: a creature, which the captions call by this word, to be used in prompts "
                    "afterwards; or pencil, a style, which needs no word.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="pictures", is_output_list=True),
                io.String.Output(display_name="captions", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, lesson: str) -> io.NodeOutput:
        pictures, captions = zip(*load_lesson(lesson), strict=True)
        images = [torch.from_numpy(picture).float()[None] / 255 for picture in pictures]
        return io.NodeOutput(images, list(captions))
