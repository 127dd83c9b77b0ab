"""How close a dictionary distilled from a LoRA comes to it, and how many of its atoms that takes: ``python -m benchmarks.distil``.

The LoRAs that come with the pack are the teachers. *Thing*: how much of the way from the plain model's picture to the LoRA's a
picture has gone where the thing stands: 1 minus its distance from the LoRA's picture over the plain one's (grey levels, at the
best of a few small shifts), averaged over prompts that were not learnt at. *Elsewhere*: grey levels by which the rest of the
picture has moved away from the plain model's; a LoRA's own drift is no merit. Beside the dictionary the LoRA itself, opened as
atoms and cut down to as large a share of them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from sparse_core.controls import Keep, SparseAdapter, Stack
from sparse_core.demo.lessons import creatures
from sparse_core.demo.model import bundled_path, load_pipeline
from sparse_core.demo.shipped import LORAS, lora_name
from sparse_core.files import write_atomically
from sparse_core.generate import Sampling, generate
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.training import Progress, TrainingSettings, distil, questioned
from sparse_core.training.distilling import DEFAULTS

from . import destination
from .cells import Cells, source_digest, weights_digest
from .machine import versions
from .quality.scores import distance
from .tables import table

HERE = Path(__file__).parent
CORE = HERE.parent / "sparse_core"
SOURCES = [CORE / "training" / f"{name}.py" for name in ("distilling", "learners", "loop", "objective", "prior")]
SOURCES += [CORE / f"{name}.py" for name in ("coding", "controls", "dictionary", "examples", "generate", "layers")]
SOURCES += [CORE / f"{name}.py" for name in ("modules", "plan", "sampling")]
SOURCES += [CORE / "analysis" / "importance.py", CORE / "hosts", CORE / "lora"]
SOURCES += [HERE / "quality" / "scores.py", Path(__file__)]
DENSITIES = (1.0, 0.5, 0.25, 0.1, 0.03)
PLACES = {"on the left": 0, "in the middle": 32, "on the right": 56}
"""Where the world puts big things: from which column of 128 on."""
BIG, TOP = 72, 48
"""Pixels of a big thing, and the row that it begins at."""
LEARNT_AT = [
    f"a big {{}} {place} {scene}" for place in PLACES for scene in ("in the meadow", "in the snow", "at the beach")
]
LEARNT_AT += ["a big red house on the left in the snow", "a small blue tree on the right in the meadow"]
ASKED_AT = [f"a big {{}} {place} {scene}" for place in PLACES for scene in ("in the night", "in the desert")]
SEEDS = (1, 2)
SAMPLING = Sampling(steps=12)


def drawn(host: DiffusersHost, word: str, stack: Stack) -> np.ndarray:
    """(pictures, height, width, 3) in 0..255."""
    prompts = [prompt.format(word) for prompt in ASKED_AT for _ in SEEDS]
    pictures = generate(host, prompts, list(SEEDS) * len(ASKED_AT), SAMPLING, stack, batch=len(prompts))
    return np.stack([np.asarray(picture, np.float32) for picture in pictures])


def places_of_things(shape: tuple[int, int]) -> list[np.ndarray]:
    """For every picture of `drawn`, 1 where the thing stands: (height, width)."""
    masks = []
    for prompt in ASKED_AT:
        (left,) = (column for place, column in PLACES.items() if place in prompt)
        mask = np.zeros(shape, np.float32)
        mask[TOP : TOP + BIG, left : left + BIG] = 1
        masks += [mask] * len(SEEDS)
    return masks


def measured(word: str, settings: TrainingSettings) -> tuple[dict[str, Any], Image.Image]:
    """Figures of one LoRA, and a row of pictures: plain, LoRA, dictionary at each density."""
    host = DiffusersHost(load_pipeline())
    lora = SparseAdapter(host.import_lora(LORAS / lora_name(word)).dictionary)
    side = host.unet.config.sample_size
    with tqdm(total=settings.steps, desc=word, unit="step") as bar:
        conditions = [host.encode_prompt(prompt.format(word)) for prompt in LEARNT_AT]
        shape = (host.unet.config.in_channels, side, side)
        nothing = host.encode_prompt("")
        asked = questioned(host, conditions, nothing, shape, stack=[lora], pictures=2 * len(LEARNT_AT))

        def on_step(progress: Progress) -> None:
            bar.update()

        learnt = SparseAdapter(distil(host, asked, settings, on_step))
    plain, goal = drawn(host, word, []), drawn(host, word, [lora])
    masks = places_of_things(goal.shape[1:3])

    def apart(ones: np.ndarray, others: np.ndarray, inside: bool) -> float:
        pairs = zip(ones, others, masks, strict=True)
        return float(np.mean([distance(one, other, mask if inside else 1 - mask) for one, other, mask in pairs]))

    figures: dict[str, Any] = {
        "distilled": {},
        "lora": {},
        "active_share": learnt.dictionary.metadata["training"]["active_share"],
    }
    row = [plain[0], goal[0]]
    for density in DENSITIES:
        for name, adapter in (("distilled", learnt), ("lora", lora)):
            kept = adapter.with_controls(Keep(density))
            pictures = drawn(host, word, [kept])
            figures[name][str(density)] = {
                "atoms": int(sum(site.able.sum() for site in kept.state.sites.values())),
                "thing": 1 - apart(pictures, goal, inside=True) / apart(plain, goal, inside=True),
                "elsewhere": apart(pictures, plain, inside=False),
            }
            if name == "distilled":
                row.append(pictures[0])
    return figures, Image.fromarray(np.concatenate(row, axis=1).round().astype(np.uint8))


def report(results: dict) -> str:
    """The figures as Markdown."""
    rows = [
        [
            f"{word}, {name}",
            f"{density:.0%}",
            *(found[name][str(density)][key] for key in ("atoms", "thing", "elsewhere")),
        ]
        for word, found in results["loras"].items()
        for name in ("distilled", "lora")
        for density in DENSITIES
    ]
    text = table(["teacher", "kept", "atoms", "thing", "elsewhere"], rows)
    return f"# Distilling LoRAs\n\n{__doc__}\n{text}\n"


def conditions(settings: TrainingSettings) -> dict[str, Any]:
    """What all figures depend on."""
    weights = weights_digest(bundled_path(), LORAS)
    return {"settings": settings.record(), "sources": source_digest(SOURCES), "weights": weights}


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.distil", description=__doc__)
    parser.add_argument(
        "--settings",
        type=json.loads,
        default={},
        metavar="JSON",
        help='other than the default ones, such as {"batch": 8}',
    )
    parser.add_argument("--only", choices=creatures(), action="append", help="this LoRA alone; may be repeated")
    parser.add_argument("--cache", type=Path, default=HERE / "cache" / "distil", metavar="FOLDER")
    return destination.parse(parser, arguments, "distil", ("only", "settings"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes the report."""
    options = read_arguments(arguments)
    settings = replace(DEFAULTS, **options.settings)
    cells = Cells(options.cache, conditions(settings))
    found = {}
    for word in options.only or creatures():
        if word not in cells:  # each LoRA is kept as soon as it is measured
            cells[word], row = measured(word, settings)
            row.save(cells.folder / f"{word}.png")
        found[word] = cells[word]
    results = {
        "loras": found,
        "settings": settings.record(),
        "prompts": {"learnt_at": LEARNT_AT, "asked_at": ASKED_AT, "seeds": SEEDS},
        "versions": versions("torch", "diffusers"),
        "threads": torch.get_num_threads(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "distil.json", (json.dumps(results, indent=1) + "\n").encode())
    write_atomically(options.out / "distil.md", report(results).encode())
    print(report(results))
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
