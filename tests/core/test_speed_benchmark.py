"""The speed benchmark's report: what is not measured now stays as it was, and says under which conditions."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from benchmarks.cells import Cells
from benchmarks.machine import describe
from benchmarks.speed import Group, as_markdown, merged

NAMES = {"sampling": "sampling/diffusers/sd15/16", "training": "training/demo"}
SETTINGS = {"sides": {"sd15": 64}, "dtypes": {"sd15": "float32"}, "repeats": 4, "seed": 0, "attention": "its own"}


def test_a_report_does_not_say_on_which_host_it_was_made() -> None:
    assert describe(torch.device("cpu"))["system"] == platform.system()


def conditions(device: str) -> dict:
    return {"machine": {"device": device, "threads": 2}, "settings": SETTINGS, "versions": {"torch": "2"}}


def measured(folder: Path, device: str, ratio: float, *parts: str, before: dict | None = None) -> dict:
    """A report of a run on a device that measures some parts."""
    groups = [Group(lambda: None, {name: lambda _: None}, part) for part, name in NAMES.items()]
    cells = Cells(folder, conditions(device))
    for group in groups:
        if group.part in parts:
            cells[group.key(NAMES[group.part])] = {"ratio": ratio, "memory_ratio": 1.0}
    return merged(groups, cells, conditions(device), before or {})


def test_a_part_that_is_not_measured_stays_with_its_conditions(tmp_path: Path) -> None:
    first = measured(tmp_path, "old", 1.5, "sampling", "training")
    second = measured(tmp_path, "new", 0.9, "training", before=first)
    assert second["sampling_overhead"] == {"diffusers": {"sd15": {"16": 1.5}}}
    assert second["train_step_ratio"] == {"demo": 0.9} and second["train_memory_ratio"] == {"demo": 1.0}
    assert {part: known["machine"]["device"] for part, known in second["parts"].items()} == {
        "sampling": "old",
        "training": "new",
    }
    written = as_markdown([second])
    assert "## new, old" in written and "| demo | 0.900 | 1.000 |" in written


def test_a_part_that_is_measured_takes_the_place_of_what_was_known(tmp_path: Path) -> None:
    first = measured(tmp_path, "old", 1.5, "sampling", "training")
    second = measured(tmp_path, "new", 0.9, "sampling", "training", before=first)
    assert {value["ratio"] for value in second["cells"].values()} == {0.9}
    assert {known["machine"]["device"] for known in second["parts"].values()} == {"new"}


def test_a_first_report_holds_what_is_measured_alone(tmp_path: Path) -> None:
    report = measured(tmp_path, "new", 0.9, "training")
    assert report["parts"].keys() == {"training"} and "sampling_overhead" not in report
    assert "### Sampling" not in as_markdown([report])
