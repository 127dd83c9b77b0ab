"""The alphas that diffusers keeps among peft's settings in a LoRA's header, in place of alpha tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .keys import role_of

HEADER = "lora_adapter_metadata"
"""Where peft's settings stand among a file's ``__metadata__``: ``LORA_ADAPTER_METADATA_KEY`` of diffusers."""
MALFORMED = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, re.error)
"""What taking apart a header of another form can raise."""


QUANTIFIER = re.compile(r"[*+?{]")
MOST_QUANTIFIERS, LONGEST_PATTERN = 3, 500
"""Of a pattern in a header. Files come from strangers, and with more of them Python can take for ever to find that a name does
not match."""


def with_alphas(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file and an alpha, (), for every module that has none of its own and whose alpha the header says.

    :param header: the file's ``__metadata__``.
    :raises ValueError: and the others of `MALFORMED`, where the header has another form than diffusers gives it.
    """
    if not header.get(HEADER):
        return dict(tensors)
    settings = _by_part(header[HEADER])
    roles = {key: found for key in tensors if (found := role_of(key))}
    own = {module for module, role in roles.values() if role == "alpha"}
    said = {
        f"{module}.alpha": _alpha(module, len(tensors[key]), settings)
        for key, (module, role) in roles.items()
        if role == "down" and module not in own
    }
    return {**tensors, **{key: torch.tensor(alpha) for key, alpha in said.items() if alpha is not None}}


def _by_part(text: str) -> dict[str, dict[str, Any]]:
    """peft's settings by the pipeline's part, ``unet`` or ``text_encoder``; by ``""`` in the file of a single part."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in json.loads(text).items():
        part, _, setting = name.rpartition(".")
        found.setdefault(part, {})[setting] = value
    return found


def _alpha(module: str, rank: int, settings: Mapping[str, Mapping[str, Any]]) -> float | None:
    """What divided by the rank is peft's scale: alpha, or ``sqrt(r) alpha`` where that scale is ``alpha / sqrt(r)``. None where
    nothing is said. `rank_pattern` needs no look: the rank is that of the tensors."""
    part, _, name = module.partition(".")
    if part not in settings:
        part, name = "", module
    chosen = settings.get(part, {})
    patterns = chosen.get("alpha_pattern") or {}
    # The first that matches, by the very expression of peft.utils.other.get_pattern_key.
    matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({_checked(pattern)})$", name))
    alpha = next(matching, chosen.get("lora_alpha"))
    if alpha is None:
        return None
    if not math.isfinite(alpha):
        raise ValueError(f"{module} has the alpha {alpha}; expected a finite number")
    return alpha * math.sqrt(rank) if chosen.get("use_rslora") else float(alpha)


def _checked(pattern: str) -> str:
    repeated_group = re.search(r"\)[*+?{]", pattern)
    if repeated_group or len(pattern) > LONGEST_PATTERN or len(QUANTIFIER.findall(pattern)) > MOST_QUANTIFIERS:
        raise ValueError(f"the pattern {pattern[:60]!r} is too intricate")
    return pattern
