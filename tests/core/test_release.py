"""What a release needs: one version, a name the registry takes, files that any system can read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
SOURCES = [path for folder in ("nodes", "sparse_core", "workflows") for path in sorted((ROOT / folder).rglob("*.py"))]


def setting(name: str) -> str:
    """A quoted value of pyproject.toml; Python 3.10 has no reader of it."""
    return re.search(rf'^{name} = "([^"]*)"', PROJECT, re.MULTILINE)[1]


def test_the_version_stands_in_one_place_and_heads_the_changelog() -> None:
    version = setting("version")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == version
    assert [path for path in SOURCES if "__version__ =" in path.read_text(encoding="utf-8")] == []


def test_the_registry_takes_the_project() -> None:
    name = setting("name")
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", name) and "comfyui" not in name.lower()
    assert setting("PublisherId") and setting("DisplayName") and "MIT" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    icon = Image.open(ROOT / setting("Icon"))
    assert icon.width == icon.height >= 128
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").split()
    assert all((ROOT / path).exists() for path in ignored)


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
