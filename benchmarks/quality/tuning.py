"""Searches for better settings, on the development half alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sparse_core.training import TrainingSettings

from ..cells import Cells
from .concepts import Task
from .curves import along_sliders, best_likeness, likeness, text
from .methods import Method, Point
from .presets import named, points
from .summary import ALIGNED, Look, average, looks, mean
from .table import Keys, Setup, Unit, fill

RATES = (0.25, 0.5, 1.0, 2.0)
"""Learning rates tried, relative to a method's present one."""
STEPS = (0.5, 1.0, 2.0)
"""Numbers of steps, likewise."""
STRENGTHS = (0.7, 1.0)


def grid(method: Method) -> Iterator[Method]:
    """A method under every setting that is tried; textual inversion has the word's rate alone."""
    for rate, steps in itertools.product(RATES, STEPS):
        settings = replace(method.settings, steps=round(method.settings.steps * steps))
        if method.family == "word":
            yield replace(method, settings=settings, word_rate=method.word_rate * rate)
        else:
            yield replace(method, settings=replace(settings, learning_rate=method.settings.learning_rate * rate))


def search(
    setup: Setup,
    tasks: Sequence[Task],
    variants: Sequence[Method],
    seed: int,
    workers: int,
    threads: int,
    log: Path,
    title: str,
) -> None:
    """Tries all variants and their present settings, and appends a line for each to the log, the best of a method last.

    :param title: what the search is for; stands in every line.
    """
    present = named(list(dict.fromkeys(variant.name for variant in variants)))
    tried = list(dict.fromkeys([*present, *variants]))
    units = [Unit(task, seed, variant, points(variant, STRENGTHS, random=False)) for task in tasks for variant in tried]
    fill(setup, units, workers, threads)
    found = looks(Keys(setup), Cells(setup.cache, {"table": "quality"}), units)
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "model": setup.model.name,
            "seed": seed,
            **line(title, variant, [look for look in found if look.unit.method == variant]),
        }
        for variant in tried
    ]
    lines.sort(key=lambda one: (one["method"], one["hypervolume"]))
    with log.open("a") as file:
        for one in lines:
            file.write(json.dumps(one) + "\n")
            print({name: value for name, value in one.items() if name != "points"})


def line(title: str, variant: Method, mine: Sequence[Look]) -> dict[str, Any]:
    """The figures of one variant."""
    at = {point: average(mine, point) for point in mine[0].points}
    base = [mean(score(look.reference["base"]) for look in mine) for score in (text, likeness)]
    best = best_likeness(along_sliders({point: (a["text"], a["likeness"]) for point, a in at.items()}, base), ALIGNED)
    shares = [look.training["active_share"] for look in mine if look.training["active_share"] is not None]
    return {
        "search": title,
        "method": variant.name,
        "settings": _differences(variant),
        "tasks": sorted({look.unit.task.name for look in mine}),
        "hypervolume": mean(look.hypervolume() for look in mine),
        "likeness_at_text_95": None if best is None else best - base[1],
        "at_full_strength": at[Point()],
        "points": [{**point._asdict(), **figures} for point, figures in at.items()],
        "active_share": mean(shares) if shares else None,
        "training_seconds": mean(look.training["seconds"] for look in mine),
    }


def _differences(variant: Method) -> dict[str, Any]:
    """What differs from the trainer's defaults."""
    defaults = asdict(TrainingSettings())
    changed = {name: value for name, value in asdict(variant.settings).items() if value != defaults[name]}
    return {**changed, "word_rate": variant.word_rate}
