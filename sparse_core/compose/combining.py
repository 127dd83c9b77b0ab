"""Several dictionaries as one: what stacking them does, in one file, with duplicates merged and the least important left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..controls import SparseAdapter
from ..dictionary import Atoms, SparseDictionary
from ..layers import Site
from ..modules import LowRank
from ..words import together
from .baking import acting, bake, title_of
from .provenance import joined_metadata, source_record

ALIKE = 0.25
"""How far thresholds and biases of duplicates may lie apart, in standard deviations of a coefficient."""

Origin = tuple[int, str]
"""Number of the source, from 0, and an atom's address there."""


def combine(
    adapters: Sequence[SparseAdapter],
    weights: Sequence[float] = (),
    budget: int | None = None,
    merge_above: float = 0.95,
) -> SparseDictionary:
    """All atoms of several dictionaries in one. With ``merge_above`` 1 and no budget it draws what they draw stacked.

    :param weights: one for each adapter; without them, 1 each.
    :param budget: how many atoms stay at most, the most important of all, >= 1; None keeps all.
    :param merge_above: 0..1; two atoms of a site become one where the cosines of their encoders and of their directions are
        both above it and they fire at about the same value. 1 merges none.
    :raises ValueError: there are no adapters, they belong to different models, one carries a control that can't be stored,
        a site is read or a word was learnt in two ways, or a number is out of its range.
    """
    if not adapters:
        raise ValueError("There is nothing to combine; expected at least one dictionary.")
    weights = list(weights) or [1.0] * len(adapters)
    if len(weights) != len(adapters):
        raise ValueError(f"There are {len(adapters)} dictionaries and {len(weights)} weights; expected one for each.")
    if not 0 <= merge_above <= 1:
        raise ValueError(f"merge_above is {merge_above}; expected a cosine from 0 to 1, where 1 merges nothing.")
    if budget is not None and budget < 1:
        raise ValueError(f"The budget is {budget}; expected at least 1 atom.")
    sources = [adapter.dictionary for adapter in adapters]
    for source in sources[1:]:
        if source.fingerprint != sources[0].fingerprint:
            raise ValueError(
                f"{title_of(sources[0])} is for {sources[0].family} and {title_of(source)} for {source.family}; expected "
                "dictionaries of one model family."
            )
    baked = [bake(adapter.at_strength(weight)) for adapter, weight in zip(adapters, weights, strict=True)]
    joined = {site: _join(site, baked) for site in {site: None for one in baked for site in one.sites}}
    joined = {site: part for site, part in joined.items() if len(part.atoms)}
    whole = sum(len(part.atoms) for part in joined.values())
    joined = {site: _merge(part, merge_above) for site, part in joined.items()}
    distinct = sum(len(part.atoms) for part in joined.values())
    if budget is not None and distinct > budget:
        joined = _within(joined, budget)
    rest = _rest(baked)
    if not joined and not rest:
        raise ValueError("No atom is left to combine: all are muted, dropped or of weight 0. Raise a weight.")
    metadata = joined_metadata(
        " + ".join(map(title_of, sources)),
        sources,
        [source_record(source, weight=weight) for source, weight in zip(sources, weights, strict=True)],
        {f"{site}[{j}]": origin for site, part in joined.items() for j, origin in enumerate(part.origins)},
    )
    kept = sum(len(part.atoms) for part in joined.values())
    record = {"merge_above": merge_above, "atoms_merged": whole - distinct, "atoms_over_budget": distinct - kept}
    atoms = {site: part.atoms for site, part in joined.items()}
    words = together(one.words for one in baked)
    return SparseDictionary(sources[0].layers, atoms, {**metadata, "combined": record}, rest, words)


class _Joined(NamedTuple):
    """One site's atoms with where each came from."""

    atoms: Atoms
    origins: list[list[Origin]]

    def __getitem__(self, index: Tensor) -> _Joined:  # type: ignore[override]
        return _Joined(self.atoms[index], [self.origins[i] for i in index.tolist()])


def _join(site: Site, baked: Sequence[SparseDictionary]) -> _Joined:
    """Every atom that acts at a site, directions of unit norm. Empty ones leave their site to the others."""
    parts, origins = [], []
    for number, dictionary in enumerate(baked):
        if site in dictionary.sites:
            atoms = dictionary.sites[site]
            index = acting(atoms).nonzero()[:, 0]
            parts.append((title_of(dictionary), atoms[index].unit_norm()))
            origins += [[(number, f"{site}[{j}]")] for j in index.tolist()]
    present = [(title, atoms) for title, atoms in parts if len(atoms)] or parts[:1]
    for title, atoms in present[1:]:
        if atoms.normalise != present[0][1].normalise:
            dense, sparse = (title, present[0][0]) if present[0][1].normalise else (present[0][0], title)
            raise ValueError(
                f"At {site}, {dense} reads features as they are, as a LoRA does, and {sparse} reads them normalised; one "
                "dictionary can't hold both. Distil the LoRA first, or stack Apply nodes."
            )
    tensors = {name: torch.cat([atoms.tensors()[name] for _, atoms in present]) for name in parts[0][1].tensors()}
    return _Joined(Atoms(**tensors, normalise=present[0][1].normalise), origins)


