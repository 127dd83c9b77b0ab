"""Drawing inside a node: what analysis nodes share that need pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..sparse_core.analysis.effects import Draw, on_first_picture
from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import apply_adapter, one_entry, with_stacks
from ..sparse_core.plan import Observer


def sampling_inputs() -> list[io.Input]:
    """The inputs that say how a picture is drawn, as KSampler's."""
    return [
        io.Model.Input(
            "model",
            tooltip="The model that draws the pictures to look at, from any checkpoint loader. Other dictionaries and LoRAs "
            "on it act too.",
        ),
        io.Conditioning.Input(
            "positive",
            tooltip="What the pictures show. Name what the dictionary learnt, or few of its atoms are at work.",
        ),
        io.Conditioning.Input("negative", tooltip="What the pictures stay away from; an empty prompt will do."),
        io.Latent.Input(
            "latent_image",
            tooltip="The size of the pictures, from Empty Latent Image. Small ones are drawn sooner and tell as much.",
        ),
        io.Int.Input(
            "seed",
            default=1,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,
            tooltip="Another seed looks at another picture. All pictures of one look start from the same noise, so that they "
            "differ by the atoms alone.",
        ),
        io.Int.Input(
            "steps",
            default=10,
            min=1,
            max=1000,
            tooltip="Sampling steps of each picture. Ten show what an atom does; more draw finer pictures, slower.",
        ),
        io.Float.Input(
            "cfg",
            default=3.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How closely the pictures follow the prompt, as in KSampler: about 3 for the demo model, 7 for others.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.SAMPLER_NAMES,
            default="euler",
            tooltip="How the pictures are worked out step by step, as in KSampler. Samplers that add noise differ in grain.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.SCHEDULER_NAMES,
            default="simple",
            tooltip="How the steps are spread over the noise, as in KSampler: some give more of them to detail.",
        ),
    ]


@dataclass(frozen=True)
class Drawing:
    """What `sampling_inputs` hold."""

    model: ModelPatcher
    positive: list
    negative: list
    latent_image: dict[str, Any]
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str

    def latents(
        self,
        adapter: SparseAdapter,
        on_step: Callable[[], None],
        observer: Observer | None = None,
        repeated: int | None = None,
    ) -> Tensor:
        """The pictures in latent space: (pictures, channels, height, width).

        :param observer: sees the adapter's coefficients.
        :param repeated: draw the first picture so many times, from the same noise.
        """
        model = apply_adapter(self.model, adapter, observer)
        start = comfy.sample.fix_empty_latent_channels(model, self.latent_image["samples"])
        numbers, region = self.latent_image.get("batch_index"), self.latent_image.get("noise_mask")
        if repeated is not None:
            model = with_stacks(model, on_first_picture)
            start, numbers = start[:1], numbers and numbers[:1]
            region = None if region is None else region.reshape(-1, 1, *region.shape[-2:])[:1]
        noise = comfy.sample.prepare_noise(start, self.seed, numbers)
        copies = (repeated or 1, 1, 1, 1)

        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            throw_exception_if_processing_interrupted()
            on_step()

        return comfy.sample.sample(
            model,
            noise.repeat(copies),
            self.steps,
            self.cfg,
            self.sampler_name,
            self.scheduler,
            self.positive,
            self.negative,
            start.repeat(copies),
            noise_mask=region,
            callback=callback,
            disable_pbar=True,
            seed=self.seed,
        )

    def drawers(self, vae: comfy.sd.VAE, pictures: int, seeds: int = 1) -> list[Draw]:
        """Each draws batches of the first picture, the second from the noise of the next seed and so on; the node's bar runs to
        ``pictures``."""
        bar = comfy.utils.ProgressBar(pictures * self.steps)

        def draw(drawing: Drawing, adapter: SparseAdapter, count: int) -> Tensor:
            latents = drawing.latents(adapter, lambda: bar.update(count), repeated=count)
            images: Tensor = vae.decode(latents)
            return images.float().cpu().clamp(0, 1)

        return [partial(draw, replace(self, seed=self.seed + number)) for number in range(seeds)]

    def record(self, adapter: SparseAdapter, observer: Observer) -> dict[str, Any]:
        """The LATENT, drawn while the observer looks.

        :raises ValueError: a prompt is made of several, whose coefficients could not be told apart.
        """
        one_entry(self.positive, "positive")
        one_entry(self.negative, "negative")
        bar = comfy.utils.ProgressBar(self.steps)
        latents = self.latents(adapter, lambda: bar.update(1), observer)
        return {**self.latent_image, "samples": latents}


def as_images(pictures: list[Tensor]) -> Tensor:
    """(height, width, 3) each -> ComfyUI's IMAGE."""
    return torch.stack(pictures)
