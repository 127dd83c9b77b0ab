"""What is being trained. The loop knows a `Learner` only, so that other methods can be measured under the same loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..coding import group_norm
from ..controls import SparseAdapter
from ..dictionary import Atoms, SparseDictionary
from ..hosts.base import Host
from ..layers import Layer, Site, reads_words
from ..plan import Moment
from .processes import ALONE, Processes
from .settings import TrainingSettings

MEASURED_WIDTH = 128
"""Inputs of the widest projections that learning rates were measured on; encoders of wider ones learn more slowly, so that
coefficients move no faster."""


class Learner(Protocol):
    """An adaptation of a host under training."""

    def parameters(self) -> dict[str, Tensor]:
        """Every tensor to fit, by a stable name."""

    def buffers(self) -> dict[str, Tensor]:
        """What else the next step depends on, by a stable name."""

    def learning_rate(self, name: str) -> float:
        """Peak rate of one tensor."""

    def at_work(self, prior: Tensor) -> AbstractContextManager[None]:
        """The host adapted, for one batch whose rows are prior pictures or not, (rows,) bool."""

    def penalty(self) -> Tensor | float:
        """What the last batch adds to the loss."""

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """Called every so often with the squared error of the last batch, (rows, 1, height, width); returns the rows of
        tensors that start anew, so that their optimiser state does too."""


def initial_dictionary(layers: Sequence[Layer], settings: TrainingSettings) -> SparseDictionary:
    """A dictionary that changes nothing: random encoders of unit norm, so that a_j has standard deviation near 1
    whatever the model, and directions 0."""
    generator = torch.Generator().manual_seed(settings.seed)
    m = settings.atoms

    def atoms(site: Site) -> Atoms:
        d_in, d_out = layers[site.layer].shape(site.projection)
        return Atoms(
            encoder=F.normalize(torch.randn(m, d_in, generator=generator), dim=1),
            bias=torch.zeros(m),
            threshold=torch.full((m,), settings.threshold),
            directions=torch.zeros(m, d_out),
            importance=torch.zeros(m),
        )

    return SparseDictionary(tuple(layers), {site: atoms(site) for site in settings.sites(layers)})


class DictionaryLearner:
    """A sparse dictionary. Implements `Learner`, and observes its own coefficients for the penalty."""

    LEARNT = ("encoder", "bias", "directions")

    def __init__(self, host: Host, settings: TrainingSettings, processes: Processes = ALONE) -> None:
        self.host, self.settings, self.processes = host, settings, processes
        initial = initial_dictionary(host.layers, settings)
        self.dictionary = initial.map(lambda atoms: atoms.map(lambda tensor: tensor.to(host.device)))
        for tensor in self.parameters().values():
            tensor.requires_grad_()
        self.adapter = SparseAdapter(self.dictionary)
        self.fired = {
            site: torch.zeros(len(a), dtype=torch.bool, device=host.device) for site, a in self.dictionary.sites.items()
        }
        self.reseeded = torch.zeros((), dtype=torch.long)
        self.seen: dict[Site, Seen] = {}
        """What the sites did in the last batch."""
        self._listening = False
        self._to_keep = self._to_learn = torch.zeros(0, dtype=torch.long)
        """Rows of the batch with prior pictures and with others."""

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`; names are ``L3.v.encoder`` and the like."""
        return {
            f"{site}.{name}": getattr(atoms, name)
            for site, atoms in self.dictionary.sites.items()
            for name in self.LEARNT
        }

    def buffers(self) -> dict[str, Tensor]:
        """See `Learner`: which atoms have fired since the last `maintain`, and how many have started anew so far."""
        return {"reseeded": self.reseeded, **{f"{site}.fired": fired for site, fired in self.fired.items()}}

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        rate = self.settings.learning_rate
        if name.endswith("directions"):
            return rate
        rate *= self.settings.encoder_rate
        if name.endswith("bias"):
            return rate
        # A step of Adam moves a_j by up to the rate times the number of inputs, whatever the gradient.
        return rate * min(1, MEASURED_WIDTH / self.parameters()[name].shape[1])

    def at_work(self, prior: Tensor) -> AbstractContextManager[None]:
        """See `Learner`."""
        self._to_keep, self._to_learn = prior.nonzero()[:, 0], (~prior).nonzero()[:, 0]
        self.seen, self._listening = {}, True
        return self.host.patched([self.adapter], self)

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        """See `Observer`: keeps what the penalty and the search for silent atoms need."""
        if self._listening:  # a checkpointed block runs once more in the backward pass
            rms = torch.linalg.vector_norm(y.detach(), dtype=torch.float32) / y.numel() ** 0.5
            self.seen[site] = Seen(x, z, rms, None if reads_words(site, self.host.layers) else moment.grid)

    def penalty(self) -> Tensor | float:
        """See `Learner`: each site counts relative to the rms of the feature it updates, so that a weight means the same
        in every model. Sites of one shape are summed together: a few large operations instead of many small ones."""
        self._listening = False
        counts = torch.tensor([float(len(rows)) for rows in (self._to_learn, self._to_keep)])
        learnt, kept = self.processes.mean(counts).tolist()
        alike: dict[tuple, list[Site]] = {}
        for site, seen in self.seen.items():
            alike.setdefault((seen.z.shape, self.dictionary.sites[site].directions.shape), []).append(site)
        total: Tensor | float = 0.0
        for sites in alike.values():
            z = torch.stack([self.seen[site].z for site in sites])  # (sites, rows, tokens, m)
            directions = torch.stack([self.dictionary.sites[site].directions for site in sites])  # (sites, m, d_out)
            rms = torch.stack([self.seen[site].rms for site in sites])
            squares = _share_of_mean(z.square(), self._to_learn, learnt)
            fired = (z.detach() != 0).flatten(1, 2).any(dim=1)
            facts = self.processes.mean(torch.cat([squares.detach(), fired, rms.square()[:, None]], dim=1))
            everyones, fired, rms = facts.split([z.shape[-1], z.shape[-1], 1], dim=1)
            penalties = z.new_zeros(len(z))
            if learnt:
                # The value is of the whole batch and the gradient of our rows alone: the mean gradient of all processes is
                # then that of the whole, although the norm is not a sum over rows.
                squares = squares + (everyones - squares.detach()).to(squares)
                penalties = penalties + self.settings.sparsity * group_norm(squares, directions)
            if self.settings.selective and kept:
                moved = _share_of_mean(z.abs(), self._to_keep, kept)
                penalties = penalties + self.settings.selective * (moved * directions.norm(dim=2)).sum(dim=1)
            total = total + (penalties / rms[:, 0].sqrt().clamp(min=torch.finfo(torch.float32).tiny)).sum()
            if self.settings.reseed_every:
                for site, has_fired in zip(sites, fired > 0, strict=True):
                    self.fired[site] |= has_fired
        self.seen = {s: seen._replace(x=seen.x.detach(), z=seen.z.detach()) for s, seen in self.seen.items()}
        return total

    @torch.no_grad()
    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """Atoms that never fired since the last call start anew, as detectors of the tokens with the largest error."""
        anew, error = [], self.processes.whole(error)
        for site, fired in self.fired.items():
            silent = (~fired).nonzero()[:, 0].tolist()
            fired.zero_()
            if not silent or site not in self.seen:
                continue
            seen = self.seen[site]
            tokens = _worst_tokens(self.processes.whole(seen.x), error, seen.grid, len(silent))
            rows, atoms = silent[: len(tokens)], self.dictionary.sites[site]
            atoms.encoder[rows] = F.normalize(tokens.float(), dim=1).to(atoms.encoder)
            atoms.bias[rows] = 0
            atoms.directions[rows] = 0  # learnt for what it looked for before
            anew += [(f"{site}.{name}", row) for row in rows for name in self.LEARNT]
            self.reseeded += len(tokens)
        return anew

    def snapshot(self) -> SparseDictionary:
        """The dictionary as it stands, directions of unit norm."""
        return self.dictionary.map(lambda atoms: atoms.map(lambda t: t.detach().clone()).unit_norm())


