"""Models in this process, on ComfyUI's own classes and samplers."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any, ClassVar

import comfy.sample
import comfy.supported_models
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from conftest import REPOSITORY
from torch import Tensor

from sparse_core.demo.model import bundled_path
from sparse_core.hosts.comfyui import list_layers
from sparse_core.layers import Layer

PACK = "sparse_atoms_pack"


@cache
def pack() -> ModuleType:
    """The node pack, imported as ComfyUI imports it."""
    spec = importlib.util.spec_from_file_location(
        PACK, REPOSITORY / "__init__.py", submodule_search_locations=[str(REPOSITORY)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    return module


@cache
def demo_model() -> ModelPatcher:
    """The bundled UNet as a MODEL. Shared: leave it as it was."""
    return pack().nodes.demo.load_model(bundled_path())


@cache
def demo_layers() -> tuple[Layer, ...]:
    """Its layers."""
    return tuple(list_layers(demo_model().model.diffusion_model).values())


# ------------------------------------------------------------------------------------------------------- a tiny model

TEXT_WIDTH = 24


class TinyConfig(comfy.supported_models.SD15):
    """SD1.5's layout in small: two resolutions, attention on both."""

    unet_extra_config: ClassVar = {}

    def __init__(self, **unet: Any) -> None:
        super().__init__(
            {
                "image_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "channel_mult": [1, 2],
                "num_res_blocks": [1, 1],
                "transformer_depth": [1, 1],
                "transformer_depth_output": [1, 1, 1, 1],
                "transformer_depth_middle": 1,
                "context_dim": TEXT_WIDTH,
                "num_heads": 2,
                "num_head_channels": -1,
                "use_spatial_transformer": True,
                "use_linear_in_transformer": False,
                "legacy": False,
                "adm_in_channels": None,
                "use_temporal_attention": False,
                **unet,
            }
        )
        self.set_inference_dtype(torch.float32, None)


@cache
def tiny_model() -> ModelPatcher:
    """A random UNet. Shared: leave it as it was."""
    return random_model()


def random_model(kind: type[BaseModel] = BaseModel, **unet: Any) -> ModelPatcher:
    """A tiny model of one's own, of some kind and with some of the UNet's settings changed."""
    model = kind(TinyConfig(**unet), device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.diffusion_model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            values *= parameter[0].numel() ** -0.5
        elif name.endswith("bias"):
            values *= 0.1
        else:
            values = 1 + 0.1 * values
        parameter.data.copy_(values)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


@cache
def tiny_layers() -> tuple[Layer, ...]:
    """Its layers."""
    return tuple(list_layers(tiny_model().model.diffusion_model).values())


def text(seed: int, tokens: int = 5, width: int = TEXT_WIDTH, **options: Any) -> list:
    """CONDITIONING with a random text."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, tokens, width, generator=generator), {"pooled_output": None, **options}]]


def noise_of(pictures: int, size: tuple[int, int], channels: int = 4, seed: int = 0) -> Tensor:
    """Noise that is the same for a picture whatever comes after it."""
    return torch.cat(
        [
            torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed + picture))
            for picture in range(pictures)
        ]
    )


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal but for rounding, which grows with the largest value."""
    assert found.shape == expected.shape
    difference = float((found - expected).abs().max() / expected.abs().max())
    assert difference <= tolerance, f"differs by {difference:.1e} of the largest value"


def sample(
    model: ModelPatcher,
    *,
    positive: list | None = None,
    negative: list | None = None,
    size: tuple[int, int] = (16, 16),
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    steps: int = 2,
    cfg: float = 3.0,
    denoise: float = 1.0,
    noise_mask: Tensor | None = None,
) -> Tensor:
    """KSampler, as its node calls it."""
    if noise is None:
        noise = noise_of(1, tuple(latent.shape[-2:]) if latent is not None else size)
    if latent is None:
        latent = torch.zeros_like(noise)
    torch.manual_seed(0)  # token merging draws its own numbers
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            "euler",
            "normal",
            text(1) if positive is None else positive,
            text(2) if negative is None else negative,
            latent,
            denoise=denoise,
            noise_mask=noise_mask,
            disable_pbar=True,
            seed=0,
        )
