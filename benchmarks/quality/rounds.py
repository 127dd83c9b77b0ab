"""Rounds of research: a hypothesis each, with the settings that could refute it, tried on the development half alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .methods import Method
from .presets import CONTROLS, MAIN, METHODS, OURS


class Round(NamedTuple):
    """One sweep. The present settings are always tried beside it."""

    hypothesis: str
    variants: Sequence[Method]


def ours(**changes: Any) -> Method:
    """Our method with other training settings."""
    present = METHODS[OURS]
    return replace(present, settings=replace(present.settings, **changes))


def peer(name: str, rate: float) -> Method:
    """A peer with another learning rate."""
    present = METHODS[name]
    return replace(present, settings=replace(present.settings, learning_rate=rate))


ROUNDS = {
    "sparsity": Round(
        "A stronger group term empties atoms that only carry noise: pruning helps, so should never growing them.",
        [ours(sparsity=weight) for weight in (1e-3, 1e-2)],
    ),
    "selective": Round(
        "Silence at prior prompts lowers drift and leaves the likeness.",
        [ours(selective=weight) for weight in (3e-4, 1e-3, 3e-3, 1e-2)],
    ),
    "average": Round(
        "A running mean of the weights averages out the noise of small gradients.",
        [ours(ema=0.98), ours(ema=0.98, learning_rate=1.6e-2)],
    ),
    "rates": Round(
        "Encoders that learn more slowly than directions hold on to fewer of the pictures' other features.",
        [ours(learning_rate=rate, encoder_rate=share) for rate, share in ((8e-3, 0.33), (8e-3, 3.0))],
    ),
    "threshold": Round(
        "Other thresholds trade likeness for text at a better rate.",
        [ours(threshold=threshold) for threshold in (1.5, 2.5)],
    ),
    "steps": Round(
        "The weak side, likeness, wants more steps.",
        [ours(steps=800)],
    ),
    "style": Round(
        "A style shows in every token, and a threshold of two deviations lets a twentieth of them act: a lower one, or a weaker "
        "group term, reaches the rest.",
        [
            ours(steps=300),
            *(ours(threshold=threshold) for threshold in (0.5, 1.0)),
            *(ours(sparsity=1e-5, threshold=threshold) for threshold in (1.0, 2.0)),
            *(ours(learning_rate=8e-3, threshold=threshold) for threshold in (1.0, 2.0)),
            *(peer("LoRA", rate) for rate in (1e-3, 4e-3)),
        ],
    ),
    "dense style": Round(
        "Lower thresholds and a weaker group term helped a style; gentler rates, which keep more atoms firing, help too.",
        [
            ours(learning_rate=8e-3, sparsity=1e-5, threshold=1.0),
            ours(learning_rate=4e-3, sparsity=1e-5, threshold=1.0),
            ours(learning_rate=4e-3, sparsity=1e-5, threshold=0.5),
            ours(learning_rate=4e-3, sparsity=1e-5, threshold=0.0),
        ],
    ),
    "bold": Round(
        "With more pictures in a batch, all rates can be higher.",
        [ours(learning_rate=3.2e-2)],
    ),
    "base": Round(
        "On a deeper base one weight of the group term closes all sites but the outermost: a weaker one, or gentler rates, serve "
        "both bases.",
        [
            *(ours(sparsity=weight) for weight in (1e-5, 3e-5)),
            ours(learning_rate=8e-3, sparsity=1e-5),
            METHODS["LoRA"],
        ],
    ),
    "sites": Round(
        "Cross-attention alone moves less of what is not the concept; more atoms there are better spent.",
        [ours(attentions=("attn2",), atoms=32), ours(attentions=("attn1",), atoms=32), ours(atoms=32)],
    ),
    "word": Round(
        "What is learnt hardly depends on the taught word's embedding, which others leave alone: with the word as it was, all "
        "methods lose alike.",
        [
            replace(method, word_rate=0.0)
            for method in (*(METHODS[name] for name in MAIN), peer("LoRA", 4e-3), peer("Adapter", 1.6e-2))
        ],
    ),
    "peers": Round(
        "The peers' settings are not their best.",
        [
            peer("Adapter", 1.6e-2),
            *(peer("LoHa", rate) for rate in (1e-3, 4e-3, 8e-3)),
            *(peer("DoRA", rate) for rate in (1e-3, 4e-3)),
            *(replace(METHODS["textual inversion"], word_rate=rate) for rate in (3e-3, 3e-2)),
        ],
    ),
    "peers' styles": Round(
        "A style wants gentler rates of the peers too.",
        [peer("LoRA", 5e-4), *(peer("Adapter", rate) for rate in (2e-3, 4e-3))],
    ),
    "dense": Round(
        "Without a threshold other rates are better than the one that the control has.",
        [
            replace(CONTROLS["dense"], settings=replace(CONTROLS["dense"].settings, learning_rate=rate))
            for rate in (2e-3, 8e-3)
        ],
    ),
}
