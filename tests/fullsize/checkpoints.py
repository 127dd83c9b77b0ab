"""Checkpoints with the names and shapes of the real models' single files, and random weights.

Names and shapes come from ComfyUI's own classes, built without memory; weights are made one tensor at a time and go
straight to disk.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL as ComfyAutoencoder
from comfy.sd1_clip import SD1ClipModel
from comfy.sdxl_clip import SDXLClipModel
from torch import Tensor

from benchmarks.models import Kind, comfy_config, fill_like, meta_unet, scheduler

UNET_PREFIX = "model.diffusion_model."
STORED = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64"}
"""Number types by the names that safetensors files use."""

AUTOENCODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
"""The autoencoder of both models, in the words of their own configuration files."""


def weights_of(kind: Kind) -> dict[str, Tensor]:
    """Every tensor of a single-file checkpoint by its own name, on the meta device."""
    config = comfy_config(kind, torch.float16)
    unet = config.get_model({}, device="meta").diffusion_model
    with torch.device("meta"):
        text = {"sd15": SD1ClipModel, "sdxl": SDXLClipModel}[kind](device="meta", dtype=torch.float16)
        autoencoder = ComfyAutoencoder(embed_dim=4, ddconfig=AUTOENCODER)
    named = config.process_unet_state_dict_for_saving(unet.state_dict())
    named |= config.process_clip_state_dict_for_saving(text.state_dict())
    named |= config.process_vae_state_dict_for_saving(autoencoder.state_dict())
    if kind == "sd15":
        named["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return named


def write_checkpoint(path: Path, kind: Kind, unet_type: torch.dtype, seed: int = 0) -> Path:
    """A checkpoint whose UNet is stored in ``unet_type`` and the rest in fp16."""
    weights = weights_of(kind)
    types = {name: stored_type(name, tensor, unet_type) for name, tensor in weights.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.numel() * types[name].itemsize
        header[name] = {"dtype": STORED[types[name]], "shape": list(tensor.shape), "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)))
        file.write(described)
        for name, tensor in random_values(weights, seed):
            file.write(tensor.to(types[name]).flatten().view(torch.uint8).numpy().data)
    return path


def stored_type(name: str, tensor: Tensor, unet_type: torch.dtype) -> torch.dtype:
    """The number type of one tensor on disk."""
    if tensor.dtype == torch.int64:
        return torch.int64
    return unet_type if name.startswith(UNET_PREFIX) else torch.float16


def random_values(weights: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Values for the names, one at a time: float32, or what an integer tensor holds."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in weights.items():
        if tensor.dtype == torch.int64:
            yield name, tensor
            continue
        values = torch.empty(tensor.shape)
        fill_like(name, values, generator)
        yield name, values


# --------------------------------------------------------------------------------------- what diffusers wants beside it


def write_configuration(folder: Path, kind: Kind) -> Path:
    """A diffusers folder of the same family without weights, from diffusers' and transformers' own classes."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTokenizer

    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size={"sd15": 512, "sdxl": 1024}[kind],
            scaling_factor={"sd15": 0.18215, "sdxl": 0.13025}[kind],
        )
    meta_unet(kind).save_config(folder / "unet")
    autoencoder.save_config(folder / "vae")
    scheduler().save_config(folder / "scheduler")
    words = Path(comfy.__path__[0], "sd1_tokenizer")
    tokenizer = CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt"), model_max_length=77)
    small = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        architectures=["CLIPTextModel"],
    )
    large = CLIPTextConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=20,
        projection_dim=1280,
        hidden_act="gelu",
        architectures=["CLIPTextModelWithProjection"],
    )
    for name, config in (("text_encoder", small), ("text_encoder_2", large))[: 1 if kind == "sd15" else 2]:
        config.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name.replace("text_encoder", "tokenizer"))
    (folder / "model_index.json").write_text(json.dumps(index_of(kind)))
    return folder


def index_of(kind: Kind) -> dict[str, Any]:
    """The folder's ``model_index.json``."""
    shared = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if kind == "sd15":
        return {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], **shared}
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        **shared,
    }
