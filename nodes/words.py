"""Teach Word."""

from __future__ import annotations

import comfy.sd
from comfy_api.latest import io

from ..sparse_core.hosts.comfyui import teach
from .types import CATEGORY


class TeachWord(io.ComfyNode):
    """A word's meaning among what a training learns."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_TeachWord",
            display_name="Teach Word",
            category=CATEGORY,
            description="Lets Train Sparse Dictionary learn what the new word means too, beside how the new thing looks: the "
            "picture follows the prompt better. Captions and preview go through the CLIP that comes out. What was learnt comes "
            "with the dictionary; Apply Sparse Dictionary hands it to a CLIP.",
            search_aliases=["sparse atoms", "textual inversion", "embedding", "trigger word", "pivotal tuning"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that reads the captions; it is not changed."),
                io.String.Input(
                    "word",
                    default="zib",
                    tooltip="What the captions call the new thing. A rare word learns best: the picture forgets what it meant "
                    "before.",
                ),
            ],
            outputs=[
                io.Clip.Output(display_name="clip", tooltip="For the captions, the preview and held-out captions."),
            ],
        )

    @classmethod
    def execute(cls, clip: comfy.sd.CLIP, word: str) -> io.NodeOutput:
        return io.NodeOutput(teach(clip, word))
