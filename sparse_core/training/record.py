"""What a trained file says of itself, in the words that LoRA managers read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def describe(title: str, word: str | None, captions: Sequence[str], author: str = "") -> dict[str, Any]:
    """Metadata for `train`. Captions are private unless their owner says otherwise: only their hashes are kept."""
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "sparse-dictionary",
        "modelspec.title": title,
        "modelspec.trigger_phrase": word or "",
        "modelspec.author": author,
        "captions_sha256": [hashlib.sha256(caption.encode()).hexdigest()[:16] for caption in captions],
        "versions": _versions("torch", "diffusers"),
    }
    return {name: value for name, value in fields.items() if value}


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
