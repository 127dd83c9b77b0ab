"""Pictures to learn a new creature from, shipped with the package: six of each, with their captions.

python -m sparse_core.demo.lessons    renders them anew from the artwork (Fluent Emoji flat, MIT)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).with_name("lessons")

CREATURES = {"robot": "robot", "owl": "owl", "penguin": "penguin"}
"""Word in the captions to name of the drawing. The demo model was never shown any of them."""


def creatures() -> list[str]:
    """The words of the creatures that pictures are there for."""
    return [word for word in CREATURES if (FOLDER / word).is_dir()]


def load_lesson(creature: str) -> list[tuple[np.ndarray, str]]:
    """Pictures, uint8 (128, 128, 3), and captions.

    :raises FileNotFoundError: there are no pictures of it.
    """
    paths = sorted((FOLDER / creature).glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"There are no pictures of {creature!r}; there are some of {', '.join(creatures())}.")
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
        folder = FOLDER / word
        folder.mkdir(parents=True, exist_ok=True)
        for number, scene in enumerate(scenes, start=1):
            rendering = world.render(scene)
            Image.fromarray(rendering.picture).save(folder / f"{number}.png", optimize=True)
            (folder / f"{number}.txt").write_text(rendering.caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    render_lessons()
