"""The Atom Mixer: a text of address lines that remembers which dictionary it was made on.

    # dictionary 1a2b3c4d5e6f7081
    # preset "soft" ["L3.v[7] = 0.25"] 1a2b3c4d5e6f7081
    L3.v[7] = 0.5
    mute L0.q[2]
    solo top:25%

Atoms of a dictionary that was trained anew have the old numbers and draw something else. So lines that name atoms by
number hold only for the dictionary whose hash stands above them; without that line they hold for any. A preset, which only
the panel reads, has the hash behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from .addresses import AddressError, And, Line, Not, Or, Region, Selection, parse_lines
from .cards import PICTURE
from .controls import SparseAdapter, controls_of_lines
from .describe import atom_rows
from .dictionary import SparseDictionary

MADE_ON = re.compile(r"^[ \t]*#[ \t]*dictionary[ \t]+([0-9a-f]{16})[ \t]*$", re.MULTILINE)
LARGEST_THUMBNAILS = 2_000_000
"""Characters of all thumbnails that a panel gets: they go through the websocket with every run."""
LONGEST_NOTE = 500
"""Characters of what a panel gets of a note."""
LARGEST_EFFECT = 255
"""Grey levels."""
FEW = 8
"""Lines that an error shows."""


class Mix(NamedTuple):
    """What a text says."""

    lines: list[Line]
    made_on: str
    """`SparseDictionary.atoms_hash` of the one that the atoms' numbers belong to; empty for any."""


def parse_mix(text: str) -> Mix:
    """
    :raises AddressError: a line can't be read; the message shows every such line. Or lines are of several dictionaries.
    """
    made_on = list(dict.fromkeys(MADE_ON.findall(text)))
    if len(made_on) > 1:
        raise AddressError(
            f"These lines are of several dictionaries ({', '.join(made_on)}), whose atoms draw different things; expected those of "
            f'one. Delete the lines of the others, with "# dictionary {made_on[1]}" and the like above them.'
        )
    return Mix(parse_lines(text), made_on[0] if made_on else "")


def mix(adapter: SparseAdapter, text: str) -> SparseAdapter:
    """The adapter with the controls that the text describes.

    :raises AddressError: a line can't be read, picks no atom, or names atoms of another dictionary by number.
    """
    lines, made_on = parse_mix(text)
    numbered = [line for line in lines if _by_number(line.selection)]
    if made_on and numbered and made_on != (found := adapter.dictionary.atoms_hash):
        raise AddressError(_another(numbered, made_on, found, adapter.dictionary))
    return adapter.with_controls(*controls_of_lines(lines))


def panel_data(adapter: SparseAdapter) -> dict[str, Any]:
    """What the panel shows, as JSON: the atoms as they come in, the most important first. It is kept with the adapter: a host may
    keep what it is given in every run, and of an adapter that has not changed this is one."""
    kept = vars(adapter)
    if "panel" not in kept:
        kept["panel"] = _panel_data(adapter)
    return kept["panel"]


def _panel_data(adapter: SparseAdapter) -> dict[str, Any]:
    dictionary, rows = adapter.dictionary, atom_rows(adapter)
    return {
        "hash": dictionary.atoms_hash,
        "title": str(dictionary.metadata.get("modelspec.title", "")),
        "atoms": [
            [
                row.address,
                round(row.importance, 7),
                str(row.label),
                row.weight,
                len(row.masks),
                len(row.schedules),
                row.prompt,
                row.kept,
            ]
            for row in rows
        ],
        "notes": _notes(dictionary, [row.address for row in rows]),
        "effects": _effects(dictionary),
        "thumbnails": _thumbnails(dictionary),
    }


def _notes(dictionary: SparseDictionary, addresses: Sequence[str]) -> dict[str, str]:
    """What somebody noticed of atoms, by address; not what stands at addresses that the dictionary does not have."""
    stored = dictionary.metadata.get("notes")
    if not isinstance(stored, dict):
        return {}
    return {address: str(stored[address])[:LONGEST_NOTE] for address in addresses if address in stored}


def _effects(dictionary: SparseDictionary) -> dict[str, float]:
    """How far atoms move a picture, by address. What is no such number is left out, as with pictures."""
    stored = dictionary.metadata.get("effects")
    return {
        address: size
        for address, size in (stored.items() if isinstance(stored, dict) else ())
        if type(size) in (int, float) and 0 <= size <= LARGEST_EFFECT
    }


def _thumbnails(dictionary: SparseDictionary) -> dict[str, str]:
    """Small pictures by address. Files come from strangers: what is no picture is left out."""
    stored, kept, room = dictionary.metadata.get("thumbnails"), {}, LARGEST_THUMBNAILS
    for address, picture in stored.items() if isinstance(stored, dict) else ():
        if isinstance(picture, str) and len(picture) <= room and PICTURE.fullmatch(picture):
            kept[address] = picture
            room -= len(picture)
    return kept


def _by_number(selection: Selection) -> bool:
    match selection:
        case Region():
            return selection.atoms is not None
        case Not():
            return _by_number(selection.operand)
        case And() | Or():
            return any(map(_by_number, selection.parts))
    return False


def _another(numbered: list[Line], made_on: str, found: str, dictionary: SparseDictionary) -> str:
    shown = [f"Line {line.number}: {line}{_why_not(line, dictionary)}" for line in numbered[:FEW]]
    if len(numbered) > FEW:
        shown.append(f"and {len(numbered) - FEW} more")
    return "\n".join(
        [
            f"These lines were set on another dictionary ({made_on}) than the one that comes in ({found}); here the same "
            "atoms draw something else:",
            *shown,
            f'Press Adopt in the Atom Mixer, or delete its line "# dictionary {made_on}", to use them all the same; or '
            "load the dictionary they were made on.",
        ]
    )


def _why_not(line: Line, dictionary: SparseDictionary) -> str:
    try:
        line.selection.resolve(dictionary)
    except AddressError as error:
        return f"  ({error})"
    return ""
