"""Where dictionaries lie in a ComfyUI installation."""

from __future__ import annotations

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
    """The next unused numbered file for a prefix such as ``robot`` or ``friends/robot``.

    :raises ValueError: the prefix leaves the output folder.
    """
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        f"{FOLDER}/{prefix}", folder_paths.get_output_directory()
    )
    return Path(folder, f"{name}_{counter:05}_{SUFFIX}")  # the counter looks for the underscores


def training_state(name: str) -> Path:
    """Where an unfinished training of this name is kept."""
    plain = "".join(c if c.isalnum() or c in "-_ " else "_" for c in name)
    return Path(folder_paths.get_user_directory(), "sparse_atoms", "training", f"{plain}{SUFFIX}")
