"""What a person wants to teach, as settings: each preset by the name an artist knows, with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOLD = {"batch": 8, "learning_rate": 1.6e-2}
"""Best measured where half of a batch is prior pictures; at twice the rate a training falls apart."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "character": _BOLD,
    "object": _BOLD,
    "style": {**_BOLD, "steps": 300},
    "single picture": {"steps": 100, "learning_rate": 8e-3},
}
"""Fields of `TrainingSettings`; no field is about memory, time or chance, so those stay free to choose."""
