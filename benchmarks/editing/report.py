"""From cells to ``edit.json``, ``edit.md`` and a picture of the curves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sparse_core.files import write_atomically

from ..quality.curves import bootstrap, hypervolume
from ..tables import table
from .edits import CHANGES, Edit
from .methods import DENSITIES, OURS, Editor
from .scores import preserved, scored
from .table import Bench

LEVEL = 0.7
"""Preservation at which methods are compared."""
LEVELS = (0.5, 0.6, LEVEL, 0.8)
"""At which their success is shown."""


class Measured(NamedTuple):
    """One edit with all that was measured of it."""

    edit: Edit
    reference: dict[str, Any]
    looks: dict[str, list[dict[str, Any]]]
    """Of each method, in the order of its looks."""
    trainings: dict[str, dict[str, Any]]
    """Of each method that learns."""


def measured(bench: Bench, edit: Edit, compared: Sequence[Editor], seed: int) -> Measured:
    """The scores of an edit of which nothing is missing."""
    reference = bench.reference(edit)
    (right,) = reference["target"]["seen"]
    return Measured(
        edit,
        {name: scored(edit, cell, right) for name, cell in reference.items()},
        {editor.name: [scored(edit, cell, right) for cell in bench.looks(edit, editor, seed)] for editor in compared},
        {editor.name: bench.training(edit, editor.method, seed) for editor in compared if editor.method},
    )


def averages(cells: Sequence[Mapping[str, Any]], references: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores over some edits: a cell and a reference of each."""

    def means(some: Sequence[Mapping[str, Any]], score: str) -> list[float]:
        return [float(np.mean(one[score])) for one in some]

    lowest, unrelated = (means([one[name] for one in references], "distance") for name in ("vae", "unrelated"))
    return {
        "obeyed": float(np.mean(means(cells, "obeyed"))),
        "text": float(np.mean(means(cells, "text"))),
        "preserved": preserved(means(cells, "distance"), lowest, unrelated),
    }


