"""Two ways of doing the same work, compared in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, median, quantiles
from typing import Any

import torch

from .machine import Cost, measured


def interleaved(
    plain: Callable[[], float], other: Callable[[], float], repeats: int, device: torch.device
) -> dict[str, Any]:
    """Runs plain, other, plain, other, ..., plain, so that whatever slows the machine down slows both.

    Both are run once beforehand, for caches and lazy initialisation.
    """
    plain(), other()
    plains, others = [measured(plain, device)], []
    for _ in range(repeats):
        others.append(measured(other, device))
        plains.append(measured(plain, device))
    return compare(plains, others)


def compare(plains: Sequence[Cost], others: Sequence[Cost]) -> dict[str, Any]:
    """Figures of measurements taken in turn, starting with a plain one.

    ``ratio`` is the median over the others, each divided by the mean of the plain ones before and after it.
    """
    neighbours = [mean(cost.seconds for cost in plains[i : i + 2]) for i in range(len(others))]
    ratios = [cost.seconds / beside for cost, beside in zip(others, neighbours, strict=True)]
    result = {
        "ratio": median(ratios),
        "quartiles": quartiles(ratios),
        "repeats": len(others),
        "plain_seconds": median(cost.seconds for cost in plains),
        "seconds": median(cost.seconds for cost in others),
    }
    if all(cost.peak is not None for cost in (*plains, *others)):
        before, after = (median(cost.peak for cost in costs) for costs in (plains, others))
        result |= {"memory_ratio": after / before, "plain_peak_mb": before / 1e6, "peak_mb": after / 1e6}
    return result


def quartiles(values: Sequence[float]) -> list[float]:
    """The middle half's ends."""
    if len(values) < 2:
        return [values[0], values[0]]
    first, _, third = quantiles(values, n=4, method="inclusive")
    return [first, third]
