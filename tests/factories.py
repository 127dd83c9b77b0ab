"""Small random things that tests are made of. diffusers is imported where it is needed: it takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Generator

from sparse_core.demo.model import bundled_path
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.layers import PROJECTIONS, Layer, Site

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

    from sparse_core.hosts.diffusers import Condition, DiffusersHost

LAYERS = (
    Layer("down.0.0.attn1", 8, 8, 12),
    Layer("down.0.0.attn2", 8, 6, 12),
    Layer("middle.0.0.attn1", 10, 10, 10),
    Layer("middle.0.0.attn2", 10, 6, 10),
)
"""Four attentions with three different widths in each, so that no two can be mixed up unnoticed."""

CHANNELS = 4
TEXT = {"sd": 24, "sdxl": 20}


def _has_model() -> bool:
    try:
        return bundled_path().is_dir()
    except FileNotFoundError:
        return False


needs_model = pytest.mark.skipif(not _has_model(), reason="the demo model's weights are missing")


def random_atoms(
    m: int, d_in: int, d_out: int, generator: Generator, *, threshold: float = 0.6, normalise: bool = True
) -> Atoms:
    """Atoms of which about half fire, no two equally important."""
    return Atoms(
        encoder=torch.nn.functional.normalize(torch.randn(m, d_in, generator=generator), dim=1),
        bias=0.2 * torch.randn(m, generator=generator),
        threshold=threshold * (0.5 + torch.rand(m, generator=generator)),
        directions=torch.nn.functional.normalize(torch.randn(m, d_out, generator=generator), dim=1),
        importance=torch.rand(m, generator=generator) + 0.01,
        normalise=normalise,
    )


def random_dictionary(
    layers: Iterable[Layer] = LAYERS,
    *,
    seed: int = 0,
    atoms: int | tuple[int, ...] = 4,
    sites: Iterable[Site] | None = None,
    normalise: bool = True,
    threshold: float = 0.6,
) -> SparseDictionary:
    """Atoms on every site, or on ``sites``; several counts go to the sites in turn."""
    layers = tuple(layers)
    generator = Generator().manual_seed(seed)
    counts = (atoms,) if isinstance(atoms, int) else atoms
    chosen = [Site(n, p) for n in range(len(layers)) for p in PROJECTIONS] if sites is None else list(sites)
    return SparseDictionary(
        layers,
        {
            site: random_atoms(
                counts[i % len(counts)],
                *layers[site.layer].shape(site.projection),
                generator,
                threshold=threshold,
                normalise=normalise,
            )
            for i, site in enumerate(chosen)
        },
    )


def tiny_unet(kind: str = "sd") -> UNet2DConditionModel:
    """A random UNet of a few thousand weights, laid out as SD1.5's or as SDXL's."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    shared = dict(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=TEXT[kind],
    )
    if kind == "sd":
        unet = UNet2DConditionModel(
            **shared,
            block_out_channels=(8, 16),
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )
    else:
        unet = UNet2DConditionModel(
            **shared,
            block_out_channels=(8, 16),
            attention_head_dim=(1, 2),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        )
    return unet.eval()


def tiny_host(kind: str = "sd", prediction: str = "epsilon", *, guided: bool = False) -> DiffusersHost:
    """The tiny UNet as a host; its pipeline is a stand-in with what a host reads of one."""
    from diffusers import DDIMScheduler

    from sparse_core.hosts.diffusers import DiffusersHost

    scheduler = DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction")
    return DiffusersHost(SimpleNamespace(unet=tiny_unet(kind), scheduler=scheduler, do_classifier_free_guidance=guided))


def reading_host(kind: str, words: Path) -> DiffusersHost:
    """The tiny UNet in a pipeline that reads prompts, with random text encoders: SDXL's two are of different widths.

    :param words: an empty folder, for the tokenizer's files.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from sparse_core.demo.text import load_tokenizer, write_tokenizer
    from sparse_core.hosts.diffusers import DiffusersHost

    write_tokenizer(words)
    tokenizer, unet = load_tokenizer(words), tiny_unet(kind)

    def encoder(of: type, width: int) -> CLIPTextModel:
        ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        length = tokenizer.model_max_length
        return of(
            CLIPTextConfig(
                vocab_size=len(tokenizer), **sizes, projection_dim=10, max_position_embeddings=length, **ends
            )
        )

    coder = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": CHANNELS, "layers_per_block": 1}
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    parts = {
        "vae": AutoencoderKL(down_block_types=down, up_block_types=up, **coder),
        "unet": unet,
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1),
    }
    if kind == "sd":
        parts |= {"text_encoder": encoder(CLIPTextModel, TEXT["sd"]), "safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    else:
        first, second = encoder(CLIPTextModel, 12), encoder(CLIPTextModelWithProjection, TEXT["sdxl"] - 12)
        parts |= {"text_encoder": first, "text_encoder_2": second, "tokenizer_2": tokenizer}
        pipeline = StableDiffusionXLPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return DiffusersHost(pipeline)


def random_condition(rows: int, kind: str = "sd", seed: int = 0) -> Condition:
    """Random text of 5 tokens, with SDXL's extras where they are due."""
    from sparse_core.hosts.diffusers import Condition

    generator = Generator().manual_seed(seed)
    text = torch.randn(rows, 5, TEXT[kind], generator=generator)
    if kind == "sd":
        return Condition(text)
    pooled = torch.randn(rows, 10, generator=generator)
    return Condition(text, {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows)})
