"""The benchmarks' reports: a run of a part of the work leaves those of whole runs alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from benchmarks import destination, distil, speed
from benchmarks.cells import Cells, weights_digest
from benchmarks.compose import __main__ as compose
from benchmarks.compose import table as compose_table
from benchmarks.editing import __main__ as editing
from benchmarks.quality import __main__ as quality
from benchmarks.quality import report as quality_report
from benchmarks.quality import table as quality_table
from benchmarks.see import __main__ as see
from benchmarks.see import labels
from sparse_core.training import TrainingSettings


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of whole runs' reports; parts go beside it, into ``parts``."""
    monkeypatch.setattr(destination, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(destination, "PARTS", tmp_path / "parts")
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


# ------------------------------------------------------------------------------------------------------------- the rule

PARTS = [
    (distil, "distil", "--only robot"),
    (distil, "distil", '--settings {"batch":8}'),
    *((speed, "speed", part) for part in ("--quick", "--repeats 3", "--side 32", "--seed 1")),
    *((editing, "editing", part) for part in ("--quick", "--edits 3", '--settings {"steps":9}')),
    *((compose, "compose", part) for part in ("--quick", "--pairs 1", "--seeds 1")),
    (see, "see", "--quick"),
    *(
        (quality, "quality", part)
        for part in ("--quick", "--methods ours", "--concepts fox", "--seeds 1", "--prompts 4")
    ),
    *((quality, "quality", part) for part in ("--steps 9", "--recogniser-steps 9", "--sprites mine", "--model other")),
]


@pytest.mark.parametrize(("command", "name", "part"), PARTS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_part_of_the_work_goes_to_a_folder_of_its_own(
    results: Path, command: ModuleType, name: str, part: str
) -> None:
    assert command.read_arguments(part.split()).out == results.parent / "parts" / name
    assert command.read_arguments([*part.split(), "--out", "mine"]).out == Path("mine")


@pytest.mark.parametrize(
    "command", [distil, speed, editing, compose, see, quality], ids=lambda command: command.__name__
)
def test_a_whole_run_goes_to_the_results(results: Path, command: ModuleType) -> None:
    assert command.read_arguments([]).out == command.read_arguments(["--cache", "mine"]).out == results
    assert command.read_arguments(["--out", "mine"]).out == Path("mine")


def test_searches_go_on_in_the_log_of_the_results(results: Path) -> None:
    assert editing.read_arguments(["--quick", "--tune"]).out == results
    assert quality.read_arguments(["--quick", "--round", "base", "--model", "other"]).out == results
    assert quality.read_arguments(["--tune", "--methods", "lora"]).out == results


def test_figures_beside_others_and_a_second_base_add_to_a_whole_report(results: Path) -> None:
    assert speed.read_arguments(["--only", "training/*"]).out == results
    assert quality.read_arguments(["--second-base", "other"]).out == results


# --------------------------------------------------------------------------------------------------------- whole commands


def test_one_lora_alone_leaves_the_report_of_all(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def measured(word: str, settings: TrainingSettings) -> tuple[dict[str, Any], Image.Image]:
        look = {str(density): {"atoms": 1, "thing": 0.5, "elsewhere": 1.0} for density in distil.DENSITIES}
        return {"distilled": look, "lora": look, "active_share": 0.1}, Image.new("RGB", (8, 8))

    monkeypatch.setattr(distil, "measured", measured)
    (results / "distil.json").write_text("all three")
    distil.main(["--only", "robot", "--cache", str(results.parent / "cache")])
    assert [file.name for file in results.iterdir()] == ["distil.json"]
    assert (results / "distil.json").read_text() == "all three"
    written = results.parent / "parts" / "distil"
    assert json.loads((written / "distil.json").read_text())["loras"].keys() == {"robot"}
    assert capsys.readouterr().out.splitlines()[-1] == f"Written to {written}."


def half(ratio: float) -> dict[str, Any]:
    """Figures as a half of the quality benchmark has them."""
    method = {
        "hypervolume": [0.1, 0.2, 0.3], "likeness_at_text_95": None, "likeness_at_text_95_of_base": 0.1,
        "drift_at_equal_likeness": 1.0, "unchanged": 0.0, "trainings": 4, "params": 9, "training_seconds": 2.0,
        "sampling_overhead": 1.1, "points": [],
    }  # fmt: skip
    return {
        "methods": {"sparse dictionary": method},
        "reference": {},
        "hypervolume_over_best_peer": ratio,
        "hypervolume_over": {"LoRA": [0.9, ratio, 2.5], "Adapter": None},
        "by_subject": {"sparse dictionary": {"fox": ratio / 10}, "LoRA": {"fox": 0.1}},
    }


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quality benchmark without measurements: ratios are 1.5 on the demo model and 1.25 on others."""

    def measured(setup: quality_table.Setup, work: Any, options: Any) -> dict[str, Any]:
        ratio = 1.5 if setup.model == quality.bundled_path() else 1.25
        return {"held_out": half(ratio), "dev": half(ratio), "trainings": {"done": 1, "planned": 1}}

    monkeypatch.setattr(quality, "measured", measured)
    monkeypatch.setattr(quality_report, "draw_curves", lambda figures, path: path.touch())


@pytest.mark.usefixtures("unmeasured")
def test_a_quick_run_leaves_the_whole_report_alone(results: Path) -> None:
    names = ("quality.json", "quality.md", "quality-dev.png", "quality-held_out.png")
    for name in names:
        (results / name).write_text("whole")
    quality.main(["--quick"])
    assert {file.name: file.read_text() for file in results.iterdir()} == dict.fromkeys(names, "whole")
    assert {file.name for file in (results.parent / "parts" / "quality").iterdir()} == set(names)


@pytest.mark.usefixtures("unmeasured")
def test_a_run_without_a_second_base_keeps_what_is_known_of_it(results: Path) -> None:
    quality.main([])
    assert "second_base" not in json.loads((results / "quality.json").read_text())
    quality.main(["--second-base", str(results.parent / "other")])
    before = json.loads((results / "quality.json").read_text())["second_base"]
    quality.main([])
    assert json.loads((results / "quality.json").read_text())["second_base"] == before
    assert "## A second base model" in (results / "quality.md").read_text()


@pytest.mark.usefixtures("unmeasured")
def test_the_first_base_stands_beside_the_second(results: Path) -> None:
    quality.main(["--second-base", str(results.parent / "other")])
    report = json.loads((results / "quality.json").read_text())
    second = report["second_base"]
    assert second["gain_kept"] == pytest.approx(0.5)
    assert (second["hypervolume_over_best_peer"], second["first"]["hypervolume_over_best_peer"]) == (1.25, 1.5)
    section = quality_report.as_markdown(report).split("## A second base model")[1]
    assert "| LoRA | 1.250 | 0.900 to 2.500 |\n| LoRA, first base | 1.500 | 0.900 to 2.500 |" in section
    assert "| sparse dictionary | 0.125 |" in section and "| sparse dictionary, first base | 0.150 |" in section
    del second["first"]
    section = quality_report.as_markdown(report).split("## A second base model")[1]
    assert "| LoRA | 1.250 |" in section and "first base |" not in section


def test_a_part_takes_figures_from_the_results_and_hands_its_own_on_elsewhere(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keys(quality_table.Keys):
        def recogniser_files(self) -> dict:
            return {"concept": "known"}

    monkeypatch.setattr(quality, "Keys", Keys)
    monkeypatch.setattr(quality, "names", lambda keys, unit: ["of before", "new"])
    monkeypatch.setattr(quality, "fill", lambda setup, *_: found(setup).__setitem__("new", 2))
    monkeypatch.setattr(quality, "looks", lambda *_: [])
    monkeypatch.setattr(quality, "comparable", lambda *_: [])
    monkeypatch.setattr(quality, "complete", lambda *_: True)
    monkeypatch.setattr(quality, "summary", lambda *_: {})

    def found(setup: quality_table.Setup) -> Cells:
        return Cells(setup.cache, {"table": "quality"})

    (results / "recognisers").mkdir()
    (results / "recognisers" / "known").write_bytes(b"weights")
    (results / "quality-cells.jsonl").write_text('["of before", 1]\n')
    setup, out = quality_table.Setup(results, results.parent / "cache", ()), results.parent / "out"
    quality.measured(setup, [object()], SimpleNamespace(out=out, workers=1, threads=1))
    assert found(setup)["of before"] == 1
    assert (setup.recognisers / "known").read_bytes() == (out / "recognisers" / "known").read_bytes() == b"weights"
    assert (out / "quality-cells.jsonl").read_text() == '["new", 2]\n["of before", 1]\n'
    assert (results / "quality-cells.jsonl").read_text() == '["of before", 1]\n'


def test_figures_are_handed_on_into_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    cells = Cells(tmp_path / "cache", {})
    cells["point/a"] = 1
    cells.hand_on(tmp_path / "new" / "cells.jsonl", ["point/a"])
    assert (tmp_path / "new" / "cells.jsonl").read_text() == '["point/a", 1]\n'


# ---------------------------------------------------------------------------------------- what figures are said to depend on


def test_the_table_says_that_a_lora_is_not_merged() -> None:
    written = quality_report.as_markdown(
        {"tier": "", "trainings": {"done": 1, "planned": 1}, "seeds": [0], "versions": {}, "dev": half(1.5)}
    )
    assert "| sampling, x base, LoRA unmerged |" in written and "loaders such as ComfyUI's merge it" in written


@pytest.mark.parametrize("module", [distil, see, labels, compose_table], ids=lambda module: module.__name__)
def test_all_code_that_figures_depend_on_is_there(module: ModuleType) -> None:
    assert all(path.exists() for path in module.SOURCES)


def test_other_weights_are_other_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, loras = tmp_path / "model", tmp_path / "loras"
    for folder in (model / "unet", model / "judge", loras):
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_bytes(b"first")
    for module in (distil, labels):
        monkeypatch.setattr(module, "bundled_path", lambda: model)
    monkeypatch.setattr(distil, "LORAS", loras)

    def known() -> list[Any]:
        return [distil.conditions(TrainingSettings()), labels.drawn_with(), see.seen_with(model)]

    before = known()
    assert known() == before
    for folder, changed in ((loras, [True, False, False]), (model / "unet", [True, True, False])):
        (folder / "weights.safetensors").write_bytes(b"second")
        assert [a != b for a, b in zip(known(), before, strict=True)] == changed
        (folder / "weights.safetensors").write_bytes(b"first")
    (model / "judge" / "weights.safetensors").write_bytes(b"second")
    assert see.seen_with(model) != before[2]


def test_weights_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    digests = {weights_digest(tmp_path)}
    (tmp_path / "b.safetensors").write_bytes(b"2")
    digests.add(weights_digest(tmp_path))
    (tmp_path / "b.safetensors").write_bytes(b"3")
    digests.add(weights_digest(tmp_path))
    (tmp_path / "notes.txt").write_bytes(b"4")
    digests.add(weights_digest(tmp_path))
    assert len(digests) == 3
