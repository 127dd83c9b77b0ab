"""What the tensors of a LoRA file are called: the key styles of kohya's scripts, diffusers, peft and ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..modules import original_names

ROLES = (
    (re.compile(r"(.+)\.lora_(down|up|mid)\.weight"), {}),  # kohya, LyCORIS, ComfyUI
    (
        re.compile(r"(.+)\.lora_(A|B)(?:\.[^.]+)?(?:\.weight)?"),
        {"A": "down", "B": "up"},
    ),  # peft, with or without its name
    (re.compile(r"(.+)[._]lora(?:_linear_layer)?\.(down|up)\.weight"), {}),  # diffusers before peft
    (re.compile(r"(.+?)(?:_lora)?\.(alpha)"), {}),
    (re.compile(r"(.+)\.hada_(w1_a|w1_b|w2_a|w2_b|t1|t2)"), {}),
)
"""Tensor names: module's name and the tensor's role, renamed as said."""

FOREIGN = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector.*)",
    "LoKr": r"\.lokr_.+",
    "OFT": r"\.(oft_blocks|oft_diag|oft_R.*|rescale)",
    "BOFT": r"\.boft_.+",
    "GLoRA": r"\.[ab][12]\.weight",
    "IA3": r"\.on_input",
    "full weight differences": r"\.(diff|diff_b|set_weight|w_norm|b_norm|reshape_weight|lora_B(\.[^.]+)?\.bias)",
}
"""Algorithms that are no low-rank update of one weight, by the tensor names that give them away."""

TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?(lora_te\d?_|lora_prior_te_|text_encoder(_\d)?\.|text_encoders\.|te\d\.)"
)
PREFIXES = re.compile(r"(base_model_model_)?(lora_unet_|lycoris_|unet_|model_diffusion_model_|diffusion_model_)?")
"""What may stand before a module's name, dots replaced by underscores."""


class Keys(NamedTuple):
    """The tensors of a file, sorted by what they act on."""

    modules: dict[str, dict[str, Tensor]]
    """Module's name to its tensors by role: down, up, mid, alpha, w1_a and so on."""
    text: dict[str, Tensor]
    """Those of text encoders, under their own names."""
    unknown: list[str]
    """Names that belong to no module of this model."""
    foreign: dict[str, list[str]]
    """Algorithm to the names of its tensors."""


def sort_keys(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Keys:
    """Sorts a file's tensors for a model whose modules are called ``names``."""
    spellings = Spellings(names)
    keys = Keys({}, {}, [], {})
    for key, tensor in tensors.items():
        if TEXT_ENCODER.match(key):
            keys.text[key] = tensor
        elif algorithm := foreign_algorithm(key):
            keys.foreign.setdefault(algorithm, []).append(key)
        elif (found := role_of(key)) is None or (module := spellings.module(found[0])) is None:
            keys.unknown.append(key)
        else:
            keys.modules.setdefault(module, {})[found[1]] = tensor
    return keys


class Spellings:
    """Every way in which files call the modules of one model."""

    def __init__(self, names: Sequence[str]) -> None:
        self.flat = {_flat(original): name for original, name in original_names(names).items()}
        self.flat |= {_flat(name): name for name in names}

    def module(self, spelling: str) -> str | None:
        """The module's own name, or None where the model has no such module."""
        flat = _flat(spelling.replace(".processor.", "."))
        name = flat[PREFIXES.match(flat).end() :]  # type: ignore[union-attr]
        return self.flat.get(name) or self.flat.get(f"{name}_0")  # to_out was once called without its index


def role_of(key: str) -> tuple[str, str] | None:
    """Module's name, as the file spells it, and the tensor's role; None of a tensor that is no part of a known update."""
    for pattern, renamed in ROLES:
        if match := pattern.fullmatch(key):
            return match[1], renamed.get(match[2], match[2])
    return None


def foreign_algorithm(key: str) -> str | None:
    """The algorithm that a tensor's name gives away, if it is none of ours."""
    return next((name for name, pattern in FOREIGN.items() if re.fullmatch(rf".+{pattern}", key)), None)


def family_of(tensors: Mapping[str, Tensor]) -> str:
    """What a LoRA file was made for, as far as its names and shapes tell."""
    if any(
        re.search(r"double_blocks|single_blocks|joint_blocks|single_transformer_blocks|lora_transformer", k)
        for k in tensors
    ):
        return "a transformer model such as Flux or SD3"
    widths = {_width(tensor) for key, tensor in tensors.items() if _reads_text(key)}
    families = {768: "SD1.x", 1024: "SD2.x", 2048: "SDXL"}
    return next((families[width] for width in families if width in widths), "another model")


def few(names: Iterable[str]) -> str:
    """The first three of many names, for a message."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _reads_text(key: str) -> bool:
    found = role_of(key)
    return (
        found is not None
        and found[1] in ("down", "w1_b")
        and bool(re.search(r"attn2[._](processor\.)?to_[kv]$", found[0]))
    )


def _width(tensor: Tensor) -> int:
    return tensor.shape[1] if tensor.ndim > 1 else 0
