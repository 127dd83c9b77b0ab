"""From the tensors of one module to its low-rank update, and from that to orthogonal atoms."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from ..dictionary import Atoms
from ..modules import LowRank

LARGEST_HADAMARD = 16
"""Rank of a LoHa; its update has the square of that."""


def low_rank(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> LowRank:
    """The update of a module whose weight has ``shape``, scaled by alpha / rank.

    :param parts: what `sort_keys` found for the module.
    :raises ValueError: tensors are missing, or the update has another shape; the message is a clause on the module.
    """
    parts = {role: tensor.float() for role, tensor in parts.items()}
    make = next((make for roles, make in ALGORITHMS.items() if roles <= parts.keys()), None)
    if make is None:
        raise ValueError(f"has only {', '.join(sorted(parts))}")
    try:
        update = make(parts)
        rank, d_out = update.up.shape
    except (IndexError, RuntimeError, ZeroDivisionError) as error:  # what shapes that don't go together raise
        shapes = ", ".join(f"{role} {tuple(tensor.shape)}" for role, tensor in parts.items())
        raise ValueError(f"has parts that don't go together: {shapes}") from error
    found = (d_out, prod(update.down.shape[1:]))
    if found != (shape[0], prod(shape[1:])) or len(update.down) != rank:
        raise ValueError(f"is an update of shape {found}, but the model's weight there is {shape}")
    if not bool(torch.isfinite(update.up).all() and torch.isfinite(update.down).all()):
        raise ValueError("holds NaN or infinite values")
    return LowRank(update.down.reshape(rank, *shape[1:]), update.up)


def _lora(parts: Mapping[str, Tensor]) -> LowRank:
    down, up = parts["down"], parts["up"]
    scale = float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0
    if "mid" in parts:  # LoCon: a 1 x 1 convolution into the kernel is a kernel
        down = torch.einsum("ijhw,jc->ichw", parts["mid"], down.flatten(1))
    return LowRank(down, up.flatten(1).T * scale)


def _loha(parts: Mapping[str, Tensor]) -> LowRank:
    """``(A1 B1) * (A2 B2)`` elementwise is ``A B`` with the products of all pairs of columns of A1 and A2, and of rows of B1
    and B2."""
    a1, b1, a2, b2 = (parts[role] for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "t1" in parts or "t2" in parts:
        raise ValueError("is a LoHa in Tucker form")
    if len(b1) > LARGEST_HADAMARD:
        raise ValueError(f"is a LoHa of rank {len(b1)}, whose update has rank {len(b1) ** 2}")
    scale = float(parts["alpha"]) / len(b1) if "alpha" in parts else 1.0
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1).T * scale  # (r^2, d_out)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)  # (r^2, d_in)
    return LowRank(down, up)


ALGORITHMS = {frozenset({"down", "up"}): _lora, frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}): _loha}
"""By the tensors that each needs."""


def orthogonal_atoms(update: LowRank) -> Atoms:
    """The same update as ``sum_j s_j u_j <v_j, x>`` with orthonormal u and v: atoms u_j, encoders s_j v_j, importance s_j,
    the largest first.

    The factors' own QR makes the decomposition one of an r x r matrix, whatever the size of the weight.
    """
    q_out, r_out = torch.linalg.qr(update.up.double().T)  # (d_out, k), (k, r)
    q_in, r_in = torch.linalg.qr(update.down.flatten(1).double().T)  # (d_in, l), (l, r)
    u, s, v = torch.linalg.svd(r_out @ r_in.T, full_matrices=False)  # (k, n), (n,), (n, l)
    kept = s > torch.finfo(torch.float32).eps * s[0]
    importance = s[kept].float()
    return Atoms(
        encoder=(s[:, None] * (v @ q_in.T))[kept].float(),
        bias=torch.zeros_like(importance),
        threshold=torch.zeros_like(importance),
        directions=(q_out @ u).T[kept].float(),
        importance=importance,
        normalise=False,
    )
