"""Taught words: what a training has added to the meaning of a word, where text encoders read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

Shifts = Mapping[int, Tensor]
"""What is added to the embeddings of a word's tokens, (tokens, width), by the width of the text encoder that reads them: SDXL
has two, of different widths."""
Words = Mapping[str, Shifts]
"""What was learnt, by word."""
SAME = 0.999
"""The least cosine at which two shifts of a word count as one and the same, with other weights."""


class Reading(NamedTuple):
    """How one text encoder reads a word."""

    tokens: Sequence[int]
    embedding: nn.Module
    """Tokens to (rows, tokens, width)."""

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.embedding.weight.shape[1]


class OpenWord(NamedTuple):
    """A word whose meaning is being learnt."""

    shifts: Shifts
    """0 at first."""
    spread: Mapping[int, float]
    """Root mean square of all words' embeddings, by width."""


def occurrences(tokens: Sequence[int], word: Sequence[int]) -> list[int]:
    """Where a word's tokens stand in a prompt, one after the other: the place of the first. Occurrences do not overlap.

    :param word: at least one token.
    """
    found, start = [], 0
    while start <= len(tokens) - len(word):
        if list(tokens[start : start + len(word)]) == list(word):
            found.append(start)
            start += len(word)
        else:
            start += 1
    return found


# ------------------------------------------------------------------------------------------------------------- reading


@contextmanager
def speaking(words: Words, read: Callable[[str], Sequence[Reading]]) -> Iterator[None]:
    """Text encoders that read words as they were taught, while the context lasts. Shifts are read in every call, and gradients
    reach them.

    :param read: how the encoders read a word.
    :raises ValueError: a word was learnt with other text encoders.
    """
    with ExitStack() as undo:
        for word, shifts in words.items():
            readings = read(word)
            _check_fits(word, shifts, readings)
            for reading in readings:
                shifting = _Shifting(reading.tokens, shifts[reading.width])
                undo.callback(reading.embedding.register_forward_hook(shifting).remove)
        yield


def opened(word: str, readings: Sequence[Reading], device: torch.device) -> OpenWord:
    """The word at the start of its learning."""
    return OpenWord(
        {r.width: torch.zeros(len(r.tokens), r.width, device=device, requires_grad=True) for r in readings},
        {r.width: float(r.embedding.weight.float().square().mean().sqrt()) for r in readings},
    )


def _check_fits(word: str, shifts: Shifts, readings: Sequence[Reading]) -> None:
    learnt = {width: len(shift) for width, shift in shifts.items()}
    found = {reading.width: len(reading.tokens) for reading in readings}
    if learnt != found:
        said, here = (
            " and ".join(f"{count} tokens of width {width}" for width, count in sorted(each.items())) or "none"
            for each in (learnt, found)
        )
        raise ValueError(
            f"The word {word!r} was learnt as {said}; these text encoders read it as {here}. Use those of the checkpoint it was "
            "trained on, or of one of the same family."
        )


class _Shifting:
    """Adds to the embeddings of a word's tokens wherever they stand: a forward hook."""

    def __init__(self, word: Sequence[int], shift: Tensor) -> None:
        self.word, self.shift = word, shift

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        places = [
            (row, start + i, i)
            for row, tokens in enumerate(args[0].tolist())
            for start in occurrences(tokens, self.word)
            for i in range(len(self.word))
        ]
        if not places:
            return out
        rows, tokens, parts = torch.tensor(places, device=out.device).T
        return out.index_put((rows, tokens), self.shift.to(out)[parts], accumulate=True)


# ------------------------------------------------------------------------------------------------------------- joining


def times(words: Words, weight: float) -> Words:
    """A part of what was learnt, or more than it; 0 leaves no word taught."""
    if weight == 0:
        return {}
    return {word: {width: shift * weight for width, shift in shifts.items()} for word, shifts in words.items()}


def added(several: Iterable[Words]) -> Words:
    """The sum of what was learnt.

    :raises ValueError: a word was learnt with different text encoders or tokenizers.
    """
    return {word: _sum(word, learnt) for word, learnt in _by_word(several).items()}


def together(several: Iterable[Words]) -> Words:
    """What several dictionaries amount to that act together: it adds up, as the updates of atoms do. But parts of one dictionary,
    or one dictionary in two regions, all bring the same, which counts once, at its largest weight.

    :raises ValueError: a word was learnt with different text encoders or tokenizers.
    """
    distinct: dict[str, list[Shifts]] = {}
    for word, learnt in _by_word(several).items():
        kept = distinct.setdefault(word, [])
        for shifts in sorted(learnt, key=_size, reverse=True):
            if not any(_same(shifts, other) for other in kept):
                kept.append(shifts)
    return {word: _sum(word, learnt) for word, learnt in distinct.items()}


def _by_word(several: Iterable[Words]) -> dict[str, list[Shifts]]:
    found: dict[str, list[Shifts]] = {}
    for words in several:
        for word, shifts in words.items():
            found.setdefault(word, []).append(shifts)
    return found


def _sum(word: str, learnt: Sequence[Shifts]) -> Shifts:
    shapes = [{width: tuple(shift.shape) for width, shift in shifts.items()} for shifts in learnt]
    if other := next((shape for shape in shapes if shape != shapes[0]), None):
        raise ValueError(
            f"The word {word!r} was learnt in two ways, as {shapes[0]} and as {other} (tokens, width); expected dictionaries that "
            "were trained with the same text encoders."
        )
    return {width: torch.stack([shifts[width] for shifts in learnt]).sum(dim=0) for width in shapes[0]}


def _flat(shifts: Shifts) -> Tensor:
    return torch.cat([shifts[width].detach().flatten() for width in sorted(shifts)])


def _size(shifts: Shifts) -> float:
    return float(_flat(shifts).norm())


def _same(one: Shifts, other: Shifts) -> bool:
    first, second = _flat(one), _flat(other)
    return first.shape == second.shape and float(torch.cosine_similarity(first, second, dim=0)) > SAME
