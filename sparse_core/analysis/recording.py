"""Coefficients during sampling: where on the picture and on which words the atoms of a dictionary fire, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..addresses import Selection
from ..dictionary import SparseDictionary
from ..layers import Site, reads_words
from ..plan import Moment
from .ranking import ranking

MOST_PICTURES, MOST_MOMENTS, LARGEST_SIDE, MOST_MEGABYTES = 4, 32, 64, 512
"""What bounds a recording: pictures of a batch, the first ones; moments of sampling, neighbouring steps sharing one where
there are more; places along a side of a map; and memory in all."""
MOST_ATOMS = 64
"""As many as can be looked at together."""


def addresses_of(dictionary: SparseDictionary, selection: Selection) -> list[str]:
    """Addresses of the selected atoms, the most important first."""
    picked = selection.resolve(dictionary)
    inside = {f"{site}[{j}]" for site, flags in picked.items() for j in flags.nonzero()[:, 0].tolist()}
    return [atom.address for atom in ranking(dictionary) if atom.address in inside]


def chosen_atoms(dictionary: SparseDictionary, selection: Selection, most: int = MOST_ATOMS) -> list[str]:
    """`addresses_of` no more than ``most``.

    :raises ValueError: there are more.
    """
    addresses = addresses_of(dictionary, selection)
    if len(addresses) > most:
        raise ValueError(
            f"{selection} picks {len(addresses)} atoms; at most {most} can be looked at together. Choose fewer, such as "
            f"top:{min(most, 24)}."
        )
    return addresses


class Side(NamedTuple):
    """What the model calls of one prompt showed, by atom address."""

    places: Mapping[str, Tensor]
    """(moments, pictures, height, width) float16: the coefficient of every place, at atoms that read the picture."""
    words: Mapping[str, Tensor]
    """(pictures, tokens) float32: the coefficient of every token of the prompt, at atoms that read the text."""

    def of_first_picture(self) -> Side:
        """That of the first picture alone."""
        places = {name: track[:, :1] for name, track in self.places.items()}
        return Side(places, {name: track[:1] for name, track in self.words.items()})


@dataclass(frozen=True)
class Recording:
    """Coefficients of some atoms over one sampling, before weights, masks and schedules."""

    made_on: str
    """`SparseDictionary.atoms_hash` of the one whose atoms they are."""
    addresses: tuple[str, ...]
    """The recorded atoms, the most important first. Muted and dropped atoms are not at work and leave no trace."""
    labels: Mapping[str, str]
    progress: tuple[float, ...]
    """(moments) rising, each how far sampling had come, 0..1."""
    positive: Side
    negative: Side
    """Empty where no negative prompt ran."""

    def of_first_picture(self) -> Recording:
        """That of the first picture alone."""
        return replace(self, positive=self.positive.of_first_picture(), negative=self.negative.of_first_picture())


@dataclass
class _Mean:
    """A running mean, in the type of the first value."""

    value: Tensor
    calls: int = 1

    def add(self, value: Tensor) -> None:
        self.calls += 1
        self.value = self.value + (value - self.value) / self.calls


@dataclass
class Recorder:
    """An observer that keeps what a `Recording` holds. Give it to one sampling, then ask for the recording."""

    dictionary: SparseDictionary
    addresses: Sequence[str]
    _maps: dict[tuple[Site, bool, int], _Mean] = field(default_factory=dict)
    _columns: dict[Site, list[str]] = field(default_factory=dict)
    _bytes: int = 0
    _words: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    _moments: dict[int, set[float]] = field(default_factory=dict)
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

        :raises RuntimeError: the rows or the places of the model call are not known, it runs several prompts or a part of the
            picture, or memory is used up.
        """
        wanted = self._wanted.get(site, {})
        columns = [i for i, atom in enumerate(atoms) if atom in wanted]
        if not columns:
            return
        check_rows(site, z, moment, "recorded")
        check_whole(site, moment)
        codes = z.detach()[..., columns].float().cpu()  # (rows, tokens, chosen)
        names = self._columns.setdefault(site, [wanted[atoms[i]] for i in columns])
        for positive in set(moment.rows.positive):
            mine = [r for r, p in enumerate(moment.rows.positive) if p is positive]
            rows = [r for r in mine if moment.rows.pictures[r] < MOST_PICTURES]
            if reads_words(site, self.dictionary.layers):
                for name, code in zip(names, codes[rows].unbind(-1), strict=True):
                    self._words.setdefault((name, positive), code)  # the text is the same at every step
            else:
                self._add_places(site, codes[rows], positive, moment)

    def _add_places(self, site: Site, codes: Tensor, positive: bool, moment: Moment) -> None:
        if self._grids.setdefault(site, moment.grid) != moment.grid:
            raise RuntimeError(
                f"{site} can't be recorded: the picture arrives in several sizes. Another patch scales it inside the model "
                "(Kohya Deep Shrink): remove it meanwhile."
            )
        check_places(site, codes, moment, "recorded")
        slot = min(int(moment.progress * MOST_MOMENTS), MOST_MOMENTS - 1)
        self._moments.setdefault(slot, set()).add(moment.progress)
        maps = codes.mT.unflatten(-1, moment.grid)  # (pictures, chosen, height, width)
        small = tuple(min(side, LARGEST_SIDE) for side in moment.grid)
        maps = F.interpolate(maps, size=small, mode="area") if small != moment.grid else maps
        if known := self._maps.get((site, positive, slot)):
            known.add(maps.half())
            return
        self._maps[site, positive, slot] = _Mean(maps.half())
        self._bytes += 2 * maps.numel()
        if self._bytes > MOST_MEGABYTES * 2**20:
            raise RuntimeError(
                f"A recording of {len(self.addresses)} atoms would take more than {MOST_MEGABYTES} MB. Record fewer, such as "
                "top:256, or a smaller or single picture."
            )

    def recording(self) -> Recording:
        """What was seen so far."""
        slots = sorted(self._moments)

        def side(positive: bool) -> Side:
            places = {}
            for site, names in self._columns.items():
                seen = [
                    self._maps[site, positive, slot].value for slot in slots if (site, positive, slot) in self._maps
                ]
                if seen and len(seen) == len(slots):
                    places |= zip(names, torch.stack(seen).unbind(2), strict=True)
            words = {name: self._words[name, positive] for name in self.addresses if (name, positive) in self._words}
            return Side({name: places[name] for name in self.addresses if name in places}, words)

        recorded = set(self.addresses)
        labels = {name: label for name, label in self.dictionary.labels.items() if name in recorded}
        progress = tuple(sum(self._moments[slot]) / len(self._moments[slot]) for slot in slots)
        made_on = self.dictionary.atoms_hash
        return Recording(made_on, tuple(self.addresses), labels, progress, side(True), side(False))


