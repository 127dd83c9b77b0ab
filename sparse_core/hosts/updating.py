"""Low-rank updates of a UNet's modules outside the attentions, on activations, for any UNet of torch modules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from ..plan import Plan, Run

TRANSFORMER = re.compile(r"(.+\.attentions\.\d+)\..+")
"""A module inside a transformer, whose tokens are the places of the transformer's input."""


def weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of a linear or convolution module's weight, in whatever form it is stored; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d):
        return module.out_channels, module.in_channels // module.groups, *module.kernel_size
    return None


def weight_shapes(modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shapes of all linear and convolution modules."""
    return {name: shape for name, module in modules.items() if (shape := weight_shape(module)) is not None}


def check_modules(plan: Plan, modules: Mapping[str, nn.Module]) -> None:
    """
    :raises ValueError: the model lacks a module that the plan updates, or has it in another shape.
    """
    for name, module in plan.modules.items():
        expected = (module.up.shape[1], *module.down.shape[1:])
        found = weight_shape(modules[name]) if name in modules else None
        if found != expected:
            raise ValueError(
                f"This dictionary holds a LoRA's update of {name} with shape {expected}; the model's is {found}. It was "
                "imported for another model: load the LoRA again with this one."
            )


@contextmanager
def updating(plan: Plan, modules: Mapping[str, nn.Module], run: Callable[[], Run]) -> Iterator[None]:
    """Adds the plan's updates to what the modules give, while the context lasts.

    :param modules: by host-neutral name.
    :param run: the model call under way.
    """
    grids: dict[str, tuple[int, int]] = {}

    def note_grid(transformer: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            grids[transformer] = tuple(args[0].shape[-2:])

        return hook

    def update(name: str, transformer: str | None) -> Callable:
        def hook(module: nn.Module, args: tuple, y: Tensor) -> Tensor:
            grid = tuple(y.shape[-2:]) if y.ndim == 4 else grids.get(transformer)
            return run().module(name, y, lambda weight: project(module, args[0], weight), grid)

        return hook

    transformers = {name: match[1] for name in plan.modules if (match := TRANSFORMER.fullmatch(name))}
    with ExitStack() as undo:
        for transformer in set(transformers.values()):
            undo.callback(modules[transformer].register_forward_pre_hook(note_grid(transformer)).remove)
        for name in plan.modules:
            undo.callback(modules[name].register_forward_hook(update(name, transformers.get(name))).remove)
        yield


def project(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the module would give with another weight and no bias."""
    if weight.ndim == 2:
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
