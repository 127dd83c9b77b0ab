"""A search for each method's own best settings, on the development half alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..cells import Cells
from .concepts import Task
from .methods import Method, Point
from .summary import looks, mean
from .table import Keys, Setup, Unit, fill

RATES = (0.25, 0.5, 1.0, 2.0)
"""Learning rates tried, relative to a method's present one."""
STEPS = (0.5, 1.0, 2.0)
"""Numbers of steps, likewise."""
POINTS = tuple(Point(strength) for strength in (0.5, 0.75, 1.0, 1.25))


def grid(method: Method) -> Iterator[Method]:
    """A method under every setting that is tried; textual inversion has the word's rate alone."""
    for rate, steps in itertools.product(RATES, STEPS):
        settings = replace(method.settings, steps=round(method.settings.steps * steps))
        if method.family == "word":
            yield replace(method, settings=settings, word_rate=method.word_rate * rate)
        else:
            yield replace(method, settings=replace(settings, learning_rate=method.settings.learning_rate * rate))


def tune(
    setup: Setup, tasks: Sequence[Task], methods: Sequence[Method], seed: int, workers: int, threads: int, log: Path
) -> None:
    """Tries the grid and appends a line for every setting to the log, the best of each method last."""
    units = [Unit(t, seed, variant, POINTS) for t in tasks for method in methods for variant in grid(method)]
    fill(setup, units, workers, threads)
    found = looks(Keys(setup), Cells(setup.cache, {"table": "quality"}), units)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        for method in methods:
            lines = []
            for variant in grid(method):
                mine = [look for look in found if look.unit.method == variant]
                lines.append(
                    {
                        "method": variant.name,
                        "learning_rate": variant.settings.learning_rate,
                        "word_rate": variant.word_rate,
                        "steps": variant.settings.steps,
                        "tasks": [task.name for task in tasks],
                        "hypervolume": mean(look.hypervolume() for look in mine),
                    }
                )
            for line in sorted(lines, key=lambda line: line["hypervolume"]):
                file.write(json.dumps(line) + "\n")
            print(f"Best of {method.name}: {max(lines, key=lambda line: line['hypervolume'])}")
