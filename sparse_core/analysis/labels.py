"""What atoms are called: by a person, or in plain words from what was measured of them. Labels and thumbnails live in a
dictionary's metadata and travel with its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ..addresses import AddressError, parse_selection
from ..dictionary import SparseDictionary
from ..training.metadata import data_uri
from .effects import Gallery, cut_out
from .recording import chosen_atoms

THUMBNAIL = 64
"""Pixels of an atom's thumbnail."""
LEAST_EFFECT = 1.0
"""Grey levels of 255, on average, that an atom must move the picture for its effect to get a name."""
LARGEST_LABELLED = 10_000
"""How many atoms one line may label."""
MAJORITY = 0.6
"""Share of an effect that must agree, for a colour or a place to be named."""
COLOURS: Mapping[str, tuple[float, float, float]] = {
    "black": (0.08, 0.08, 0.08),
    "grey": (0.5, 0.5, 0.5),
    "white": (0.95, 0.95, 0.95),
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.15),
    "yellow": (0.95, 0.85, 0.25),
    "green": (0.3, 0.65, 0.25),
    "blue": (0.2, 0.4, 0.85),
    "light blue": (0.55, 0.8, 0.95),
    "purple": (0.55, 0.25, 0.7),
    "pink": (0.95, 0.55, 0.75),
    "brown": (0.5, 0.3, 0.15),
}


def colour_names(picture: Tensor) -> Tensor:
    """(..., 3) in 0..1 -> (...) index into `COLOURS` of the nearest."""
    return (
        torch.cdist(picture.reshape(-1, 3), torch.tensor(list(COLOURS.values()))).argmin(dim=1).view(picture.shape[:-1])
    )


def colour_removed(whole: Tensor, without: Tensor) -> str:
    """The colour that most of the change takes away, or nothing where no colour has a majority.

    :param whole, without: (height, width, 3) in 0..1.
    """
    weight = (whole - without).abs().mean(dim=-1)  # (height, width)
    before, after = colour_names(whole), colour_names(without)
    weight = torch.where(before == after, 0.0, weight)
    if not weight.any():
        return ""
    shares = torch.zeros(len(COLOURS)).index_add_(0, before.flatten(), weight.flatten()) / weight.sum()
    share, best = shares.max(dim=0)
    return list(COLOURS)[int(best)] if share >= MAJORITY else ""


def place_of(weight: Tensor) -> str:
    """Which part of the picture most of a map lies in: ``upper left``, ``lower half``, ``left``, or nothing.

    :param weight: (height, width), 0 or more.
    """
    height, width = weight.shape
    total = float(weight.sum()) or 1.0
    upper, left = float(weight[: height // 2].sum()) / total, float(weight[:, : width // 2].sum()) / total
    vertical = "upper" if upper >= MAJORITY + 0.1 else "lower" if upper <= 0.9 - MAJORITY else ""
    horizontal = "left" if left >= MAJORITY + 0.1 else "right" if left <= 0.9 - MAJORITY else ""
    if vertical and not horizontal:
        return f"{vertical} half"
    return f"{vertical} {horizontal}".strip()


def automatic_labels(gallery: Gallery, words: Mapping[str, str]) -> dict[str, str]:
    """Labels for those atoms of a gallery of single atoms of which something is certain: "red, upper left, on 'house'".

    :param words: address to the word it clearly answers to, where there is one.
    """
    labels = {}
    for effect in gallery.effects:
        said = []
        if gallery.size(effect) >= LEAST_EFFECT:
            colour = colour_removed(gallery.whole, effect.without)
            said = [colour, place_of(gallery.removed(effect).square())] if colour else []
        word = words.get(effect.name)
        said = [part for part in (*said, f"on '{word}'" if word else "") if part]
        if said:
            labels[effect.name] = ", ".join(said)
    return labels


def with_gallery(dictionary: SparseDictionary, gallery: Gallery, words: Mapping[str, str]) -> SparseDictionary:
    """The dictionary with the gallery's thumbnails, and with labels for those atoms that have none yet."""
    found = {a: label for a, label in automatic_labels(gallery, words).items() if a not in dictionary.labels}
    return with_thumbnails(with_labels(dictionary, found), thumbnails(gallery))


def thumbnails(gallery: Gallery) -> dict[str, str]:
    """Small JPEG pictures as data URIs, of what each atom of the gallery paints."""
    found = {}
    for effect in gallery.effects:
        picture = as_image(cut_out(gallery, effect))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        found[effect.name] = data_uri(picture)
    return found


def as_image(picture: Tensor) -> Image.Image:
    """(height, width, 3) in 0..1."""
    return Image.fromarray(picture.clamp(0, 1).mul(255).round().byte().cpu().numpy())


def with_labels(dictionary: SparseDictionary, labels: Mapping[str, str]) -> SparseDictionary:
    """The dictionary with labels added; an empty one takes a label away."""
    merged = {**dictionary.labels, **labels}
    kept = {address: label for address, label in merged.items() if label}
    return replace(dictionary, metadata={**dictionary.metadata, "labels": kept})


def with_thumbnails(dictionary: SparseDictionary, found: Mapping[str, str]) -> SparseDictionary:
    """The dictionary with thumbnails of its atoms added."""
    merged = {**dictionary.metadata.get("thumbnails", {}), **found}
    return replace(dictionary, metadata={**dictionary.metadata, "thumbnails": merged})


def parse_labels(text: str, dictionary: SparseDictionary) -> dict[str, str]:
    """Reads ``address = label`` lines; ``#`` at the start of a line comments it out.

    :raises ValueError: a line can't be read, or its address picks nothing; the message names the line.
    """
    labels = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        address, equals, label = line.partition("=")
        if not equals:
            raise ValueError(f"Line {number}: {line.strip()!r} has no label; expected an address, = and a label.")
        try:
            addresses = chosen_atoms(dictionary, parse_selection(address.strip()), LARGEST_LABELLED)
        except AddressError as error:
            raise ValueError(f"Line {number}: {error}") from None
        labels |= dict.fromkeys(addresses, label.strip())
    return labels
