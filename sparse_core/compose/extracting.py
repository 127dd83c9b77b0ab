"""A part of a dictionary as a dictionary of its own."""

from __future__ import annotations

from ..addresses import Selection
from ..controls import Solo, SparseAdapter
from ..dictionary import SparseDictionary
from .baking import acting, bake, title_of
from .provenance import joined_metadata, source_record


def extract(adapter: SparseAdapter, selection: Selection, title: str = "") -> SparseDictionary:
    """The selected atoms as a new dictionary, with the weights that controls give them; muted and dropped ones stay behind. It
    draws what the adapter draws with a solo of them.

    :param title: the new dictionary's; without one, the old title and the selection.
    :raises AddressError: the selection picks nothing in this dictionary.
    :raises ValueError: a selected atom carries a mask, a schedule or a choice of prompt, or none of them acts.
    """
    source = adapter.dictionary
    baked = bake(adapter.with_controls(Solo(selection)))
    chosen = {site: acting(atoms).nonzero()[:, 0] for site, atoms in baked.sites.items()}
    chosen = {site: index for site, index in chosen.items() if len(index)}
    if not chosen and not baked.rest:
        raise ValueError(f"{selection} picks only atoms that are muted, dropped or do nothing. Select others.")
    metadata = joined_metadata(
        title or f"{title_of(source)}: {selection}",
        [source],
        [source_record(source, selection=str(selection))],
        {
            f"{site}[{new}]": [(0, f"{site}[{old}]")]
            for site, index in chosen.items()
            for new, old in enumerate(index.tolist())
        },
    )
    sites = {site: baked.sites[site][index].unit_norm() for site, index in chosen.items()}
    return SparseDictionary(source.layers, sites, metadata, baked.rest, baked.words)
