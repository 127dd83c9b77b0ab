"""The figures as files: ``see.json`` and ``see.md``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tables import table
from .scores import AREA, CHANCE
from .subjects import ALIKE, FEW, LORA, LORA_SVD, cut

GOAL = 2.0
"""Selectivity of ours over that of a LoRA's directions."""
LORAS = {of(name) for name in (LORA, LORA_SVD) for of in (str, cut)}
GALLERY_GOAL = 60
"""Seconds."""


def write(figures: Mapping[str, Any], out: Path) -> None:
    """Writes both."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "see.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "see.md").write_text(as_markdown(figures), encoding="utf-8")


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Everything a reader compares, in words and a table."""
    known = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    looked_at = figures["looked_at"]
    rows = [
        [
            name,
            value,
            "{:.3f} to {:.3f}".format(*figures["selectivity_interval"][name]),
            figures["heatmap_iou"][name],
            figures["effect"][name],
            figures["one_answer"][name],
        ]
        for name, value in figures["selectivity"].items()
    ]
    header = [
        "atoms",
        "selectivity",
        "95 % interval",
        "heat map overlap",
        "effect, grey levels",
        "one answer of those that flip any",
    ]
    parts = [
        "# Can one see what an atom does?",
        f"The {looked_at['atoms']} most important atoms of a training are left out of a picture, one by one, from the same "
        f"noise. Importance is measured in the same way for all. *{FEW:.0%} kept*: the picture itself is made by the most "
        "important tenth of the atoms.",
        "*Selectivity*: the right answer to the prompt cuts the picture into regions: the parts of the taught thing by "
        "colour, the other thing if there is one, and the background. Let s be the share of the picture's change that falls "
        "into a region, and a the share of the picture that the region takes up. The region's corrected share is "
        "(s - a) / (1 - a): 0 where the change is spread as if blindly, 1 where all of it falls into the region. "
        "Selectivity is the largest corrected share, averaged over the atoms, weighted by how far each moves the picture, then "
        "over pictures.",
        f"*Heat map overlap*: the highest {AREA:.0%} of an atom's heat map and of what changes without it, intersection over "
        f"union, weighted likewise; {CHANCE:.3f} is chance. Atoms that read words have no heat map. *Effect*: grey levels of "
        "255 by which a picture moves without one atom. *One answer*: of the ablations that change any answer of the demo "
        "model's judge (scene, style, thing, colour and size at each place), the share that changes only one.",
        f"Tier: {figures['tier']}: {looked_at['trainings']} trainings a method, {looked_at['pictures']} pictures each of "
        f"{', '.join(looked_at['concepts'])}; seeds {', '.join(map(str, figures['seeds']))}. {known}. Made by `make bench-see`.",
        table(header, rows),
        _verdict(figures),
        "## What looking costs",
        table(
            ["", "measured", "goal"],
            [
                [f"gallery of {looked_at['atoms']} atoms on the demo model, {figures['gallery_threads']} threads, seconds",
                 figures["gallery_seconds"], f"at most {GALLERY_GOAL}"],
                ["the same with the further pictures that its labels are decided on",
                 figures["labelled_gallery_seconds"], "–"],
                ["report of a shipped dictionary, bytes", figures["report_bytes"], "–"],
                ["Atom Mixer, input to paint with 2,000 atoms, milliseconds", figures["mixer_ms_2000"], "–"],
            ],
        ),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _verdict(figures: Mapping[str, Any]) -> str:
    said, reached = [], []
    over = figures["selectivity_over"]
    for mine, others in ALIKE.items():
        if known := [name for name in others if name in over]:
            said.append(f"{mine}: " + ", ".join(f"{over[name]:.2f} times that of {name}" for name in known))
            reached += [over[name] >= GOAL for name in known if name in LORAS]
    if not said:
        return ""
    return (
        f"Selectivity of the {'; of the '.join(said)}. The goal, {GOAL:g} times that of a LoRA's directions, is "
        f"{'reached' if all(reached) else '**not** reached'}."
    )
