"""Where on the picture atoms fire: heat maps over a picture, and masks to confine an edit to those places."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .charts import Tile, sheet
from .recording import MOST_ATOMS, Recording

ALIKE = 0.95
"""Cosine of two heat maps from which on atoms are said to light up together."""


def heat_maps(
    recording: Recording,
    size: tuple[int, int],
    *,
    picture: int = 0,
    start: float = 0.0,
    end: float = 1.0,
    prompt: Literal["positive", "negative"] = "positive",
) -> dict[str, Tensor]:
    """Mean |coefficient| over a part of sampling, for the recorded atoms that read the picture and fired: the `MOST_ATOMS` most
    important of them.

    :param size: height and width to fit the maps to.
    :param picture: which of the batch, from 0.
    :param start, end: the part of sampling, 0..1.
    :returns: address to (height, width), 0 or more, not scaled.
    :raises ValueError: no atom was recorded on the picture or fires there, or there is no such picture or part.
    """
    side = recording.positive if prompt == "positive" else recording.negative
    if not side.places:
        raise ValueError(
            f"The recording holds no atom that reads the picture on the {prompt} prompt. Record atoms of attn1, or of q or o, "
            "such as top:24; the negative prompt runs only where CFG is not 1."
        )
    inside = [i for i, progress in enumerate(recording.progress) if start <= progress <= end]
    if not inside:
        raise ValueError(
            f"No step was recorded between {start:g} and {end:g} of sampling; the steps are at "
            f"{', '.join(f'{p:.2f}' for p in recording.progress)}. Widen the range."
        )
    pictures = next(iter(side.places.values())).shape[1]
    if not 0 <= picture < pictures:
        raise ValueError(f"Picture {picture} was not recorded; expected 0 to {pictures - 1}.")
    means = {name: places[inside, picture].float().abs().mean(dim=0) for name, places in side.places.items()}
    fired = [(name, mean) for name, mean in means.items() if mean.any()]
    if not fired:
        raise ValueError(
            f"None of the {len(means)} recorded atoms fires on picture {picture} between {start:g} and {end:g} of sampling. "
            "Record others, such as top:24, or widen the range."
        )
    return {name: grown(mean, size) for name, mean in fired[:MOST_ATOMS]}


def grown(heat: Tensor, size: tuple[int, int]) -> Tensor:
    """A map at a picture's size: (h, w) -> (height, width), 0 or more."""
    return F.interpolate(heat[None, None], size=size, mode="bicubic", align_corners=False)[0, 0].clamp(min=0)


def to_masks(maps: Mapping[str, Tensor]) -> Tensor:
    """Each map relative to its own largest value: (atoms, height, width) in 0..1."""
    return torch.stack([heat / heat.max() for heat in maps.values()])


def heat_sheet(recording: Recording, maps: Mapping[str, Tensor], picture: Tensor, columns: int = 6) -> Tensor:
    """Every map over the picture, with its atom's name: (height, width, 3) in 0..1.

    :param picture: (height, width, 3) in 0..1, of the maps' size.
    """
    tiles = [Tile("picture", picture)]
    for (name, heat), mask in zip(maps.items(), to_masks(maps), strict=True):
        tiles.append(Tile(f"{name}  max {float(heat.max()):.2g}\n{recording.labels.get(name, '')}", picture, mask))
    return sheet(tiles, columns, scale="|coefficient|, in per cent of the atom's own largest")


def heat_text(maps: Mapping[str, Tensor]) -> str:
    """Which mask is whose, how far each reaches, and which atoms light up in the same places."""
    masks = to_masks(maps)
    lines = ["| mask | atom | largest coefficient | covers |", "|---|---|---|---|"]
    for number, (name, heat) in enumerate(maps.items()):
        covers = float((masks[number] > 0.5).float().mean())
        lines.append(f"| {number} | {name} | {float(heat.max()):.3g} | {covers:.0%} |")
    together = co_firing(maps)
    if together:
        lines += ["", "Light up in the same places:"]
        lines += [f"{a} and {b} ({alike:.0%})" for a, b, alike in together]
    return "\n".join(lines)


def co_firing(maps: Mapping[str, Tensor]) -> list[tuple[str, str, float]]:
    """Pairs of atoms that fire at the same places, the most alike first, by the cosine of their maps."""
    unit = {name: F.normalize(heat.flatten(), dim=0) for name, heat in maps.items()}
    pairs = [(a, b, float(unit[a] @ unit[b])) for a, b in itertools.combinations(unit, 2)]
    return sorted((pair for pair in pairs if pair[2] >= ALIKE), key=lambda pair: -pair[2])