def known(found: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """What right answers, sources and the base's own pictures score."""
    references = [one.reference for one in found]
    return {
        name: averages([one[name] for one in references], references) for name in ("target", "source", "vae", "base")
    }


def curve(found: Sequence[Measured], editor: Editor) -> list[dict[str, float]]:
    """Scores of every look over some edits."""
    references = [one.reference for one in found]
    return [averages([one.looks[editor.name][n] for one in found], references) for n in range(len(editor.looks))]


def success_at(points: Sequence[tuple[float, float]], level: float) -> float:
    """The share of edits obeyed at a level of preservation, between the best points on a straight line; 0 where it is not
    reached. Points (obeyed, preserved)."""
    best: list[tuple[float, float]] = []
    for obeyed, kept in sorted(points, key=lambda point: (-point[1], -point[0])):
        if not best or obeyed > best[-1][0]:
            best.append((obeyed, kept))
    if not best or best[0][1] < level:
        return 0.0
    for (low, above), (high, below) in itertools.pairwise(best):
        if below <= level:
            return low + (high - low) * (above - level) / (above - below)
    return best[-1][0]


def summary(found: Sequence[Measured], editors: Sequence[Editor]) -> dict[str, Any]:
    """All figures."""
    methods = {}
    for editor in editors:
        points = curve(found, editor)
        aligned = [(point["obeyed"], point["preserved"]) for point in points]

        def area(drawn: Sequence[tuple[int, np.ndarray]], editor: Editor = editor) -> float:
            chosen = curve([found[n] for n, _ in drawn], editor)
            return hypervolume([(point["obeyed"], point["preserved"]) for point in chosen], (0.0, 0.0))

        trainings = [one.trainings[editor.name] for one in found if editor.name in one.trainings]
        methods[editor.name] = {
            # Edits are resampled: noises of one edit differ less than edits do.
            "hypervolume": bootstrap(area, [1] * len(found), seed=0),
            "success_at_equal_preservation": success_at(aligned, LEVEL),
            "success_at": {str(level): success_at(aligned, level) for level in LEVELS},
            "training_seconds": float(np.mean([t["seconds"] for t in trainings])) if trainings else 0.0,
            "parameters": trainings[0]["parameters"] if trainings else 0,
            "points": [{**look.__dict__, **point} for look, point in zip(editor.looks, points, strict=True)],
        }
    ours = {point["density"]: point for point in methods[OURS]["points"] if point["strength"] == 1}
    return {
        "methods": methods,
        "density_curve": {
            str(density): {score: ours[density][score] for score in ("text", "obeyed", "preserved")}
            for density in DENSITIES
        },
        "known": known(found),
        "level": LEVEL,
        "edits": len(found),
        "by_kind": {
            kind: {
                editor.name: max(
                    (min(p["obeyed"], p["preserved"]) for p in curve(of_kind, editor)),
                    default=None,
                )
                for editor in editors
            }
            for kind in CHANGES
            if (of_kind := [one for one in found if one.edit.kind == kind])
        },
    }


def write(report: Mapping[str, Any], out: Path) -> None:
    """Writes all files."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "edit.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(out / "edit.md", as_markdown(report).encode())
    draw_curves(report, out / "edit.png")


def as_markdown(report: Mapping[str, Any]) -> str:
    """Everything a reader compares, in tables."""
    numbers = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    header = [
        "method",
        "hypervolume",
        "interval",
        *(f"obeyed at preserved {level}" for level in LEVELS),
        "learning, processor s",
        "parameters",
    ]
    rows = [
        [
            name,
            f["hypervolume"][1],
            f"{f['hypervolume'][0]:.3f} to {f['hypervolume'][2]:.3f}",
            *f["success_at"].values(),
            f["training_seconds"] or None,
            f["parameters"] or None,
        ]
        for name, f in report["methods"].items()
    ]
    scores = ("text", "obeyed", "preserved")
    kinds = report["by_kind"]
    parts = [
        "# Edits of one picture",
        "Each edit changes one attribute of a picture of the demo model's world: a colour, a thing, the scene, the style, or a "
        "thing more or less; the renderer knows the right answer. Things that have colours of their own have others in the "
        "sources, and prompts don't name those. *Obeyed*: share of the pictures in which the judge reads all that the edit "
        "changes as asked. *Text*: share of all attributes which the edited prompt names. *Preserved*: where nothing is to "
        "change, 1 is as near to the source as the VAE allows, 0 as far off as what the base draws for the edited prompt. "
        "*Hypervolume*: area under a method's curve of obeyed against preserved over its sliders; 95 % bootstrap interval over "
        "edits. Dictionary and LoRA learn the source picture and its prompt with as many parameters, steps and pictures; "
        f"sampling is the same for all. Made by `make bench-edit`; tier: {report['tier']}.",
        f"{report['edits']} edits of the {report['half'].replace('_', '-')} half, {report['pictures']} noises each. Seeds "
        f"{', '.join(map(str, report['seeds']))}. {numbers}.",
        table(header, rows),
        "![Obeyed against preserved](edit.png)",
        "## Atoms removed",
        "At full strength, by importance on the source picture.",
        table(
            ["kept", *scores],
            [[f"{float(d):.0%}", *(f[s] for s in scores)] for d, f in report["density_curve"].items()],
        ),
        "## Kinds of edits",
        "The best of a method's settings by the lesser of obeyed and preserved.",
        table(["method", *kinds], [[name, *(of[name] for of in kinds.values())] for name in report["methods"]]),
        "## Known pictures",
        table(["pictures", *scores], [[name, *(f[s] for s in scores)] for name, f in report["known"].items()]),
        "## Settings",
        f"```json\n{json.dumps(report['settings'], indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def draw_curves(report: Mapping[str, Any], path: Path) -> None:
    """All points of every method, and a line along the best of each."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for number, (name, values) in enumerate(report["methods"].items()):
        points = sorted(((p["preserved"], p["obeyed"]) for p in values["points"]), reverse=True)
        best = [point for n, point in enumerate(points) if all(point[1] > other[1] for other in points[:n])]
        colour = f"C{number}"
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=3, alpha=0.5)
        axes.plot(*zip(*best, strict=True), "-", color=colour, label=name, linewidth=3 if name == OURS else 1.2)
    axes.axvline(report["level"], color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("preserved")
    axes.set_ylabel("obeyed")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
