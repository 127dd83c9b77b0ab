"""From the table of cells to the figures that are reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..cells import Cells
from .concepts import Half, Task
from .curves import along_sliders, best_likeness, bootstrap, hypervolume, least_cost, likeness, text
from .methods import Point
from .presets import OURS, PEERS_OF_EQUAL_SIZE, WORD_LEFT
from .table import ALONE, Keys, Unit, complete

ALIGNED = 0.95
"""Text alignment at which methods are compared."""
COMMON_LIKENESS = 0.9
"""Drift is compared at this share of the likeness that both ours and LoRA reach."""
ANCHORS = (OURS, "LoRA")


class Look(NamedTuple):
    """One training with everything that was measured of it."""

    unit: Unit
    training: dict[str, Any]
    points: dict[Point, dict[str, Any]]
    reference: dict[str, Any]
    overhead: float
    """Time for a picture over that of the plain model."""

    def curve(self, chosen: np.ndarray | slice = slice(None)) -> list[tuple[float, float]]:
        """(text, likeness) wherever its sliders can stand, over chosen prompts."""

        def place(scores: dict[str, Any]) -> tuple[float, float]:
            return text(scores, chosen), likeness(scores, chosen)

        return along_sliders({p: place(scores) for p, scores in self.points.items()}, place(self.reference["base"]))

    def by_strength(self) -> Look:
        """The same, looked at with all atoms only."""
        return self._replace(points={point: scores for point, scores in self.points.items() if point.density == 1})

    def hypervolume(self, chosen: np.ndarray | slice = slice(None)) -> float:
        """Of the curve, from the text alignment of lessons learnt by heart and the likeness of the untaught base."""
        corner = text(self.reference["overfitted"]), likeness(self.reference["base"])
        return hypervolume(self.curve(chosen), corner)


def looks(keys: Keys, cells: Cells, units: Iterable[Unit]) -> list[Look]:
    """All units that are measured to the end."""
    return [
        Look(
            unit,
            cells[keys.training(unit)],
            {point: cells[keys.point(unit, point)] for point in unit.points},
            cells[keys.reference(unit.task)],
            cells[keys.overhead(unit)]["ratio"],
        )
        for unit in units
        if complete(keys, cells, unit)
    ]


def comparable(found: Sequence[Look], work: Iterable[Unit]) -> list[Look]:
    """Without what a method has learnt with a seed while something of that half is missing: a mean over other tasks than
    those of other methods says nothing."""

    def group(unit: Unit) -> tuple[Half, str, int]:
        return unit.task.half, unit.title, unit.seed

    known = {look.unit for look in found}
    unfinished = {group(unit) for unit in work if unit not in known}
    return [look for look in found if group(look.unit) not in unfinished]


def summary(found: Sequence[Look], half: Half) -> dict[str, Any]:
    """The figures of one half."""
    of_half = [look for look in found if look.unit.task.half == half]
    names = dict.fromkeys(look.unit.title for look in of_half)
    of_method = {name: [look for look in of_half if look.unit.title == name] for name in names}
    common = _common_likeness(of_method)
    result: dict[str, Any] = {
        "methods": {name: _method(mine, common) for name, mine in of_method.items()},
        "reference": _references(of_half),
        "trainings": len(of_half),
    }
    if OURS in of_method:
        ours = of_method[OURS]
        result["density"] = _densities(ours, "importance")
        result["random_removal"] = _densities(ours, "random")
        result["active_share"] = float(np.mean([look.training["active_share"] for look in ours]))
        result["hypervolume_over_best_peer"] = _over_best_peer(result["methods"])
        rivals = {name: OURS + next(filter(name.endswith, (ALONE, WORD_LEFT)), "") for name in of_method}
        result["hypervolume_over"] = {
            name: _over(of_method[rival], of_method[name])
            for name, rival in rivals.items()
            if name != rival and rival in of_method
        }
    result["by_subject"] = {name: _by_subject(mine) for name, mine in of_method.items()}
    if "LoRA" in of_method:
        result["svd_cut"] = _densities(of_method["LoRA"], "importance")
    return result


def _method(mine: Sequence[Look], common: float | None) -> dict[str, Any]:
    """Figures of one method over its trainings."""
    averages = {point: average(mine, point) for point in mine[0].points}
    base = [mean(score(look.reference["base"]) for look in mine) for score in (text, likeness)]
    scores = {p: (a["text"], a["likeness"], a["drift"]) for p, a in averages.items() if "drift" in a}
    places = along_sliders(scores, (*base, 0.0))

    def gain(threshold: float) -> float | None:
        best = best_likeness([(aligned, alike) for aligned, alike, _ in places], threshold)
        return None if best is None else best - base[1]

    def drift_at(reached: float) -> float | None:
        return least_cost([(alike, drift) for _, alike, drift in places], reached)

    whole = next((a for point, a in averages.items() if point.strength == point.density == 1), {})
    return {
        "hypervolume": bootstrap(
            lambda drawn: mean(mine[t].hypervolume(prompts) for t, prompts in drawn),
            [len(look.reference["base"]["hits"]) for look in mine],
            seed=0,
            subjects=[look.unit.task for look in mine],
        ),
        "hypervolume_by_strength": mean(look.by_strength().hypervolume() for look in mine),
        "likeness_at_text_95": gain(ALIGNED),
        "likeness_at_text_95_of_base": gain(ALIGNED * base[0]),
        "drift_at_equal_likeness": None if common is None else drift_at(common),
        "unchanged": whole.get("unchanged"),
        "trainings": len(mine),
        "params": round(mean(look.training["parameters"] for look in mine)),
        "bytes": round(mean(look.training["bytes"] for look in mine)),
        "training_seconds": mean(look.training["seconds"] for look in mine),
        "sampling_overhead": mine[0].overhead,
        "points": [{**point._asdict(), **figures} for point, figures in averages.items()],
    }


def average(mine: Sequence[Look], point: Point) -> dict[str, float]:
    """Scores of one point over all trainings."""
    cells = [look.points[point] for look in mine]
    moved = {name: mean(mean(cell[name]) for cell in cells) for name in ("drift", "unchanged") if name in cells[0]}
    return {"text": mean(map(text, cells)), "likeness": mean(map(likeness, cells)), **moved}


def _common_likeness(of_method: dict[str, list[Look]]) -> float | None:
    """The likeness at which drifts are compared, or None where one of the two is missing."""
    if not all(name in of_method for name in ANCHORS):
        return None
    reached = [
        max(average(of_method[name], p)["likeness"] for p in of_method[name][0].points if p.density == 1)
        for name in ANCHORS
    ]
    return COMMON_LIKENESS * min(reached)


def _densities(mine: Sequence[Look], by: str) -> dict[str, dict[str, float]]:
    points = [p for p in mine[0].points if p.strength == 1 and (p.by == by or p.density == 1)]
    return {
        str(float(p.density)): {k: v for k, v in average(mine, p).items() if k in ("text", "likeness")} for p in points
    }


def _by_subject(mine: Sequence[Look]) -> dict[str, float]:
    """Hypervolume for each task, over seeds: what a mean over all hides."""
    of_task: dict[str, list[float]] = {}
    for look in mine:
        of_task.setdefault(look.unit.task.name, []).append(look.hypervolume())
    return {name: mean(values) for name, values in of_task.items()}


def _references(found: Sequence[Look]) -> dict[str, dict[str, float]]:
    """What the ends of the scales score, over the tasks."""
    by_task: dict[Task, dict[str, Any]] = {look.unit.task: look.reference for look in found}
    return {
        name: {
            score.__name__: mean(score(reference[name]) for reference in by_task.values()) for score in (text, likeness)
        }
        for name in ("base", "right", "drawable", "wrong", "overfitted")
        if by_task
    }


def _over_best_peer(methods: dict[str, dict[str, Any]]) -> float | None:
    peers = [methods[name]["hypervolume"][1] for name in PEERS_OF_EQUAL_SIZE if name in methods]
    return methods[OURS]["hypervolume"][1] / max(peers) if peers and max(peers) > 0 else None


def _over(ours: Sequence[Look], theirs: Sequence[Look]) -> list[float] | None:
    """Ratio of two methods' hypervolumes, low end, mean and high end. Both are resampled together, over what both have
    learnt: how hard a concept is tells more between concepts than between methods."""
    partner = {(look.unit.task, look.unit.seed): look for look in theirs}
    pairs = [(look, partner[key]) for look in ours if (key := (look.unit.task, look.unit.seed)) in partner]

    def ratio(drawn: Sequence[tuple[int, np.ndarray]]) -> float:
        above, below = (sum(pairs[t][side].hypervolume(prompts) for t, prompts in drawn) for side in (0, 1))
        return above / below if below else float("inf")

    if not pairs:
        return None
    prompts = [len(look.reference["base"]["hits"]) for look, _ in pairs]
    return bootstrap(ratio, prompts, seed=0, subjects=[look.unit.task for look, _ in pairs])


def gain_kept(first: dict[str, Any], second: dict[str, Any]) -> float | None:
    """How much of the lead over the best peer a second base keeps, with the same presets: lead is what the ratio of
    hypervolumes has above 1."""
    before, after = first.get("hypervolume_over_best_peer"), second.get("hypervolume_over_best_peer")
    return None if before is None or after is None or before == 1 else (after - 1) / (before - 1)


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean as a plain number."""
    return float(np.mean(list(values)))
