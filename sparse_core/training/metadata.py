"""What a trained file says of itself, in the words that LoRA managers read (the modelspec fields)."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from PIL import Image

THUMBNAIL = 256
"""Pixels of a thumbnail's longer side."""


def file_metadata(
    title: str,
    word: str | None = None,
    captions: Sequence[str] = (),
    author: str = "",
    description: str = "",
    thumbnail: Image.Image | None = None,
    *,
    keep_captions: bool = False,
) -> dict[str, Any]:
    """Metadata for `train`; what is empty is left out.

    :param keep_captions: store the captions themselves. They are private unless their owner says otherwise: by default
        only their hashes are kept.
    """
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "sparse-dictionary",
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.trigger_phrase": word or "",
        "modelspec.author": author,
        "modelspec.thumbnail": "" if thumbnail is None else data_uri(thumbnail),
        "captions_sha256": [hashlib.sha256(caption.encode()).hexdigest()[:16] for caption in captions],
        "captions": list(captions) if keep_captions else [],
        "versions": _versions("torch", "diffusers"),
    }
    return {name: value for name, value in fields.items() if value}


def data_uri(picture: Image.Image) -> str:
    """A small JPEG as the modelspec wants thumbnails."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
