"""Pictures from the demo model, in batches; a picture never depends on those drawn with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparse_core.pictures import CaptionedPicture, decode_latents, encode_pictures

from .words import PromptedHost

BATCH = 20


class Sampler:
    """Draws with few steps, the same for all methods."""

    def __init__(self, host: PromptedHost, steps: int, guidance: float) -> None:
        self.host, self.steps, self.guidance = host, steps, guidance

    def pictures(self, prompts: Sequence[str], negatives: Sequence[str], seed: int) -> np.ndarray:
        """One picture for each prompt, uint8 (n, height, width, 3); prompt k always gets the noise ``seed + k``."""
        drawn = np.concatenate(self._draw(prompts, negatives, seed, "np"))
        return (drawn * 255).round().astype(np.uint8)

    def latents(self, prompts: Sequence[str], seed: int) -> Tensor:
        """The same before decoding, float32 (n, channels, height, width)."""
        return torch.cat(self._draw(prompts, [""] * len(prompts), seed, "latent"))

    def drawable(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures, uint8 (n, h, w, 3), as the model's VAE gives them back: the best that any method can draw."""
        given = [CaptionedPicture(str(number), Image.fromarray(one), "") for number, one in enumerate(pictures)]
        return np.stack(
            [
                np.asarray(decode_latents(self.host, example.latents[None])[0])
                for example in encode_pictures(self.host, given)
            ]
        )

    def _draw(self, prompts: Sequence[str], negatives: Sequence[str], seed: int, kind: str) -> list[Any]:
        made = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, min(start + BATCH, len(prompts)))
            made.append(
                self.host.pipeline(
                    prompt=list(prompts[part]),
                    negative_prompt=list(negatives[part]),
                    generator=[torch.Generator().manual_seed(seed + k) for k in range(part.start, part.stop)],
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    output_type=kind,
                ).images
            )
        return made
