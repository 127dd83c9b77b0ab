"""A picture of one prompt every so often, so that a person sees what has been learnt while it is being learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..controls import SparseAdapter
from ..hosts.base import Host
from ..sampling import sample


@dataclass(frozen=True)
class Preview:
    """What to draw during a training, and how often. Always from the same noise, so that only the dictionary differs.

    :raises ValueError: ``every`` is below 1.
    """

    condition: Any
    """Of one prompt, as `Host.stack_conditions` takes it."""
    negative: Any
    """Of the empty prompt, likewise."""
    shape: tuple[int, int, int]
    """(channels, height, width) of the latents."""
    show: Callable[[int, Tensor], None]
    """Called with the steps done and the clean latents, (1, channels, height, width), scaled as the UNet sees them."""
    every: int = 50
    """Training steps between two pictures, >= 1."""
    seed: int = 0
    on_step: Callable[[], None] = lambda: None
    """Called after every sampling step; may raise to stop."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"A preview is asked for every {self.every} steps; expected at least 1.")

    @torch.no_grad()
    def draw(self, host: Host, adapter: SparseAdapter) -> Tensor:
        """The clean latents of the prompt, with the adapter as it is now."""
        noise = torch.randn((1, *self.shape), generator=torch.Generator().manual_seed(self.seed))
        condition, negative = (host.stack_conditions([one]) for one in (self.condition, self.negative))
        with host.patched([adapter]):
            return sample(host, condition, noise.to(host.device), negative=negative, on_step=self.on_step)
