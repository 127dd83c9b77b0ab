"""Linear modules and convolutions of a UNet, named alike in every host, and low-rank updates of their weights.

Names are diffusers': ``down_blocks.1.resnets.0.conv1``. The original layout, which ComfyUI keeps, counts all blocks in one
row (``input_blocks.4.0.in_layers.2``); each name follows from the other by arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from .layers import Layer, Projection, Site

SINGLE = {
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
"""What does not repeat from level to level: original to diffusers' name."""
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
"""Inside a residual block, likewise."""


@dataclass(frozen=True)
class LowRank:
    """An update of one module's weight: ``W' = W + up down``."""

    down: Tensor
    """(r, d_in); of a convolution (r, channels, height, width), strided and padded as the module's own kernel is."""
    up: Tensor
    """(r, d_out)."""

    @property
    def squared_norm(self) -> float:
        """``|up^T down|^2``, without forming the product."""
        down, up = self.down.flatten(1).double(), self.up.double()
        return float(((down @ down.T) * (up @ up.T)).sum())


class Layout(NamedTuple):
    """How a UNet's blocks are counted."""

    levels: int
    """Resolutions."""
    blocks: int
    """Residual blocks of each level on the way down."""

    @classmethod
    def of_diffusers(cls, names: Iterable[str]) -> Layout:
        """Read off diffusers' names."""
        found = [match for name in names if (match := re.match(r"down_blocks\.(\d+)\.resnets\.(\d+)\.", name))]
        return cls(1 + max(int(m[1]) for m in found), 1 + max(int(m[2]) for m in found))

    @classmethod
    def of_original(cls, names: Iterable[str]) -> Layout:
        """Read off the original's names: every level but the last ends in a downsampler."""
        names = list(names)
        blocks = 1 + max(int(match[1]) for name in names if (match := re.match(r"input_blocks\.(\d+)\.", name)))
        samplers = [int(match[1]) for name in names if (match := re.match(r"input_blocks\.(\d+)\.0\.op$", name))]
        a_level = min(samplers, default=blocks)
        return cls(blocks // a_level, a_level - 1)

    def prefixes(self) -> dict[str, str]:
        """The original's name of every block to diffusers'. An upsampler's number depends on whether an attention stands
        before it, so both are listed."""
        found = dict(SINGLE)
        for level in range(self.levels):
            first = 1 + level * (self.blocks + 1)
            for block in range(self.blocks):
                found[f"input_blocks.{first + block}.0"] = f"down_blocks.{level}.resnets.{block}"
                found[f"input_blocks.{first + block}.1"] = f"down_blocks.{level}.attentions.{block}"
            found[f"input_blocks.{first + self.blocks}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
            first = level * (self.blocks + 1)
            for block in range(self.blocks + 1):
                found[f"output_blocks.{first + block}.0"] = f"up_blocks.{level}.resnets.{block}"
                found[f"output_blocks.{first + block}.1"] = f"up_blocks.{level}.attentions.{block}"
            for number in (1, 2):
                found[f"output_blocks.{first + self.blocks}.{number}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        return found


def from_original(names: Iterable[str]) -> dict[str, str]:
    """Diffusers' name of every module of a UNet in the original layout, by its own name; containers are left out."""
    names = list(names)
    prefixes = Layout.of_original(names).prefixes()
    found = {}
    for name in names:
        parts = name.split(".")
        heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        head = next((head for head in heads if head in prefixes), None)
        if head is not None:
            found[name] = _inside(prefixes[head], name[len(head) + 1 :], RESNET)
    return found


def original_names(names: Sequence[str]) -> dict[str, str]:
    """The other way round: every name that the original layout may have for the modules that diffusers calls ``names``."""
    tails = {theirs: ours for ours, theirs in RESNET.items()}
    found = {}
    for head, prefix in Layout.of_diffusers(names).prefixes().items():
        for name in names:
            if name == prefix or name.startswith(f"{prefix}."):
                found[_inside(head, name[len(prefix) + 1 :], tails if ".resnets." in prefix else {})] = name
    return found


def _inside(head: str, tail: str, renamed: Mapping[str, str]) -> str:
    return f"{head}.{renamed.get(tail, tail)}" if tail else head


PROJECTION = re.compile(
    r"(down|mid|up)_blocks?\.(?:(\d+)\.)?attentions\.(\d+)\.transformer_blocks\.(\d+)\.(attn[12])\.to_(q|k|v|out\.0)"
)


def projection_sites(names: Iterable[str], layers: Sequence[Layer]) -> dict[str, Site]:
    """Which site each attention projection is: its module's name to its address."""
    matches = [match for name in names if (match := PROJECTION.fullmatch(name))]
    transformers: dict[str, list[tuple[int, int]]] = {}
    for match in matches:
        transformers.setdefault(match[1], []).append((int(match[2] or 0), int(match[3])))
    numbers = {
        stage: {place: n for n, place in enumerate(sorted(set(places)))} for stage, places in transformers.items()
    }
    indices = {layer.name: index for index, layer in enumerate(layers)}
    sites = {}
    for match in matches:
        stage = "middle" if match[1] == "mid" else match[1]
        number = numbers[match[1]][int(match[2] or 0), int(match[3])]
        projection: Projection = "o" if match[6] == "out.0" else match[6]  # type: ignore[assignment]
        sites[match[0]] = Site(indices[f"{stage}.{number}.{match[4]}.{match[5]}"], projection)
    return sites
