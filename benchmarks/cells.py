"""A table of expensive measurements, each kept on disk as soon as it is known, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class Cells:
    """Results by name. All depend on ``conditions``: under other conditions they are measured anew."""

    def __init__(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        self.folder = folder / digest(conditions)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "conditions.json").write_text(json.dumps(conditions, indent=1, sort_keys=True))

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._path(name).read_text())

    def __setitem__(self, name: str, value: Any) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(value))
        unfinished.replace(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def digest(value: Any) -> str:
    """12 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def source_digest(roots: Iterable[Path]) -> str:
    """12 hex digits of all Python files below some folders: figures of other code are other figures."""
    files = sorted(file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py")))
    return digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in files])
