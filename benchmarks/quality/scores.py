"""How well pictures answer prompts: text alignment, likeness and drift, a figure for every picture."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparse_core.demo.judge import NOTHING, Judge
from sparse_core.demo.world import FURTHER, PLACES, Scene

from .concepts import WORD, Asked, Studio, Task
from .recogniser import Recogniser, patch

SHIFTS = (-4, -2, 0, 2, 4)
"""Pixels by which a picture may be off without being less like the right answer."""
FURTHEST = -1.0
"""The least that closeness can be: a picture further off than this is no worse."""


@dataclass(frozen=True)
class Answers:
    """One entry a picture."""

    hits: list[int]
    """Attributes seen as asked."""
    asked: list[int]
    """Attributes asked."""
    recognised: list[float]
    """Certainty of the recogniser, 0..1."""
    closeness: list[float]
    """1 is the right answer's very pixels, 0 as far off as a wrong answer."""


class Scorer:
    """Scores pictures of one studio's tasks."""

    def __init__(self, judge: Judge, studio: Studio, recogniser: Callable[[str], Recogniser]) -> None:
        """
        :param recogniser: kind of task to who recognises what is taught.
        """
        self.judge, self.studio, self.recogniser = judge, studio, recogniser

    def answers(self, task: Task, asked: Sequence[Asked], pictures: np.ndarray) -> Answers:
        """Scores of pictures, uint8 (n, h, w, 3), for their prompts."""
        truths = [self.studio.render(one.scene, task) for one in asked]
        seen = self._seen(task, asked, pictures)
        if task.kind == "style":  # what the judge can't see in the right answer says nothing
            visible = self._seen(task, asked, np.stack([truth.picture for truth in truths]))
            seen = [{n: hit for n, hit in one.items() if right[n]} for one, right in zip(seen, visible, strict=True)]
        wrong = self.wrong(task, asked)
        masks = [mask_of(task, one.scene, truth.masks) for one, truth in zip(asked, truths, strict=True)]
        views = [
            patch(picture, mask) if task.kind == "concept" else picture
            for picture, mask in zip(pictures, masks, strict=True)
        ]
        closeness = [
            max(FURTHEST, 1 - distance(picture, truth.picture, mask) / distance(other, truth.picture, mask))
            for picture, truth, other, mask in zip(pictures, truths, wrong, masks, strict=True)
        ]
        return Answers(
            hits=[sum(one.values()) for one in seen],
            asked=[len(one) for one in seen],
            recognised=self.recogniser(task.kind).certainty(np.stack(views), task.name),
            closeness=closeness,
        )

    def _seen(self, task: Task, asked: Sequence[Asked], pictures: np.ndarray) -> list[dict[str, bool]]:
        readings = self.judge.read(pictures)
        return [attributes(task, one.scene, reading) for one, reading in zip(asked, readings, strict=True)]

    def right(self, task: Task, asked: Sequence[Asked]) -> np.ndarray:
        """Known good pictures: the very scenes asked for."""
        return np.stack([self.studio.render(one.scene, task).picture for one in asked])

    def wrong(self, task: Task, asked: Sequence[Asked]) -> np.ndarray:
        """Known bad pictures: the same scenes with another thing in the taught one's place, or in the world's style."""
        rng = random.Random(task.name)
        world = self.studio.world(task)
        return np.stack([world.render(_with_another(one.scene, rng)).picture for one in asked])

    def overfitted(self, task: Task, asked: Sequence[Asked]) -> np.ndarray:
        """What a method draws that has learnt its lessons by heart: one of them whatever is asked."""
        lessons = [lesson.rendering.picture for lesson in self.studio.lessons(task)]
        return np.stack([lessons[number % len(lessons)] for number in range(len(asked))])


def _with_another(scene: Scene, rng: random.Random) -> Scene:
    other = rng.choice(tuple(FURTHER))
    return replace(scene, things=tuple(replace(t, word=other) if t.word == WORD else t for t in scene.things))


def attributes(task: Task, scene: Scene, seen: Mapping[str, str]) -> dict[str, bool]:
    """Which asked attributes a judge saw. What the taught word looks like is likeness and no matter of the text."""
    occupied = {place for place in PLACES if seen[f"thing {place}"] != NOTHING}
    found = {"scene": seen["scene"] == scene.scene, "places": occupied == {thing.place for thing in scene.things}}
    if task.kind == "concept":
        found["style"] = seen["style"] == scene.style
    for thing in scene.things:
        found[f"size {thing.place}"] = seen[f"size {thing.place}"] == thing.size
        if thing.word != WORD:
            found[f"thing {thing.place}"] = seen[f"thing {thing.place}"] == thing.word
        # A style may well take the colours away: they are not held against it.
        if thing.colour and task.kind == "concept":
            found[f"colour {thing.place}"] = seen[f"colour {thing.place}"] == thing.colour
    return found


def mask_of(task: Task, scene: Scene, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Where likeness is measured, float32 (h, w): the taught thing, or all of a picture in a taught style."""
    if task.kind == "style":
        return np.ones_like(masks[0])
    return masks[next(number for number, thing in enumerate(scene.things) if thing.word == WORD)]


def distance(made: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Mean grey levels between two pictures inside a mask, at the best of a few small shifts: (h, w, 3) twice, (h, w)."""
    rim = max(SHIFTS)
    made = np.pad(made.astype(np.float32), ((rim, rim), (rim, rim), (0, 0)), mode="edge")
    height, width = mask.shape
    weight = mask[..., None] / max(3 * float(mask.sum()), 1e-6)

    def at(y: int, x: int) -> float:
        moved = made[rim + y : rim + y + height, rim + x : rim + x + width]
        return float((np.abs(moved - truth) * weight).sum())

    return min(at(y, x) for y, x in itertools.product(SHIFTS, SHIFTS))


def drift(made: np.ndarray, base: np.ndarray) -> dict[str, list[Any]]:
    """Grey levels that every picture moved, and which stayed within one grey level: (n, h, w, 3) twice."""
    moved = np.abs(made.astype(np.int16) - base.astype(np.int16))
    return {
        "drift": moved.mean(axis=(1, 2, 3)).tolist(),
        "unchanged": (moved.max(axis=(1, 2, 3)) <= 1).tolist(),
    }


def check(good: Answers, bad: Answers) -> None:
    """A score that can't tell the right answer from a wrong one measures nothing.

    :raises ValueError: likeness does not tell known good pictures from known bad ones.
    """
    for name in ("recognised", "closeness"):
        high, low = (float(np.mean(getattr(answers, name))) for answers in (good, bad))
        if high < low + 0.5:
            raise ValueError(
                f"The likeness score is of no use here: {name} is {high:.2f} for right answers and {low:.2f} for wrong ones."
            )
