"""A search for what suits learning one picture, on the development half alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..quality.methods import Method
from .edits import Edit
from .learning import single_picture
from .methods import Editor, editors
from .report import LEVEL, Measured, curve, hypervolume, measured, success_at
from .table import Bench

LORA_RATE = 2e-3
"""The LoRA's learning rate."""

TRIED: Sequence[dict[str, Any]] = (
    {},
    {"threshold": 1.5},
    {"sparsity": 1e-5},
    {"sparsity": 1e-5, "learning_rate": 1.6e-2},
    {"sparsity": 1e-5, "learning_rate": 4e-3},
    {"sparsity": 1e-5, "steps": 200},
    {"sparsity": 1e-5, "threshold": 1.5},
    {"sparsity": 1e-5, "threshold": 1.0},
    {"attentions": ("attn1",)},
)
"""Changes of the preset, for the dictionary."""
LORA_TRIED: Sequence[dict[str, Any]] = (
    {"learning_rate": LORA_RATE},
    {"learning_rate": 4e-3},
    {"learning_rate": 8e-3},
)
"""For the LoRA, which has the preset's steps and pictures."""


def search(bench: Bench, edits: Sequence[Edit], strengths: Sequence[float], seed: int, log: Path) -> None:
    """Tries all that the log does not know yet, and appends a line for each."""
    ours, lora, *others = editors(single_picture(), LORA_RATE, strengths)
    trials: list[tuple[Editor, dict[str, Any]]] = [(editor, {}) for editor in others]
    trials += [(ours, changes) for changes in TRIED] + [(lora, changes) for changes in LORA_TRIED]
    lines = [json.loads(one) for one in log.read_text().splitlines()] if log.is_file() else []
    known = [(one["method"], json.dumps(one["changes"]), one["edits"]) for one in lines]
    for editor, changes in trials:
        if (editor.name, json.dumps(changes), len(edits)) in known:
            continue
        variant = replace(editor, method=changed(editor.method, changes)) if editor.method else editor
        bench.fill(edits, [variant], seed)
        found = [measured(bench, edit, [variant], seed) for edit in edits]
        one = line(found, variant, changes)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(json.dumps(one) + "\n")
        print({name: value for name, value in one.items() if name != "points"}, flush=True)


def changed(method: Method, changes: dict[str, Any]) -> Method:
    """The method with other settings."""
    return replace(method, settings=replace(method.settings, **changes))


def line(found: Sequence[Measured], variant: Editor, changes: dict[str, Any]) -> dict[str, Any]:
    """The figures of one variant."""
    points = curve(found, variant)
    pairs = [(point["obeyed"], point["preserved"]) for point in points]
    return {
        "method": variant.name,
        "changes": changes,
        "edits": len(found),
        "hypervolume": hypervolume(pairs, (0.0, 0.0)),
        "success_at_equal_preservation": success_at(pairs, LEVEL),
        "points": [{**look.__dict__, **point} for look, point in zip(variant.looks, points, strict=True)],
    }
