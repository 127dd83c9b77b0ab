"""A folder of captioned pictures, as something to learn from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import write_atomically
from .hosts.diffusers import DiffusersHost
from .training import Example

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MASK = ".mask.png"
"""In place of a picture's suffix: where the picture shows what is to be learnt."""
GRID = 8
"""Pixels per latent: sides are multiples of it."""


class CaptionedPicture(NamedTuple):
    """One picture to learn from, as a person keeps it."""

    name: str
    picture: Image.Image
    caption: str
    mask: Image.Image | None = None
    """White where the loss counts, of the picture's size; None is everywhere."""


def read_folder(folder: Path, word: str | None, side: int) -> list[CaptionedPicture]:
    """The pictures of a folder by name, each with the caption in the ``.txt`` beside it, or else ``word``.

    A ``NAME.mask.png`` beside ``NAME.jpg`` is its mask.

    :param side: the size the model was trained at; pictures are fitted to it.
    :raises ValueError: there is no folder, no picture, a picture that can't be read, one without a caption, or a mask that
        does not fit its picture.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; expected one with pictures ({', '.join(SUFFIXES)}).")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    paths = [path for path in found if not path.name.endswith(MASK)]
    if not paths:
        raise ValueError(f"{folder} holds no pictures; expected files that end in {', '.join(SUFFIXES)}.")
    if strays := set(found) - set(paths) - {path.with_suffix(MASK) for path in paths}:
        stray = min(strays).name
        raise ValueError(
            f"{stray} is a mask, but there is no picture {stray.removesuffix(MASK)} beside it. Name both alike, or remove it."
        )
    return [_captioned(path, word, side) for path in paths]


def _captioned(path: Path, word: str | None, side: int) -> CaptionedPicture:
    picture, mask = read_picture(path), None
    if (where := path.with_suffix(MASK)).is_file():
        mask = read_picture(where).convert("L")
        if mask.size != picture.size:
            raise ValueError(
                f"{where.name} has {mask.width}x{mask.height} pixels and {path.name} {picture.width}x{picture.height}; "
                "expected the same size. Draw the mask over the picture."
            )
        mask = fit(mask, side)
    return CaptionedPicture(path.name, fit(picture, side), _caption(path, word), mask)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with about ``side`` x ``side`` pixels in its own shape, its sides cut to multiples of `GRID`."""
    scale = side / (picture.width * picture.height) ** 0.5
    width, height = (max(1, round(length * scale / GRID)) * GRID for length in picture.size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


@torch.no_grad()
def encode_pictures(host: DiffusersHost, pictures: Sequence[CaptionedPicture]) -> Iterator[Example]:
    """Pictures and captions as the host's model sees them."""
    pipeline, vae = host.pipeline, host.pipeline.vae
    for _, picture, caption, mask in pictures:
        pixels = pipeline.image_processor.preprocess(picture).to(vae.device, vae.dtype)  # (1, 3, height, width)
        encoded = vae.encode(pixels)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        scaled = latents[0].float().cpu() * vae.config.scaling_factor
        yield Example(scaled, host.encode_prompt(caption, (picture.height, picture.width)), _on_grid(mask, scaled))


@torch.no_grad()
def decode_latents(host: DiffusersHost, latents: Tensor) -> list[Image.Image]:
    """The pictures of clean latents, (rows, channels, height, width), scaled as the UNet sees them."""
    pipeline, vae = host.pipeline, host.pipeline.vae
    pixels = vae.decode((latents / vae.config.scaling_factor).to(vae.device, vae.dtype)).sample
    return pipeline.image_processor.postprocess(pixels.float())


def read_picture(path: Path) -> Image.Image:
    """The picture as a person sees it, in RGB, on white where it is transparent.

    :raises ValueError: it can't be read.
    """
    try:
        picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path.name} can't be read as a picture: {error}.") from error
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def write_picture(picture: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all; its folder is made."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data.getvalue())


def _on_grid(mask: Image.Image | None, latents: Tensor) -> Tensor | None:
    """(height, width) in 0..1, each place the mean of its pixels."""
    if mask is None:
        return None
    height, width = latents.shape[-2:]
    return torch.from_numpy(np.array(mask.resize((width, height), Image.Resampling.BOX), np.float32) / 255)


def _caption(path: Path, word: str | None) -> str:
    text = path.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else (word or "")
    if not caption:
        raise ValueError(f"{path.name} has no caption: write one into {text.name}, or give a word for all with --word.")
    return caption
