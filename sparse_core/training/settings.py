"""What a person can choose about a training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..layers import PROJECTIONS, Layer, Projection, Site


@dataclass(frozen=True)
class TrainingSettings:
    """Defaults are careful; what measured best is in the presets, see ``docs/method.md``.

    :raises ValueError: a value is out of its range.
    """

    steps: int = 400
    """Optimiser steps, >= 1."""
    batch: int = 4
    """Pictures per step, >= 1."""
    accumulate: int = 1
    """Batches per optimiser step, >= 1: a larger batch in the memory of a small one."""
    learning_rate: float = 4e-3
    """Peak of the schedule, for directions; see ``encoder_rate``."""
    encoder_rate: float = 1.0
    """Learning rate of encoders relative to that of directions, >= 0."""
    word_rate: float = 0.14
    """Learning rate of the taught word's embedding, where there is one, relative to the root mean square of all words'
    embeddings, >= 0; 0 leaves the word as it is."""
    warm_up: float = 0.05
    """Share of the steps over which the rate rises, 0..1."""
    ema: float = 0.0
    """Decay of the running mean of the weights that is kept in their place, 0 (off) .. 1."""
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
    prior: float = 1.0
    """Weight of the loss on prior pictures (those whose prompts don't name the new thing), >= 0."""
    selective: float = 0.0
    """Weight of the penalty on coefficients at prior pictures, >= 0: pictures without the new thing move less, at the
    price of likeness."""
    reseed_every: int = 50
    """Steps between two searches for atoms that never fired, which start anew; >= 0, 0 for never."""
    patience: int = 0
    """Stop when the held-out loss has not fallen for this many checks, >= 0; 0 never stops."""
    check_every: int = 50
    """Steps between two looks at the held-out loss, >= 1."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third slower."""
    autocast: bool = False
    """Run the model in bfloat16; the dictionary stays in float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        lows = {"steps": 1, "batch": 1, "accumulate": 1, "atoms": 1, "check_every": 1}
        lows |= dict.fromkeys(
            ("threshold", "sparsity", "prior", "selective", "reseed_every", "patience", "encoder_rate", "word_rate"), 0
        )
        for name, low in lows.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}.")
        for name in ("warm_up", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a value from 0 to below 1.")
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

    def record(self) -> dict[str, object]:
        """The settings as JSON values, for a dictionary's metadata."""
        return dataclasses.asdict(self) | {
            "projections": "".join(self.projections),
            "attentions": list(self.attentions),
        }
