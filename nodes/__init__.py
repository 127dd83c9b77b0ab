"""The nodes: each declares its schema and calls one function of the core."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders, routes
from .apply import ApplySparseDictionary, SparseDictionaryHook
from .controls import CONTROL_NODES
from .demo import DemoModel
from .demo_pictures import DemoPictures
from .files import AtomInfo, LoadSparseDictionary, SaveSparseDictionary
from .lora import LoadLoraAsDictionary
from .mixer import AtomMixer
from .train import TrainSparseDictionary

WEB_DIRECTORY = "./web"

folders.register()


class SparseAtomsExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def on_load(self) -> None:
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            DemoModel,
            DemoPictures,
            LoadSparseDictionary,
            LoadLoraAsDictionary,
            SaveSparseDictionary,
            TrainSparseDictionary,
            ApplySparseDictionary,
            SparseDictionaryHook,
            *CONTROL_NODES,
            AtomMixer,
            AtomInfo,
        ]


async def comfy_entrypoint() -> SparseAtomsExtension:
    """ComfyUI's way in."""
    return SparseAtomsExtension()
