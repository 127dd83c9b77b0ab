"""A folder of captioned pictures, as something to learn from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .files import write_atomically
from .hosts.diffusers import DiffusersHost
from .training import Example

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GRID = 8
"""Pixels per latent: sides are multiples of it."""


class CaptionedPicture(NamedTuple):
    """One picture to learn from, as a person keeps it."""

    name: str
    picture: Image.Image
    caption: str


def read_folder(folder: Path, word: str | None, side: int) -> list[CaptionedPicture]:
    """The pictures of a folder by name, each with the caption in the ``.txt`` beside it, or else ``word``.

    :param side: the size the model was trained at; pictures are fitted to it.
    :raises ValueError: there is no folder, no picture, a picture that can't be read, or one without a caption.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; expected one with pictures ({', '.join(SUFFIXES)}).")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no pictures; expected files that end in {', '.join(SUFFIXES)}.")
    return [CaptionedPicture(path.name, fit(read_picture(path), side), _caption(path, word)) for path in paths]


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with about ``side`` x ``side`` pixels in its own shape, its sides cut to multiples of `GRID`."""
    scale = side / (picture.width * picture.height) ** 0.5
    width, height = (max(1, round(length * scale / GRID)) * GRID for length in picture.size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


@torch.no_grad()
def encode_pictures(host: DiffusersHost, pictures: Sequence[CaptionedPicture]) -> Iterator[Example]:
    """Pictures and captions as the host's model sees them."""
    pipeline, vae = host.pipeline, host.pipeline.vae
    for _, picture, caption in pictures:
        pixels = pipeline.image_processor.preprocess(picture).to(vae.device, vae.dtype)  # (1, 3, height, width)
        encoded = vae.encode(pixels)
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        scaled = latents[0].float().cpu() * vae.config.scaling_factor
        yield Example(scaled, host.encode_prompt(caption, (picture.height, picture.width)))


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


def _caption(path: Path, word: str | None) -> str:
    text = path.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8").strip() if text.is_file() else (word or "")
    if not caption:
        raise ValueError(f"{path.name} has no caption: write one into {text.name}, or give a word for all with --word.")
    return caption
