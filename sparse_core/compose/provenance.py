"""Where the atoms of a new dictionary came from, as metadata that stays with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..dictionary import SparseDictionary
from .baking import title_of

KEPT = ("modelspec.author", "modelspec.license", "modelspec.trigger_phrase", "sources", "training")
"""What a source's record says of it, beside its title."""
JOINED = {"modelspec.author": ", ", "modelspec.license": "; ", "modelspec.trigger_phrase": ", "}
"""What a new dictionary says of itself in the words of all sources, and what stands between them."""


def source_record(dictionary: SparseDictionary, **said: Any) -> dict[str, Any]:
    """One entry of ``sources``: what it is called, whose it is, its content, and whatever else is ``said`` of its use."""
    known = {name.removeprefix("modelspec."): dictionary.metadata[name] for name in KEPT if name in dictionary.metadata}
    return {"title": title_of(dictionary), "content_sha256": dictionary.content_hash, **known, **said}


def joined_metadata(
    title: str,
    sources: Sequence[SparseDictionary],
    records: Sequence[Mapping[str, Any]],
    origins: Mapping[str, Sequence[tuple[int, str]]],
) -> dict[str, Any]:
    """Metadata of a dictionary made of others.

    :param records: of the sources, by `source_record`.
    :param origins: address of each atom to where it was: number of the source, from 0, and address there. Labels, notes
        and thumbnails follow it; measured effects do not, as another picture would be measured now.
    """

    def said(key: str, new: str) -> list[str]:
        """What the sources have under a key of an atom, without repetitions."""
        found = ((sources[number].metadata.get(key), old) for number, old in origins[new])
        return _once(str(stored.get(old, "")) for stored, old in found if isinstance(stored, dict))

    fields: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "sparse-dictionary",
        "modelspec.title": title,
        "sources": [dict(record) for record in records],
        "origins": {new: [list(one) for one in found] for new, found in origins.items()},
        "labels": {new: " / ".join(texts) for new in origins if (texts := said("labels", new))},
        "notes": {new: " / ".join(texts) for new in origins if (texts := said("notes", new))},
        "thumbnails": {new: first for new in origins for first in said("thumbnails", new)[:1]},
    }
    for name, between in JOINED.items():
        fields[name] = between.join(_once(str(source.metadata.get(name, "")) for source in sources))
    return {name: value for name, value in fields.items() if value}


def _once(texts: Iterable[str]) -> list[str]:
    """Without empty ones and repetitions, in order."""
    return list(dict.fromkeys(filter(None, texts)))
