"""From scores of points to one figure a method: the area that its curve of text against likeness commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)
"""Percentiles."""


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area of all that some point beats in both scores, from a reference point on; points (text, likeness)."""
    area, best = 0.0, reference[1]
    for text, likeness in sorted(points, reverse=True):
        if text > reference[0] and likeness > best:
            area += (text - reference[0]) * (likeness - best)
            best = likeness
    return area


def best_likeness(points: Sequence[tuple[float, float]], text: float) -> float | None:
    """The highest likeness among points whose text alignment is at least ``text``."""
    return max((likeness for aligned, likeness in points if aligned >= text), default=None)


def cost_at(points: Sequence[tuple[float, float]], likeness: float) -> float | None:
    """What it costs to come to a likeness, between neighbouring points on a straight line; points (likeness, cost) in the
    order of the slider. None where the likeness is never reached."""
    before: tuple[float, float] | None = None
    for reached, cost in points:
        if reached >= likeness:
            if before is None or reached == before[0]:
                return cost
            share = (likeness - before[0]) / (reached - before[0])
            return before[1] + share * (cost - before[1])
        before = (reached, cost)
    return None


def text(point: Mapping[str, Any], chosen: np.ndarray | slice = slice(None)) -> float:
    """Share of the asked attributes that were seen, over chosen prompts."""
    return float(np.sum(np.array(point["hits"])[chosen]) / np.sum(np.array(point["asked"])[chosen]))


def likeness(point: Mapping[str, Any], chosen: np.ndarray | slice = slice(None)) -> float:
    """Mean of what the recogniser and the pixels say, over chosen prompts."""
    closeness = np.clip(np.array(point["closeness"])[chosen], 0, 1)
    return float((np.array(point["recognised"])[chosen].mean() + closeness.mean()) / 2)


def bootstrap(
    figure: Callable[[Sequence[tuple[int, np.ndarray]]], float], prompts: Sequence[int], seed: int
) -> list[float]:
    """Low end, mean and high end of a figure over resampled trainings and, in each, prompts.

    :param figure: of (training, chosen prompts) pairs.
    :param prompts: number of prompts of each training.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        trainings = rng.integers(0, len(prompts), len(prompts))
        drawn.append(figure([(int(t), rng.integers(0, prompts[t], prompts[t])) for t in trainings]))
    low, high = np.percentile(drawn, INTERVAL)
    everything = figure([(t, np.arange(count)) for t, count in enumerate(prompts)])
    return [float(low), everything, float(high)]
