"""Help pages, tooltips, translations and documents keep up with the code. Nodes are read as text: no ComfyUI needed."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "web" / "docs"
TRANSLATIONS = sorted(path.parent.name for path in ROOT.glob("locales/*/nodeDefs.json"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(PAGES.glob("*.md"))]


@dataclass
class Declared:
    """What a node's schema says of itself."""

    inputs: dict[str, bool]
    """Name to whether it has a tooltip."""
    outputs: int
    described: bool


def tail(call: ast.Call) -> str:
    """``io.Float.Input`` -> ``Input``, ``atoms_input`` -> ``atoms_input``."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def elements(expression: ast.expr | None) -> list[ast.Call]:
    """The calls of a list; ``*sampling_inputs()`` stands for those of the shared list."""
    found = []
    for e in expression.elts if isinstance(expression, ast.List) else []:
        if isinstance(e, ast.Starred):
            assert tail(e.value) == "sampling_inputs", ast.unparse(e)
            found += elements(shared_list("sampling_inputs"))
        elif isinstance(e, ast.Call):
            found.append(e)
    return found


def shared_list(function: str) -> ast.expr:
    """What a function of ``nodes/drawing.py`` returns."""
    tree = ast.parse((ROOT / "nodes" / "drawing.py").read_text(encoding="utf-8"))
    (found,) = (f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == function)
    return found.body[-1].value


def read_input(call: ast.Call) -> tuple[str, bool]:
    """Name of an input and whether it has a tooltip; the two shared ones of ``nodes/types.py`` always have."""
    shared = {"dictionary_input": "dictionary", "atoms_input": "atoms"}
    if tail(call) in shared:
        return ast.literal_eval(call.args[1]) if len(call.args) > 1 and tail(call) == "dictionary_input" else shared[
            tail(call)
        ], True
    assert tail(call) == "Input", ast.unparse(call)
    name = call.args[0] if call.args else keywords(call)["id"]
    return ast.literal_eval(name), "tooltip" in keywords(call)


def declared_nodes() -> dict[str, Declared]:
    found = {}
    for path in sorted((ROOT / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and tail(call) == "Schema":
                schema = keywords(call)
                found[ast.literal_eval(schema["node_id"])] = Declared(
                    inputs=dict(read_input(one) for one in elements(schema.get("inputs"))),
                    outputs=len(elements(schema.get("outputs"))),
                    described="description" in schema and "display_name" in schema,
                )
    return found


NODES = declared_nodes()


def test_the_nodes_are_found() -> None:
    assert len(NODES) >= 16
    assert NODES["SparseAtoms_Apply"].inputs.keys() == {"model", "dictionary", "strength", "clip"}


@pytest.mark.parametrize("name", NODES)
def test_every_node_is_explained(name: str) -> None:
    node = NODES[name]
    assert node.described
    assert [key for key, has_tooltip in node.inputs.items() if not has_tooltip] == []


@pytest.mark.parametrize("name", NODES)
def test_every_node_has_a_help_page_that_names_every_input(name: str) -> None:
    path = PAGES / f"{name}.md"
    assert path.is_file(), f"write {path.relative_to(ROOT)}"
    rows = re.findall(r"^\| ([^|]+) \|", path.read_text(encoding="utf-8"), re.MULTILINE)
    named = {word.strip() for row in rows for word in row.split(",")}
    assert NODES[name].inputs.keys() <= named


def test_no_help_page_is_left_of_a_node_that_is_gone() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} <= NODES.keys()


def test_there_is_a_translation() -> None:
    assert "de" in TRANSLATIONS


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_every_node_is_translated(language: str) -> None:
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert texts.keys() == NODES.keys()
    for name, node in NODES.items():
        entry = texts[name]
        assert entry["display_name"], name
        assert entry["description"], name
        assert entry.get("inputs", {}).keys() == node.inputs.keys(), name
        assert all(one["name"] and one["tooltip"] for one in entry.get("inputs", {}).values()), name
        assert entry.get("outputs", {}).keys() == set(map(str, range(node.outputs))), name
        assert all(one["name"] for one in entry.get("outputs", {}).values()), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'<img[^>]+src="([^"]+)"', text)
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    assert [target for target in local if not (path.parent / unquote(target)).exists()] == []


@pytest.mark.parametrize("path", [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"], ids=lambda path: path.name)
def test_documents_name_tests_that_exist(path: Path) -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", path.read_text(encoding="utf-8")))
    written = {
        name for file in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)\(", file.read_text())
    }
    files = {file.stem for file in ROOT.glob("tests/**/test_*.py")}
    assert sorted(named - written - files) == []
