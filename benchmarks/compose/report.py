"""The figures as files: ``compose.json``, ``compose.md`` and ``compose.png``, a sheet of pictures."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_core.files import write_atomically

from ..quality.curves import bootstrap
from ..quality.report import TITLES
from ..tables import table
from .pairs import render
from .scores import Answers
from .table import SHOWN, Bench, Look

MEETING = {"concept": "two concepts", "style": "a concept and a style"}
"""What pairs of each kind are."""


def best_scale(answers: Mapping[float, Sequence[Answers]]) -> float:
    """The scale with the most pictures in which everything is right; of equals the one with the least cross talk."""

    def worth(scale: float) -> tuple[float, float]:
        found = figures(answers[scale])
        return found["both_present_and_obeyed"], -(found["cross_talk"] or 0.0)

    return max(answers, key=worth)


def figures(answers: Sequence[Answers]) -> dict[str, Any]:
    """Of one method over its pairs and seeds. Cross talk is None where no two concepts meet."""
    right = [np.array(one.both_present_and_obeyed(), float) for one in answers]
    low, share, high = bootstrap(
        lambda drawn: float(np.concatenate([right[n][pictures] for n, pictures in drawn]).mean()),
        [len(one) for one in right],
        seed=0,
    )
    crossed = list(itertools.chain.from_iterable(itertools.chain.from_iterable(one.crossed for one in answers)))
    return {
        "both_present_and_obeyed": share,
        "interval": [low, high],
        "present": _share([one.present for one in answers]),
        "obeyed": _share([one.obeyed for one in answers]),
        "cross_talk": float(np.mean(crossed)) if crossed else None,
    }


def _share(flags: Sequence[Sequence[bool]]) -> float:
    return float(np.mean(list(itertools.chain.from_iterable(flags))))


def summary(bench: Bench, looks: Sequence[Look]) -> dict[str, Any]:
    """The figures of one half: a scale for each method, and what the ends of the scales score."""
    pairs = list(dict.fromkeys(look.pair for look in looks))
    of_method = {
        name: [look for look in looks if look.method == name] for name in dict.fromkeys(k.method for k in looks)
    }
    ends = [bench.references(pair) for pair in pairs]
    kinds = dict.fromkeys(pair.kind for pair in pairs)
    return {
        "methods": {
            name: {**figures([bench.answers(look) for look in mine]), "scale": mine[0].scale}
            for name, mine in of_method.items()
        },
        "reference": {name: figures([end[name] for end in ends]) for name in ("right", "wrong")},
        "pairs": len(pairs),
        "asked": sum(len(bench.asked(pair)) for pair in pairs),
        "by_kind": {
            kind: {
                "pairs": sum(pair.kind == kind for pair in pairs),
                "both_present_and_obeyed": {
                    name: _share([bench.answers(k).both_present_and_obeyed() for k in mine if k.pair.kind == kind])
                    for name, mine in of_method.items()
                },
            }
            for kind in kinds
        },
    }


def write(report: Mapping[str, Any], bench: Bench, shown: Sequence[Look], out: Path) -> None:
    """Writes all files."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "compose.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomically(out / "compose.md", as_markdown(report).encode())
    draw_sheet(bench, shown, out / "compose.png")


def as_markdown(report: Mapping[str, Any]) -> str:
    """Everything a reader compares, in tables."""
    known = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    numbers = ", ".join(map(str, report["seeds"]))
    seeds = f"{len(report['seeds'])} {'seed' if len(report['seeds']) == 1 else 'seeds'} ({numbers})"
    parts = [
        "# Composing",
        "Two concepts, or a concept and a style, are taught apart, each with a word of its own, as sparse dictionaries and "
        "as LoRAs of equal size. Then both are joined and prompts ask for both. *All right*: share of pictures in which the "
        "recogniser sees each concept at its own place (and the style) and the judge sees the scene, places and sizes that "
        "were asked for; 95 % bootstrap interval over pairs and prompts. *Present* and *obeyed* are its two halves. *Cross "
        "talk*: share of places at which the other concept is seen. Only prompts count whose right render passes and whose wrong "
        "one does not; the last two rows are of all. Both words are spoken as they were learnt in all "
        "methods. Each method's scale is the best of those tried on the development half. Made by `make bench-compose`.",
        f"{report['pairs']} held-out pairs and {report['dev']['pairs']} of the development half, {seeds}, "
        f"{report['prompts']} prompts at most for each pair. {known}.",
    ]
    for half, found in (("held_out", report), ("dev", report["dev"])):
        parts += [f"## {TITLES[half]}", f"{found['pairs']} pairs, {found['asked']} prompts.", _table(found)]
        if "by_kind" in found:
            parts += ["### All right, by what meets", _kinds_table(found["by_kind"])]
    return "\n\n".join([*parts, "![Truth and answers on the held-out half](compose.png)"]) + "\n"


def _table(found: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            f.get("scale"),
            f["both_present_and_obeyed"],
            "{:.3f} to {:.3f}".format(*f["interval"]),
            f["present"],
            f["obeyed"],
            f["cross_talk"],
        ]
        for name, f in {**found["methods"], **_renders(found["reference"])}.items()
    ]
    return table(["method", "scale", "all right", "interval", "present", "obeyed", "cross talk"], rows)


def _kinds_table(by_kind: Mapping[str, Any]) -> str:
    shares = [of_kind["both_present_and_obeyed"] for of_kind in by_kind.values()]
    header = [f"{MEETING[kind]}, {of_kind['pairs']} of the pairs" for kind, of_kind in by_kind.items()]
    return table(["method", *header], [[name, *(share[name] for share in shares)] for name in shares[0]])


def _renders(reference: Mapping[str, Any]) -> dict[str, Any]:
    return {"*right renders*": reference["right"], "*renders swapped, or without the style*": reference["wrong"]}


def draw_sheet(bench: Bench, shown: Sequence[Look], path: Path) -> None:
    """Right answers and those of all methods: a row for each of the first prompts, a column for each method."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [(pair, number) for pair in dict.fromkeys(look.pair for look in shown) for number in range(SHOWN)]
    methods = list(dict.fromkeys(look.method for look in shown))
    strips = {(look.pair, look.method): np.array(Image.open(bench.strip(look))) for look in reversed(shown)}
    size = (1.5 * (len(methods) + 1), 1.8 * len(rows))
    figure, grid = pyplot.subplots(len(rows), len(methods) + 1, figsize=size, squeeze=False, layout="constrained")
    for (pair, number), line in zip(rows, grid, strict=True):
        asked = bench.asked(pair)[number]
        truth = render(bench.lab.studio, pair, asked.scene).picture
        cells = [np.split(strips[pair, method], SHOWN, axis=1)[number] for method in methods]
        for axes, picture in zip(line, [truth, *cells], strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
        line[0].set_title(textwrap.fill(f"{pair.name}: {asked.prompt}", 30), fontsize=5)
    for axes, method in zip(grid[0][1:], methods, strict=True):
        axes.set_title(textwrap.fill(method, 20), fontsize=6)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)  # a third of the size
