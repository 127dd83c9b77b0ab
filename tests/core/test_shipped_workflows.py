"""What the shipped workflows say and set; `tests/comfyui/test_workflows.py` runs them."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "workflows"


def nodes_of(name: str) -> list[dict]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["nodes"]


def card(name: str) -> str:
    (note,) = (node for node in nodes_of(name) if node["type"] == "MarkdownNote")
    return note["widgets_values"][0]


def connected(name: str) -> dict[str, str]:
    """Inputs of the training that something is connected to, by the kind of node."""
    nodes = nodes_of(name)
    sources = {link: node["type"] for node in nodes for output in node["outputs"] for link in output["links"]}
    (training,) = (node for node in nodes if node["type"] == "SparseAtoms_Train")
    return {entry["name"]: sources[entry["link"]] for entry in training["inputs"] if entry["link"] is not None}


def test_a_mask_is_not_said_to_leave_the_rest_untouched() -> None:
    """Later layers see the whole picture: what is outside may answer a little."""
    assert "its atoms act nowhere else" in card("03 Only here") and "touching" not in card("03 Only here")


def test_ones_own_training_is_the_one_that_the_documents_recommend() -> None:
    quick, own = "02 Train your own", "02 Train your own (own checkpoint)"
    (training,) = (node for node in nodes_of(own) if node["type"] == "SparseAtoms_Train")
    assert "character" in training["widgets_values"]
    assert connected(own).keys() - connected(quick).keys() == {"prior", "negative"}
    assert connected(own)["prior"] == "ConditioningCombine"
    assert "preset **character** and *prior* connected" in card(quick)
