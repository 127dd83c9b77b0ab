"""The shipped workflows on a running server."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import Server

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from workflows.build import WORKFLOWS, build  # noqa: E402
from workflows.graph import dump, to_prompt  # noqa: E402

FILES = sorted((ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def schemas(server: Server) -> dict:
    return server.client.object_info()


def test_the_files_are_what_their_description_builds(schemas: dict) -> None:
    assert [path.stem for path in FILES] == list(WORKFLOWS)
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs(server: Server, schemas: dict, path: Path) -> None:
    prompt = to_prompt(json.loads(path.read_text()), schemas)
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 10 if node["class_type"] == "SparseAtoms_Train" else 4
    (save,) = (number for number, node in prompt.items() if node["class_type"] == "SaveImage")
    result = server.client.run(prompt)
    assert not result.error
    pictures = server.client.pictures(result, save)
    four = 4 * 128 * 128
    assert sum(p.shape[0] * p.shape[1] for p in pictures) >= four and all(p.std() > 5 for p in pictures)
