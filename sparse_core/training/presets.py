"""What a person wants to teach, as settings: each preset by the name an artist knows, with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BOLD = {"batch": 8, "learning_rate": 1.6e-2}
"""Best measured where half of a batch is prior pictures; at twice the rate a training falls apart. A style, which is taught
without and shows in every token, does better with more atoms firing."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "character": _BOLD,
    "object": _BOLD,
    "style": {"batch": 8, "learning_rate": 4e-3, "threshold": 0.5, "sparsity": 1e-5},
    "single picture": {"steps": 100, "learning_rate": 8e-3},
}
"""Fields of `TrainingSettings`; no field is about memory, time or chance, so those stay free to choose."""
