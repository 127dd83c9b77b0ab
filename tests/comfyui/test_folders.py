"""Where dictionaries are saved and found again."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import folder_paths
import pytest
from factories import random_dictionary
from world import pack


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The pack's, in an installation of their own with ``models`` and ``output``."""
    folders = pack().nodes.folders
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    places = [str(tmp_path / "models"), str(folders.output_folder())]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.FOLDER, (places, {folders.SUFFIX}))
    return folders


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("robot", "robot"),
        ("friends/robot", "friends/robot"),
        ("friends/", "friends"),
        ("/friends", "friends"),
        ("", "dictionary"),
        (" / ", "dictionary"),
        ("friends/.", "friends"),
        ("friends/../robot", "robot"),
    ],
)
def test_no_file_is_overwritten_and_each_is_found(folders: ModuleType, prefix: str, name: str) -> None:
    for number in (1, 2, 3):
        path = folders.free_path(prefix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(exist_ok=False)
        assert folders.resolve(f"{name}_{number:05}_.safetensors") == path


def test_a_name_is_not_given_twice_when_a_file_was_moved_among_the_models(folders: ModuleType, tmp_path: Path) -> None:
    first = folders.free_path("friends/robot")
    moved = tmp_path / "models" / "friends" / first.name
    moved.parent.mkdir(parents=True)
    moved.touch()
    second = folders.free_path("friends/robot")
    assert second.name == "robot_00002_.safetensors"


def test_a_folder_of_another_disk_takes_files_too(folders: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    folders.output_folder().mkdir(parents=True)
    (folders.output_folder() / "friends").symlink_to(tmp_path / "disk", target_is_directory=True)
    assert folders.free_path("friends/robot") == folders.output_folder() / "friends" / "robot_00001_.safetensors"


@pytest.mark.parametrize("prefix", ["../robot", "../../robot", ".", "friends/.."])
def test_a_prefix_that_leads_elsewhere_is_refused(folders: ModuleType, prefix: str) -> None:
    with pytest.raises(ValueError, match=f"'{re.escape(prefix)}' leads out of output/sparse_dictionaries"):
        folders.free_path(prefix)


def test_what_a_saved_dictionary_was_told_goes_on_with_it(folders: ModuleType) -> None:
    adapter = pack().sparse_core.controls.SparseAdapter(random_dictionary())
    saved = pack().nodes.files.SaveSparseDictionary.execute(adapter, "told", trigger="robot", author="me").result[0]
    assert saved.dictionary.metadata["modelspec.trigger_phrase"] == "robot"
    assert saved.dictionary.metadata["modelspec.author"] == "me"
