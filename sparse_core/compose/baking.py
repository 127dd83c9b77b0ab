"""Controls made part of a dictionary, where that is exact: weights and density are; masks, schedules, prompts, pictures and
replays are not."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..controls import SiteState, SparseAdapter
from ..dictionary import Atoms, SparseDictionary
from ..modules import LowRank

INSTEAD = "Remove it, or leave the dictionary as it is and stack Apply nodes."


def bake(adapter: SparseAdapter) -> SparseDictionary:
    """The dictionary that does without controls what the adapter does with them: the same atoms at the same addresses, each
    direction and importance times its weight, 0 where the atom is muted or dropped.

    :raises ValueError: a mask, a schedule, a trigger, a replay or a choice of prompt or pictures holds for an atom that acts.
    """
    dictionary, state = adapter.dictionary, adapter.state
    for site in [*state.sites.values(), *([state.rest] if dictionary.rest else [])]:
        _check(site, title_of(dictionary))
    sites = {site: _weighted(atoms, state.sites[site]) for site, atoms in dictionary.sites.items()}
    weight = float(state.rest.weight * state.rest.able)
    rest = {name: LowRank(update.down, update.up * weight) for name, update in dictionary.rest.items() if weight}
    return replace(dictionary, sites=sites, rest=rest, words=adapter.words)


def acting(atoms: Atoms) -> torch.Tensor:
    """(m,) bool: which atoms of a baked dictionary do anything."""
    return atoms.directions.any(dim=1)


def title_of(dictionary: SparseDictionary) -> str:
    """What a message calls the dictionary."""
    return str(dictionary.metadata.get("modelspec.title") or "the dictionary")


def _check(site: SiteState, title: str) -> None:
    able = site.able
    for found, what in (
        (bool(site.masks[:, able].any()), "a mask"),
        (bool(site.schedules[:, able].any()), "a schedule"),
        (bool(site.triggers[:, able].any()), "a trigger"),
        (bool(site.replays[:, able].any()), "a replay"),
        (bool(site.pictures[:, able].any()), "a choice of pictures"),
        (not bool((site.positive & site.negative)[able].all()), "a choice of prompt"),
    ):
        if found:
            raise ValueError(f"{title} carries {what}, which can't be stored in a dictionary. {INSTEAD}")


def _weighted(atoms: Atoms, state: SiteState) -> Atoms:
    weight = (state.weight * state.able).to(atoms.directions)  # (m,)
    return replace(
        atoms,
        directions=atoms.directions * weight[:, None],
        importance=atoms.importance * weight.abs(),
        elsewhere=atoms.elsewhere * weight.abs(),
    )
