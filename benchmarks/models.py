"""UNets of the real models' shapes with random weights, in both hosts, and random things to put on them."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Generator, Tensor, nn

from sparse_core.controls import Keep, Mask, SparseAdapter
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.layers import PROJECTIONS, Layer, Site

Kind = Literal["sd15", "sdxl"]
KINDS: tuple[Kind, ...] = ("sd15", "sdxl")

UNETS: dict[Kind, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""What diffusers' UNet2DConditionModel needs to be told of each; the rest are its defaults."""

POOLED = 1280
"""Width of SDXL's pooled text."""
TEXT_TOKENS = 77
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""What both hosts call the projections of an attention."""
FIRING = 0.06
"""Share of coefficients that pass the threshold, as in trained dictionaries."""


# --------------------------------------------------------------------------------------------------------- the models


def meta_unet(kind: Kind) -> UNet2DConditionModel:
    """The UNet without memory for its weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[kind])


def diffusers_unet(kind: Kind, device: torch.device, dtype: torch.dtype, seed: int = 0) -> UNet2DConditionModel:
    """The UNet of diffusers with random weights."""
    unet = meta_unet(kind).to(dtype).to_empty(device=device)
    fill_randomly(unet, seed)
    return unet.eval().requires_grad_(False)


def scheduler() -> DDIMScheduler:
    """The noise schedule of both models."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def use_comfyui(path: Path | None = None) -> Path | None:
    """Makes ComfyUI's modules importable, on its own terms, and says where they lie; None without a ComfyUI."""
    path = path or Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
    needed = ("torchsde", "av", "aiohttp")  # its command line tells users to install them; without them it won't import
    if not (path / "main.py").is_file() or any(importlib.util.find_spec(name) is None for name in needed):
        return None
    sys.path.insert(1, str(path))
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    return path


def comfy_config(kind: Kind, dtype: torch.dtype) -> Any:
    """ComfyUI's own description of the model, found as it finds it: from the shapes of the weights."""
    from comfy.model_detection import model_config_from_diffusers_unet

    config = model_config_from_diffusers_unet(meta_unet(kind).state_dict())
    config.set_inference_dtype(dtype, None)
    return config


def comfy_model(kind: Kind, dtype: torch.dtype, seed: int = 0) -> Any:
    """The same as a ComfyUI MODEL."""
    from comfy.model_management import get_torch_device, unet_offload_device
    from comfy.model_patcher import ModelPatcher

    model = comfy_config(kind, dtype).get_model({}, device=unet_offload_device())
    fill_randomly(model.diffusion_model, seed)
    return ModelPatcher(model, get_torch_device(), unet_offload_device())


@torch.no_grad()
def fill_randomly(module: nn.Module, seed: int) -> None:
    """Random weights under which features keep their size from layer to layer."""
    generator = None
    for name, parameter in module.named_parameters():
        generator = generator or Generator(parameter.device).manual_seed(seed)
        fill_like(name, parameter, generator)


def fill_like(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fills a weight by what it is: matrices and kernels keep the variance, norms are 1, biases are 0."""
    if tensor.ndim >= 2:
        tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    else:
        tensor.fill_(float(name.endswith("weight")))


# ------------------------------------------------------------------------------------------------------ what acts on it


@dataclass(frozen=True)
class Variant:
    """A load to put on a model."""

    atoms: int
    density: float = 1.0
    masks: int = 0
    """Dictionaries in one region each; 0 is one dictionary on the whole picture."""

    @property
    def name(self) -> str:
        """Its key in the results."""
        parts = [str(self.atoms)]
        if self.density < 1:
            parts.append(f"density_{round(100 * self.density)}")
        if self.masks:
            parts.append(f"masks_{self.masks}")
        return "_".join(parts)

    def stack(self, layers: Sequence[Layer], size: tuple[int, int], seed: int) -> list[SparseAdapter]:
        """The adapters with their controls, for latents of ``size``."""
        regions = strips(self.masks, size) or [None]
        stack = []
        for number, region in enumerate(regions):
            adapter = SparseAdapter(random_dictionary(layers, self.atoms, seed + number))
            if self.density < 1:
                adapter = adapter.with_controls(Keep(self.density))
            stack.append(adapter if region is None else adapter.with_controls(Mask(region)))
        return stack


def random_dictionary(layers: Sequence[Layer], atoms: int, seed: int) -> SparseDictionary:
    """Atoms on every site, of which some `FIRING` fire at a token."""
    generator = Generator().manual_seed(seed)
    threshold = -NormalDist().inv_cdf(FIRING / 2)

    def random_atoms(d_in: int, d_out: int) -> Atoms:
        return Atoms(
            encoder=nn.functional.normalize(torch.randn(atoms, d_in, generator=generator), dim=1),
            bias=torch.zeros(atoms),
            threshold=torch.full((atoms,), threshold),
            directions=nn.functional.normalize(torch.randn(atoms, d_out, generator=generator), dim=1),
            importance=torch.rand(atoms, generator=generator),
        )

    sites = [Site(number, projection) for number in range(len(layers)) for projection in PROJECTIONS]
    return SparseDictionary(tuple(layers), {s: random_atoms(*layers[s.layer].shape(s.projection)) for s in sites})


def strips(count: int, size: tuple[int, int]) -> list[Tensor]:
    """Masks that share a picture of ``size`` latent pixels: strips side by side with soft edges, all of it where there
    are several and the left half where there is one. (1, height, width) each."""
    height, width = size
    share = width / max(count, 2)
    places = torch.arange(width) + 0.5
    soft = max(1.0, width / 32)
    masks = []
    for number in range(count):
        inside = torch.minimum(places - number * share, (number + 1) * share - places)
        masks.append((inside / soft + 0.5).clamp(0, 1).expand(1, height, width).contiguous())
    return masks


def lora_weights(modules: dict[str, nn.Module], rank: int, seed: int) -> dict[str, Tensor]:
    """A random LoRA on the projections of every attention, under the names of the modules."""
    generator = Generator().manual_seed(seed)
    weights = {}
    for name, module in modules.items():
        d_out, d_in = module.weight.shape
        weights[f"{name}.lora_down.weight"] = torch.randn(rank, d_in, generator=generator) * d_in**-0.5
        weights[f"{name}.lora_up.weight"] = torch.randn(d_out, rank, generator=generator) * 0.1
        weights[f"{name}.alpha"] = torch.tensor(float(rank))
    return weights


def projections(unet: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The q, k, v and output projections of every attention."""
    ends = tuple(f"{attention}.{projection}" for attention in ("attn1", "attn2") for projection in TARGETS)
    return {f"{prefix}{name}": module for name, module in unet.named_modules() if name.endswith(ends)}
