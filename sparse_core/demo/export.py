"""Turns training checkpoints into the diffusers folder that ships."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .denoiser import new_scheduler, new_unet
from .preview import write_preview_factors
from .text import load_tokenizer, make_nouns_of_untaught, new_text_encoder, write_tokenizer
from .training import load_checkpoint
from .vae import new_vae


def export(work: Path, folder: Path, seed: int, unet_shape: dict[str, Any]) -> Path:
    """Write fp16 weights and configurations to `folder`, replacing what is there in one rename.

    Stages that have no checkpoint yet are exported with their random start, so that hosts can be written early.
    """
    import torch
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    vae, unet, text_encoder = new_vae(), new_unet(**unet_shape), new_text_encoder(tokenizer)
    if autoencoder := load_checkpoint(work / "decoder.pt") or load_checkpoint(work / "vae.pt"):
        vae.load_state_dict(autoencoder["average"])
    if denoiser := load_checkpoint(work / "denoiser.pt"):
        unet.load_state_dict(denoiser["unet"])
        text_encoder.load_state_dict(denoiser["text_encoder"])
    make_nouns_of_untaught(text_encoder.get_input_embeddings().weight.data, tokenizer, seed)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    partial.chmod(0o755)
    pipeline.to(dtype=torch.float16).save_pretrained(partial, safe_serialization=True)
    for path in (partial / "tokenizer").iterdir():
        path.unlink()
    write_tokenizer(partial / "tokenizer")
    # The prefix is what every published checkpoint has and what other loaders look for.
    weights_path = partial / "text_encoder" / "model.safetensors"
    prefix = "text_model."
    weights = {key if key.startswith(prefix) else prefix + key: v for key, v in load_file(weights_path).items()}
    save_file(weights, weights_path, metadata={"format": "pt"})
    write_preview_factors(pipeline.vae.float(), partial)
    for extra in ("judge", "card.json"):
        if (folder / extra).exists():
            copy = shutil.copytree if (folder / extra).is_dir() else shutil.copy2
            copy(folder / extra, partial / extra)
    _without_local_paths(partial)
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
        os.replace(folder, old / folder.name)
        os.replace(partial, folder)
        shutil.rmtree(old)
    else:
        os.replace(partial, folder)
    return folder


def _without_local_paths(folder: Path) -> None:
    """save_pretrained notes where a part was loaded from; that is nobody's business."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