def _merge(part: _Joined, above: float) -> _Joined:
    """Duplicates of more important atoms become part of those: encoder, bias and threshold add up, which is exact for two
    atoms that differ by a factor, since soft thresholding is positively homogeneous."""
    if above >= 1:
        return part
    duplicates = _duplicates(part.atoms, above)  # (m, m): 1 or -1 where two atoms are alike
    free = torch.ones(len(part.atoms), dtype=torch.bool)
    leaders, merged, origins = [], [], []
    for leader in part.atoms.importance.argsort(descending=True, stable=True).tolist():
        if not free[leader]:
            continue
        group = (free & duplicates[leader].ne(0)).index_fill(0, torch.tensor(leader), True).nonzero()[:, 0]
        free[group] = False
        leaders.append(int(group.min()))
        merged.append(_sum(part.atoms[group], duplicates[leader, group]))
        origins.append([origin for j in group.tolist() for origin in part.origins[j]])
    order = torch.tensor(leaders).argsort()
    names = part.atoms.tensors()
    atoms = replace(part.atoms, **{name: torch.cat([one.tensors()[name] for one in merged]) for name in names})
    return _Joined(atoms, origins)[order]


def _duplicates(atoms: Atoms, above: float) -> Tensor:
    """(m, m) float: 1 where two atoms do the same, -1 where one does it with encoder and direction turned round (the same,
    too), 0 elsewhere; 1 on the diagonal."""
    encoder, directions = F.normalize(atoms.encoder, dim=1), F.normalize(atoms.directions, dim=1)
    codes, moves = (encoder @ encoder.T).clamp(-1, 1), (directions @ directions.T).clamp(-1, 1)  # (m, m)
    scale = atoms.encoder.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    threshold, bias = atoms.threshold / scale, atoms.bias / scale  # (m,) in standard deviations
    sign = moves.sign()
    alike = (moves.abs() > above) & (codes * sign > above)
    alike &= (threshold[:, None] - threshold).abs() <= ALIKE
    alike &= (bias[:, None] - sign * bias).abs() <= ALIKE
    return (sign * alike).fill_diagonal_(1)


def _sum(group: Atoms, sign: Tensor) -> Atoms:
    """One atom for several that do the same, (n,) signs relative to the leader's direction."""
    if len(group) == 1:
        return group
    encoder = group.encoder * sign[:, None]
    share = encoder.norm(dim=1, keepdim=True)  # how strongly each acts, directions being of unit norm
    direction = (group.directions * sign[:, None] * share).sum(dim=0, keepdim=True)
    return replace(
        group,
        encoder=encoder.sum(dim=0, keepdim=True),
        bias=(group.bias * sign).sum(dim=0, keepdim=True),
        threshold=group.threshold.sum(dim=0, keepdim=True),
        directions=F.normalize(direction, dim=1),
        importance=group.importance.sum(dim=0, keepdim=True),
        elsewhere=group.elsewhere.sum(dim=0, keepdim=True),
    )


def _within(joined: dict[Site, _Joined], budget: int) -> dict[Site, _Joined]:
    """The most important atoms of all sites together; of equals, those of earlier layers."""
    importance = torch.cat([part.atoms.importance.float() for part in joined.values()])
    flags = torch.zeros(len(importance), dtype=torch.bool)
    flags[importance.argsort(descending=True, stable=True)[:budget]] = True
    chosen = zip(joined.items(), flags.split([len(part.atoms) for part in joined.values()]), strict=True)
    return {site: part[flag.nonzero()[:, 0]] for (site, part), flag in chosen if flag.any()}


def _rest(baked: Sequence[SparseDictionary]) -> dict[str, LowRank]:
    """What lies outside the attentions, added up."""
    names = {name: None for dictionary in baked for name in dictionary.rest}
    updates = {name: [dictionary.rest[name] for dictionary in baked if name in dictionary.rest] for name in names}
    return {
        name: LowRank(torch.cat([u.down for u in found]), torch.cat([u.up for u in found]))
        for name, found in updates.items()
    }
