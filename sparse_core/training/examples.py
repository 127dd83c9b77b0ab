"""What a training sees: latents with their conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from ..hosts.base import Host


@dataclass(frozen=True)
class Example:
    """One picture to learn from."""

    latents: Tensor
    """(channels, height, width), scaled as the UNet sees them."""
    condition: Any
    """The host's condition for its caption."""


class Batch(NamedTuple):
    """One draw: pictures of one size with fresh noise."""

    latents: Tensor
    condition: Any
    noise: Tensor
    progress: Tensor
    """(rows,) uniform in 0..1."""


def draw_batch(host: Host, examples: Sequence[Example], rows: int, generator: Generator) -> Batch:
    """Draws ``rows`` examples of one size, each size as often as it has pictures. Draws happen on the CPU, so a seed
    gives the same training on every device."""
    first = examples[int(torch.randint(len(examples), (), generator=generator))]
    same_size = [e for e in examples if e.latents.shape == first.latents.shape]
    order = torch.cat([torch.randperm(len(same_size), generator=generator) for _ in range(-(-rows // len(same_size)))])
    chosen = [same_size[i] for i in order[:rows].tolist()]
    latents = torch.stack([e.latents for e in chosen])
    noise = torch.randn(latents.shape, generator=generator)
    progress = (torch.arange(rows) + torch.rand(rows, generator=generator)) / rows  # stratified: less variance
    return Batch(
        latents.to(host.device), host.stack_conditions([e.condition for e in chosen]), noise.to(host.device), progress
    )
