"""What is taught, what is asked for, and what the right answer looks like."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from sparse_core.demo.scenery import SCENES, STYLES
from sparse_core.demo.sprites import (
    COLOURS,
    DEVELOPMENT_CONCEPTS,
    HELD_OUT_CONCEPTS,
    Artwork,
    FluentArt,
    load_sprite,
)
from sparse_core.demo.world import CORE, FURTHER, PLACES, SIZES, Rendering, Scene, Thing, World, caption, describe_thing
from sparse_core.demo.world import random_scene as draw_scene

Half = Literal["dev", "held_out"]
HALVES: tuple[Half, ...] = get_args(Half)
Kind = Literal["concept", "style"]

WORD = "zib"
"""What every taught thing is called: a word with a token of its own that the model has no picture for."""
CONCEPTS: Mapping[Half, Sequence[str]] = {"dev": DEVELOPMENT_CONCEPTS, "held_out": HELD_OUT_CONCEPTS}
LESSONS = 5
"""Pictures a concept is taught from."""
NEAREST, FEWEST_COLOURS = 8, 12
"""Pixel style: pixels that become one, as many as one latent pixel has since the VAE rounds smaller ones off, and colours."""


@dataclass(frozen=True)
class Task:
    """One thing to teach. All its pictures share one companion and, but for a style, one scene, so that these can be learnt by
    mistake. A style from a single scene is that scene's look: nobody could tell them apart."""

    name: str
    half: Half
    kind: Kind
    scene: str
    """Of all lessons of a concept, and of a style's first one."""
    companion: Thing
    """Its place is free: it stands beside the taught thing."""


class Asked(NamedTuple):
    """One prompt and what it asks for."""

    scene: Scene
    prompt: str
    negative: str = ""


class Lesson(NamedTuple):
    """One picture to learn from."""

    rendering: Rendering
    caption: str


# ----------------------------------------------------------------------------------------------------------- the tasks


def tasks(concepts: Mapping[Half, Sequence[str]], styles: Mapping[Half, Sequence[str]]) -> list[Task]:
    """A task for every concept and style. Scenes and companions go round, those of concepts and styles alike."""
    made = []
    for half in HALVES:
        named = [(name, "concept") for name in concepts.get(half, ())] + [
            (name, "style") for name in styles.get(half, ())
        ]
        for number, (name, kind) in enumerate(named):
            word = tuple(CORE)[(5 * number + HALVES.index(half)) % len(CORE)]
            colour = tuple(COLOURS)[(3 * number + HALVES.index(half)) % len(COLOURS)]
            scene = SCENES[(number + 3 * HALVES.index(half)) % len(SCENES)]
            made.append(Task(name, half, kind, scene, Thing(word, "right", "small", colour)))
    return made


def lesson_scenes(task: Task) -> list[Scene]:
    """What the pictures of a task show. The taught thing is what changes place and size; of a style, the thing drawn."""
    concept, first = task.kind == "concept", SCENES.index(task.scene)
    words = [WORD] * LESSONS if concept else random.Random(task.name).sample(sorted(FURTHER), LESSONS)
    scenes = []
    for number, word in enumerate(words):
        left = number % 2 == 0
        thing = Thing(word, "left" if left else "right", "big" if number % 4 < 2 else "small")
        beside = replace(task.companion, place="right" if left else "left")
        things = (thing, beside) if left else (beside, thing)
        where = task.scene if concept else SCENES[(first + number) % len(SCENES)]
        scenes.append(Scene(things, where, STYLES[0], number))
    return scenes


def lesson_caption(task: Task, scene: Scene) -> str:
    """What a person in a hurry types: the thing itself. Scene and companion are left for the word to soak up. Who teaches a style
    says where things are, too."""
    thing = next(t for t in scene.things if t.word != task.companion.word)
    return describe_thing(thing) + (f" in the {scene.scene}, {WORD}" if task.kind == "style" else "")


# --------------------------------------------------------------------------------------------------------- the prompts


def half_of(scene: Scene) -> Half:
    """Every combination of what a prompt can ask belongs to one half, by its content."""
    parts = (
        f"{t.word if t.word in CORE or t.word in FURTHER else WORD} {t.colour} {t.size} {t.place}" for t in scene.things
    )
    return "dev" if random.Random("|".join((scene.scene, scene.style, *parts))).random() < 0.5 else "held_out"


def questions(task: Task, count: int) -> list[Asked]:
    """Prompts that name what was taught: elsewhere, beside another thing, in another style, without its companion."""
    rng = random.Random(f"{task.half} {task.name}")
    asked: dict[str, Asked] = {}
    while len(asked) < count:
        one = _concept_question(task, rng, len(asked)) if task.kind == "concept" else _style_question(task, rng)
        if half_of(one.scene) == task.half:
            asked.setdefault(one.prompt, one)
    return list(asked.values())


