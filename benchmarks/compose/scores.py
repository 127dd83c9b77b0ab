"""Whether both taught things are there, each where it was asked for, and whether the rest of the prompt was obeyed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparse_core.demo.judge import Judge

from ..quality.concepts import TAUGHT_STYLES, WORD, Asked, Studio, Task
from ..quality.recogniser import Recogniser, Sample, patch, thing_samples
from ..quality.scores import attributes
from .pairs import SECOND, Pair, render

CERTAIN = 0.5
"""Probability above which a recogniser has seen something."""


@dataclass(frozen=True)
class Answers:
    """One entry a picture."""

    present: list[bool]
    """Both taught things are seen, concepts at their own places."""
    obeyed: list[bool]
    """Scene, places and sizes, and with two concepts the style, are as asked."""
    crossed: list[list[bool]]
    """For each of two concepts' places, whether the other one is seen there; empty with a style."""

    def both_present_and_obeyed(self) -> list[bool]:
        """Pictures in which everything is right."""
        return [present and obeyed for present, obeyed in zip(self.present, self.obeyed, strict=True)]


class PairScorer:
    """Scores pictures of one studio's pairs."""

    def __init__(self, judge: Judge, studio: Studio, recogniser: Callable[[str], Recogniser]) -> None:
        """
        :param recogniser: kind of task to who recognises what is taught.
        """
        self.judge, self.studio, self.recogniser = judge, studio, recogniser

    def answers(self, pair: Pair, asked: Sequence[Asked], pictures: np.ndarray) -> Answers:
        """Scores of pictures, uint8 (n, h, w, 3), for their prompts."""
        names = {word: task.name for word, task in zip((WORD, SECOND), pair.tasks, strict=True)}
        own = self._seen(pair, asked, pictures, names)
        present = [all(places) for places in own]
        crossed: list[list[bool]] = [[] for _ in asked]
        if pair.kind == "concept":
            crossed = self._seen(pair, asked, pictures, {WORD: names[SECOND], SECOND: names[WORD]})
        else:
            style = self.recogniser("style").certainty(pictures, pair.second.name)
            present = [there and p > CERTAIN for there, p in zip(present, style, strict=True)]
        readings = self.judge.read(pictures)
        obeyed = [all(_attributes(pair, one, seen).values()) for one, seen in zip(asked, readings, strict=True)]
        return Answers(present, obeyed, crossed)

    def _seen(
        self, pair: Pair, asked: Sequence[Asked], pictures: np.ndarray, names: dict[str, str]
    ) -> list[list[bool]]:
        """For every picture and every taught thing's place, whether a concept is there; word to the concept looked for."""
        seen = []
        for one, picture in zip(asked, pictures, strict=True):
            masks = render(self.studio, pair, one.scene).masks
            seen.append(
                [
                    self.recogniser("concept").certainty(patch(picture, mask)[None], names[thing.word])[0] > CERTAIN
                    for thing, mask in zip(one.scene.things, masks, strict=True)
                ]
            )
        return seen


def _attributes(pair: Pair, asked: Asked, seen: dict[str, str]) -> dict[str, bool]:
    """What the judge saw as asked; what taught things look like is none of its business."""
    things = tuple(replace(thing, word=WORD) for thing in asked.scene.things)
    return attributes(pair.second, replace(asked.scene, things=things), seen)


def styled_samples(studio: Studio, tasks: Sequence[Task], seed: int) -> Iterator[Sample]:
    """Things to recognise, two thirds of them in a taught style: a concept has to be known in it, too."""
    rng = random.Random(seed)
    for sample in thing_samples(studio, tasks, seed):
        style = rng.choice((None, *TAUGHT_STYLES))
        yield sample._replace(picture=TAUGHT_STYLES[style](sample.picture)) if style else sample
