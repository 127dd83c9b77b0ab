"""Attention layers and projection sites, named without reference to any host."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Projection = Literal["q", "k", "v", "o"]
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
"""to_q, to_k, to_v, to_out of one attention, in the order in which they act."""


class Layer(NamedTuple):
    """One attention of one transformer block: the shapes a dictionary has to fit."""

    name: str
    """``stage.transformer.block.attention``, e.g. ``down.2.0.attn1``: counted in execution order within its stage."""
    width: int
    """Features of a picture token: input of to_q and output of to_out."""
    context: int
    """Features of what to_k and to_v read: ``width`` for self-attention, the text width for cross-attention."""
    inner: int
    """Features inside the attention: output of to_q, to_k, to_v and input of to_out."""

    @property
    def stage(self) -> str:
        """``down``, ``middle`` or ``up``."""
        return self.name.split(".")[0]

    @property
    def attention(self) -> str:
        """``attn1`` (self-attention) or ``attn2`` (cross-attention)."""
        return self.name.split(".")[-1]

    def shape(self, projection: Projection) -> tuple[int, int]:
        """``(d_in, d_out)`` of one projection."""
        match projection:
            case "q":
                return self.width, self.inner
            case "k" | "v":
                return self.context, self.inner
            case "o":
                return self.inner, self.width
        raise ValueError(f"There is no projection {projection!r}; expected one of {', '.join(PROJECTIONS)}.")


class Site(NamedTuple):
    """One projection of one layer: where atoms live. Printed as ``L17.v``."""

    layer: int
    """Index into the model's layers, in execution order."""
    projection: Projection

    def __str__(self) -> str:
        return f"L{self.layer}.{self.projection}"


def reads_words(site: Site, layers: Sequence[Layer]) -> bool:
    """Whether a coefficient of the site belongs to a word; all others belong to a place in the picture."""
    return layers[site.layer].attention == "attn2" and site.projection in "kv"


def fingerprint(layers: Sequence[Layer]) -> str:
    """16 hex digits that are equal for two models exactly when a dictionary of one fits the other."""
    return hashlib.sha256(json.dumps([list(layer) for layer in layers]).encode()).hexdigest()[:16]


def family(layers: Sequence[Layer]) -> str:
    """What a user would call the architecture: ``SD1.x``, ``SD2.x``, ``SDXL``, or a description of its shape."""
    text_width = next((layer.context for layer in layers if layer.attention == "attn2"), 0)
    match len(layers), text_width:
        case 32, 768:
            return "SD1.x"
        case 32, 1024:
            return "SD2.x"
        case 140, 2048:
            return "SDXL"
    return f"{len(layers)} attention layers, text width {text_width}"
