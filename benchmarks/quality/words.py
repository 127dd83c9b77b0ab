"""The taught word: its embedding is learnt beside every method, in the same way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparse_core.hosts.diffusers import Condition, DiffusersHost

EMBEDDING = "word"
"""Name of the word's embedding among the tensors of a training."""


class PromptedHost(DiffusersHost):
    """A host whose conditions are prompts, read anew for every batch: a word that is being learnt means what it means
    then, and gradients reach it."""

    def encode_prompt(self, prompt: str, size: tuple[int, int] | None = None) -> str:  # type: ignore[override]
        """The prompt itself."""
        return prompt

    def stack_conditions(self, conditions: Sequence[str]) -> Condition:  # type: ignore[override]
        """See `Host.stack_conditions`."""
        text, _ = self.pipeline.encode_prompt(list(conditions), self.device, 1, False)
        return Condition(text)

    def token(self, word: str) -> int:
        """
        :raises ValueError: the word is not one token.
        """
        tokens = self.pipeline.tokenizer(word, add_special_tokens=False).input_ids
        if len(tokens) != 1:
            raise ValueError(f"{word!r} is {len(tokens)} tokens; expected a word with a token of its own.")
        return tokens[0]

    def embedding(self, word: str) -> Tensor:
        """(width,) of a word as the model knows it."""
        return self.pipeline.text_encoder.get_input_embeddings().weight[self.token(word)].detach().clone()

    @contextmanager
    def spoken(self, word: str, row: Tensor) -> Iterator[None]:
        """The word means ``row``, (width,), while the context lasts."""
        token = self.token(word)

        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return torch.where((args[0] == token)[..., None], row.to(out.dtype), out)

        handle = self.pipeline.text_encoder.get_input_embeddings().register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class NoLearner:
    """Nothing beside the word: textual inversion. Implements `Learner`."""

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {}

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        raise KeyError(name)

    @contextmanager
    def at_work(self, prior: Any) -> Iterator[None]:
        """See `Learner`."""
        yield

    def penalty(self) -> float:
        """See `Learner`."""
        return 0.0

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """See `Learner`."""
        return []
