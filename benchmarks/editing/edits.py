"""What is edited: a picture of the world, the same picture with one attribute changed, and the prompts of both."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from sparse_core.demo.scenery import SCENES, STYLES
from sparse_core.demo.sprites import COLOURS
from sparse_core.demo.world import CORE, FURTHER, SIZES, Scene, Thing, World, caption, random_scene

from ..quality.concepts import Half, half_of

RIM = 5
"""Width of the filter that widens an edited region, in pixels: the VAE smears edges."""


@dataclass(frozen=True)
class Edit:
    """One edit. Both pictures share what prompts leave open: where the sun stands, and that a thing which has colours of its
    own in this world has others here. That is what an edit should keep although nobody says so."""

    kind: str
    half: Half
    number: int
    source: Scene
    target: Scene

    @property
    def name(self) -> str:
        """Unique among all edits."""
        return f"{self.half}-{self.number:02}-{self.kind}"

    @property
    def prompts(self) -> tuple[str, str]:
        """Of the source and of the edited picture."""
        return caption(named(self.source)), caption(named(self.target))


def named(scene: Scene) -> Scene:
    """What prompts name of a scene: colours of those things only that come in every colour."""
    things = (thing if thing.word in CORE else replace(thing, colour=None) for thing in scene.things)
    return replace(scene, things=tuple(things))


def edits(half: Half, count: int) -> list[Edit]:
    """Edits whose pictures both belong to one half; the kinds go round."""
    rng = random.Random(f"edits {half}")
    made: list[Edit] = []
    kinds = itertools.cycle(CHANGES)
    while len(made) < count:
        kind, source, target = next(kinds), None, None
        while target is None or not half_of(source) == half_of(target) == half:
            source = _unlike_others(random_scene(rng), rng)
            target = CHANGES[kind](source, rng)
        made.append(Edit(kind, half, len(made), source, target))
    return made


def truths(world: World, edit: Edit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source and edited picture, uint8 (h, w, 3), and where nothing is to change, bool (h, w)."""
    source, target = (world.render(scene).picture for scene in (edit.source, edit.target))
    changed = Image.fromarray((source != target).any(axis=2)).convert("L").filter(ImageFilter.MaxFilter(RIM))
    return source, target, ~np.asarray(changed, bool)


def distance(made: np.ndarray, source: np.ndarray, kept: np.ndarray) -> float:
    """Mean grey levels between two pictures where nothing is to change: uint8 (h, w, 3) twice, bool (h, w)."""
    return float(np.abs(made.astype(np.float32) - source)[kept].mean())


# -------------------------------------------------------------------------------------------------- one attribute each


def _colour(scene: Scene, rng: random.Random) -> Scene | None:
    coloured = [thing for thing in scene.things if thing.word in CORE]
    if not coloured:
        return None
    thing = rng.choice(coloured)
    return _with(scene, thing, replace(thing, colour=_other(COLOURS, thing.colour, rng)))


def _thing(scene: Scene, rng: random.Random) -> Scene:
    thing = rng.choice(scene.things)
    if thing.word in CORE:
        return _with(scene, thing, replace(thing, word=_other(CORE, thing.word, rng)))
    return _with(scene, thing, replace(thing, word=_other(FURTHER, thing.word, rng), colour=None))


def _scene(scene: Scene, rng: random.Random) -> Scene | None:
    return replace(scene, scene=_other(SCENES, scene.scene, rng)) if _has_much_to_keep(scene) else None


def _style(scene: Scene, rng: random.Random) -> Scene | None:
    return replace(scene, style=_other(STYLES, scene.style, rng)) if _has_much_to_keep(scene) else None


def _add(scene: Scene, rng: random.Random) -> Scene | None:
    (there, *others) = scene.things
    if others or there.place == "middle":
        return None
    place = "right" if there.place == "left" else "left"
    new = Thing(rng.choice(tuple(CORE)), place, rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS)))
    return replace(scene, things=(there, new) if there.place == "left" else (new, there))


def _remove(scene: Scene, rng: random.Random) -> Scene | None:
    return replace(scene, things=(rng.choice(scene.things),)) if len(scene.things) == 2 else None


CHANGES: Mapping[str, Callable[[Scene, random.Random], Scene | None]] = {
    "colour": _colour,
    "thing": _thing,
    "scene": _scene,
    "style": _style,
    "add": _add,
    "remove": _remove,
}
"""Kinds of edits: from a scene to the edited one, or None where it can't be."""


def _unlike_others(scene: Scene, rng: random.Random) -> Scene:
    def own(thing: Thing) -> Thing:
        return thing if thing.word in CORE else replace(thing, colour=rng.choice(tuple(COLOURS)))

    return replace(scene, things=tuple(own(thing) for thing in scene.things))


def _has_much_to_keep(scene: Scene) -> bool:
    """Where all around changes, what stays is a thing in colours that only this picture knows."""
    return any(thing.word in FURTHER and thing.size == "big" for thing in scene.things)


def _other(options: Iterable[str], present: str | None, rng: random.Random) -> str:
    return rng.choice([option for option in options if option != present])


def _with(scene: Scene, old: Thing, new: Thing) -> Scene:
    return replace(scene, things=tuple(new if thing is old else thing for thing in scene.things))
