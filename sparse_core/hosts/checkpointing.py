"""Gradient checkpointing by transformer block, for any UNet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

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
                    forward: Callable = module.forward
                    module.forward = partial(checkpoint, forward, use_reentrant=False)
                    undo.callback(module.__dict__.pop, "forward")
        yield
