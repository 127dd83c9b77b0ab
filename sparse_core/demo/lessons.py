"""Pictures to learn a new creature or a drawing style from, shipped with the package: six of each, with their captions.

python -m sparse_core.demo.lessons    renders the creatures anew from the artwork (Fluent Emoji flat, MIT)
python -m workflows.lessons styles    the styles
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).with_name("lessons")

CREATURES = {"robot": "robot", "owl": "owl", "penguin": "penguin"}
"""Word in the captions to name of the drawing. The demo model was never shown any of them."""

STYLES = ("pencil",)
"""Their captions tell what is drawn and not how: such a style needs no word, and the dictionary's strength says how much of it."""


def creatures() -> list[str]:
    """The words of the creatures that pictures are there for."""
    return [word for word in CREATURES if (FOLDER / word).is_dir()]


def lessons() -> list[str]:
    """Creatures, then styles."""
    return [*creatures(), *(style for style in STYLES if (FOLDER / style).is_dir())]


def load_lesson(name: str) -> list[tuple[np.ndarray, str]]:
    """Pictures, uint8 (128, 128, 3), and captions.

    :raises FileNotFoundError: there are no pictures of it.
    """
    paths = sorted((FOLDER / name).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"There are no pictures of {name!r}; there are some of {', '.join(lessons())}.")
    return [
        (np.array(Image.open(path).convert("RGB")), path.with_suffix(".txt").read_text(encoding="utf-8").strip())
        for path in paths
    ]


def render_lessons() -> None:
    """Writes the pictures. Every place, size, scene and style occurs; two pictures hold a second thing, so that the
    creature is what they have in common."""
    from .sprites import FluentArt
    from .world import Scene, Thing, World

    art = FluentArt()
    for word, drawing in CREATURES.items():
        world = World(art, {word: lambda size, drawing=drawing: art.sprite(drawing, size)})
        scenes = [
            Scene((Thing(word, "middle", "big"),), "meadow", "picture book", 1),
            Scene((Thing(word, "left", "big"), Thing("tree", "right", "small", "green")), "beach", "picture book", 2),
            Scene((Thing(word, "right", "small"),), "snow", "picture book", 3),
            Scene((Thing(word, "left", "small"),), "desert", "paper cutout", 4),
            Scene((Thing("house", "left", "small", "red"), Thing(word, "right", "big")), "sunset", "picture book", 5),
            Scene((Thing(word, "middle", "small"),), "night", "paper cutout", 6),
        ]
        renderings = [world.render(scene) for scene in scenes]
        write_lesson(word, [(rendering.picture, rendering.caption) for rendering in renderings])


def write_lesson(name: str, pictures: Sequence[tuple[np.ndarray, str]]) -> None:
    """Writes pictures, uint8 (128, 128, 3), and their captions where `load_lesson` reads them."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, caption) in enumerate(pictures, start=1):
        Image.fromarray(picture).save(folder / f"{number}.png", optimize=True)
        (folder / f"{number}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    render_lessons()
