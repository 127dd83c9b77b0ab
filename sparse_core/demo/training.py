"""What every training stage shares: resumable checkpoints, the learning-rate curve, averaged weights, batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


def rate(step: int, total: int, warm_up: int = 200) -> float:
    """Share of the learning rate at a step: warm-up, then a cosine down to a hundredth."""
    progress = step / max(total, 1)
    return min(1.0, (step + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * min(progress, 1.0)))))


def reduced_precision() -> torch.autocast:
    """bfloat16 where the processor computes in it. Others emulate it, ten times as slow as float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


def batches(count: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Endless shuffled batches of indices; `start` batches in, as if the earlier ones had been drawn."""
    per_epoch = count // size
    epoch, skip = divmod(start, per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(count)
        for i in range(skip, per_epoch):
            yield order[i * size : (i + 1) * size]
        epoch, skip = epoch + 1, 0


class Average:
    """Exponential moving average of a module's parameters, warmed up so that early weights are forgotten."""

    def __init__(self, modules: dict[str, nn.Module], decay: float):
        self._modules = modules
        self._decay = decay
        self.shadow = {
            f"{name}.{key}": value.detach().clone()
            for name, module in modules.items()
            for key, value in module.named_parameters()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        keep = min(self._decay, (1 + step) / (10 + step))
        live = [p.detach() for m in self._modules.values() for p in m.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), live, 1 - keep)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The averaged parameters of one module, by that module's own keys."""
        return {key[len(name) + 1 :]: v for key, v in self.shadow.items() if key.startswith(f"{name}.")}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside the target, then rename: a kill leaves the old checkpoint whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The saved state, or None where training starts afresh."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None
