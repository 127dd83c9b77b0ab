"""How pictures are edited: from which noise the edited picture is drawn, and where sliders stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparse_core.sampling import invert, walk
from sparse_core.training import TrainingSettings

from ..quality.methods import Method
from ..quality.words import PromptedHost

STEPS, GUIDANCE = 10, 3.0
"""Of sampling from nothing but noise."""
FINE = 20
"""Steps where a part of them is left out: what is kept of the source turns on where they begin, late above all."""
BEGINNINGS = (4, 8, 12, 14, 16, 17, 18, 19)
"""Of the fine steps, the first with the edited prompt."""
NOISE = 40_000
"""Seed of the first noise from which pictures are drawn."""


@dataclass(frozen=True)
class Look:
    """One setting of a method's sliders."""

    strength: float = 1.0
    density: float = 1.0
    first: int = 0
    """The sampling step that the edited prompt begins at; what is before comes from the source."""
    steps: int = STEPS
    """Of a whole sampling."""
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
DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.03)
FEWEST = 0.1
"""Share of the atoms kept at strengths other than 1, beside all of them."""


def editors(settings: TrainingSettings, rate: float, strengths: Sequence[float]) -> list[Editor]:
    """All that are compared.

    :param settings: of the dictionary; the LoRA's differ in the ``rate`` alone.
    :param strengths: beside 1.
    """
    dictionary = Method(OURS, "dictionary", settings)
    lora = Method("LoRA", "lora", replace(settings, learning_rate=rate))
    # A LoRA is cut by its singular values: as many sliders for both.
    grid = tuple(Look(density=density) for density in DENSITIES)
    grid += tuple(Look(strength, density) for strength in strengths for density in (1.0, FEWEST))
    noised, inverted = (
        tuple(Look(first=first, steps=FINE, inverted=inverted) for first in BEGINNINGS) for inverted in (False, True)
    )
    both = tuple(replace(look, density=density) for density in (1.0, FEWEST) for look in inverted[1::2])
    return [
        Editor(OURS, dictionary, grid),
        Editor("LoRA", lora, grid),
        Editor(f"{OURS}, inverted noise", dictionary, both),
        Editor("LoRA, inverted noise", lora, both),
        Editor("image to image", None, (*noised, Look(first=2 * FINE - 1, steps=2 * FINE))),
        Editor("inversion", None, inverted),
    ]


def random_noises(like: Tensor, count: int) -> Tensor:
    """The same for all methods and edits: (channels, height, width) to (count, channels, height, width)."""
    return torch.stack(
        [torch.randn(like.shape, generator=torch.Generator().manual_seed(NOISE + k)) for k in range(count)]
    )


def inverted_noise(host: PromptedHost, source: Tensor, prompt: str, steps: int) -> Tensor:
    """The noise from which the host as it is draws a picture: (channels, height, width) to (1, the same)."""
    return invert(host, source[None], host.stack_conditions([prompt]), steps=steps)


@torch.no_grad()
def edited(host: PromptedHost, source: Tensor, noise: Tensor, prompts: tuple[str, str], look: Look) -> Tensor:
    """Edited latents, drawn by the host as it is: (channels, height, width) and (pictures, the same) to the latter shape.

    :param noise: what the look begins with: inverted or random.
    :param prompts: of the source and of what it is to become.
    """
    begin = 0 if look.inverted else look.first
    there = (source if begin else torch.zeros_like(source)).expand_as(noise)
    noisy = host.add_noise(there, noise, torch.full((len(noise),), begin / look.steps))
    before, after, empty = (host.stack_conditions([prompt] * len(noisy)) for prompt in (*prompts, ""))
    # Without guidance the first steps go back along the inversion.
    noisy, _ = walk(host, before, noisy, range(begin, look.first), look.steps, guidance=1.0)
    return walk(host, after, noisy, range(look.first, look.steps), look.steps, guidance=GUIDANCE, negative=empty)[1]
