"""How alike two dictionaries are, and which atoms of one dictionary are near copies of each other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..dictionary import Atoms, SparseDictionary
from ..layers import Site
from .charts import INK, TITLE, drawn, new_figure, shades, whole_numbers

DUPLICATE = 0.95
"""Cosine of two directions from which on their atoms draw the same, up to how much and when."""


class Pair(NamedTuple):
    """Two atoms of one site."""

    first: str
    second: str
    cosine: float
    """Of their directions, 0..1, whatever the sign: a reversed encoder makes up for a reversed direction."""


@dataclass(frozen=True)
class Comparison:
    """Two dictionaries of one model."""

    shared: int
    """Sites in which both have atoms."""
    only: tuple[int, int]
    """Sites in which only the first, only the second has."""
    by_layer: dict[int, float]
    """Layer to likeness, 0..1: the cosine of an atom and its nearest in the other dictionary, weighted by importance."""
    likeness: float
    """The same over all shared sites; 1 for a dictionary and itself."""
    chance: float
    """What dictionaries that have nothing to do with each other would show."""
    matches: tuple[Pair, ...]
    """Each atom of the first with its nearest of the second, the nearest pairs first."""


def cosines(first: Atoms, second: Atoms) -> Tensor:
    """|cos| of all pairs of directions: (m, d), (n, d) -> (m, n)."""
    unit = [F.normalize(atoms.directions.detach().float().cpu(), dim=1) for atoms in (first, second)]
    return (unit[0] @ unit[1].mT).abs()


def compare(first: SparseDictionary, second: SparseDictionary) -> Comparison:
    """
    :raises ValueError: the dictionaries belong to different models, or share no site.
    """
    if first.fingerprint != second.fingerprint:
        raise ValueError(
            f"These dictionaries belong to different models: {first.family} and {second.family}. Only dictionaries of one "
            "model have atoms to compare."
        )
    shared = [site for site, atoms in first.sites.items() if len(atoms) and len(second.sites.get(site, ()))]
    if not shared:
        raise ValueError("These dictionaries have no site in common, so there are no atoms to compare.")
    parts = [_Part(site, first.sites[site], second.sites[site]) for site in shared]
    layers = sorted({site.layer for site in shared})
    return Comparison(
        len(shared),
        (len(first.sites) - len(shared), len(second.sites) - len(shared)),
        {layer: _mean([part for part in parts if part.site.layer == layer]) for layer in layers},
        _mean(parts),
        sum(part.chance for part in parts) / len(parts),
        tuple(sorted((pair for part in parts for pair in part.matches()), key=lambda pair: -pair.cosine)),
    )


class _Part:
    """One shared site."""

    def __init__(self, site: Site, first: Atoms, second: Atoms) -> None:
        self.site, self.table = site, cosines(first, second)
        self.weights = [atoms.importance.detach().float().cpu() + 1e-12 for atoms in (first, second)]
        # The largest of n cosines of random directions in d dimensions, to leading order.
        self.chance = min(1.0, (2 * math.log(max(self.table.shape) + 1) / first.directions.shape[1]) ** 0.5)

    def sums(self) -> tuple[float, float]:
        """Likeness times weight, and weight, counted from both sides."""
        nearest = self.table.max(dim=1).values, self.table.max(dim=0).values
        likeness = sum(float(w @ n) for w, n in zip(self.weights, nearest, strict=True))
        return likeness, sum(float(w.sum()) for w in self.weights)

    def matches(self) -> Iterator[Pair]:
        for atom, (cosine, nearest) in enumerate(zip(*(part.tolist() for part in self.table.max(dim=1)), strict=True)):
            yield Pair(f"{self.site}[{atom}]", f"{self.site}[{nearest}]", cosine)


def _mean(parts: list[_Part]) -> float:
    sums = [part.sums() for part in parts]
    return sum(s[0] for s in sums) / sum(s[1] for s in sums)


def duplicates(dictionary: SparseDictionary) -> list[Pair]:
    """Pairs of atoms of one site with nearly the same direction, the most alike first. Atoms without importance don't
    count: they draw nothing."""
    found = []
    for site, atoms in dictionary.sites.items():
        alive = (atoms.importance > 0).float().cpu()
        table = (cosines(atoms, atoms) * alive * alive[:, None]).triu(diagonal=1)
        for i, j in (table >= DUPLICATE).nonzero().tolist():
            found.append(Pair(f"{site}[{i}]", f"{site}[{j}]", float(table[i, j])))
    return sorted(found, key=lambda pair: -pair.cosine)


def comparison_text(compared: Comparison, first: SparseDictionary, second: SparseDictionary, top: int) -> str:
    """The likeness in a sentence, the nearest pairs, and the duplicates within each."""
    names = [d.metadata.get("modelspec.title", "untitled") for d in (first, second)]
    lines = [
        f"{names[0]} ({len(first)} atoms) and {names[1]} ({len(second)} atoms) share {compared.shared} sites; "
        f"{compared.only[0]} and {compared.only[1]} are in one of them only.",
        f"Likeness {compared.likeness:.2f}; 1 is the same dictionary, {compared.chance:.2f} is chance.",
        "",
        f"| {_cell(names[0])} | {_cell(names[1])} | cosine | labels |",
        "|---|---|---|---|",
    ]
    for pair in compared.matches[:top]:
        labels = [d.labels.get(a) or "-" for d, a in ((first, pair.first), (second, pair.second))]
        lines.append(f"| {pair.first} | {pair.second} | {pair.cosine:.2f} | {', '.join(labels)} |")
    for name, dictionary in zip(names, (first, second), strict=True):
        copies = duplicates(dictionary)
        some = ", ".join(f"{p.first} = {p.second}" for p in copies[:5])
        lines.append(f"Near copies within {name}: {len(copies)}{f', such as {some}' if copies else ''}.")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/")


def comparison_chart(compared: Comparison) -> Tensor:
    """Likeness by layer, and how near each atom's nearest is: (height, width, 3) in 0..1."""
    figure = new_figure(11, 3.8)
    layers, nearest = figure.subplots(1, 2, width_ratios=(1.6, 1))
    colours = shades(3)
    layers.bar(list(compared.by_layer), list(compared.by_layer.values()), color=colours[0])
    layers.axhline(compared.chance, color=INK, linestyle="--", linewidth=1, label="chance")
    layers.set(xlabel="layer", ylabel="likeness", ylim=(0, 1.02))
    whole_numbers(layers)
    nearest.hist([pair.cosine for pair in compared.matches], bins=25, range=(0, 1), color=colours[1])
    nearest.axvline(compared.chance, color=INK, linestyle="--", linewidth=1, label="chance")
    nearest.set(xlabel="cosine of an atom and its nearest in the other", ylabel="atoms")
    for axis in (layers, nearest):
        axis.legend(fontsize=TITLE)
        axis.tick_params(labelsize=TITLE, colors=INK)
    return drawn(figure)
