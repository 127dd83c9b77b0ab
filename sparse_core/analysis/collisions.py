"""Where two dictionaries get into each other's way: which of their atoms fire on the same tokens, and whether they push the
same way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compose import combine
from ..compose.baking import title_of
from ..controls import Conditioning, Listen, Mask, Pictures, Schedule, SparseAdapter
from ..dictionary import SparseDictionary
from ..hosts.base import Host
from ..layers import Site
from ..plan import Moment
from ..replaying import Replay
from ..training.prior import prior_examples
from .importance import observe

MOST_PAIRS = 1024
"""Pairs of a site that are looked at one by one, those that move most: two large LoRAs have millions of them."""
LISTED = 12
"""Pairs of atoms that the report names."""
UNCOUNTED = (Mask, Schedule, Conditioning, Listen, Pictures, Replay)
"""Controls that say where, when and on what atoms act. They are what keeps atoms apart, and no dictionary can store them."""


class Pair(NamedTuple):
    """An atom of each dictionary at one site."""

    first: str
    """Address in the first dictionary."""
    second: str
    overlap: float
    """0..1: tokens on which both fire, among those on which either does."""
    direction: float
    """-1..1: the cosine of what they do to the feature on a token where both fire, the signs of their coefficients included."""
    weight: float
    """How much of the feature the two move where both fire, as importance is measured."""


class SiteShares(NamedTuple):
    """Shares of a site's tokens, 0..1."""

    first: float
    """On which any atom of the first dictionary fires."""
    second: float
    both: float
    agreement: float
    """-1..1: mean cosine of the two updates where both act; 0 where they never do."""


@dataclass(frozen=True)
class Collisions:
    """What was found."""

    titles: tuple[str, str]
    labels: tuple[Mapping[str, str], Mapping[str, str]]
    sites: Mapping[Site, SiteShares]
    """Those at which both have atoms."""
    pairs: Sequence[Pair]
    """Those that fire together, those that move most first; `MOST_PAIRS` of a site at most."""
    itself: bool = False
    """Whether the two are one: then its pairs stand here twice, and each atom meets its own copy."""
    words: tuple[str, ...] = ()
    """What both have taught."""

    def report(self) -> str:
        """In words and numbers, as Markdown."""
        one, other = (title.replace("|", "/") for title in self.titles)  # it would part a cell of the table
        named = [
            f"Both have taught the word {word!r}; applied together they add up to a third meaning. Train one with another word."
            for word in self.words
        ]
        if not self.sites:
            apart = f"{one} and {other} have no site in common: their atoms can't fire on the same tokens."
            return "\n".join([apart, *named])
        share = {name: _mean(getattr(s, name) for s in self.sites.values()) for name in SiteShares._fields[:3]}
        agreeing = _mean(s.agreement for s in self.sites.values() if s.both)
        lines = [
            f"{one} acts on {share['first']:.1%} of the tokens, {other} on {share['second']:.1%}, both on {share['both']:.1%}.",
            f"Where both act they push {_way(agreeing)} (cosine {agreeing:+.2f}).",
            *named,
            "",
            f"| site | {one} | {other} | both | direction |",
            "|---|---|---|---|---|",
        ]
        busiest = sorted(self.sites.items(), key=lambda item: -item[1].both)[:LISTED]
        lines += [
            f"| {site} | {s.first:.1%} | {s.second:.1%} | {s.both:.1%} | {s.agreement:+.2f} |" for site, s in busiest
        ]
        pairs = [pair for pair in self.pairs if not self.itself or pair.first < pair.second]
        lines += ["", f"| {one} | {other} | overlap | direction |", "|---|---|---|---|"]
        lines += [
            f"| {self._named(0, p.first)} | {self._named(1, p.second)} | {p.overlap:.0%} | {p.direction:+.2f} |"
            for p in pairs[:LISTED]
        ]
        if len(pairs) > LISTED:
            lines.append(f"and {len(pairs) - LISTED} more pairs that fire together")
        return "\n".join(lines)

    def _named(self, which: int, address: str) -> str:
        label = self.labels[which].get(address)
        return f"{address} ({label})" if label else address


