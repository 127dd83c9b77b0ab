"""The shipped workflows on a running server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Server

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from workflows.build import build  # noqa: E402
from workflows.graph import dump, to_prompt  # noqa: E402
from workflows.own import SUFFIX, OwnWorkflow  # noqa: E402
from workflows.pieces import WORKFLOWS  # noqa: E402

FILES = sorted((ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def schemas(server: Server) -> dict:
    return server.client.object_info()


def test_the_files_are_what_their_description_builds(schemas: dict) -> None:
    assert {path.stem for path in FILES} == set(build(schemas)) >= set(WORKFLOWS)
    for name, (workflow, _) in build(schemas).items():
        assert (ROOT / "workflows" / f"{name}.json").read_bytes() == dump(workflow), name


def test_every_node_of_the_pack_is_in_a_workflow(schemas: dict) -> None:
    used = {node["type"] for path in FILES for node in json.loads(path.read_text())["nodes"]}
    assert {kind for kind in schemas if kind.startswith("SparseAtoms_")} <= used


def test_each_has_a_picture_and_a_note_of_three_sentences() -> None:
    for path in FILES:
        assert path.with_suffix(".jpg").is_file(), path.name
        notes = [node for node in json.loads(path.read_text())["nodes"] if node["type"] == "MarkdownNote"]
        assert len(notes) == 1 and notes[0]["widgets_values"][0].count(". ") == 2, path.name


def test_variants_for_ones_own_checkpoint_hold_together_and_nothing_of_the_demo(schemas: dict) -> None:
    """They can't run without a checkpoint; this is what the server checks before it runs a prompt, but for files."""
    variants = [w for w, _ in build(schemas).values() if isinstance(w, OwnWorkflow)]
    assert len(variants) >= 15
    for workflow in variants:
        kinds = {node.kind for node in workflow.nodes}
        assert not kinds & {"SparseAtoms_DemoModel", "SparseAtoms_DemoPictures"}, workflow.name
        assert "CheckpointLoaderSimple" in kinds, workflow.name
        for number, node in to_prompt(workflow.to_editor(), schemas).items():
            schema = schemas[node["class_type"]]["input"]
            assert schema.get("required", {}).keys() <= node["inputs"].keys(), (workflow.name, number)
            for name, spec in {**schema.get("required", {}), **schema.get("optional", {})}.items():
                if name in node["inputs"]:
                    _check(workflow, schemas, spec, node["inputs"][name])


def _check(workflow: OwnWorkflow, schemas: dict, spec: list, value: object) -> None:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options")
    if isinstance(value, list):
        source = workflow.nodes[int(value[0]) - 1]
        assert schemas[source.kind]["output"][value[1]] in kind.split(","), (workflow.name, source.kind, kind)
    elif choices is not None:
        assert value in choices or str(value).startswith("my "), (workflow.name, value)
    elif kind in ("INT", "FLOAT"):
        assert options.get("min", value) <= value <= options.get("max", value), (workflow.name, value)
    else:
        assert "robot" not in str(value) and "penguin" not in str(value), (workflow.name, value)


@pytest.mark.parametrize("path", [path for path in FILES if SUFFIX not in path.stem], ids=lambda path: path.stem)
def test_it_runs(server: Server, schemas: dict, path: Path) -> None:
    prompt = to_prompt(json.loads(path.read_text()), schemas)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 10 if node["class_type"] == "SparseAtoms_Train" else 4
        if "preset" in node["inputs"]:
            node["inputs"]["preset"] = "custom"  # a preset has steps of its own: minutes
    (save,) = (number for number, node in prompt.items() if node["class_type"] == "SaveImage")
    result = server.client.run(prompt)
    assert not result.error
    pictures = server.client.pictures(result, save)
    four = 4 * 128 * 128
    assert sum(p.shape[0] * p.shape[1] for p in pictures) >= four and all(p.std() > 5 for p in pictures)
