"""Which atoms of a dictionary matter, and how few carry most of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..dictionary import SparseDictionary


class RankedAtom(NamedTuple):
    """One atom of a whole dictionary."""

    address: str
    """``L17.v[137]``."""
    importance: float
    label: str
    """What a person or an analysis called it, or nothing."""


def ranking(dictionary: SparseDictionary) -> list[RankedAtom]:
    """Every atom, the most important first; of equals, those stored first."""
    labels = dictionary.labels
    atoms = [
        RankedAtom(address := f"{site}[{number}]", importance, labels.get(address, ""))
        for site, stored in dictionary.sites.items()
        for number, importance in enumerate(stored.importance.tolist())
    ]
    return sorted(atoms, key=lambda atom: -atom.importance)


def importance_curve(ranked: Sequence[RankedAtom], densities: Sequence[float]) -> list[float]:
    """What share of all importance the best atoms hold, for each share of atoms kept."""
    total = sum(atom.importance for atom in ranked)
    if total == 0:
        return [0.0 for _ in densities]
    return [sum(atom.importance for atom in ranked[: round(d * len(ranked))]) / total for d in densities]
