"""A sampler that needs nothing but a `Host`: the same steps in ComfyUI and diffusers, for pictures that the program makes
for itself (prior pictures, previews of a training)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .hosts.base import Host


@torch.no_grad()
def sample(
    host: Host,
    condition: Any,
    noise: Tensor,
    *,
    steps: int = 12,
    guidance: float = 3.0,
    negative: Any | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Deterministic sampling (DDIM, Song et al. 2021, arXiv 2010.02502) from pure noise.

    :param condition: of all rows, as `Host.stack_conditions` gives it; ``negative`` likewise, needed where ``guidance``
        is not 1.
    :param noise: (rows, channels, height, width) standard normal.
    :param on_step: called after every step; may raise to stop.
    :returns: clean latents, scaled as the UNet sees them.
    """
    rows = len(noise)

    def scales(progress: Tensor) -> tuple[Tensor, Tensor]:
        """How much signal and how much noise a noisy latent holds, as the host mixes them."""
        zero, one = torch.zeros_like(noise[:, :1, :1, :1]), torch.ones_like(noise[:, :1, :1, :1])
        return host.add_noise(one, zero, progress), host.add_noise(zero, one, progress)

    noisy, clean = host.add_noise(torch.zeros_like(noise), noise, torch.zeros(rows)), noise
    for step in range(steps):
        progress = torch.full((rows,), step / steps)
        clean = host.denoise(noisy, progress, condition)
        if guidance != 1:
            clean = torch.lerp(host.denoise(noisy, progress, negative), clean, guidance)
        signal, spread = scales(progress)
        left = (noisy - signal * clean) / spread
        noisy = host.add_noise(clean, left, torch.full((rows,), (step + 1) / steps))
        on_step()
    return clean
