"""From a picture to its noise and back."""

from __future__ import annotations

import pytest
import torch
from factories import CHANNELS, random_condition, random_dictionary, tiny_host
from torch import Generator, Tensor

from sparse_core.controls import Curve, Mask, Schedule, SparseAdapter
from sparse_core.sampling import invert, sample

SPREADS = torch.tensor([0.1, 0.5, 1.0, 4.0])[:, None, None]
"""Variances of four channels of pictures."""


class GaussianHost:
    """The best denoiser of pictures that are Gaussian noise themselves, in the mixtures of three kinds of models."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def scales(self, progress: Tensor) -> tuple[Tensor, Tensor]:
        left = (1 - progress)[:, None, None, None]
        match self.kind:
            case "variance preserving":  # diffusers
                return (left * 1.55).cos(), (left * 1.55).sin()
            case "variance exploding":  # ComfyUI, eps and v
                return torch.ones_like(left), (left * 1.55).tan()
        return 1 - left, left  # flow

    def add_noise(self, latents: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
        signal, spread = self.scales(progress)
        return signal * latents + spread * noise

    def denoise(self, noisy: Tensor, progress: Tensor, condition: float, positive: bool = True) -> Tensor:
        signal, spread = self.scales(progress)
        return condition + (noisy - signal * condition) * signal * SPREADS / (
            signal.square() * SPREADS + spread.square()
        )


def error(host: GaussianHost, refinements: int, **settings: object) -> float:
    """Share of the picture's spread by which it is missed, in its own condition."""
    latents = torch.randn(2, 4, 8, 8, generator=Generator().manual_seed(0)) * SPREADS.sqrt()
    noise = invert(host, latents, 0.2, steps=12, refinements=refinements, **settings)
    again = sample(host, 0.2, noise, **{"steps": 12, "guidance": 1.0, **settings})
    return float((again - latents).square().mean().sqrt() / latents.std())


@pytest.mark.parametrize("kind", ["variance preserving", "variance exploding", "flow"])
def test_a_picture_comes_back_and_refinements_bring_it_closer(kind: str) -> None:
    errors = [error(GaussianHost(kind), refinements) for refinements in (0, 3, 12)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_guidance_is_inverted_with_its_negative_prompt() -> None:
    assert error(GaussianHost("flow"), 12, guidance=2.0, negative=-0.1) < 0.05
    with pytest.raises(ValueError, match="needs a negative prompt"):
        error(GaussianHost("flow"), 1, guidance=2.0)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"refinements": -1}])
def test_numbers_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected at least 1 and 0"):
        invert(GaussianHost("flow"), torch.zeros(1, 4, 2, 2), 0.0, **wrong)


def test_masks_and_schedules_of_a_dictionary_take_part() -> None:
    host = tiny_host(prediction="v_prediction")
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    adapter = SparseAdapter(random_dictionary(host.layers, seed=2)).at_strength(0.2)
    latents = torch.randn(1, CHANNELS, 8, 8, generator=Generator().manual_seed(3))
    found = []
    for controls in ([], [Mask(mask)], [Schedule(Curve(0.5, 1.0))]):
        with host.patched([adapter.with_controls(*controls)]):
            found.append(invert(host, latents, random_condition(1), steps=4, refinements=0))
    assert all(bool(noise.isfinite().all()) for noise in found)
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[0], found[2])