class WordLearner:
    """Any method with the embeddings of a word beside it. Implements `Learner`."""

    def __init__(self, method: Learner, embeddings: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """
        :param embeddings: what is learnt of the word, by a stable name; ``rates`` are their peaks.
        """
        self.method, self.embeddings, self.rates = method, embeddings, rates

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {**self.method.parameters(), **self.embeddings}

    def buffers(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return self.method.buffers()

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        return self.rates[name] if name in self.rates else self.method.learning_rate(name)

    def at_work(self, prior: Tensor) -> AbstractContextManager[None]:
        """See `Learner`."""
        return self.method.at_work(prior)

    def penalty(self) -> Tensor | float:
        """See `Learner`."""
        # A batch that does not name the word has no gradient for it; several processes average theirs all the same.
        return self.method.penalty() + 0 * sum(tensor.sum() for tensor in self.embeddings.values())

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """See `Learner`."""
        return self.method.maintain(error)


class Seen(NamedTuple):
    """What one site did in the last batch."""

    x: Tensor
    """(rows, tokens, d_in), what its atoms read."""
    z: Tensor
    """(rows, tokens, m), their coefficients."""
    rms: Tensor
    """Of the feature they update, a scalar."""
    grid: tuple[int, int] | None
    """Height and width of the tokens' places in the picture; None for words."""


def _share_of_mean(values: Tensor, rows: Tensor, count: float) -> Tensor:
    """What our rows add to a mean over rows and tokens, (sites, rows, tokens, m) -> (sites, m): the mean of everybody's share
    is the mean over everybody's rows, of which each process has ``count`` on average."""
    if not len(rows):
        return values.new_zeros(len(values), values.shape[-1])
    chosen = values if len(rows) == values.shape[1] else values[:, rows]
    return chosen.flatten(1, 2).mean(dim=1) * (len(rows) / count)


def _worst_tokens(x: Tensor, error: Tensor, grid: tuple[int, int] | None, count: int) -> Tensor:
    """The tokens at the places of largest error: (rows, tokens, d), (rows, 1, height, width) -> (<= count, d). Words have
    no place: each is as bad as its picture."""
    rows, tokens, _ = x.shape
    if grid is None:
        badness = error.mean(dim=(1, 2, 3))[:, None].expand(rows, tokens)
    else:
        badness = F.interpolate(error, grid, mode="area").flatten(1)
    worst = badness.flatten().topk(min(count, rows * tokens)).indices
    return x.flatten(0, 1)[worst]


def rates(learner: Learner) -> list[dict[str, Any]]:
    """The learner's tensors as an optimiser's parameter groups, one for each rate."""
    by_rate: dict[float, list[Tensor]] = {}
    for name, tensor in learner.parameters().items():
        by_rate.setdefault(learner.learning_rate(name), []).append(tensor)
    return [{"params": tensors, "lr": rate} for rate, tensors in by_rate.items()]
