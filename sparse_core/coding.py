"""The formulas of one site, each a pure function. ``x`` are tokens entering a projection, ``y`` what it gives.

A sparse code of x over m atoms replaces the low-rank code of a LoRA::

    a_j = <e_j, x / rms(x)> + c_j
    z_j = sign(a_j) max(|a_j| - theta_j, 0)
    y'  = y + sum_j z_j d_j

after "Sparse Fine-Tuning of Transformers for Generative Tasks" (arXiv 2507.10855); the formulation is this project's
own, see ``docs/method.md``.
"""

from __future__ import annotations

import torch
from torch import Tensor

RMS_FLOOR = 1e-6
"""Keeps an all-zero token (padding) from dividing by zero; far below any real feature's rms."""


def inverse_rms(x: Tensor) -> Tensor:
    """``1 / rms(x)`` of every token in float32: (..., d) -> (..., 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return x.shape[-1] ** 0.5 / norm.clamp(min=RMS_FLOOR * x.shape[-1] ** 0.5)


def soft_threshold(a: Tensor, threshold: Tensor) -> Tensor:
    """``sign(a) max(|a| - threshold, 0)``: the proximal step of the l1 norm (one ISTA step). (..., m), (m,) -> (..., m)."""
    return a - torch.clamp(a, -threshold, threshold)


def encode(x: Tensor, encoder: Tensor, bias: Tensor, threshold: Tensor, normalise: Tensor | None) -> Tensor:
    """Coefficients of every token, in float32 whatever the type of x: the threshold decides on differences that half
    precision can't hold.

    :param x: (..., d_in) tokens.
    :param encoder: (m, d_in) rows e_j in the type of x.
    :param bias: (m,) float32.
    :param threshold: (m,) float32, >= 0.
    :param normalise: (m,) float32, 1 where the atom reads x / rms(x) and 0 where it reads x; (1,) where all agree, None where all
        read x.
    :returns: (..., m) float32.
    """
    a = torch.nn.functional.linear(x, encoder).float()  # (..., m)
    if normalise is None:
        return soft_threshold(a + bias, threshold)
    scale = torch.lerp(torch.ones_like(normalise), inverse_rms(x), normalise)  # (..., m or 1)
    return soft_threshold(torch.addcmul(bias, a, scale), threshold)


def decode(y: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    """``y + z d``: (..., d_out), (..., m), (m, d_out) -> (..., d_out), in the type of y."""
    flat = torch.addmm(y.reshape(-1, y.shape[-1]), z.reshape(-1, z.shape[-1]).to(y.dtype), directions)
    return flat.view(y.shape)


def decode_(y: Tensor, z: Tensor, directions: Tensor) -> Tensor:
    """`decode` that may use up y: a large feature is not copied, which costs more than the sum itself."""
    flat = y.reshape(-1, y.shape[-1])
    flat.addmm_(z.reshape(-1, z.shape[-1]).to(y.dtype), directions.to(y.dtype))
    return flat.view(y.shape)


def group_norm(mean_square: Tensor, directions: Tensor) -> Tensor:
    """``sum_j sqrt(mean_tokens z_j^2) |d_j|``: the group lasso over atoms, which empties whole atoms rather than single
    coefficients. (..., m) mean of z_j^2 over tokens, (..., m, d_out) -> (...)."""
    root_mean_square = (mean_square + 1e-12).sqrt()  # (..., m), smooth at an atom that never fires
    return (root_mean_square * directions.norm(dim=-1)).sum(dim=-1)


def importance(z: Tensor, directions: Tensor, y: Tensor) -> Tensor:
    """``mean |z_j| |d_j| / rms(y)``: how much of the feature an atom moves. (..., m), (m, d_out), (..., d_out) -> (m,)."""
    return z.flatten(0, -2).abs().mean(dim=0) * directions.float().norm(dim=1) / y.float().square().mean().sqrt()
