"""Gradient checkpointing by transformer block, for any UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed(unet: nn.Module, on: bool) -> Iterator[None]:
    """Recomputes every transformer block's activations in the backward pass, while the context lasts.

    Not the reentrant kind: it keeps the graph of what leaves a block sideways, as the coefficients do that the penalty
    reads.
    """
    with ExitStack() as undo:
        if on:
            for module in unet.modules():
                if type(module).__name__ == "BasicTransformerBlock":
                    module.forward = partial(_recomputed, module.forward)
                    undo.callback(module.__dict__.pop, "forward")
        yield


def _recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI counts its transformers in the options that it hands to all of them: by the time of the backward pass they are at
    the last one."""
    copies = {name: dict(value) if isinstance(value, dict) else value for name, value in kwargs.items()}
    return checkpoint(forward, *args, use_reentrant=False, **copies)
