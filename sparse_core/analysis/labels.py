"""What atoms are called: by a person, or in plain words from what was measured of them. Labels, notes, thumbnails
and effects live in a dictionary's metadata and travel with its file.

One picture says little: what an atom paints there may be chance. So a colour is named where leaving the atom out takes it away
in several pictures, by more than they differ."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..addresses import AddressError, parse_selection
from ..dictionary import SparseDictionary
from ..training.metadata import data_uri
from .effects import Ablations, cut_out, learnt

THUMBNAIL = 60
"""Pixels of an atom's thumbnail."""
GLANCE = 128
"""Pixels of the longer side of a picture that is looked at: grain is no colour."""
REACH = 0.4
"""How far from a colour, in RGB of 0..1, another is none of it."""
SURE = 1.5
"""Standard errors that count against what several pictures say on average."""
LEAST_SHARE, LEAST_AREA = 0.03, 0.0004
"""Of a colour, and of the picture, that must surely go for the colour to be named."""
EQUALS = re.compile(r'((?:"(?:[^"\\]|\\.)*"|[^="])*)(?:(=)(.*))?', re.DOTALL)
"""An address, and what stands behind its equals sign: not one in the name of a label."""
LARGEST_LABELLED = 10_000
"""How many atoms one line may label."""
MAJORITY = 0.6
"""Share of what goes that must surely lie in a place for the place to be named."""
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


def amounts(picture: Tensor) -> Tensor:
    """How much of each of `COLOURS` is in every place: (..., 3) in 0..1 -> (..., colours), 1 at the colour and 0 from `REACH`
    away."""
    known = torch.tensor(list(COLOURS.values()))
    distances = torch.cdist(picture.reshape(-1, 3), known).view(*picture.shape[:-1], len(COLOURS))
    return (1 - distances / REACH).clamp(min=0)


def at_a_glance(ablations: Ablations) -> Ablations:
    """The same pictures, no larger than `GLANCE`."""

    def small(picture: Tensor) -> Tensor:
        height, width, _ = picture.shape
        scale = min(1.0, GLANCE / max(height, width))
        size = (max(round(height * scale), 1), max(round(width * scale), 1))
        return F.interpolate(picture.movedim(-1, 0)[None], size, mode="area")[0].movedim(0, -1)

    without = {name: small(picture) for name, picture in ablations.without.items()}
    return Ablations(small(ablations.whole), small(ablations.plain), without)


def lost(ablations: Ablations, name: str) -> Tensor:
    """How much of each colour goes where the atoms are left out, of what was learnt: (height, width, colours); less than 0
    where there is more of it."""
    gone = amounts(ablations.whole) - amounts(ablations.without[name])
    return gone * learnt(ablations)[..., None]


def sure(values: Tensor) -> Tensor:
    """What one may count on from what was seen of several pictures, (pictures, ...) -> (...): `SURE` standard errors less than
    their mean; nothing from one picture alone."""
    if len(values) < 2:
        return torch.full(values.shape[1:], -torch.inf)
    return values.mean(dim=0) - SURE * values.std(dim=0) / len(values) ** 0.5


def place_of(weights: Sequence[Tensor], middles: Sequence[tuple[int, int]]) -> str:
    """In which part of what was learnt most of a map surely lies: ``upper left``, ``lower half``, ``left``, or nothing.

    :param weights: (height, width) of each picture, 0 or more.
    :param middles: the row and the column of each that cut what was learnt in halves.
    """
    halves = [
        (float(weight[:row].sum() / total), float(weight[:, :column].sum() / total))
        for weight, (row, column) in zip(weights, middles, strict=True)
        if (total := weight.sum())
    ]
    shares = torch.tensor(halves).view(-1, 2)  # (pictures, 2): of the upper half, of the left half
    first, second = (sure(shares) >= MAJORITY).tolist(), (sure(1 - shares) >= MAJORITY).tolist()
    vertical = "upper" if first[0] else "lower" if second[0] else ""
    horizontal = "left" if first[1] else "right" if second[1] else ""
    if vertical and not horizontal:
        return f"{vertical} half"
    return f"{vertical} {horizontal}".strip()


def middle(weight: Tensor) -> tuple[int, int]:
    """The row and the column that cut a map (height, width) in halves."""
    row, column = (int((along.cumsum(0) < along.sum() / 2).sum()) for along in (weight.sum(dim=1), weight.sum(dim=0)))
    return row, column


