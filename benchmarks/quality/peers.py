"""The other methods, as modules that stand in for some of the UNet's while they are at work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_core.hosts.base import Host

from ..models import TARGETS

BOTTLENECKED = ("attn1.to_out.0", "attn2.to_out.0", "ff")
"""What an Adapter follows in every transformer block (Houlsby et al. 2019, arXiv 1902.00751)."""


class StandInLearner:
    """Trainable modules, each in the place of one of the UNet's. Implements `Learner`. The UNet is never changed
    outside `at_work`."""

    def __init__(self, host: Any, stand_ins: Mapping[str, nn.Module], rate: float) -> None:
        """
        :param stand_ins: module's name to a module that holds the original as ``base_layer``.
        """
        self.unet: nn.Module = host.unet
        self.stand_ins = dict(stand_ins)
        self.rate = rate
        self._learnt = {
            f"{name}.{part}": parameter
            for name, module in self.stand_ins.items()
            for part, parameter in module.named_parameters()
            if not part.startswith("base_layer.")
        }

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return self._learnt

    def buffers(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {}

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        return self.rate

    @contextmanager
    def at_work(self, prior: Tensor | None = None, strength: float = 1.0) -> Iterator[None]:
        """See `Learner`. The strength slider goes from the original's output to the stand-in's, and beyond."""
        originals = {name: self.unet.get_submodule(name) for name in self.stand_ins}
        try:
            for name, module in self.stand_ins.items():
                put(self.unet, name, module if strength == 1 else Blend(module, strength))
            yield
        finally:
            for name, module in originals.items():
                put(self.unet, name, module)

    def penalty(self) -> float:
        """See `Learner`."""
        return 0.0

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """See `Learner`."""
        return []


class Blend(nn.Module):
    """``base(x) + strength (stand_in(x) - base(x))``: for a LoRA, its scale."""

    def __init__(self, stand_in: nn.Module, strength: float) -> None:
        super().__init__()
        self.stand_in, self.strength = stand_in, strength

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.lerp(self.stand_in.base_layer(*args, **kwargs), self.stand_in(*args, **kwargs), self.strength)


class Bottleneck(nn.Module):
    """``y + up(gelu(down(y)))`` after a module; ``up`` starts at 0."""

    def __init__(self, base_layer: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(*args, **kwargs)
        return y + self.up(nn.functional.gelu(self.down(y)))


def bottlenecks(host: Host, rank: int) -> dict[str, nn.Module]:
    """An Adapter's modules for a UNet."""
    unet: nn.Module = host.unet  # type: ignore[attr-defined]
    made = {}
    for block_name, block in unet.named_modules():
        if type(block).__name__ == "BasicTransformerBlock":
            width = block.norm1.normalized_shape[0]
            made |= {f"{block_name}.{p}": Bottleneck(block.get_submodule(p), width, rank) for p in BOTTLENECKED}
    return made


def peft_layers(host: Host, config: Any) -> dict[str, nn.Module]:
    """peft's layers for the projections of every attention. The UNet gets its own modules back at once."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    unet: nn.Module = host.unet  # type: ignore[attr-defined]
    config.target_modules = set(TARGETS)
    asked = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    inject_adapter_in_model(config, unet, "peer")
    layers = {name: module for name, module in unet.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        put(unet, name, layer.base_layer)
    for parameter, flag in asked:
        parameter.requires_grad_(flag)
    del unet.peft_config  # peft's note of what it has done
    return layers


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Sets a module by its dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(root.get_submodule(parent), child, module)
