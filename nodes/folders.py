"""Where dictionaries lie in a ComfyUI installation."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from pathlib import Path

import folder_paths

from ..sparse_core.demo.shipped import DICTIONARIES, LORAS
from ..sparse_core.files import SUFFIX

FOLDER = "sparse_dictionaries"


def register() -> None:
    """Adds ``models/sparse_dictionaries`` and the output folder of the same name, beside what the user has configured, and
    what comes with the pack for the demo model."""
    folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir, FOLDER)))
    folder_paths.add_model_folder_path(FOLDER, str(output_folder()))
    folder_paths.add_model_folder_path(FOLDER, str(DICTIONARIES))
    folder_paths.add_model_folder_path("loras", str(LORAS))
    folder_paths.folder_names_and_paths[FOLDER][1].add(SUFFIX)


def output_folder() -> Path:
    """Where trained and saved dictionaries go."""
    return Path(folder_paths.get_output_directory(), FOLDER)


def names() -> list[str]:
    """Every dictionary file, the newest first, without links that lead nowhere."""
    dated = []
    for name in folder_paths.get_filename_list(FOLDER):
        with suppress(OSError):
            dated.append((resolve(name).stat().st_mtime, name))
    return [name for _, name in sorted(dated, key=lambda one: -one[0])]


def is_listed(name: str) -> bool:
    """Whether the Load node offers a file."""
    return name in folder_paths.get_filename_list(FOLDER)


def resolve(name: str) -> Path:
    """The path of a listed name.

    :raises FileNotFoundError: no such file is in the folders.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise FileNotFoundError(
            f"There is no dictionary {name!r} in models/{FOLDER} or output/{FOLDER}. Refresh the node list (R) and pick another."
        )
    return Path(path)


def free_path(prefix: str) -> Path:
    """The next unused numbered file for a prefix such as ``robot`` or ``friends/robot``. Its name is new in every folder: of
    two files of one name, only the first can be loaded.

    :raises ValueError: the prefix leaves the output folder.
    """
    said = Path(os.path.normpath(Path(FOLDER, prefix.strip(" /\\") or "dictionary")))
    if Path(FOLDER) not in said.parents:
        raise ValueError(
            f"{prefix!r} leads out of output/{FOLDER}, where dictionaries are saved. Give a name such as friends/robot."
        )
    folder, name, first, _, _ = folder_paths.get_save_image_path(said.as_posix(), folder_paths.get_output_directory())
    for number in itertools.count(first):
        path = Path(folder, f"{name}_{number:05}_{SUFFIX}")  # what counts them looks for the underscores
        if not path.exists() and folder_paths.get_full_path(FOLDER, str(path.relative_to(output_folder()))) is None:
            break
    return path


def plain(name: str) -> str:
    """A name without what some systems refuse in a file's, and without folders."""
    return "".join(c if c.isalnum() or c in "-_ " else "_" for c in name)


def training_state(name: str) -> Path:
    """Where an unfinished training of this name is kept."""
    return Path(folder_paths.get_user_directory(), "sparse_atoms", "training", f"{plain(name)}{SUFFIX}")