def colour_and_place(ablations: Sequence[Ablations], name: str) -> tuple[str, str]:
    """The colour of which the largest share surely goes from what was learnt where the atoms are left out, and where in it;
    nothing where no colour is sure."""
    maps = [lost(one, name) for one in ablations]  # (height, width, colours) each
    gone = torch.stack([map.mean(dim=(0, 1)) for map in maps])  # (pictures, colours)
    there = torch.stack([(amounts(one.whole) * learnt(one)[..., None]).mean(dim=(0, 1)) for one in ablations])
    shares = sure(
        gone / torch.maximum(there, there - gone).clamp(min=1e-9)
    )  # (colours,) of -1..1: of the larger amount
    named = (shares >= LEAST_SHARE) & (sure(gone) >= LEAST_AREA)
    if not named.any():
        return "", ""
    best = int(torch.where(named, shares, 0.0).argmax())
    middles = [middle(learnt(one).square()) for one in ablations]
    return list(COLOURS)[best], place_of([map[..., best].clamp(min=0) for map in maps], middles)


def automatic_labels(ablations: Sequence[Ablations], words: Mapping[str, str]) -> dict[str, str]:
    """Labels for those single atoms of which something is sure: "red, upper left, on 'house'".

    :param ablations: the same atoms left out of several pictures.
    :param words: address to the word it clearly answers to, where there is one.
    """
    seen = [at_a_glance(one) for one in ablations]
    labels = {}
    for name in ablations[0].without:
        word = words.get(name)
        said = (*colour_and_place(seen, name), f"on '{word}'" if word else "")
        if any(said):
            labels[name] = ", ".join(filter(None, said))
    return labels


def with_looks(
    dictionary: SparseDictionary, ablations: Sequence[Ablations], words: Mapping[str, str]
) -> SparseDictionary:
    """The dictionary with what was seen of single atoms: labels for those that have none yet, how far each moves a picture,
    and thumbnails from the first of the pictures."""
    found = {a: label for a, label in automatic_labels(ablations, words).items() if a not in dictionary.labels}
    sizes = {name: round(sum(one.size(name) for one in ablations) / len(ablations), 2) for name in ablations[0].without}
    labelled = _with(with_labels(dictionary, found), "effects", sizes)
    return _with(labelled, "thumbnails", thumbnails(ablations[0]))


def thumbnails(ablations: Ablations) -> dict[str, str]:
    """Small JPEG pictures as data URIs, of what each atom paints."""
    found = {}
    for name in ablations.without:
        picture = as_image(cut_out(ablations, name))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        found[name] = data_uri(picture)
    return found


def as_image(picture: Tensor) -> Image.Image:
    """(height, width, 3) in 0..1."""
    return Image.fromarray(picture.clamp(0, 1).mul(255).round().byte().cpu().numpy())


def with_labels(dictionary: SparseDictionary, labels: Mapping[str, str]) -> SparseDictionary:
    """The dictionary with labels added; an empty one takes a label away."""
    return _with(dictionary, "labels", labels)


def with_notes(dictionary: SparseDictionary, notes: Mapping[str, str]) -> SparseDictionary:
    """The dictionary with what a person noticed of atoms added; an empty note takes one away."""
    return _with(dictionary, "notes", notes)


def _with(dictionary: SparseDictionary, key: str, found: Mapping[str, Any]) -> SparseDictionary:
    """The dictionary with more of its atoms in one part of the metadata; nothing, as a text, takes an atom out of it."""
    merged = {**dictionary.metadata.get(key, {}), **found}
    kept = {address: value for address, value in merged.items() if value != ""}
    return replace(dictionary, metadata={**dictionary.metadata, key: kept})


def parse_texts(text: str, dictionary: SparseDictionary, kind: str) -> dict[str, str]:
    """Reads ``address = text`` lines; ``#`` at the start of a line comments it out.

    :param kind: what the texts are, ``label`` or ``note``.
    :raises ValueError: a line can't be read, or its address picks nothing; the message names the line.
    """
    texts = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        address, equals, said = EQUALS.match(line).groups(default="")
        if not equals:
            raise ValueError(
                f"Line {number} of the {kind}s: {line.strip()!r} has no {kind}; expected an address, = and a {kind}."
            )
        try:
            picked = parse_selection(address.strip()).resolve(dictionary)
        except AddressError as error:
            raise ValueError(f"Line {number} of the {kind}s: {error}") from None
        addresses = [f"{site}[{j}]" for site, flags in picked.items() for j in flags.nonzero()[:, 0].tolist()]
        if len(addresses) > LARGEST_LABELLED:
            raise ValueError(
                f"Line {number} of the {kind}s: {address.strip()} picks {len(addresses)} atoms; at most {LARGEST_LABELLED} get one "
                f"{kind}. Choose fewer."
            )
        texts |= dict.fromkeys(addresses, said.strip())
    return texts
