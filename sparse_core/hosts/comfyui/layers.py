"""The attentions of a MODEL, and where ComfyUI says it is when it runs them."""

from __future__ import annotations

import torch
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from ...layers import Layer
from ...modules import from_original

Place = tuple[int, int, str]
"""Where ComfyUI says it is: running number of the SpatialTransformer, block inside it, attn1 or attn2."""


def list_layers(unet: torch.nn.Module) -> dict[Place, Layer]:
    """Every attention of the UNet in execution order, with its host-neutral description.

    :raises ValueError: the model has no UNet of the Stable Diffusion kind.
    """
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"A sparse dictionary acts on UNets of the Stable Diffusion kind (SD1.x, SD2.x, SDXL); this MODEL has a "
            f"{type(unet).__name__}. Connect a checkpoint of one of those families."
        )
    middle = [] if unet.middle_block is None else [unet.middle_block]
    stages = {"down": unet.input_blocks, "middle": middle, "up": unet.output_blocks}
    layers: dict[Place, Layer] = {}
    running = 0
    for stage, blocks in stages.items():
        transformers = [m for block in blocks for m in block if isinstance(m, SpatialTransformer)]
        for number, transformer in enumerate(transformers):
            if isinstance(transformer, SpatialVideoTransformer):
                raise ValueError("Video UNets are not supported: their tokens are frames as well as places.")
            for depth, block in enumerate(transformer.transformer_blocks):
                for name in ("attn1", "attn2"):
                    attention = getattr(block, name)
                    inner, width = attention.to_q.weight.shape
                    context = attention.to_k.weight.shape[1]
                    layers[running, depth, name] = Layer(f"{stage}.{number}.{depth}.{name}", width, context, inner)
            running += 1
    return layers


def named_modules(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The UNet's modules by host-neutral name."""
    modules = dict(unet.named_modules())
    return {name: modules[original] for original, name in from_original(modules).items()}
