"""What a person wants to teach, as settings: each preset by the name an artist knows, with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "character": {},
    "object": {},
    "style": {"steps": 600},
    "single picture": {"steps": 250, "batch": 2, "sparsity": 3e-4},
}
"""Fields of `TrainingSettings`; no field is about memory, time or chance, so those stay free to choose."""
