"""The speed benchmark's report: what is not measured now stays as it was, and says under which conditions."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from benchmarks import speed
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


def test_a_figure_alone_leaves_the_others_of_its_part(tmp_path: Path) -> None:
    names = ["sampling/comfyui/sd15/16", "sampling/comfyui/sd15/32", "peers/peft_lora_16/sd15"]
    group = Group(lambda: None, {name: lambda _: None for name in names})

    def report(device: str, ratio: float, measured: list[str], before: dict) -> dict:
        cells = Cells(tmp_path / str(ratio), conditions(device))
        for name in measured:
            cells[group.key(name)] = {"ratio": ratio}
        return merged([group], cells, conditions(device), before)

    first = report("old", 1.5, names, {})
    alike = report("old", 1.25, names[1:2], first)
    assert [value["ratio"] for value in alike["cells"].values()] == [1.5, 1.25, 1.5]
    assert "older" not in alike and "From before" not in as_markdown([alike])
    other = report("new", 0.9, names[1:2], json.loads(json.dumps(alike)))
    assert [value["ratio"] for value in other["cells"].values()] == [1.5, 0.9, 1.5]
    assert other["older"].keys() == {names[0], names[2]}
    assert {known["machine"]["device"] for known in other["older"].values()} == {"old"}
    (line,) = [line for line in as_markdown([other]).splitlines() if line.startswith("**From before**")]
    assert f"`{names[0]}`, `{names[2]}`. old, 2 threads" in line and names[1] not in line
    again = report("newest", 0.8, names[:2], other)
    assert again["older"].keys() == {names[2]} and again["older"][names[2]]["machine"]["device"] == "old"
    assert list(alike["cells"]) == list(other["cells"]) == list(again["cells"]) == names


def test_figures_of_other_code_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(lambda: None, {"training/demo": lambda _: None, "training/sd15": lambda _: None}, "training")

    def report(code: str, name: str, before: dict) -> dict:
        monkeypatch.setattr(speed, "source_digest", lambda sources: code)
        cells = Cells(tmp_path, conditions("same"))
        cells[group.key(name)] = {"ratio": 1.0}
        return merged([group], cells, conditions("same"), before)

    second = report("code2", "training/sd15", report("code1", "training/demo", {}))
    assert second["cells"].keys() == {"training/demo", "training/sd15"}
    assert second["older"]["training/demo"]["source"] == "code1" and second["parts"]["training"]["source"] == "code2"
    assert "`training/demo`" in as_markdown([second]) and "Code code1." in as_markdown([second])


def test_the_table_says_which_loras_are_not_merged(tmp_path: Path) -> None:
    names = ["peers/peft_lora_16/sd15", "peers/lora_hooks_3_regions/sd15"]
    group = Group(lambda: None, {name: lambda _: None for name in names})
    cells = Cells(tmp_path, conditions("new"))
    for name in names:
        cells[group.key(name)] = {"ratio": 1.1}
    written = as_markdown([merged([group], cells, conditions("new"), {})])
    assert "| step: unmerged peft LoRA 16 |" in written and "| step: lora hooks 3 regions |" in written
    assert "*Unmerged*" in written


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
