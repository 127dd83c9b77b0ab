"""Coefficients during sampling: where on the picture and on which words the atoms of a dictionary fire, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..addresses import Selection
from ..dictionary import SparseDictionary
from ..layers import Layer, Site
from ..plan import Moment
from .ranking import ranking

MOST_ATOMS, MOST_PICTURES, MOST_MOMENTS, LARGEST_SIDE = 64, 4, 32, 64
"""What bounds a recording's memory: atoms; pictures of a batch, the first ones; moments of sampling, neighbouring steps
sharing one where there are more; and places along a side of a map."""


def chosen_atoms(dictionary: SparseDictionary, selection: Selection, most: int = MOST_ATOMS) -> list[str]:
    """Addresses of the selected atoms, the most important first.

    :raises ValueError: there are more than ``most``.
    """
    picked = selection.resolve(dictionary)
    inside = {f"{site}[{j}]" for site, flags in picked.items() for j in flags.nonzero()[:, 0].tolist()}
    if len(inside) > most:
        raise ValueError(
            f"{selection} picks {len(inside)} atoms; at most {most} can be looked at together. Choose fewer, such as "
            f"top:{min(most, 24)}."
        )
    return [atom.address for atom in ranking(dictionary) if atom.address in inside]


def reads_words(site: Site, layers: Sequence[Layer]) -> bool:
    """Whether a coefficient of the site belongs to a word; all others belong to a place in the picture."""
    return layers[site.layer].attention == "attn2" and site.projection in "kv"


class Side(NamedTuple):
    """What the model calls of one prompt showed, by atom address."""

    places: Mapping[str, Tensor]
    """(moments, pictures, height, width) float16: |coefficient| of every place, at atoms that read the picture."""
    words: Mapping[str, Tensor]
    """(pictures, tokens) float32: the coefficient of every token of the prompt, at atoms that read the text."""


@dataclass(frozen=True)
class Recording:
    """Coefficients of some atoms over one sampling, before weights, masks and schedules."""

    addresses: tuple[str, ...]
    """The recorded atoms, the most important first. Muted and dropped atoms are not at work and leave no trace."""
    labels: Mapping[str, str]
    progress: tuple[float, ...]
    """(moments) rising, each how far sampling had come, 0..1."""
    positive: Side
    negative: Side
    """Empty where no negative prompt ran."""


@dataclass
class _Mean:
    """A running mean."""

    total: Tensor
    calls: int = 0

    def add(self, value: Tensor) -> None:
        self.total = self.total + value
        self.calls += 1

    def value(self) -> Tensor:
        return self.total / self.calls


@dataclass
class Recorder:
    """An observer that keeps what a `Recording` holds. Give it to one sampling, then ask for the recording."""

    dictionary: SparseDictionary
    addresses: Sequence[str]
    _maps: dict[tuple[str, bool, int], _Mean] = field(default_factory=dict)
    _words: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    _moments: dict[int, _Mean] = field(default_factory=dict)
    _grids: dict[Site, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbered = {
            f"{site}[{j}]": (site, j) for site, atoms in self.dictionary.sites.items() for j in range(len(atoms))
        }
        self._wanted: dict[Site, dict[int, str]] = {}
        for address in self.addresses:
            site, atom = numbered[address]
            self._wanted.setdefault(site, {})[atom] = address

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        """See `Observer`.

        :raises RuntimeError: the rows or the places of the model call are not known.
        """
        wanted = self._wanted.get(site, {})
        columns = [i for i, atom in enumerate(atoms) if atom in wanted]
        if not columns:
            return
        if moment.rows is None or len(moment.rows.pictures) != len(z):
            raise RuntimeError(
                f"{site} can't be recorded: {len(z)} rows of tokens arrived, and nothing says which picture and prompt each "
                "belongs to. Another patch enlarges the batch (attention couple): remove it while recording."
            )
        codes = z.detach()[..., columns].float().cpu()  # (rows, tokens, chosen)
        names = [wanted[atoms[i]] for i in columns]
        for positive in set(moment.rows.positive):
            rows = [r for r, p in enumerate(moment.rows.positive) if p is positive][:MOST_PICTURES]
            if reads_words(site, self.dictionary.layers):
                for name, code in zip(names, codes[rows].unbind(-1), strict=True):
                    self._words.setdefault((name, positive), code)  # the text is the same at every step
            else:
                self._add_places(site, names, codes[rows], positive, moment)

    def _add_places(self, site: Site, names: Sequence[str], codes: Tensor, positive: bool, moment: Moment) -> None:
        if (
            codes.shape[1] != moment.grid[0] * moment.grid[1]
            or self._grids.setdefault(site, moment.grid) != moment.grid
        ):
            raise RuntimeError(
                f"{site} can't be recorded: {codes.shape[1]} tokens arrived where the picture has {moment.grid[0]} x "
                f"{moment.grid[1]}, or parts of the picture of several sizes. Use prompts for the whole picture, and no "
                "patch that re-tiles or merges tokens (HyperTile, token merging), while recording."
            )
        slot = min(int(moment.progress * MOST_MOMENTS), MOST_MOMENTS - 1)
        self._moments.setdefault(slot, _Mean(torch.zeros(()))).add(torch.tensor(moment.progress))
        maps = codes.abs().mT.unflatten(-1, moment.grid)  # (pictures, chosen, height, width)
        small = tuple(min(side, LARGEST_SIDE) for side in moment.grid)
        maps = F.interpolate(maps, size=small, mode="area") if small != moment.grid else maps
        for name, places in zip(names, maps.unbind(1), strict=True):
            self._maps.setdefault((name, positive, slot), _Mean(torch.zeros(()))).add(places)

    def recording(self) -> Recording:
        """What was seen so far."""
        slots = sorted(self._moments)

        def side(positive: bool) -> Side:
            places = {
                name: torch.stack([self._maps[name, positive, slot].value() for slot in slots]).half()
                for name in self.addresses
                if all((name, positive, slot) in self._maps for slot in slots) and slots
            }
            words = {name: self._words[name, positive] for name in self.addresses if (name, positive) in self._words}
            return Side(places, words)

        labels = {name: label for name, label in self.dictionary.labels.items() if name in set(self.addresses)}
        progress = tuple(float(self._moments[slot].value()) for slot in slots)
        return Recording(tuple(self.addresses), labels, progress, side(True), side(False))
