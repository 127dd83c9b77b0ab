"""Names that all nodes share."""

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