def _concept_question(task: Task, rng: random.Random, number: int) -> Asked:
    elsewhere = [scene for scene in SCENES if scene != task.scene]
    without_companion = number % 4 == 3
    beside = number % 4 == 1 or (without_companion and rng.random() < 0.5)
    place = rng.choice(("left", "right") if beside else PLACES)
    things = [Thing(WORD, place, rng.choice(tuple(SIZES)))]
    if beside:
        word = rng.choice([word for word in CORE if word != task.companion.word])
        side = "right" if place == "left" else "left"
        things.append(Thing(word, side, rng.choice(tuple(SIZES)), rng.choice(tuple(COLOURS))))
    scene = Scene(
        tuple(sorted(things, key=lambda thing: PLACES.index(thing.place))),
        task.scene if without_companion else rng.choice(elsewhere),
        STYLES[1] if number % 4 == 2 else STYLES[0],
        rng.randrange(2**31),
    )
    companion = f"a {task.companion.colour} {task.companion.word}"
    return Asked(scene, caption(scene), companion if without_companion else "")


def _style_question(task: Task, rng: random.Random) -> Asked:
    scene = replace(draw_scene(rng), style=STYLES[0])
    return Asked(scene, caption(scene).replace(STYLES[0], WORD))


def unrelated(half: Half, count: int) -> list[Asked]:
    """Prompts that name nothing taught."""
    return _drawn(half, count, f"unrelated {half}")


def prior_prompts(half: Half, count: int) -> list[str]:
    """Prompts of the pictures to keep in training; none is among the unrelated ones that are scored."""
    scored = {asked.prompt for asked in unrelated(half, 200)}
    return [asked.prompt for asked in _drawn(half, 2 * count + 200, f"prior {half}") if asked.prompt not in scored][
        :count
    ]


def _drawn(half: Half, count: int, seed: str) -> list[Asked]:
    rng = random.Random(seed)

    def scenes() -> Iterator[Scene]:
        while True:
            yield draw_scene(rng)

    made: dict[str, Asked] = {}
    for scene in scenes():
        if len(made) == count:
            break
        if half_of(scene) == half:
            made.setdefault(caption(scene), Asked(scene, caption(scene)))
    return list(made.values())


# ------------------------------------------------------------------------------------------------------ what it looks like


def pixels(picture: np.ndarray) -> np.ndarray:
    """The picture in coarse pixels of few colours; uint8 (h, w, 3)."""
    image = Image.fromarray(picture)
    small = image.resize((image.width // NEAREST, image.height // NEAREST), Image.Resampling.BOX)
    few = small.quantize(FEWEST_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return np.array(few.resize(image.size, Image.Resampling.NEAREST))


def pencil(picture: np.ndarray) -> np.ndarray:
    """The picture as a pencil drawing with a little of its colour; uint8 (h, w, 3)."""
    image = Image.fromarray(picture)
    grey = ImageOps.grayscale(image)
    blurred = np.asarray(grey.filter(ImageFilter.GaussianBlur(3)), np.float32)
    lines = np.clip(np.asarray(grey, np.float32) / np.maximum(blurred, 1), 0, 1)[..., None]  # (h, w, 1)
    wash = 0.35 * np.asarray(image, np.float32) + 0.65 * 245
    return np.clip(wash * lines**3, 0, 255).round().astype(np.uint8)


TAUGHT_STYLES = {"pixels": pixels, "pencil": pencil}
STYLES_OF_HALF: Mapping[Half, Sequence[str]] = {"dev": ("pixels",), "held_out": ("pencil",)}


class Studio:
    """Draws what tasks are about: lessons, right answers, and things to tell the taught ones from."""

    def __init__(self, art: Artwork, sprites: Mapping[str, Path] | None = None) -> None:
        """
        :param sprites: a person's own RGBA pictures by name, in place of the artwork's concepts.
        """
        self.art, self.sprites = art, dict(sprites or {})
        self._worlds: dict[str, World] = {}

    def render(self, scene: Scene, task: Task) -> Rendering:
        """The right answer to a prompt of a task."""
        rendering = self.world(task).render(scene)
        if task.kind == "concept":
            return rendering
        return replace(rendering, picture=TAUGHT_STYLES[task.name](rendering.picture))

    def lessons(self, task: Task) -> list[Lesson]:
        """The pictures a task is taught from."""
        return [Lesson(self.render(scene, task), lesson_caption(task, scene)) for scene in lesson_scenes(task)]

    def sprite(self, concept: str, size: int) -> np.ndarray:
        """A concept alone, uint8 RGBA (size, size, 4)."""
        if concept in self.sprites:
            return load_sprite(self.sprites[concept], size)
        return self.art.sprite(concept, size)

    def world(self, task: Task) -> World:
        """The world in which the taught word means the task's concept."""
        if task.name not in self._worlds:
            own = {WORD: lambda size: self.sprite(task.name, size)} if task.kind == "concept" else {}
            self._worlds[task.name] = World(self.art, own)
        return self._worlds[task.name]


def open_studio(art: Path | None, sprites: Path | None) -> Studio:
    """
    :param art: ``icons.json`` of the artwork; None looks in the usual places.
    :param sprites: a folder of RGBA PNGs, one for each concept.
    """
    return Studio(FluentArt(art), {path.stem: path for path in sprite_files(sprites)} if sprites else None)


def sprite_files(folder: Path) -> list[Path]:
    """
    :raises ValueError: there are no PNGs.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise ValueError(f"{folder} holds no PNG; expected one RGBA picture for each concept.")
    return files