@torch.no_grad()
def collisions(
    host: Host,
    first: SparseAdapter,
    second: SparseAdapter,
    conditions: Sequence[Any],
    negative: Any,
    shape: tuple[int, int, int],
    *,
    pictures: int = 4,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Collisions:
    """Draws pictures with both dictionaries for the conditions in turn, then runs the model on them at all amounts of noise
    and watches the atoms. Of the controls only those count that weigh or mute atoms.

    :param conditions: the host's, of single prompts; ``negative`` the one of the empty prompt.
    :param shape: (channels, height, width) of the latents.
    :param on_step: called after every sampling step; may raise to stop.
    :raises ValueError: the two can't be joined, see `combine`, or there are no conditions.
    """
    if not conditions:
        raise ValueError("There are no prompts to draw; expected at least one that names what the dictionaries learnt.")
    first, second = (
        replace(one, controls=tuple(control for control in one.controls if not isinstance(control, UNCOUNTED)))
        for one in (first, second)
    )
    itself = first.dictionary.content_hash == second.dictionary.content_hash
    both = combine([first, second], (0.5, 0.5) if itself else (), merge_above=1)
    adapter = SparseAdapter(both)
    with host.patched([adapter]):
        examples = prior_examples(host, conditions, negative, shape, count=pictures, seed=seed, on_step=on_step)
    watch = _Watch(both)
    observe(host, adapter, examples, watch, seed=seed)
    return Collisions(
        titles=_told_apart(title_of(first.dictionary), title_of(second.dictionary)),
        labels=(first.dictionary.labels, second.dictionary.labels),
        sites={site: seen.shares() for site, seen in watch.sites.items()},
        pairs=sorted((p for s, seen in watch.sites.items() for p in seen.pairs(s)), key=lambda pair: -pair.weight),
        itself=itself,
        words=() if itself else tuple(word for word in first.dictionary.words if word in second.dictionary.words),
    )


class _Watch:
    """An observer of the joined dictionary."""

    def __init__(self, both: SparseDictionary) -> None:
        self.sites: dict[Site, _Seen] = {}
        for site, atoms in both.sites.items():
            origins = [both.metadata["origins"][f"{site}[{j}]"][0] for j in range(len(atoms))]
            split = sum(number == 0 for number, _ in origins)
            if 0 < split < len(atoms):
                self.sites[site] = _Seen(atoms.directions, split, [address for _, address in origins])

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        """See `Observer`."""
        if site in self.sites:
            self.sites[site].add(z[..., torch.tensor(atoms).argsort().to(z.device)], y)


@dataclass
class _Seen:
    """Sums over the tokens of one site."""

    directions: Tensor
    """(m, d_out)."""
    split: int
    """The first atoms are the first dictionary's."""
    addresses: list[str]
    tokens: int = 0
    calls: int = 0
    fired: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(m, m) tokens on which two atoms fire both; on the diagonal, on which one does."""
    moved: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(m, m) sum of |z_i| |z_j| relative to the feature's mean square."""
    signed: Tensor = field(default_factory=lambda: torch.zeros(()))
    """(m, m) tokens on which both fire with the same sign less those with opposite signs."""
    acted: Tensor = field(default_factory=lambda: torch.zeros(4))
    """Tokens on which the first acts, the second, both; sum of the cosines of the two updates there."""

    def add(self, z: Tensor, y: Tensor) -> None:
        """(rows, tokens, m), (rows, tokens, d_out)."""
        z = z.detach().float().cpu().flatten(0, -2)  # (tokens, m)
        sign, size = z.sign(), z.abs()
        self.tokens += len(z)
        self.calls += 1
        self.fired = self.fired + sign.abs().T @ sign.abs()
        self.signed = self.signed + sign.T @ sign
        self.moved = self.moved + size.T @ size / (len(z) * float(y.float().square().mean()))
        first, second = (z[:, s] @ self.directions[s] for s in (slice(self.split), slice(self.split, None)))
        one, other = (sign[:, s].any(dim=1) for s in (slice(self.split), slice(self.split, None)))
        cosine = F.cosine_similarity(first, second, dim=1)[one & other].sum()
        self.acted = self.acted + torch.stack([one.sum(), other.sum(), (one & other).sum(), cosine])

    def shares(self) -> SiteShares:
        first, second, both, cosine = self.acted.tolist()
        total = max(self.tokens, 1)
        return SiteShares(first / total, second / total, both / total, cosine / max(both, 1))

    def pairs(self, site: Site) -> list[Pair]:
        if not self.calls:
            return []
        alone, m = self.fired.diagonal(), self.split
        either = alone[:m, None] + alone[m:] - self.fired[:m, m:]
        overlap = self.fired[:m, m:] / either.clamp(min=1)
        along = F.normalize(self.directions[:m], dim=1) @ F.normalize(self.directions[m:], dim=1).T
        direction = along * self.signed[:m, m:] / self.fired[:m, m:].clamp(min=1)
        weight = (self.moved[:m, m:] / self.calls).sqrt()
        first, second = self.fired[:m, m:].nonzero(as_tuple=True)  # (pairs,) each
        most = weight[first, second].topk(min(MOST_PAIRS, len(first))).indices
        first, second = first[most], second[most]
        figures = zip(*(t[first, second].tolist() for t in (overlap, direction, weight)), strict=True)
        return [
            Pair(self.addresses[i], self.addresses[m + j], *said)
            for i, j, said in zip(first.tolist(), second.tolist(), figures, strict=True)
        ]


def _told_apart(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one != other else (f"{one} (1)", f"{other} (2)")


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / max(len(values), 1)


def _way(cosine: float) -> str:
    if abs(cosine) < 0.1:
        return "in unrelated directions"
    return "the same way" if cosine > 0 else "against each other"
