"""What a person can choose about a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..layers import PROJECTIONS, Layer, Projection, Site


@dataclass(frozen=True)
class TrainingSettings:
    """Defaults are what measured best; see ``docs/method.md``.

    :raises ValueError: a value is out of its range.
    """

    steps: int = 400
    """Optimiser steps, >= 1."""
    batch: int = 4
    """Pictures per step, >= 1."""
    learning_rate: float = 4e-3
    """Peak of the schedule, for encoders and directions."""
    atoms: int = 16
    """Atoms per site, >= 1: more than needed, since most can be dropped afterwards."""
    projections: tuple[Projection, ...] = PROJECTIONS
    """Which projections get atoms."""
    attentions: tuple[str, ...] = ("attn1", "attn2")
    """Which attentions get atoms."""
    threshold: float = 2.0
    """theta in standard deviations of a coefficient before training, >= 0: at 2 some 6 % of coefficients fire."""
    sparsity: float = 1e-4
    """lambda, the weight of the group term, >= 0."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch", 1), ("atoms", 1), ("threshold", 0), ("sparsity", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a value between 0 and 1, such as 0.004.")
        if unknown := set(self.projections) - set(PROJECTIONS):
            raise ValueError(
                f"There is no projection {', '.join(sorted(unknown))}; expected some of {', '.join(PROJECTIONS)}."
            )
        if not self.projections or not self.attentions:
            raise ValueError("No site is chosen; expected at least one projection of one attention.")

    def sites(self, layers: Sequence[Layer]) -> list[Site]:
        """The sites that get atoms, in execution order."""
        return [
            Site(number, projection)
            for number, layer in enumerate(layers)
            if layer.attention in self.attentions
            for projection in PROJECTIONS
            if projection in self.projections
        ]
