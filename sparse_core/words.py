"""Taught words: what a training has added to the meaning of a word, where text encoders read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

Words = Mapping[str, Mapping[int, Tensor]]
"""For each word what is added to the embeddings of its tokens, (tokens, width), by the width of the text encoder that reads
them: SDXL has two, of different widths."""


def occurrences(tokens: Sequence[object], word: Sequence[object]) -> list[int]:
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


def times(words: Words, weight: float) -> Words:
    """A part of what was learnt, or more than it; 0 leaves no word taught."""
    if weight == 0:
        return {}
    return {word: {width: shift * weight for width, shift in shifts.items()} for word, shifts in words.items()}


def together(several: Iterable[Words]) -> Words:
    """What several dictionaries have taught: it adds up, as the updates of atoms do.

    :raises ValueError: a word was learnt with different text encoders or tokenizers.
    """
    joined: dict[str, Mapping[int, Tensor]] = {}
    for word, shifts in (entry for words in several for entry in words.items()):
        known = joined.get(word)
        if known is None:
            joined[word] = shifts
            continue
        shapes, theirs = ({width: tuple(shift.shape) for width, shift in each.items()} for each in (known, shifts))
        if shapes != theirs:
            raise ValueError(
                f"The word {word!r} was learnt in two ways, as {shapes} and as {theirs} (tokens, width); expected "
                "dictionaries that were trained with the same text encoders."
            )
        joined[word] = {width: known[width] + shift for width, shift in shifts.items()}
    return joined
