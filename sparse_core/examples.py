"""What a training sees: latents with their conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from .hosts.base import Host
from .layers import Site


class Feature(NamedTuple):
    """What one site of a model read, at some of its tokens."""

    tokens: Tensor
    """(k,) their numbers; of a batch (rows, k)."""
    values: Tensor
    """(k, d_in); of a batch (rows, k, d_in)."""


class Answer(NamedTuple):
    """What a teacher said to one noisy picture."""

    noise: Tensor
    """(channels, height, width)."""
    progress: float
    """0..1."""
    estimate: Tensor
    """(channels, height, width), its estimate of the clean latents."""
    features: Mapping[Site, Feature]
    """What some of its sites read meanwhile."""


@dataclass(frozen=True)
class Example:
    """One picture to learn from."""

    latents: Tensor
    """(channels, height, width), scaled as the UNet sees them."""
    condition: Any
    """The host's condition for its caption."""
    mask: Tensor | None = None
    """(height, width) in 0..1 on the latents' grid: where the loss counts. None is everywhere."""
    prior: bool = False
    """Whether the caption does not name the new thing, so that the picture is one to keep, not to learn."""
    answer: Answer | None = None
    """What to learn instead of the picture itself; it is met with the answer's noise alone."""


class Batch(NamedTuple):
    """One draw: pictures of one size with noise."""

    latents: Tensor
    condition: Any
    noise: Tensor
    progress: Tensor
    """(rows,) over 0..1."""
    mask: Tensor
    """(rows, 1, height, width)."""
    prior: Tensor
    """(rows,) bool."""
    target: Tensor
    """What the model should estimate: the latents, or a teacher's answers."""
    features: Mapping[Site, Feature]
    """What the teacher's sites read; nothing if not all rows are answers."""


def draw_batch(
    host: Host, examples: Sequence[Example], rows: int, generator: Generator, own: slice = slice(None)
) -> Batch:
    """Draws ``rows`` examples of one size, each size as often as it has pictures; where there are prior pictures of that
    size, they make up half of the rows, and a single row in one of two batches. Draws happen on the CPU, so a seed gives the
    same training on every device.

    :param own: which of the rows to hand out; all are drawn.
    """
    subjects = [e for e in examples if not e.prior] or list(examples)
    size = subjects[int(torch.randint(len(subjects), (), generator=generator))].latents.shape
    to_learn = [e for e in subjects if e.latents.shape == size]
    to_keep = [e for e in examples if e.prior and e.latents.shape == size]
    kept = 0
    if to_keep:
        kept = rows // 2 if rows > 1 else int(torch.randint(2, (), generator=generator))
    chosen = _draw(to_learn, rows - kept, generator) + _draw(to_keep, kept, generator)
    # Noise levels are stratified within each half: less variance at no cost.
    progress = torch.cat([_stratified(rows - kept, generator), _stratified(kept, generator)])
    noise = torch.randn((rows, *size), generator=generator)
    target = torch.stack([e.latents for e in chosen])
    for row, example in enumerate(chosen):
        if example.answer is not None:
            noise[row], progress[row], target[row], _ = example.answer
    chosen = chosen[own]
    full = torch.ones(size[-2:])
    return Batch(
        latents=torch.stack([e.latents for e in chosen]).to(host.device),
        condition=host.stack_conditions([e.condition for e in chosen]),
        noise=noise[own].to(host.device),
        progress=progress[own],
        mask=torch.stack([full if e.mask is None else e.mask for e in chosen])[:, None].to(host.device),
        prior=torch.tensor([e.prior for e in chosen], device=host.device),
        target=target[own].to(host.device),
        features=_stacked([{} if e.answer is None else e.answer.features for e in chosen], host.device),
    )


def _stacked(features: Sequence[Mapping[Site, Feature]], device: torch.device) -> dict[Site, Feature]:
    """One batch of those sites that every row has."""
    first, *others = features
    shared = [site for site in first if all(site in other for other in others)]
    return {
        site: Feature(*(torch.stack(part).to(device) for part in zip(*(f[site] for f in features), strict=True)))
        for site in shared
    }


def _draw(examples: Sequence[Example], rows: int, generator: Generator) -> list[Example]:
    order: list[int] = []
    while len(order) < rows:
        order += torch.randperm(len(examples), generator=generator).tolist()
    return [examples[i] for i in order[:rows]]


def _stratified(rows: int, generator: Generator) -> Tensor:
    return (torch.arange(rows) + torch.rand(rows, generator=generator)) / max(rows, 1)