def check_rows(site: Site, z: Tensor, moment: Moment, done: str) -> None:
    """
    :param done: what is to happen to the coefficients: ``recorded`` or ``replayed``.
    :raises RuntimeError: nobody knows which picture and prompt the rows of ``z`` (rows, tokens, m) belong to.
    """
    if moment.rows is None or len(moment.rows.pictures) != len(z):
        raise RuntimeError(
            f"{site} can't be {done}: {len(z)} rows of tokens arrived, and nothing says which picture and prompt each "
            "belongs to. Another patch enlarges the batch (attention couple): remove it meanwhile."
        )


def check_whole(site: Site, moment: Moment) -> None:
    """
    :raises RuntimeError: the coefficients of a place or a word would be those of several prompts, or of a part of the picture.
    """
    rows = moment.rows
    runs = list(zip(rows.pictures, rows.positive, strict=True))
    if len(set(runs)) < len(runs) or any(crop.picture != (crop.height, crop.width) for crop in rows.crops):
        raise RuntimeError(
            f"{site} can't be recorded: several prompts act, or one on a part of the picture. Use one positive and one negative "
            "prompt, both for the whole picture, while recording."
        )


def check_places(site: Site, z: Tensor, moment: Moment, done: str) -> None:
    """
    :raises RuntimeError: the tokens of ``z`` (rows, tokens, m) are not the picture's grid.
    """
    height, width = moment.grid
    if z.shape[1] != height * width:
        raise RuntimeError(
            f"{site} can't be {done}: {z.shape[1]} tokens arrived where the picture has {height} x {width}. Another patch "
            "re-tiles or merges tokens (HyperTile, token merging): remove it meanwhile."
        )
