"""Does the model draw what it is asked for? Figures for the card that ships with the weights."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from .judge import Judge, Score, judge_accuracy
from .model import load_pipeline
from .pictures import collages, evaluation_scenes, render_all
from .scenery import SCENES, STYLES
from .sprites import COLOURS, HELD_OUT_CONCEPTS, RESERVED, FluentArt
from .training import load_checkpoint
from .vae import psnr
from .world import CORE, FURTHER, PLACES, SIZES, Scene, Thing, World, caption

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

STEPS = 12
GUIDANCE = 3.0
_BATCH = 20


def generate(pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int, **how: Any) -> np.ndarray:
    """One picture a prompt, uint8 (n, 128, 128, 3); `how` overrides the pipeline's arguments."""
    how = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE} | how
    made = []
    for i in tqdm(range(0, len(prompts), _BATCH), "pictures", leave=False):
        # A generator a picture: what one prompt gives does not depend on its neighbours.
        noise = [torch.Generator().manual_seed(seed + k) for k in range(i, min(i + _BATCH, len(prompts)))]
        made.append(pipeline(list(prompts[i : i + _BATCH]), generator=noise, output_type="np", **how).images)
    return (np.concatenate(made) * 255).round().astype(np.uint8)


def obedience(
    pipeline: StableDiffusionPipeline, judge: Judge, count: int, seed: int, core_share: float
) -> tuple[dict[str, float], list[Scene], np.ndarray]:
    """Attribute shares on prompts whose combination no training saw, with the scenes and their pictures."""
    scenes = evaluation_scenes(count, seed, core_share=core_share)
    pictures = generate(pipeline, [caption(scene) for scene in scenes], seed)
    score = Score()
    for scene, seen in zip(scenes, judge.read(pictures), strict=True):
        score.add(scene, seen)
    return score.shares(), scenes, pictures


def fidelity(pipeline: StableDiffusionPipeline, art: FluentArt, seed: int) -> dict[str, float]:
    """PSNR in dB: of the world, of collages of artwork kept from all training, and of such artwork in the world."""
    unseen = sorted(RESERVED)
    world = World(art, {name: lambda size, name=name: art.sprite(name, size) for name in unseen})
    visitors = [
        Scene((Thing(name, place, size),), scene, style, seed)
        for name, place, size, scene, style in zip(
            HELD_OUT_CONCEPTS * 5, PLACES * 24, tuple(SIZES) * 35, SCENES * 12, STYLES * 35, strict=False
        )
    ]
    renders = {
        "world": render_all(world, evaluation_scenes(128, seed)),
        "unseen_artwork_in_world": render_all(world, visitors),
    }
    figures = {name: psnr(pipeline.vae, np.stack([r.picture for r in made])) for name, made in renders.items()}
    return figures | {"unseen_artwork": psnr(pipeline.vae, collages(art, unseen, 128, seed))}


def _seconds(pipeline: StableDiffusionPipeline) -> dict[str, float]:
    prompt = "a small red cat on the left in the snow, picture book"
    began = time.perf_counter()
    generate(pipeline, [prompt], 0, num_inference_steps=20)
    single = time.perf_counter() - began
    began = time.perf_counter()
    generate(pipeline, [prompt] * _BATCH, 0)
    return {
        "one_picture_20_steps": single,
        "per_picture_in_batch_of_20_at_12_steps": (time.perf_counter() - began) / _BATCH,
    }


def evaluate(art: FluentArt, folder: Path, work: Path, seed: int = 7, count: int = 500) -> dict[str, Any]:
    """Measure everything the card states, write card.json into the model folder and return it."""
    import diffusers
    import transformers

    pipeline = load_pipeline(folder)
    judge = Judge.load(folder / "judge")
    core, _, _ = obedience(pipeline, judge, count, seed, core_share=1.0)
    further, _, _ = obedience(pipeline, judge, count // 2, seed + 1, core_share=0.0)
    parts = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "vae", "text_encoder")
    }
    training = {}
    for name in ("vae", "denoiser", "decoder", "judge"):
        if state := load_checkpoint(work / f"{name}.pt"):
            training[name] = {key: round(state[key]) for key in ("step", "seconds") if key in state}
    card = {
        "world": {
            "core_things": len(CORE), "colours": len(COLOURS), "further_things": len(FURTHER), "scenes": list(SCENES),
            "styles": list(STYLES), "places": list(PLACES), "sizes_in_pixels": SIZES,
        },
        "parameters": parts | {"judge": sum(p.numel() for p in judge.parameters())},
        "megabytes": sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6,
        "sampling": {"scheduler": "DDIM", "steps": STEPS, "guidance": GUIDANCE},
        "prompts": {"core": count, "further": count // 2, "seed": seed, "combinations": "never trained"},
        "accuracy_core": core,
        "accuracy_further": further,
        "accuracy_judge": judge_accuracy(judge, art, 1000, seed + 2),
        "psnr_db": fidelity(pipeline, art, seed),
        "seconds": _seconds(pipeline) | {"threads": torch.get_num_threads(), "machine": platform.machine()},
        "training": training,
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
        "artwork": "Fluent Emoji flat, MIT, Copyright (c) Microsoft Corporation; read at training time, not included",
    }  # fmt: skip
    card = json.loads(json.dumps(card), parse_float=lambda text: round(float(text), 4))
    partial = folder / "card.partial"
    partial.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "card.json")
    return card
