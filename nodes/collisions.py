"""Collision Report."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..sparse_core.analysis.collision_chart import collision_chart
from ..sparse_core.analysis.collisions import collisions
from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import ComfyHost, one_entry, single_entries
from .types import COMPOSE, SparseDictionaryType

STEPS = 12
"""Of sampling each group of pictures, for the progress bar."""


class CollisionReport(io.ComfyNode):
    """Where two dictionaries meet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Collisions",
            display_name="Collision Report",
            category=COMPOSE,
            description="Tells which atoms of two dictionaries act on the same places and words, and whether they pull the same "
            "way, by drawing a few pictures with both. Mute what collides and combine, or mask the two and stack Apply nodes.",
            search_aliases=["sparse atoms", "conflict", "lora conflict", "analyse"],
            inputs=[
                io.Model.Input("model", tooltip="The model that both dictionaries are for, without them on it."),
                SparseDictionaryType.Input("first", tooltip="The one dictionary, with the weights of its controls."),
                SparseDictionaryType.Input("second", tooltip="The other. Collisions are what spoils pictures of both."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Prompts to watch at, best such as name what both have learnt, as your pictures will.",
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt that your pictures will have."),
                io.Latent.Input(
                    "latent", tooltip="An empty latent of the size you draw at. Its content does not matter."
                ),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many pictures to watch. More make the numbers steadier and take longer.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Another seed watches other pictures; the numbers change a little.",
                ),
            ],
            outputs=[io.String.Output(display_name="report"), io.Image.Output(display_name="chart")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        first: SparseAdapter,
        second: SparseAdapter,
        positive: list,
        negative: list,
        latent: dict,
        pictures: int,
        seed: int,
    ) -> io.NodeOutput:
        host = ComfyHost(model).load()
        host.interruptions = ()  # numbers of a part of the pictures must not pass for those of all
        bar = ProgressBar(STEPS * -(-pictures // 4))
        found = collisions(
            host,
            first,
            second,
            single_entries([positive]),
            one_entry(negative, "negative"),
            host.latent_shape(latent),
            pictures=pictures,
            seed=seed,
            on_step=lambda: bar.update(1),
        )
        report = found.report()
        return io.NodeOutput(report, collision_chart(found)[None], ui=ui.PreviewText(report))
