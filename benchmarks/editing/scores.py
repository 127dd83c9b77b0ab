"""Whether an edit was obeyed, and what it left alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_core.demo.judge import Score, answers

from .edits import Edit, named


def scored(edit: Edit, cell: Mapping[str, Any], right: Mapping[str, str]) -> dict[str, list[Any]]:
    """The scores of an edit's pictures: an entry each.

    :param cell: what the judge saw of each, and its distance, as `Bench` keeps them.
    :param right: what the judge saw of the right answer.
    """
    return {
        "obeyed": [obeyed(edit, seen) for seen in cell["seen"]],
        "text": [text(edit, seen, right) for seen in cell["seen"]],
        "distance": cell["distance"],
    }


def obeyed(edit: Edit, seen: Mapping[str, str]) -> bool:
    """Whether the judge reads every attribute that the edit changes as asked."""
    before, after = (answers(named(scene)) for scene in (edit.source, edit.target))
    return all(seen[question] == after[question] for question in after if after[question] != before[question])


def text(edit: Edit, seen: Mapping[str, str], right: Mapping[str, str]) -> float:
    """Share of all attributes which the edited picture's prompt names that the judge sees. What it can't read in the right
    answer is left out: it knows no blue lions, and a picture that keeps one must not lose by that."""
    found, possible = hits(edit, seen), hits(edit, right)
    return float(np.mean([hit for hit, can in zip(found, possible, strict=True) if can]))


def hits(edit: Edit, seen: Mapping[str, str]) -> list[bool]:
    """Which attributes of the edited picture's prompt the judge sees."""
    score = Score()
    score.add(named(edit.target), dict(seen))
    return [hit for one in score.hits.values() for hit in one]


def preserved(distances: Sequence[float], lowest: Sequence[float], unrelated: Sequence[float]) -> float:
    """1 where pictures are as near to their sources as the VAE allows, 0 where they are as far off as what the base draws for
    the edited prompts without having seen the sources; an entry for each edit.

    Distances are summed before they are divided: an edit whose source the base happens to draw anyway says little.
    """
    off, whole = (float(np.sum(values) - np.sum(lowest)) for values in (distances, unrelated))
    return float(np.clip(1 - off / whole, 0, 1))


def check(target: Mapping[str, float], source: Mapping[str, float], base: Mapping[str, float]) -> None:
    """Scores that can't tell a right answer from wrong ones measure nothing.

    :param target: "obeyed" and "preserved" of the rendered right answers; of the untouched sources; of pictures by the base
        that are not those which the scale of "preserved" is made from.
    :raises ValueError: known good and known bad pictures score alike.
    """
    for score, good, bad, what in (
        ("obeyed", target, source, "the right answers and the untouched sources"),
        ("preserved", target, base, "the right answers and the base's pictures"),
        ("preserved", source, base, "the untouched sources and the base's pictures"),
    ):
        if good[score] < bad[score] + 0.6:
            raise ValueError(
                f"The score {score!r} is of no use here: {good[score]:.2f} and {bad[score]:.2f} for {what}; expected them "
                "at least 0.6 apart. Look at more edits, or at the judge."
            )
