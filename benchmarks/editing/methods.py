"""How pictures are edited: what is learnt of the source, from which noise the edited picture is drawn, and where sliders
stand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sparse_core.sampling import invert
from sparse_core.training import Example, TrainingSettings
from sparse_core.training.loop import Trainer
from sparse_core.training.presets import PRESETS

from ..quality.methods import Method, Taught, keep, new_learner
from ..quality.words import PromptedHost

STEPS, GUIDANCE = 10, 3.0
"""Of all sampling."""
NOISE = 40_000
"""Seed of the first noise from which pictures are drawn."""


@dataclass(frozen=True)
class Look:
    """One setting of a method's sliders."""

    strength: float = 1.0
    density: float = 1.0
    first: int = 0
    """The sampling step that the edited prompt begins at; what is before comes from the source."""
    inverted: bool = False
    """Whether the noise is that of the source, or random."""


@dataclass(frozen=True)
class Editor:
    """A way of editing with its sliders."""

    name: str
    method: Method | None
    """How the source is learnt; None where it is not."""
    looks: tuple[Look, ...]


OURS = "sparse dictionary"
DENSITIES = (1.0, 0.5, 0.25, 0.1)


def editors(method_settings: TrainingSettings, rate: float, strengths: Sequence[float]) -> list[Editor]:
    """All that are compared.

    :param method_settings: of the dictionary; the LoRA's differ in the ``rate`` alone.
    """
    dictionary = Method(OURS, "dictionary", method_settings)
    lora = Method("LoRA", "lora", replace(method_settings, learning_rate=rate))
    # A LoRA is cut by its singular values: as many sliders for both.
    grid = tuple(Look(strength, density) for strength, density in itertools.product(strengths, DENSITIES))
    late = tuple(Look(1.0, density, first, True) for density, first in itertools.product((1.0, 0.25), (1, 2, 3, 4)))
    return [
        Editor(OURS, dictionary, grid),
        Editor("LoRA", lora, grid),
        Editor(f"{OURS}, inverted noise", dictionary, late),
        Editor("LoRA, inverted noise", lora, late),
        Editor("image to image", None, tuple(Look(first=first) for first in range(2, 9))),
        Editor("inversion", None, tuple(Look(first=first, inverted=True) for first in range(8))),
    ]


def single_picture() -> TrainingSettings:
    """What the trainer's preset for one picture says."""
    return TrainingSettings(**PRESETS["single picture"])


class Learnt(NamedTuple):
    """What one picture left in a method."""

    taught: Taught
    seconds: float


def learn(host: PromptedHost, example: Example, method: Method, seed: int) -> Learnt:
    """Trains a method on one picture; the host is afterwards as it was."""
    host.pipeline.text_encoder.requires_grad_(False)
    began = time.perf_counter()
    with host.trainable():
        # The taught word comes along as it is: no prompt holds it, so that nothing is learnt for it.
        learner = new_learner(host, method, seed)
        for tensor in learner.parameters().values():
            tensor.requires_grad_()
        trainer = Trainer(host, learner, [example], replace(method.settings, seed=seed))
        while not trainer.finished:
            trainer.advance()
    taught = keep(host, learner, [example], [example], seed)
    return Learnt(taught, time.perf_counter() - began)


def random_noises(like: Tensor, count: int) -> Tensor:
    """The same for all methods and edits: (channels, height, width) to (count, channels, height, width)."""
    return torch.stack(
        [torch.randn(like.shape, generator=torch.Generator().manual_seed(NOISE + k)) for k in range(count)]
    )


def inverted_noise(host: PromptedHost, source: Tensor, prompt: str) -> Tensor:
    """The noise from which the host as it is draws a picture: (channels, height, width) to (1, the same)."""
    return invert(host, source[None], host.stack_conditions([prompt]), steps=STEPS)


@torch.no_grad()
def edited(host: PromptedHost, source: Tensor, noise: Tensor, prompts: tuple[str, str], look: Look) -> Tensor:
    """Edited latents, drawn by the host as it is: (channels, height, width) and (pictures, the same) to the latter shape.

    :param noise: what the look begins with: inverted or random.
    :param prompts: of the source and of what it is to become.
    """
    begin = 0 if look.inverted else look.first
    there = (source if begin else torch.zeros_like(source)).expand_as(noise)
    noisy = host.add_noise(there, noise, torch.full((len(noise),), begin / STEPS))
    # Without guidance the first steps go back along the inversion.
    noisy, _ = walked(host, noisy, prompts[0], range(begin, look.first), 1.0)
    return walked(host, noisy, prompts[1], range(look.first, STEPS), GUIDANCE)[1]


def walked(host: PromptedHost, noisy: Tensor, prompt: str, steps: range, guidance: float) -> tuple[Tensor, Tensor]:
    """Some of the steps that `sparse_core.sampling.sample` takes: the noisy latents after them and the last estimate of the
    clean ones, (rows, channels, height, width) each."""
    rows = len(noisy)
    positive, negative = (host.stack_conditions([words] * rows) for words in (prompt, ""))
    clean = noisy
    zero, one = torch.zeros_like(noisy[:, :1, :1, :1]), torch.ones_like(noisy[:, :1, :1, :1])
    for step in steps:
        at, following = (torch.full((rows,), number / STEPS) for number in (step, step + 1))
        clean = host.denoise(noisy, at, positive)
        if guidance != 1:
            clean = torch.lerp(host.denoise(noisy, at, negative), clean, guidance)
        noise = (noisy - host.add_noise(one, zero, at) * clean) / host.add_noise(zero, one, at)
        noisy = host.add_noise(clean, noise, following)
    return noisy, clean
