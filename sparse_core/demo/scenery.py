"""Backdrops drawn by code: six scenes in two styles, a few variants of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

SIDE = 128
VARIANTS = 3
SCENES = ("meadow", "beach", "night", "snow", "desert", "sunset")
STYLES = ("picture book", "paper cutout")

_SCALE = 4  # drawn larger, then averaged down: smooth edges without an antialiasing library
_PAPER = np.array([250, 243, 230], np.float32)

Colour = tuple[int, int, int]


class _Canvas:
    """Draws in the coordinates of the finished picture, in one style."""

    def __init__(self, style: str, sky_top: Colour, sky_bottom: Colour):
        self.cutout = style == "paper cutout"
        self.image = self._gradient(sky_top, sky_bottom)

    def _gradient(self, top: Colour, bottom: Colour) -> Image.Image:
        """A sheet of paper has one colour; a painted sky or ground fades."""
        side = SIDE * _SCALE
        if self.cutout:
            return Image.new("RGB", (side, side), tuple((a + b) // 2 for a, b in zip(top, bottom, strict=True)))
        column = np.linspace(top, bottom, side).round().astype(np.uint8)
        return Image.fromarray(np.repeat(column[:, None], side, axis=1))

    def layer(self, outline: Callable[[float], float], top: Colour, bottom: Colour) -> None:
        """Everything below a curve y = outline(x); a paper layer gets a light torn edge."""
        xs = np.arange(-4, SIDE + 5, 2)
        ys = [outline(float(x)) for x in xs]

        def mask(rise: float) -> Image.Image:
            m = Image.new("L", self.image.size, 0)
            points = [(x * _SCALE, (y - rise) * _SCALE) for x, y in zip(xs, ys, strict=True)]
            below = (SIDE + 4) * _SCALE
            ImageDraw.Draw(m).polygon([*points, (below, below), (-below, below)], fill=255)
            return m

        if self.cutout:
            self.image.paste((255, 255, 255), mask=mask(2.5))
        self.image.paste(self._gradient(top, bottom), mask=mask(0))

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        draw = ImageDraw.Draw(self.image)
        if self.cutout:
            self._ellipse(draw, x, y, radius + 2, (255, 255, 255))
        self._ellipse(draw, x, y, radius, colour)

    def dots(self, points: list[tuple[float, float]], radius: float, colour: Colour) -> None:
        draw = ImageDraw.Draw(self.image)
        for x, y in points:
            self._ellipse(draw, x, y, radius, colour)

    @staticmethod
    def _ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
        draw.ellipse([(v * _SCALE) for v in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def finish(self) -> np.ndarray:
        picture = np.asarray(self.image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)
        if self.cutout:
            picture = 0.55 * picture + 0.45 * _PAPER
        return picture.round().astype(np.uint8)


def _hill(height: float, depth: float, phase: float, width: float = 128) -> Callable[[float], float]:
    return lambda x: height - depth * np.sin(2 * np.pi * (x / width + phase))


def _meadow(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (110, 190, 250), (205, 235, 250))
    for dx, radius in ((-10, 6), (0, 9), (10, 6)):
        c.disc(place + dx, 22, radius, (255, 255, 255))
    c.layer(_hill(76, 6, place / 128), (150, 210, 100), (120, 190, 80))
    c.layer(_hill(92, 3, 0.5 + place / 128), (110, 185, 70), (70, 150, 50))
    c.dots([((place + 29 * i) % 128, 104 + 7 * (i % 3)) for i in range(5)], 2, (255, 240, 130))
    return c


def _beach(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (120, 205, 245), (215, 242, 250))
    c.disc(place, 24, 11, (255, 225, 90))
    c.layer(lambda x: 58.0, (50, 165, 205), (70, 200, 215))
    c.layer(_hill(86, 3, place / 128), (250, 228, 165), (236, 200, 130))
    return c


def _night(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (18, 22, 66), (52, 58, 120))
    c.dots([((13 + 47 * i) % 128, 6 + (29 * i) % 62) for i in range(9)], 1.6, (255, 250, 210))
    c.disc(place, 24, 11, (250, 244, 205))
    c.layer(_hill(88, 5, place / 128), (36, 44, 84), (22, 28, 58))
    return c


def _snow(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (165, 185, 205), (215, 226, 236))
    c.dots([((5 + 41 * i) % 128, 6 + (23 * i) % 66) for i in range(10)], 2.2, (255, 255, 255))
    c.layer(_hill(82, 7, place / 128), (226, 236, 246), (214, 226, 240))
    c.layer(_hill(98, 3, 0.4 + place / 128), (252, 253, 255), (232, 240, 250))
    return c


def _desert(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (250, 205, 120), (255, 232, 180))
    c.disc(place, 22, 9, (255, 250, 225))
    c.layer(_hill(76, 9, place / 128), (226, 160, 86), (205, 135, 66))
    c.layer(_hill(94, 5, 0.5 + place / 128), (210, 140, 70), (180, 105, 50))
    return c


def _sunset(style: str, place: float) -> _Canvas:
    c = _Canvas(style, (110, 60, 140), (255, 150, 100))
    c.disc(place, 66, 17, (255, 225, 120))
    c.layer(_hill(80, 3, place / 128), (125, 60, 105), (95, 45, 90))
    c.layer(_hill(96, 3, 0.5 + place / 128), (95, 42, 82), (60, 28, 62))
    return c


_PAINTERS = dict(zip(SCENES, (_meadow, _beach, _night, _snow, _desert, _sunset), strict=True))


@cache
def backdrop(scene: str, style: str, variant: int) -> np.ndarray:
    """One empty scene, uint8 RGB of shape (128, 128, 3); variant in 0..VARIANTS-1 moves sun, moon, clouds and hills."""
    if style not in STYLES:
        raise ValueError(f"{style}: not one of the styles {', '.join(STYLES)}")
    picture = _PAINTERS[scene](style, (28, 64, 100)[variant]).finish()
    picture.setflags(write=False)
    return picture
