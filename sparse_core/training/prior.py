"""Prior pictures: what the model itself draws for prompts that don't name the new thing, so that it goes on doing so."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..examples import Example
from ..hosts.base import Host
from ..sampling import sample

PICTURES = 16
"""As many are drawn at least."""


def shared_out(prompts: Sequence[Any], sizes: int) -> list[list[Any]]:
    """Which prompts to draw at each size: all in turn, so that each serves at least once and there are enough pictures."""
    share = math.ceil(max(PICTURES, len(prompts)) / sizes)
    turns = itertools.cycle(prompts)
    return [list(itertools.islice(turns, share)) for _ in range(sizes)]


def prior_examples(
    host: Host,
    conditions: Sequence[Any],
    negative: Any,
    shape: tuple[int, int, int],
    *,
    count: int,
    batch: int = 4,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Draws ``count`` pictures for conditions in turn.

    :param conditions: the host's, of single prompts; ``negative`` the one of the empty prompt.
    :param shape: (channels, height, width) of the latents.
    :param on_step: called after every sampling step; may raise to stop.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = list(itertools.islice(itertools.cycle(conditions), count))
    examples = []
    for start in range(0, count, batch):
        group = chosen[start : start + batch]
        latents = sample(
            host,
            host.stack_conditions(group),
            torch.randn((len(group), *shape), generator=generator).to(host.device),
            negative=host.stack_conditions([negative] * len(group)),
            on_step=on_step,
        )
        # Where the pictures to learn from lie: a batch stacks both.
        examples += [Example(one, condition, prior=True) for one, condition in zip(latents.cpu(), group, strict=True)]
    return examples
