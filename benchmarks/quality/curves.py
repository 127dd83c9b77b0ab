"""From scores of points to one figure a method: the area that its curve of text against likeness commands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from .methods import Point

PARTS = 20
"""Of the way from one position of a slider to the next."""
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


def least_cost(points: Sequence[tuple[float, float]], likeness: float) -> float | None:
    """The lowest cost among points whose likeness is at least ``likeness``; points (likeness, cost)."""
    return min((cost for reached, cost in points if reached >= likeness), default=None)


def along_sliders(scores: Mapping[Point, Sequence[float]], base: Sequence[float]) -> list[tuple[float, ...]]:
    """Scores wherever a user's sliders can stand: at the positions that were measured and, on straight lines, between
    neighbours. The strength slider begins at the plain model; the density slider is one at each strength.

    :param base: scores of the plain model.
    """
    mine = {point: values for point, values in scores.items() if point.by == "importance"}
    whole = sorted(point for point in mine if point.density == 1)
    sliders = [[base, *(mine[point] for point in whole)]]
    for strength in dict.fromkeys(point.strength for point in mine if point.density < 1):
        at = [point for point in mine if point.strength == strength]
        sliders.append([mine[point] for point in sorted(at, key=lambda point: -point.density)])
    return [tuple(place) for slider in sliders for place in _finely(np.array(slider)).tolist()]


def _finely(slider: np.ndarray) -> np.ndarray:
    """(positions, scores) with `PARTS` steps from each position to the next."""
    share = np.linspace(0, 1, PARTS + 1)[:-1, None]
    between = [(1 - share) * here + share * there for here, there in pairwise(slider)]
    return np.concatenate([*between, slider[-1:]])


def text(point: Mapping[str, Any], chosen: np.ndarray | slice = slice(None)) -> float:
    """Share of the asked attributes that were seen, over chosen prompts."""
    return float(np.sum(np.array(point["hits"])[chosen]) / np.sum(np.array(point["asked"])[chosen]))


def likeness(point: Mapping[str, Any], chosen: np.ndarray | slice = slice(None)) -> float:
    """Mean of what the recogniser and the pixels say, over chosen prompts."""
    closeness = np.clip(np.array(point["closeness"])[chosen], 0, 1)
    return float((np.array(point["recognised"])[chosen].mean() + closeness.mean()) / 2)


def bootstrap(
    figure: Callable[[Sequence[tuple[int, np.ndarray]]], float],
    prompts: Sequence[int],
    seed: int,
    subjects: Sequence[Hashable] | None = None,
) -> list[float]:
    """Low end, mean and high end of a figure over resampled subjects and, in each, trainings and prompts.

    :param figure: of (training, chosen prompts) pairs.
    :param prompts: number of prompts of each training.
    :param subjects: what each training taught, with the same prompts each time; where it is left out, each something of
        its own.
    """
    rng = np.random.default_rng(seed)
    of_subject: dict[Hashable, list[int]] = {}
    for training, subject in enumerate(subjects or range(len(prompts))):
        of_subject.setdefault(subject, []).append(training)
    taught = list(of_subject.values())

    def draw(mine: list[int]) -> list[tuple[int, np.ndarray]]:
        count = prompts[mine[0]]
        asked = rng.integers(0, count, count)
        again = rng.choice(mine, len(mine)) if len(mine) > 1 else mine
        return [(int(training), asked) for training in again]

    drawn = [
        figure([pair for subject in rng.integers(0, len(taught), len(taught)) for pair in draw(taught[subject])])
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(drawn, INTERVAL)
    everything = figure([(t, np.arange(count)) for t, count in enumerate(prompts)])
    return [float(low), everything, float(high)]
