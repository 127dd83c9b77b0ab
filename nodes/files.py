"""Load and Save Sparse Dictionary."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.describe import describe
from ..sparse_core.files import load_dictionary, save_dictionary
from ..sparse_core.training.metadata import file_metadata
from . import folders
from .types import CATEGORY, checked, dictionary_input, dictionary_output, file_fingerprint


class LoadSparseDictionary(io.ComfyNode):
    """A file into the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Load",
            display_name="Load Sparse Dictionary",
            category=CATEGORY,
            description="Loads a dictionary from models/sparse_dictionaries or from what you trained and saved.",
            search_aliases=["sparse atoms", "load adapter", "load lora"],
            inputs=[
                io.Combo.Input(
                    "name",
                    options=folders.names(),
                    tooltip="Which dictionary to load: what the picture will learn to draw. The newest is first.",
                )
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        return checked(folders.resolve, name)

    @classmethod
    def fingerprint_inputs(cls, name: str | None) -> str:
        return file_fingerprint(folders.resolve, name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        return io.NodeOutput(SparseAdapter(load_dictionary(folders.resolve(name))))


class SaveSparseDictionary(io.ComfyNode):
    """A dictionary into a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Save",
            display_name="Save Sparse Dictionary",
            category=CATEGORY,
            description="Saves a dictionary to output/sparse_dictionaries, where Load finds it. Controls are not saved with "
            "it: they live in the workflow.",
            search_aliases=["sparse atoms", "save adapter"],
            inputs=[
                dictionary_input("The dictionary to keep, usually from Train."),
                io.String.Input(
                    "filename_prefix",
                    default="dictionary",
                    tooltip="Name of the file; a number is added, so nothing is overwritten. Subfolders such as friends/robot "
                    "work. Does not change the picture.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    optional=True,
                    tooltip="The word that calls up what was learnt; shown by LoRA managers. Does not change the picture.",
                ),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What a person should know of it; stored in the file. Does not change the picture.",
                ),
                io.String.Input(
                    "author",
                    default="",
                    optional=True,
                    tooltip="Who made it; stored in the file. Does not change the picture.",
                ),
                io.Image.Input(
                    "thumbnail",
                    optional=True,
                    tooltip="A picture that stands for it in lists; the first of a batch is stored, small. Does not change the "
                    "picture.",
                ),
            ],
            outputs=[dictionary_output()],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        dictionary: SparseAdapter,
        filename_prefix: str,
        trigger: str = "",
        description: str = "",
        author: str = "",
        thumbnail: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        learnt = dictionary.dictionary
        title = learnt.metadata.get("modelspec.title", filename_prefix)
        picture = None if thumbnail is None else as_picture(thumbnail[0])
        said = file_metadata(title, trigger, (), author, description, picture)
        spec = {name: value for name, value in said.items() if name.startswith("modelspec.")}
        learnt = replace(learnt, metadata={**learnt.metadata, **spec})
        path = save_dictionary(learnt, folders.free_path(filename_prefix))
        return io.NodeOutput(replace(dictionary, dictionary=learnt), ui=ui.PreviewText(f"Saved as {path.name}"))


class AtomInfo(io.ComfyNode):
    """A chain of controls in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Info",
            display_name="Atom Info",
            category=CATEGORY,
            description="Tells what a dictionary holds and what the controls before this node amount to, atom by atom.",
            search_aliases=["sparse atoms", "inspect", "list atoms"],
            inputs=[
                dictionary_input(),
                io.Int.Input(
                    "top",
                    default=20,
                    min=1,
                    max=10_000,
                    tooltip="How many atoms the table lists, the most important first. Does not change the picture.",
                ),
            ],
            outputs=[dictionary_output(), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, top: int) -> io.NodeOutput:
        text = describe(dictionary, top)
        return io.NodeOutput(dictionary, text, ui=ui.PreviewText(text))


def as_picture(image: torch.Tensor) -> Image.Image:
    """One of ComfyUI's IMAGEs, (height, width, 3) in 0..1."""
    return Image.fromarray(image.clamp(0, 1).mul(255).round().byte().cpu().numpy())
