"""Names, inputs and checks that nodes share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

CATEGORY = "Sparse Atoms"
CONTROLS = f"{CATEGORY}/controls"
ANALYSIS = f"{CATEGORY}/analysis"
COMPOSE = f"{CATEGORY}/compose"
EDIT = f"{CATEGORY}/edit"

SparseDictionaryType = io.Custom("SPARSE_DICTIONARY")
"""A `sparse_core.controls.SparseAdapter`: a dictionary with the controls added so far."""


RecordingType = io.Custom("SPARSE_RECORDING")
"""A `sparse_core.analysis.recording.Recording`: where and when atoms fired during one sampling."""


def dictionary_input(
    tooltip: str = "The dictionary to act on, from Load, Train or another control.", name: str = "dictionary"
) -> io.Input:
    """The input that every node of a chain has."""
    return SparseDictionaryType.Input(name, tooltip=tooltip)


def dictionary_output() -> io.Output:
    """The output that every node of a chain has."""
    return SparseDictionaryType.Output(display_name="dictionary")


def atoms_input(default: str, tooltip: str) -> io.Input:
    """A selection of atoms by address."""
    return io.String.Input(
        "atoms",
        default=default,
        tooltip=f'{tooltip} Examples: * (all), L3, L3.v[7], attn2, middle, top:32, label:"roof".',
    )


def checked(check: Callable[[str], Any], value: str | None) -> bool | str:
    """What ``validate_inputs`` says of a value: True, or what is wrong with it. What a link brings is None until it runs."""
    try:
        if value is not None:
            check(value)
    except (ValueError, OSError) as error:
        return str(error)
    return True


def file_fingerprint(resolve: Callable[[str], Path], name: str | None) -> str:
    """What changes when a file does. What a link brings is None, and a change of it runs the node anyway."""
    if name is None:
        return ""
    stat = resolve(name).stat()
    return f"{stat.st_mtime_ns} {stat.st_size}"
