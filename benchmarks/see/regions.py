"""What a picture is made of, by the renderer's masks."""

from __future__ import annotations

import numpy as np
from PIL import Image

from sparse_core.demo.world import Rendering, Scene

from ..quality.concepts import WORD

COLOURS = 4
"""Parts that a taught thing has at most."""
SMALLEST = 64
"""Pixels of a part: one latent place of the demo model, the finest that it draws."""


def regions(scene: Scene, rendering: Rendering) -> np.ndarray:
    """The parts of the taught thing, each other thing, and the background: bool (regions, h, w); each place is in one."""
    seen = [mask > 0.5 for mask in rendering.masks]
    found: list[np.ndarray] = []
    for thing, mask in zip(scene.things, seen, strict=True):
        found += parts(rendering.picture, mask) if thing.word == WORD else [mask]
    background = ~np.any(seen, axis=0)
    return np.stack([region for region in (*found, background) if region.any()])


def parts(picture: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """A thing cut up by colour: uint8 (h, w, 3), bool (h, w) -> bool (h, w) each. What is too small to be drawn by itself
    belongs to the largest part."""
    inside = Image.fromarray(picture[mask][None])  # (1, pixels)
    which = np.asarray(inside.quantize(COLOURS, Image.Quantize.MEDIANCUT, kmeans=8))[0]  # (pixels,)
    counts = np.bincount(which, minlength=COLOURS)
    large = np.flatnonzero(counts >= SMALLEST)
    which = np.where(np.isin(which, large), which, counts.argmax())
    cut = []
    for number in np.unique(which):
        part = np.zeros_like(mask)
        part[mask] = which == number
        cut.append(part)
    return cut
