"""Distil into Dictionary."""

from __future__ import annotations

from dataclasses import replace

import latent_preview
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import ComfyHost, one_entry, single_entries
from ..sparse_core.training import Progress, distil, questioned
from ..sparse_core.training.distilling import DEFAULTS
from ..sparse_core.training.metadata import file_metadata
from .types import COMPOSE, dictionary_output


class DistilIntoDictionary(io.ComfyNode):
    """A patched model into a dictionary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Distil",
            display_name="Distil into Dictionary",
            category=COMPOSE,
            description="Learns to do with sparse atoms what a LoRA, or anything else on a model, does to its pictures, so that it "
            "can be pruned, masked and taken apart. Needs no pictures: the patched model draws them.",
            search_aliases=["sparse atoms", "distill", "convert lora", "compress lora"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The plain model. The dictionary is for it and for others of its family."
                ),
                io.Model.Input(
                    "patched",
                    tooltip="The same model with what is to be distilled on it, such as one or several LoRAs: how pictures with "
                    "the dictionary will look.",
                ),
                io.Conditioning.Input(
                    "prompts",
                    tooltip="Prompts through CLIP Text Encode, of the CLIP that pictures will be drawn with: varied ones that show "
                    "what was patched in. What they don't show is not learnt.",
                ),
                io.Conditioning.Input("negative", tooltip="The empty prompt, to draw those pictures with."),
                io.Latent.Input(
                    "latent", tooltip="An empty latent of the size you draw at. Its content does not matter."
                ),
                io.String.Input(
                    "name", default="distilled", tooltip="The dictionary's title. Does not change the picture."
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100_000,
                    tooltip="How long to learn. More come closer to the patched model's pictures.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.5,
                    step=1e-6,
                    tooltip="How big each step is. Too high makes pictures restless, too low leaves them as the plain model's.",
                ),
                io.Int.Input(
                    "batch",
                    default=DEFAULTS.batch,
                    min=1,
                    max=64,
                    tooltip="Pictures per step. More learns more steadily and takes longer.",
                ),
                io.Int.Input(
                    "atoms",
                    default=DEFAULTS.atoms,
                    min=1,
                    max=1024,
                    tooltip="Atoms in each projection of each attention. More come closer; most can be dropped afterwards with "
                    "Keep Top Atoms.",
                ),
                io.Float.Input(
                    "threshold",
                    default=DEFAULTS.threshold,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="How sure an atom must be before it acts. Higher leaves more of each picture as the plain model draws "
                    "it; lower comes closer to the patched one.",
                ),
                io.Float.Input(
                    "sparsity",
                    default=DEFAULTS.sparsity,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    tooltip="How hard atoms compete. Higher puts the likeness into fewer atoms, so that more can be dropped.",
                    advanced=True,
                ),
                io.Int.Input(
                    "pictures",
                    default=24,
                    min=1,
                    max=1000,
                    tooltip="How many pictures the patched model draws first, prompt by prompt. More let the dictionary hold at "
                    "prompts that were not among them.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULTS.seed,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Another seed finds other atoms for about the same pictures.",
                ),
            ],
            outputs=[
                dictionary_output(),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[ModelPatcher],
        patched: list[ModelPatcher],
        prompts: list[list],
        negative: list[list],
        latent: list[dict],
        name: list[str],
        steps: list[int],
        learning_rate: list[float],
        batch: list[int],
        atoms: list[int],
        threshold: list[float],
        sparsity: list[float],
        pictures: list[int],
        seed: list[int],
    ) -> io.NodeOutput:
        settings = replace(
            DEFAULTS,
            steps=steps[0],
            learning_rate=learning_rate[0],
            batch=batch[0],
            atoms=atoms[0],
            threshold=threshold[0],
            sparsity=sparsity[0],
            seed=seed[0],
        )
        show = latent_preview.prepare_callback(model[0], steps[0])
        losses: list[float] = []

        def on_step(progress: Progress) -> None:
            losses[:] = progress.losses
            show(progress.step - 1, progress.estimate, None, progress.steps)
            throw_exception_if_processing_interrupted()

        teacher = ComfyHost(patched[0]).load()
        asked = questioned(
            teacher,
            single_entries(prompts),
            one_entry(negative[0], "negative"),
            teacher.latent_shape(latent[0]),
            pictures=pictures[0],
            seed=seed[0],
            on_step=throw_exception_if_processing_interrupted,
        )
        pupil = ComfyHost(model[0])
        pupil.interruptions = ()  # what a cancel leaves can't be gone on from, and must not pass for the whole
        dictionary = distil(pupil, asked, settings, on_step, file_metadata(name[0]))
        return io.NodeOutput(SparseAdapter(dictionary), {"loss": losses})
