"""Demo Model: the small model that comes with the pack, as ComfyUI's own MODEL, CLIP and VAE."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import comfy.latent_formats
import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy.model_base import BaseModel, ModelType
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel, SDTokenizer
from comfy_api.latest import io
from safetensors.torch import load_file

from ..sparse_core.demo.model import bundled_path
from ..sparse_core.demo.preview import preview_factors
from .types import CATEGORY

VOCABULARY_ROWS = 49408
"""Rows of ComfyUI's token embedding, whatever the vocabulary."""


class DemoModel(io.ComfyNode):
    """The bundled model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_DemoModel",
            display_name="Demo Model",
            category=CATEGORY,
            description="A tiny picture-book model that comes with Sparse Atoms, to try everything in seconds without a "
            "download. It draws at 128 x 128: things such as a red cat or a blue house, left, right or in the middle, in a "
            "meadow, on a beach, in the snow. Use about 12 to 20 steps and a CFG of 3.",
            search_aliases=["sparse atoms", "checkpoint", "tiny model"],
            inputs=[],
            outputs=[
                io.Model.Output(display_name="model"),
                io.Clip.Output(display_name="clip"),
                io.Vae.Output(display_name="vae"),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        folder = bundled_path()
        return io.NodeOutput(load_model(folder), load_clip(folder), load_vae(folder))


def load_model(folder: Path) -> ModelPatcher:
    """The UNet of a diffusers folder of the demo model's kind."""
    diffusers_config = _config(folder / "unet")
    config = _DemoConfig(unet_config(diffusers_config))
    config.latent_format = _latent_format(diffusers_config["in_channels"], preview_factors(folder))
    load_device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float32, None)
    model = BaseModel(config, model_type=ModelType.V_PREDICTION, device=comfy.model_management.unet_offload_device())
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    weights = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    model.diffusion_model.load_state_dict({names[key]: tensor.float() for key, tensor in weights.items()})
    return ModelPatcher(model, load_device, comfy.model_management.unet_offload_device())


def load_clip(folder: Path) -> comfy.sd.CLIP:
    """The text encoder and tokenizer."""
    config = _config(folder / "text_encoder")
    length, width = config["max_position_embeddings"], config["hidden_size"]
    special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["eos_token_id"]}

    class TextModel(SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=length,
                textmodel_json_config=dict(config),
                special_tokens=special,
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Tokenizer(SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: dict | None = None) -> None:
            super().__init__(
                tokenizer_path=str(folder / "tokenizer"),
                max_length=length,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_data=tokenizer_data or {},
            )

    class Target:
        params: ClassVar = {"clip_model": TextModel}
        clip = SD1ClipModel

        @staticmethod
        def tokenizer(embedding_directory: Any = None, tokenizer_data: dict | None = None) -> SD1Tokenizer:
            return SD1Tokenizer(embedding_directory, tokenizer_data or {}, tokenizer=Tokenizer)

    weights = load_file(folder / "text_encoder" / "model.safetensors")
    table = "text_model.embeddings.token_embedding.weight"
    padding = torch.zeros(VOCABULARY_ROWS - len(weights[table]), width, dtype=weights[table].dtype)
    weights[table] = torch.cat([weights[table], padding])
    return comfy.sd.CLIP(Target, state_dict=[weights], model_options={"dtype": torch.float32})


def load_vae(folder: Path) -> comfy.sd.VAE:
    """The autoencoder: diffusers' AutoencoderTiny is ComfyUI's TAESD."""
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    renamed = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    for key, tensor in weights.items():
        part, _, number, rest = key.split(".", 3)
        offset = 1 if part == "decoder" else 0  # ComfyUI's decoder counts the clamp as its first layer
        renamed[f"taesd_{part}.{int(number) + offset}.{rest}"] = tensor.float()
    return comfy.sd.VAE(renamed, dtype=torch.float32)


def unet_config(config: dict[str, Any]) -> dict[str, Any]:
    """A diffusers UNet config in ComfyUI's terms."""
    widths = config["block_out_channels"]
    blocks = config["layers_per_block"]
    attends = [int(kind.startswith("CrossAttn")) for kind in config["down_block_types"]]
    return {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [blocks] * len(widths),
        "transformer_depth": [depth for depth in attends for _ in range(blocks)],
        "transformer_depth_output": [depth for depth in attends for _ in range(blocks + 1)],
        "transformer_depth_middle": 1,
        "context_dim": config["cross_attention_dim"],
        "num_heads": config["attention_head_dim"],
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "legacy": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }


class _DemoConfig(comfy.supported_models.SD15):
    unet_extra_config: ClassVar = {}
    sampling_settings: ClassVar = {"zsnr": True}
    memory_usage_factor = 0.2


def _latent_format(channels: int, colours: list[list[float]] | None) -> comfy.latent_formats.LatentFormat:
    latent_format = comfy.latent_formats.LatentFormat()
    latent_format.latent_channels = channels
    latent_format.latent_rgb_factors = colours
    return latent_format


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())
