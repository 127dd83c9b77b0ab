"""Small random things that tests are made of. diffusers is imported where it is needed: it takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
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


def random_condition(rows: int, kind: str = "sd", seed: int = 0) -> Condition:
    """Random text of 5 tokens, with SDXL's extras where they are due."""
    from sparse_core.hosts.diffusers import Condition

    generator = Generator().manual_seed(seed)
    text = torch.randn(rows, 5, TEXT[kind], generator=generator)
    if kind == "sd":
        return Condition(text)
    pooled = torch.randn(rows, 10, generator=generator)
    return Condition(text, {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows)})
