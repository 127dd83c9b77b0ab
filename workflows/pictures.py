"""Draws the pictures of all workflows anew, on a ComfyUI that it starts: ``python -m workflows.pictures`` with
``COMFYUI_PATH`` set."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from .build import FOLDER, write

sys.path.insert(0, str(FOLDER.parent / "tests" / "browser"))

import desk

if __name__ == "__main__":
    if reason := desk.why_not():
        sys.exit(reason)
    with tempfile.TemporaryDirectory() as folder, desk.server(Path(folder) / "base") as address:
        write(address, pictures=True)
