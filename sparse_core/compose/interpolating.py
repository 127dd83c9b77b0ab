"""What lies between two dictionaries of one lineage: two stages of one training, or one dictionary under two settings."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..controls import SparseAdapter
from ..dictionary import Atoms, SparseDictionary
from ..modules import LowRank
from ..words import added, times
from .baking import acting, bake, title_of
from .provenance import joined_metadata, source_record

ALIGNED = 0.6
"""The least mean cosine of a site's encoders at which two dictionaries count as one lineage. Two trainings with other
pictures from one seed have 0.4 on average."""


def interpolate(one: SparseAdapter, other: SparseAdapter, t: float) -> SparseDictionary:
    """Atom by atom between two dictionaries, with the weights that controls give them: ``one`` at 0, ``other`` at 1. Beyond
    0..1 it goes on in the same direction.

    :raises ValueError: the two are not of one lineage, one carries a control that can't be stored, or ``t`` is not finite.
    """
    if not math.isfinite(t):
        raise ValueError(f"The place between two dictionaries is {t}; expected a finite number, such as 0.5.")
    sources = [one.dictionary, other.dictionary]
    first, second = bake(one), bake(other)
    _check_lineage(first, second)
    sites = {site: _between(atoms, second.sites[site], t).unit_norm() for site, atoms in first.sites.items()}
    metadata = joined_metadata(
        f"{title_of(sources[0])} to {title_of(sources[1])}, {t:g}",
        sources,
        [source_record(source, share=share) for source, share in zip(sources, (1 - t, t), strict=True)],
        {
            (place := f"{site}[{j}]"): [(0, place), (1, place)]
            for site, atoms in sites.items()
            for j in range(len(atoms))
        },
    )
    rest = {
        name: _between_rest(first.rest.get(name), second.rest.get(name), t) for name in {**first.rest, **second.rest}
    }
    words = added([times(first.words, 1 - t), times(second.words, t)])
    return SparseDictionary(first.layers, sites, metadata, rest, words)


def _check_lineage(first: SparseDictionary, second: SparseDictionary) -> None:
    names = f"{title_of(first)} and {title_of(second)}"
    advice = "Interpolate two stages of one training, or combine the two instead."
    if first.fingerprint != second.fingerprint:
        raise ValueError(f"{names} belong to different models: {first.family} and {second.family}. {advice}")
    if first.sites.keys() != second.sites.keys():
        site = next(iter(first.sites.keys() ^ second.sites.keys()))
        raise ValueError(f"{names} are not of one lineage: only one of them has atoms at {site}. {advice}")
    for site, atoms in first.sites.items():
        theirs = second.sites[site]
        if len(atoms) != len(theirs) or atoms.normalise != theirs.normalise:
            raise ValueError(
                f"{names} are not of one lineage: at {site} they have {len(atoms)} and {len(theirs)} atoms"
                f"{'' if atoms.normalise == theirs.normalise else ', read in two ways'}. {advice}"
            )
        cosine = _alignment(atoms, theirs)
        if cosine < ALIGNED:
            raise ValueError(
                f"{names} are not of one lineage: the atoms at {site} look for other things (mean cosine {cosine:.2f}; expected "
                f"at least {ALIGNED}). {advice}"
            )


def _alignment(one: Atoms, other: Atoms) -> float:
    """Mean cosine of the encoders of atoms that both have."""
    both = one.encoder.any(dim=1) & other.encoder.any(dim=1)
    cosine = F.cosine_similarity(one.encoder[both], other.encoder[both], dim=1)
    return float(cosine.mean()) if len(cosine) else 1.0


def _between(one: Atoms, other: Atoms, t: float) -> Atoms:
    """With encoders of unit norm and directions that carry it, as in training: an atom that only one of them has fades, and
    keeps what it looks for."""
    first, second = _unit_encoder(one), _unit_encoder(other)
    first, second = _where(acting(one), first, second), _where(acting(other), second, first)
    tensors = {name: torch.lerp(tensor, second.tensors()[name], t) for name, tensor in first.tensors().items()}
    tensors["importance"], tensors["elsewhere"] = (tensors[name].clamp(min=0) for name in ("importance", "elsewhere"))
    tensors["threshold"] = tensors["threshold"].clamp(min=0)
    return replace(first, **tensors)


def _where(acts: Tensor, mine: Atoms, theirs: Atoms) -> Atoms:
    """What an atom looks for, from the other dictionary where this one's does not act; its direction stays 0 there."""
    return replace(
        mine,
        encoder=torch.where(acts[:, None], mine.encoder, theirs.encoder),
        bias=torch.where(acts, mine.bias, theirs.bias),
        threshold=torch.where(acts, mine.threshold, theirs.threshold),
    )


def _unit_encoder(atoms: Atoms) -> Atoms:
    """The same update with |e_j| = 1."""
    norm = atoms.encoder.norm(dim=1)  # (m,)
    safe = norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return replace(
        atoms,
        encoder=atoms.encoder / safe[:, None],
        bias=atoms.bias / safe,
        threshold=atoms.threshold / safe,
        directions=atoms.directions * norm[:, None],
    )


def _between_rest(one: LowRank | None, other: LowRank | None, t: float) -> LowRank:
    """Updates outside the attentions are linear in the weight, so both are kept, each with its share."""
    parts = [(update, share) for update, share in ((one, 1 - t), (other, t)) if update is not None]
    return LowRank(torch.cat([u.down for u, _ in parts]), torch.cat([u.up * share for u, share in parts]))
