"""Pictures to train on: renders of the world, and collages of artwork that has no place in it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from .scenery import SIDE
from .sprites import Artwork
from .world import Rendering, Scene, World, held_out, random_scene


def collage(art: Artwork, names: Sequence[str], rng: random.Random) -> np.ndarray:
    """Two to six drawings, 48 to 96 pixels, turned a little, on a gradient; uint8 RGB (128, 128, 3)."""
    corners = np.array([[rng.randrange(256) for _ in range(3)] for _ in range(4)], np.uint8).reshape(2, 2, 3)
    sheet = Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    for _ in range(rng.randint(2, 6)):
        size = rng.randint(48, 96)
        drawing = Image.fromarray(np.array(art.sprite(rng.choice(names), size)))
        if rng.random() < 0.5:
            drawing = drawing.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
        corner = tuple(rng.randint(-size // 3, SIDE - 2 * size // 3) for _ in range(2))
        sheet.paste(drawing, corner, drawing)
    return np.array(sheet)


def collages(art: Artwork, names: Sequence[str], count: int, seed: int) -> np.ndarray:
    """uint8 (count, 128, 128, 3)"""
    rng = random.Random(seed)
    return np.stack([collage(art, names, rng) for _ in tqdm(range(count), "collages", leave=False)])


def training_scenes(count: int, seed: int, **shares: float) -> list[Scene]:
    """Scenes whose combination is not kept for evaluation."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, **shares)
        if not held_out(scene):
            scenes.append(scene)
    return scenes


def evaluation_scenes(count: int, seed: int, **shares: float) -> list[Scene]:
    """Scenes whose combination no training has seen."""
    rng = random.Random(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, **shares)
        if held_out(scene):
            scenes.append(scene)
    return scenes


def render_all(world: World, scenes: Sequence[Scene]) -> list[Rendering]:
    return [world.render(scene) for scene in tqdm(scenes, "rendering", leave=False)]
