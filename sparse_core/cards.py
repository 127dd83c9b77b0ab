"""What a list shows of a dictionary file, from its header alone: files can be large, and come from strangers."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from .files import FORMAT, DictionaryFileError, read_header

PICTURE = re.compile(r"data:(image/(?:jpeg|png));base64,([A-Za-z0-9+/]+={0,2})")
LONGEST = 500
"""Characters of a text on a card."""


@dataclass(frozen=True)
class Card:
    """One file in a list."""

    title: str
    trigger: str
    description: str
    thumbnail: str
    """A data URI of a JPEG or PNG, or empty."""


def read_card(path: Path) -> Card:
    """The card of a dictionary; an empty one for a file that is none, so that a list does not fail for one bad file."""
    try:
        header = read_header(path)
    except (DictionaryFileError, OSError):
        header = {}
    if header.get("format") != FORMAT:
        return Card("", "", "", "")
    texts = (header.get(f"modelspec.{name}", "")[:LONGEST] for name in ("title", "trigger_phrase", "description"))
    thumbnail = header.get("modelspec.thumbnail", "")
    return Card(*texts, thumbnail if PICTURE.fullmatch(thumbnail) else "")


def picture(card: Card) -> tuple[str, bytes] | None:
    """Type and bytes of a card's picture, None if it has none."""
    found = PICTURE.fullmatch(card.thumbnail)
    return (found[1], base64.b64decode(found[2])) if found else None
