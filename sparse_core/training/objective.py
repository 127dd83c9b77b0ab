"""The loss, as short pure functions."""

from __future__ import annotations

from torch import Tensor

from ..hosts.base import Prediction

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


def squared_error(estimate: Tensor, latents: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of the clean latents where the mask says so: (rows, channels, height, width) twice,
    (rows, 1, height, width) -> (rows,)."""
    error = (estimate.float() - latents).square().mean(dim=1, keepdim=True) * mask
    return error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1e-6)
