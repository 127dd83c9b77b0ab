"""A sampler that needs nothing but a `Host`: the same steps in ComfyUI and diffusers, for pictures that the program makes
for itself (prior pictures, previews of a training); and the way back, from a picture to its noise."""

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
    noisy = host.add_noise(torch.zeros_like(noise), noise, torch.zeros(len(noise)))
    _, clean = walk(host, condition, noisy, range(steps), steps, guidance=guidance, negative=negative, on_step=on_step)
    return clean


@torch.no_grad()
def walk(
    host: Host,
    condition: Any,
    noisy: Tensor,
    part: range,
    steps: int,
    *,
    guidance: float = 3.0,
    negative: Any | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Some of the steps of `sample`, from latents as noisy as the first of them expects.

    :param part: which of the ``steps``, counted from the noisiest.
    :returns: the noisy latents after them and the last estimate of the clean ones, both (rows, channels, height, width).
    """
    clean = noisy
    for step in part:
        clean = _estimate(host, noisy, step / steps, condition, guidance, negative)
        signal, spread = _scales(host, noisy, step / steps)
        left = (noisy - signal * clean) / spread
        noisy = host.add_noise(clean, left, torch.full((len(noisy),), (step + 1) / steps))
        on_step()
    return noisy, clean


@torch.no_grad()
def invert(
    host: Host,
    latents: Tensor,
    condition: Any,
    *,
    steps: int = 20,
    guidance: float = 1.0,
    negative: Any | None = None,
    refinements: int = 3,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """The noise from which `sample`, with the same arguments, draws these latents: its steps taken backwards.

    With latents and noise mixed as by an angle, noisy = cos x0 + sin noise (to which every host's mixture is scaled), a step of
    sampling turns the noisy latents by d towards the clean: ``y = cos d x - sin d v`` with ``v = (cos x - x0) / sin`` at x. A step
    back needs v at the x that it is to find, so it is solved by repetition: once from what was estimated at y, which is DDIM
    inversion, and ``refinements`` times more.

    :param latents: (rows, channels, height, width) clean, scaled as the UNet sees them.
    :param guidance: 1 comes back most exactly; anything else needs ``negative``.
    :param on_step: called after every step; may raise to stop.
    :returns: (rows, channels, height, width), about standard normal.
    :raises ValueError: steps or refinements are out of range, or the negative prompt is missing.
    """
    if steps < 1 or refinements < 0:
        raise ValueError(f"There are {steps} steps and {refinements} refinements; expected at least 1 and 0.")
    if guidance != 1 and negative is None:
        raise ValueError(f"Guidance is {guidance}, which needs a negative prompt. Give one, or set guidance to 1.")
    found, clean, noise = latents, latents, torch.zeros_like(latents)
    cos_after, sin_after = torch.ones_like(latents[:, :1, :1, :1]), torch.zeros_like(latents[:, :1, :1, :1])
    for step in reversed(range(steps)):
        signal, spread = _scales(host, latents, step / steps)
        scale = torch.hypot(signal, spread)
        cos, sin = signal / scale, spread / scale
        cos_turn, sin_turn = cos * cos_after + sin * sin_after, sin * cos_after - cos * sin_after
        after, found = found, cos * clean + sin * noise
        for repetition in range(refinements + 1):
            if repetition:
                found = (after + sin_turn * (cos * found - clean) / sin) / cos_turn
            clean = _estimate(host, scale * found, step / steps, condition, guidance, negative)
        noise, cos_after, sin_after = (found - cos * clean) / sin, cos, sin
        on_step()
    return found / sin_after


def _estimate(
    host: Host, noisy: Tensor, progress: float, condition: Any, guidance: float, negative: Any | None
) -> Tensor:
    """Of the clean latents, guided."""
    at = torch.full((len(noisy),), progress)
    clean = host.denoise(noisy, at, condition)
    return clean if guidance == 1 else torch.lerp(host.denoise(noisy, at, negative, positive=False), clean, guidance)


def _scales(host: Host, like: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """How much signal and how much noise a noisy latent holds, as the host mixes them: (rows, 1, 1, 1) each."""
    zero, one = torch.zeros_like(like[:, :1, :1, :1]), torch.ones_like(like[:, :1, :1, :1])
    at = torch.full((len(like),), progress)
    return host.add_noise(one, zero, at), host.add_noise(zero, one, at)
