"""How much each atom moves the model's features, measured on examples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from ..coding import importance
from ..controls import SparseAdapter
from ..dictionary import SparseDictionary
from ..examples import Example, draw_batch
from ..hosts.base import Host
from ..layers import Site
from ..plan import Moment, Observer

ROWS = 4
"""Pictures in a batch, where they fit."""


class Measurement:
    """An observer of one adapter: running means per site."""

    def __init__(self, dictionary: SparseDictionary) -> None:
        self.dictionary = dictionary
        self.importance = {site: torch.zeros(len(atoms)) for site, atoms in dictionary.sites.items()}
        self.active = dict.fromkeys(dictionary.sites, 0.0)
        self.calls = dict.fromkeys(dictionary.sites, 0)

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        """See `Observer`."""
        index = torch.tensor(atoms)
        directions = self.dictionary.sites[site].directions.to(z.device)[index]
        self.calls[site] += 1
        self.importance[site][index] += importance(z, directions, y).cpu()
        self.active[site] += float((z != 0).float().mean())

    def mean_importance(self) -> dict[Site, Tensor]:
        """(m,) per site, 0 where an atom was never at work."""
        return {site: total / max(self.calls[site], 1) for site, total in self.importance.items()}

    def active_share(self) -> float:
        """Share of coefficients that are not zero, averaged over sites."""
        shares = [total / self.calls[site] for site, total in self.active.items() if self.calls[site]]
        return sum(shares) / max(len(shares), 1)


@torch.no_grad()
def observe(
    host: Host,
    adapter: SparseAdapter,
    examples: Sequence[Example],
    observer: Observer,
    *,
    rows: int = ROWS,
    batches: int = 8,
    seed: int = 0,
) -> None:
    """Runs the model with the adapter on noisy examples, evenly spread over the noise levels, and lets the observer watch. A
    cancel ends it with what was seen so far.

    :param rows: at most so many pictures in a batch, >= 1.
    """
    generator = torch.Generator().manual_seed(seed)
    with suppress(*host.interruptions), host.patched([adapter], observer):
        for batch in range(batches):
            drawn = draw_batch(host, examples, min(rows, len(examples)), generator)
            count = len(drawn.latents)
            progress = (torch.arange(count) + (batch + 0.5) / batches) / count
            host.denoise(host.add_noise(drawn.latents, drawn.noise, progress), progress, drawn.condition)


def measure(
    host: Host,
    dictionary: SparseDictionary,
    examples: Sequence[Example],
    *,
    rows: int = ROWS,
    batches: int = 8,
    seed: int = 0,
) -> Measurement:
    """What `observe` shows of the whole dictionary."""
    measurement = Measurement(dictionary)
    observe(host, SparseAdapter(dictionary), examples, measurement, rows=rows, batches=batches, seed=seed)
    return measurement


def with_importance(
    dictionary: SparseDictionary, measured: Measurement, elsewhere: Measurement | None = None
) -> SparseDictionary:
    """The dictionary with its measured importance stored; ``elsewhere`` is that at prompts that don't name what was
    learnt."""
    means = measured.mean_importance()
    others = {} if elsewhere is None else elsewhere.mean_importance()
    return replace(
        dictionary,
        sites={
            site: replace(atoms, importance=means[site], elsewhere=others.get(site, torch.zeros_like(means[site])))
            for site, atoms in dictionary.sites.items()
        },
    )
