"""What training and analysis ask of a model, whichever program runs it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from torch import Tensor, device, dtype

from ..controls import Stack
from ..layers import Layer
from ..plan import Observer
from ..words import OpenWord

Prediction = Literal["eps", "v", "flow"]


class Host(Protocol):
    """A diffusion model with attention layers."""

    layers: tuple[Layer, ...]
    """All of them, in execution order."""
    prediction: Prediction
    """What its UNet was trained to predict: decides the weight of a training loss."""
    device: device
    dtype: dtype
    """What its UNet computes in."""
    interruptions: tuple[type[BaseException], ...]
    """What a model call raises when a person cancels."""

    def add_noise(self, latents: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
        """The noisy latents that the model meets at ``progress`` of sampling, in its own scale.

        :param latents: (rows, channels, height, width), scaled as the UNet sees them.
        :param progress: (rows,) from 0, pure noise, to 1, the clean picture.
        """

    def snr(self, progress: Tensor) -> Tensor:
        """(rows,) signal-to-noise ratio at ``progress``; may be 0."""

    def denoise(self, noisy: Tensor, progress: Tensor, condition: Any, positive: bool = True) -> Tensor:
        """The estimate of the clean latents, with whatever is patched in. Gradients reach every atom.

        :param condition: what `stack_conditions` gave for these rows.
        :param positive: whether that is what guidance goes towards; atoms may act on one side alone.
        """

    def stack_conditions(self, conditions: Sequence[Any]) -> Any:
        """One batch from the conditions of single pictures."""

    def patched(self, stack: Stack, observer: Observer | None = None) -> AbstractContextManager[None]:
        """The model with a stack of adapters, while the context lasts."""

    def learning(self, word: str) -> AbstractContextManager[OpenWord]:
        """Opens the meaning of a word while the context lasts: `stack_conditions` then reads prompts anew, so that gradients
        reach it.

        :raises ValueError: the word is nothing to a tokenizer.
        """

    def trainable(self, checkpointing: bool = False) -> AbstractContextManager[None]:
        """The model made ready for gradients to pass through it: frozen weights that autograd accepts.

        :param checkpointing: recompute activations in the backward pass.
        """
