"""The loss, as short pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..coding import group_norm
from ..dictionary import SparseDictionary
from ..hosts.base import Prediction
from ..layers import Site

SNR_CAP = 5.0
"""gamma of min-SNR weighting (Hang et al. 2023, arXiv 2303.09556)."""


def loss_weight(prediction: Prediction, snr: Tensor) -> Tensor:
    """Weight of the squared error of the clean latents, (rows,) -> (rows,): the loss on what the model predicts, written
    as one on x0, with the signal-to-noise ratio capped so that nearly clean pictures don't dominate."""
    capped = snr.clamp(max=SNR_CAP)
    match prediction:
        case "eps":  # |eps error|^2 = snr |x0 error|^2
            return capped
        case "v":  # |v error|^2 = (snr + 1) |x0 error|^2
            return capped + 1
        case "flow":  # |velocity error|^2 = |x0 error|^2 / sigma^2, sigma = 1 / (1 + sqrt(snr))
            return (1 + capped.sqrt()).square()
    raise ValueError(f"There is no prediction type {prediction!r}.")


def diffusion_loss(estimate: Tensor, latents: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of the clean latents: (rows, channels, height, width) twice, (rows,) -> scalar."""
    return (weight * (estimate.float() - latents).square().mean(dim=(1, 2, 3))).mean()


class GroupTerm:
    """An observer that sums the group norm over sites, each relative to the rms of the feature it updates, so that the
    weight of the term means the same in every model."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self.dictionary = dictionary
        self.total: Tensor | float = 0.0

    def __call__(self, site: Site, atoms: Sequence[int], z: Tensor, y: Tensor) -> None:
        """See `Observer`."""
        scale = y.detach().float().square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        self.total = self.total + group_norm(z, self.dictionary.sites[site].directions) / scale
