"""The nodes: each declares its schema and calls one function of the core."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import folders, routes
from .analysis import ANALYSIS_NODES
from .apply import ApplySparseDictionary, SparseDictionaryHook
from .collisions import CollisionReport
from .compose import COMPOSE_NODES
from .controls import CONTROL_NODES
from .demo import DemoModel
from .demo_pictures import DemoPictures
from .distil import DistilIntoDictionary
from .files import AtomInfo, LoadSparseDictionary, SaveSparseDictionary
from .invert import InvertImage
from .lora import LoadLoraAsDictionary
from .mixer import AtomMixer
from .train import TrainSparseDictionary
from .words import TeachWord

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
            TeachWord,
            TrainSparseDictionary,
            ApplySparseDictionary,
            SparseDictionaryHook,
            *CONTROL_NODES,
            AtomMixer,
            AtomInfo,
            *ANALYSIS_NODES,
            *COMPOSE_NODES,
            CollisionReport,
            DistilIntoDictionary,
            InvertImage,
        ]


async def comfy_entrypoint() -> SparseAtomsExtension:
    """ComfyUI's way in."""
    return SparseAtomsExtension()
