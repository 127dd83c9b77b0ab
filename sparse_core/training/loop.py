"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..controls import SparseAdapter
from ..dictionary import Atoms, SparseDictionary
from ..hosts.base import Host
from ..layers import Layer, Site
from .examples import Example, draw_batch
from .objective import GroupTerm, diffusion_loss, loss_weight
from .settings import TrainingSettings

WARM_UP = 0.05
"""Share of the steps over which the learning rate rises."""


class TrainingStopped(Exception):
    """Raised by a progress callback to stop: what was learnt so far is kept."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every step."""

    step: int
    """Steps done, from 1."""
    steps: int
    loss: float
    """Diffusion loss of this step's batch."""
    estimate: Tensor
    """The model's estimate of this step's clean latents, (rows, channels, height, width)."""
    snapshot: Callable[[], SparseDictionary]
    """The dictionary as it stands."""


def initial_dictionary(layers: Sequence[Layer], settings: TrainingSettings) -> SparseDictionary:
    """A dictionary that changes nothing: random encoders of unit norm, so that a_j has standard deviation near 1
    whatever the model, and directions 0."""
    generator = torch.Generator().manual_seed(settings.seed)
    m = settings.atoms

    def atoms(site: Site) -> Atoms:
        d_in, d_out = layers[site.layer].shape(site.projection)
        return Atoms(
            encoder=torch.nn.functional.normalize(torch.randn(m, d_in, generator=generator), dim=1),
            bias=torch.zeros(m),
            threshold=torch.full((m,), settings.threshold),
            directions=torch.zeros(m, d_out),
            importance=torch.zeros(m),
        )

    return SparseDictionary(tuple(layers), {site: atoms(site) for site in settings.sites(layers)})


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a tenth: steps counted from 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return 0.55 + 0.45 * math.cos(math.pi * done)


def train(
    host: Host,
    examples: Sequence[Example],
    settings: TrainingSettings,
    on_step: Callable[[Progress], None] = lambda progress: None,
    metadata: dict[str, Any] | None = None,
) -> SparseDictionary:
    """Fits a dictionary to examples.

    :param on_step: called after every step; may raise `TrainingStopped`.
    :param metadata: kept in the dictionary, beside the training record.
    :returns: the dictionary, directions of unit norm, importance measured on the examples.
    :raises ValueError: there are no examples, or the loss stops being a number.
    """
    from ..analysis.importance import measure, with_importance

    if not examples:
        raise ValueError("There is nothing to learn from; expected at least one picture with its caption.")
    generator = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    with host.trainable():
        dictionary = initial_dictionary(host.layers, settings).map(lambda a: a.map(lambda t: t.to(host.device)))
        learnt = [
            tensor.requires_grad_()
            for atoms in dictionary.sites.values()
            for tensor in (atoms.encoder, atoms.bias, atoms.directions)
        ]
        optimiser = torch.optim.Adam(learnt, lr=settings.learning_rate, betas=(0.9, 0.99))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, settings.steps))

        def snapshot() -> SparseDictionary:
            return dictionary.map(lambda atoms: atoms.map(lambda t: t.detach().clone()).unit_norm())

        try:
            for step in range(1, settings.steps + 1):
                loss, estimate = training_step(host, dictionary, examples, settings, generator)
                losses.append(loss)
                if not math.isfinite(loss):
                    raise ValueError(
                        f"The loss is {loss} at step {step}. Lower the learning rate (now {settings.learning_rate:g})."
                    )
                optimiser.step()
                schedule.step()
                optimiser.zero_grad()
                on_step(Progress(step, settings.steps, loss, estimate, snapshot))
        except TrainingStopped:
            pass
        finished = snapshot()
    record = {"steps": len(losses), "final_loss": sum(losses[-20:]) / len(losses[-20:]), **_record(settings)}
    measured = measure(host, finished, examples, seed=settings.seed)
    return replace(
        with_importance(finished, measured),
        metadata={**(metadata or {}), "training": {**record, "active_share": measured.active_share()}},
    )


def training_step(
    host: Host,
    dictionary: SparseDictionary,
    examples: Sequence[Example],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> tuple[float, Tensor]:
    """Leaves the gradients of one batch on the dictionary's tensors; returns its diffusion loss and the estimate."""
    latents, condition, noise, progress = draw_batch(host, examples, settings.batch, generator)
    group_term = GroupTerm(dictionary)
    with host.patched([SparseAdapter(dictionary)], group_term):
        estimate = host.denoise(host.add_noise(latents, noise, progress), progress, condition)
    weight = loss_weight(host.prediction, host.snr(progress).to(latents.device))
    loss: Tensor = diffusion_loss(estimate, latents, weight)
    (loss + settings.sparsity * group_term.total).backward()
    return float(loss.detach()), estimate.detach()


def _record(settings: TrainingSettings) -> dict[str, Any]:
    return {
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "atoms": settings.atoms,
        "projections": "".join(settings.projections),
        "attentions": list(settings.attentions),
        "threshold": settings.threshold,
        "sparsity": settings.sparsity,
        "seed": settings.seed,
    }
