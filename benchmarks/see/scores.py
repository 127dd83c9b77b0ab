"""How selective an ablation is, and whether a heat map lies on what it changes.

*Selectivity* of one ablation. The right answer to a prompt cuts the picture into regions: the parts of the taught thing by
colour, the other thing if there is one, and the background. Let s be the share of the picture's change that falls into a
region, and a the share of the picture that the region takes up. The region's corrected share is (s - a) / (1 - a): 0 where
the change is spread as if blindly, 1 where all of it falls into the region. Selectivity is the largest corrected share,
0..1. An ablation that blurs everything scores 0; one that moves the whole taught thing alike scores little, for no part
stands out; one that changes the roof and nothing else scores 1.

The figure of a picture is the mean over its ablations, weighted by how far each moves the picture, so that atoms which do
nothing say nothing. A method's figure is the mean over its pictures.

*Overlap* of a heat map and a change: both are cut off so that the same share of the picture is above, and what is above in
both is divided by what is above in either (intersection over union, 0..1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

AREA = 0.1
"""Share of the picture that heat maps and changes are cut off at: about that of a small thing."""
CHANCE = AREA / (2 - AREA)
"""Overlap of two maps that know nothing of each other."""


def selectivity(change: np.ndarray, regions: np.ndarray) -> float:
    """The largest share of a change in one region, corrected by the region's area, 0..1.

    :param change: float (h, w), 0 or more.
    :param regions: bool (regions, h, w); each place is in exactly one.
    :returns: 0 where nothing changes.
    """
    total = change.sum()
    if total == 0:
        return 0.0
    shares = (regions * change).sum(axis=(1, 2)) / total  # (regions,)
    areas = regions.mean(axis=(1, 2))  # (regions,)
    rest = np.maximum(1 - areas, 1 / change.size)  # a region that is all of the picture can hold nothing but its share
    return float(((shares - areas) / rest).max())


def overlap(heat: np.ndarray, change: np.ndarray) -> float:
    """Intersection over union of the highest tenths of two maps, (h, w) each, 0..1."""
    first, second = _highest(heat), _highest(change)
    return float((first & second).sum() / (first | second).sum())


def _highest(values: np.ndarray) -> np.ndarray:
    """The places of the highest values: (h, w) -> bool (h, w)."""
    flags = np.zeros(values.size, bool)
    flags[np.argsort(-values, axis=None, kind="stable")[: round(AREA * values.size)]] = True
    return flags.reshape(values.shape)


def weighted(values: Sequence[float], weights: Sequence[float]) -> float | None:
    """Mean of values, each as often as its weight says; None where all weights are 0."""
    return float(np.average(values, weights=weights)) if sum(weights) else None


def check(regions: np.ndarray) -> None:
    """A score that can't tell a change of one part from a change of everything measures nothing.

    :param regions: bool (regions, h, w), of a picture that is to be scored.
    :raises ValueError: it can't.
    """
    everywhere = np.ones(regions.shape[1:])
    blind = selectivity(everywhere, regions)
    for number, region in enumerate(regions):
        alone = selectivity(region + 0.0, regions)
        if alone < blind + 0.5:
            raise ValueError(
                f"The selectivity score is of no use here: it is {alone:.2f} for a change of region {number} alone and "
                f"{blind:.2f} for a change of everything."
            )
