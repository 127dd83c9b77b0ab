"""What a release needs: one version, a name the registry takes, files that any system can read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = SETTINGS["project"], SETTINGS["tool"]["comfy"]
SOURCES = [path for folder in ("nodes", "sparse_core", "workflows") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_the_version_stands_in_one_place_and_heads_the_changelog() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == PROJECT["version"]
    assert [path for path in SOURCES if "__version__ =" in path.read_text(encoding="utf-8")] == []


def test_the_registry_takes_the_name_and_what_is_said_of_the_project() -> None:
    name = PROJECT["name"]
    assert re.fullmatch(r"[A-Za-z]+([-_.]?[A-Za-z0-9]+)*", name) and len(name) < 100 and "comfy" not in name.lower()
    assert 0 < len(PROJECT["description"]) <= 200
    assert PROJECT["license"].keys() == {"file"}
    assert "MIT" in (ROOT / PROJECT["license"]["file"]).read_text(encoding="utf-8")
    assert (ROOT / PROJECT["readme"]).is_file() and SpecifierSet(PROJECT["requires-python"]).contains("3.10")
    assert all(Requirement(one) for one in PROJECT["dependencies"])


def test_the_registry_takes_the_publisher_and_what_is_shown() -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", COMFY["PublisherId"])
    assert 0 < len(COMFY["DisplayName"]) <= 60
    assert COMFY["includes"] == []  # folders that git ignores; everything here is in git
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert all((ROOT / path).exists() for path in ignored)
    for name, (width, height) in (("Icon", (1, 1)), ("Banner", (21, 9))):
        picture = Image.open(ROOT / COMFY[name])
        assert picture.format == "PNG" and picture.width * height == picture.height * width, name
    assert 128 <= Image.open(ROOT / COMFY["Icon"]).width <= 400


def left_out(path: Path) -> bool:
    """Whether the registry does not serve a file."""
    name = path.relative_to(ROOT).as_posix()
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    return any(name == entry or (entry.endswith("/") and name.startswith(entry)) for entry in ignored)


def test_what_documents_lead_to_is_served_and_code_of_benchmarks_is_not() -> None:
    led_to = {page for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"))}
    for page in tuple(led_to):
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        led_to |= {(page.parent / unquote(t)).resolve() for t in targets if not re.match(r"[a-z]+:", t)}
    assert ROOT / "benchmarks" / "results" / "quality.md" in led_to
    assert [path for path in sorted(led_to) if left_out(path)] == []
    results = ROOT / "benchmarks" / "results"
    heavy = [*results.glob("*.jsonl"), *results.glob("recognisers/*")]
    code = [path for path in (ROOT / "benchmarks").rglob("*.py") if "cache" not in path.parts]
    assert [path for path in [*code, *heavy] if not left_out(path)] == []


def test_a_change_has_to_pass_the_linter_too() -> None:
    commands = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands.index("make lint") < commands.index("make test")
    (recipe,) = re.findall(
        r"^lint: \$\(VENV\)/test\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
    )
    assert "ruff check ." in recipe and "ruff format --check ." in recipe


def test_results_say_nothing_of_the_machine_but_what_figures_depend_on() -> None:
    """No kernel, no host, no folder."""
    traces = re.compile(r"Linux-\d|-x86_64|/root\b|/home/|/Users/|/tmp/")
    files = [path for path in (ROOT / "benchmarks" / "results").iterdir() if path.suffix in (".json", ".jsonl", ".md")]
    found = {path.name: traces.findall(path.read_text(encoding="utf-8")) for path in files}
    assert len(found) >= 10 and not any(found.values()), found


def test_no_system_is_left_out() -> None:
    """The registry reads systems from classifiers, and ComfyUI then warns everybody else. It compares accelerators with
    names of its own, so that one that is listed warns its owners too; what says nothing suits all."""
    systems = [one for one in PROJECT["classifiers"] if one.startswith("Operating System ::")]
    assert systems == ["Operating System :: OS Independent"]
    assert not [one for one in PROJECT["classifiers"] if one.startswith("Environment ::")]
    parts = [part.strip() for part in COMFY["requires-comfyui"].split(",")]
    assert all(re.fullmatch(r"(>=|<=|!=|~=|==|>|<)\d+\.\d+\.\d+", part) for part in parts)
    oldest = re.search(r"needs ComfyUI (\S+) or newer", (ROOT / "README.md").read_text(encoding="utf-8"))[1]
    assert f">={oldest}" in parts


def test_the_pack_asks_for_no_more_than_the_package() -> None:
    """ComfyUI's own installer reads requirements.txt, pip reads pyproject.toml."""
    wanted = {Requirement(one).name for one in (ROOT / "requirements.txt").read_text(encoding="utf-8").split()}
    assert wanted < {Requirement(one).name for one in PROJECT["dependencies"]}


def test_requirements_pin_nothing_that_comfyui_brings() -> None:
    wanted = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    names = {re.split(r"[<>=!~]", one)[0] for one in wanted}
    assert not names & {"torch", "torchvision", "numpy", "pillow", "safetensors", "transformers"}
    assert not any("==" in one or "<" in one for one in wanted)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources_are_portable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    text.encode("cp1252")  # what Windows reads files as, where nothing says otherwise
    assert not re.search(r"\.cuda\(|(?<!\.)\b(eval|exec)\(|import pickle|os\.system\(", text)


def test_only_trainings_of_ones_own_use_autocast() -> None:
    """ComfyUI decides the types of the models it manages."""
    inside = [path for path in SOURCES if "torch.autocast" in path.read_text(encoding="utf-8")]
    assert not [path for path in inside if path.is_relative_to(ROOT / "nodes") or path.name == "comfyui.py"]
