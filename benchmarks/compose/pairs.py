"""Which taught things meet, what is asked of both, and what the right answer looks like."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparse_core.demo.scenery import SCENES, STYLES
from sparse_core.demo.world import PLACES, SIZES, Rendering, Scene, Thing, World, caption

from ..quality.concepts import HALVES, TAUGHT_STYLES, WORD, Asked, Half, Kind, Studio, Task, half_of

SECOND = "moko"
"""What the second of two taught things is called; like `WORD`, a token of its own without a picture. Nothing is learnt of a
token but its embedding, so what was taught as one word can be spoken as the other."""


@dataclass(frozen=True)
class Pair:
    """A concept, called `WORD`, and another concept or a style, called `SECOND`."""

    first: Task
    second: Task

    @property
    def tasks(self) -> tuple[Task, Task]:
        """Both, in the order of their words."""
        return self.first, self.second

    @property
    def half(self) -> Half:
        """Both belong to it."""
        return self.first.half

    @property
    def kind(self) -> Kind:
        """What the concept is joined with."""
        return self.second.kind

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.first.name} + {self.second.name}"


def pairs(tasks: Sequence[Task], count: int) -> list[Pair]:
    """Of each half the first ``count`` pairs, those with a concept and those with a style in turn."""
    chosen: list[Pair] = []
    for half in HALVES:
        concepts, styles = ([t for t in tasks if t.half == half and t.kind == kind] for kind in ("concept", "style"))
        both = itertools.zip_longest(itertools.combinations(concepts, 2), itertools.product(concepts, styles))
        chosen += [Pair(*two) for two in itertools.chain.from_iterable(both) if two][:count]
    return chosen


def questions(pair: Pair, count: int) -> list[Asked]:
    """At most ``count`` different prompts of the pair's half, in scenes that neither was taught in."""
    if pair.kind == "concept":
        orders, sizes = itertools.permutations((WORD, SECOND)), itertools.product(SIZES, repeat=2)
        arrangements = [
            (Thing(left, "left", small), Thing(right, "right", large))
            for (left, right), (small, large) in itertools.product(orders, sizes)
        ]
    else:
        arrangements = [(Thing(WORD, place, size),) for place, size in itertools.product(PLACES, SIZES)]
    elsewhere = [scene for scene in SCENES if scene not in (pair.first.scene, pair.second.scene)]
    scenes = [
        Scene(things, scene, STYLES[0], number)
        for number, (scene, things) in enumerate(itertools.product(elsewhere, arrangements))
    ]
    mine = [scene for scene in scenes if half_of(scene) == pair.half]
    random.Random(pair.name).shuffle(mine)
    return [Asked(scene, prompt(pair, scene)) for scene in mine[:count]]


def prompt(pair: Pair, scene: Scene) -> str:
    """What is typed: a taught style stands where the world's own would."""
    return caption(scene) if pair.kind == "concept" else caption(scene).replace(STYLES[0], SECOND)


def render(studio: Studio, pair: Pair, scene: Scene) -> Rendering:
    """The right answer to a prompt."""
    concepts = {
        word: lambda size, name=task.name: studio.sprite(name, size)
        for word, task in zip((WORD, SECOND), pair.tasks, strict=True)
        if task.kind == "concept"
    }
    rendering = World(studio.art, concepts).render(scene)
    if pair.kind == "concept":
        return rendering
    return replace(rendering, picture=TAUGHT_STYLES[pair.second.name](rendering.picture))


def swapped(scene: Scene) -> Scene:
    """The scene with each of two concepts in the other's place."""
    other = {WORD: SECOND, SECOND: WORD}
    return replace(scene, things=tuple(replace(thing, word=other[thing.word]) for thing in scene.things))
