"""Readers of what is given on the command line, for argparse."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

LARGEST_SEED = 2**63 - 1
"""As in the nodes; torch's generators take no more than twice that."""


def seed(text: str) -> int:
    """A seed of random numbers."""
    number = int(text)
    if not 0 <= number <= LARGEST_SEED:
        raise argparse.ArgumentTypeError(f"{text} is out of range; expected a number from 0 to {LARGEST_SEED}")
    return number


def some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of comma-separated choices."""

    def read(text: str) -> tuple[str, ...]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in choices]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; expected some of {','.join(choices)}")
        return tuple(chosen)

    return read


def width_and_height(text: str) -> tuple[int, int]:
    """``512x768`` as two numbers."""
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected WIDTHxHEIGHT such as 512x768") from None
    return width, height
