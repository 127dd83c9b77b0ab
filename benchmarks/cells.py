"""A table of expensive measurements, each kept on disk as soon as it is known, so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparse_core.files import write_atomically

DIGITS = 5


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

    def take_over(self, file: Path) -> None:
        """Adds what `hand_on` has put into a file."""
        for name, value in _read(file).items():
            if name not in self:
                self[name] = value

    def hand_on(self, file: Path, names: Iterable[str]) -> None:
        """Adds those of the named results that are known to a file: a line for each."""
        known = _read(file) | {name: _rounded(self[name]) for name in names if name in self}
        lines = [f"{json.dumps([name, known[name]])}\n" for name in sorted(known)]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "".join(lines).encode())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def _read(file: Path) -> dict[str, Any]:
    return dict(json.loads(line) for line in file.read_text().splitlines()) if file.is_file() else {}


def _rounded(value: Any) -> Any:
    """A JSON value with numbers of as many digits as anything measured here has."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {name: _rounded(one) for name, one in value.items()} if isinstance(value, dict) else value


def digest(value: Any) -> str:
    """12 hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def source_digest(roots: Iterable[Path]) -> str:
    """12 hex digits of all Python files below some folders: figures of other code are other figures."""
    return _digest_of_files(file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py")))


def weights_digest(*folders: Path) -> str:
    """12 hex digits of all weights below some folders."""
    return _digest_of_files(file for folder in folders for file in folder.rglob("*.safetensors"))


def _digest_of_files(files: Iterable[Path]) -> str:
    return digest([[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in sorted(files)])
