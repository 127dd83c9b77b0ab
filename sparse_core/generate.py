"""Pictures from a diffusers pipeline, with whatever adapters are stacked on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .addresses import parse_lines
from .controls import Conditioning, Keep, Mask, SparseAdapter, Stack, controls_of_lines
from .hosts.diffusers import DiffusersHost


@dataclass(frozen=True)
class Sampling:
    """How a picture is drawn, whatever is on it.

    :raises ValueError: a value is out of its range.
    """

    steps: int = 20
    guidance: float = 3.0
    """Classifier-free guidance; 1 turns it off."""
    size: tuple[int, int] | None = None
    """Width and height, multiples of 8; None for the model's own."""
    negative: str = ""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected at least 1.")
        if self.size and any(side < 8 or side % 8 for side in self.size):
            raise ValueError(f"The size is {self.size[0]}x{self.size[1]}; expected multiples of 8, such as 512x768.")


def generate(
    host: DiffusersHost,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling,
    stack: Stack = (),
    on_step: Callable[[int], None] = lambda pictures: None,
    batch: int = 1,
) -> list[Image.Image]:
    """One picture for each prompt and its seed. A picture does not depend on those drawn with it.

    :param on_step: told after every sampling step how many pictures it moved on.
    :param batch: pictures drawn at once: faster with a small model, too much memory with a large one.
    """
    width, height = sampling.size or (None, None)
    made: list[Image.Image] = []
    with host.patched(stack):
        for start in range(0, len(prompts), batch):
            chunk = list(prompts[start : start + batch])

            def report(_pipeline: Any, _step: int, _timestep: Any, kwargs: dict, drawn: int = len(chunk)) -> dict:
                on_step(drawn)
                return kwargs

            made += host.pipeline(
                prompt=chunk,
                negative_prompt=[sampling.negative] * len(chunk),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]],
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                width=width,
                height=height,
                callback_on_step_end=report,
            ).images
    return made


def controlled(
    adapter: SparseAdapter,
    *,
    strength: float = 1.0,
    lines: str = "",
    density: float = 1.0,
    mask: Image.Image | None = None,
    prompt: str = "both",
) -> SparseAdapter:
    """The adapter with the controls of a command line.

    :param lines: atom weights, ``L3.v[7] = 0.5`` each.
    :param density: the share of atoms kept, by importance.
    :param mask: white where the dictionary acts.
    :param prompt: on which prompt it acts: ``both``, ``positive`` or ``negative``.
    """
    adapter = adapter.with_controls(*controls_of_lines(parse_lines(lines)))
    if density != 1:
        adapter = adapter.with_controls(Keep(density))
    if mask is not None:
        adapter = adapter.with_controls(Mask(torch.from_numpy(np.array(mask.convert("L"), np.float32) / 255)))
    if prompt != "both":
        adapter = adapter.with_controls(Conditioning(prompt))  # type: ignore[arg-type]
    return adapter.at_strength(strength)


def numbered(out: Path, count: int) -> list[Path]:
    """Where ``count`` pictures go: into ``out`` as a file, or numbered, after those that are there, into files beside it or into
    a folder of that name.

    :raises ValueError: it is the name of a picture that is no PNG.
    """
    suffix = out.suffix.lower()
    if suffix == ".png" and count == 1:
        return [out]
    if suffix != ".png" and suffix in Image.registered_extensions():
        raise ValueError(
            f"{out} ends in {out.suffix}; expected a folder or a .png file, as pictures are written as PNG."
        )
    folder, start, digits = (out.parent, f"{out.stem}-", 1) if suffix == ".png" else (out, "", 4)
    there = os.listdir(folder) if folder.is_dir() else []
    name = re.compile(rf"{re.escape(start)}([0-9]+)\.png", re.IGNORECASE)
    taken = [int(found[1]) for found in map(name.fullmatch, there) if found]
    first = max(taken, default=0) + 1
    return [folder / f"{start}{number:0{digits}}.png" for number in range(first, first + count)]
