"""How latents look as colours, for previews while sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

NAME = "latent_rgb.json"


def preview_factors(folder: Path) -> list[list[float]] | None:
    """(channels, 3) from latents to RGB in -1..1, or None where the model has none."""
    path = folder / "vae" / NAME
    return json.loads(path.read_text()) if path.is_file() else None


def write_preview_factors(vae: AutoencoderTiny, folder: Path) -> None:
    """Fits the factors to the lessons' pictures by least squares and writes them beside the VAE.

    :param vae: in float32.
    """
    import numpy as np
    import torch

    from .lessons import creatures, load_lesson

    pictures = np.stack([picture for creature in creatures() for picture, _ in load_lesson(creature)])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1  # (n, 3, 128, 128)
    with torch.no_grad():
        latents = vae.encode(pixels).latents.permute(0, 2, 3, 1).flatten(0, 2)  # (n h w, channels)
    colours = torch.nn.functional.avg_pool2d(pixels, 8).permute(0, 2, 3, 1).flatten(0, 2)  # (n h w, 3)
    factors = torch.linalg.lstsq(latents, colours).solution
    rounded = [[round(value, 4) for value in row] for row in factors.tolist()]
    (folder / "vae" / NAME).write_text(json.dumps(rounded) + "\n", encoding="utf-8")
