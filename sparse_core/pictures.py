"""A folder of captioned pictures, as something to learn from."""

from __future__ import annotations

import glob
import io
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .files import write_atomically
from .hosts.diffusers import DiffusersHost
from .lora.keys import few
from .training import Example

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTION = ".txt"
MASK = ".mask"
"""Between name and suffix of a picture that shows where another of that name holds what is to be learnt."""
_DAMAGED = (OSError, ValueError, SyntaxError, struct.error, AttributeError, TypeError)
"""What Pillow raises at files that are no pictures, at damaged chunks of a PNG, and at damaged EXIF blocks."""
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

    A ``NAME.mask.png`` beside ``NAME.jpg`` is its mask, whatever the suffixes.

    :param side: the size the model was trained at; pictures are fitted to it.
    :raises ValueError: there is no folder, no picture, a picture or caption that can't be read, a picture without a caption,
        or a mask that does not fit its picture or is black everywhere.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; expected one with pictures ({', '.join(SUFFIXES)}).")
    paths, drawn = _pictures(folder)
    if not paths:
        raise ValueError(f"{folder} holds no pictures; expected files that end in {', '.join(SUFFIXES)}.")
    masks = _masks(drawn)
    if strays := masks.keys() - {path.with_suffix("") for path in paths}:
        stray = min(strays)
        raise ValueError(
            f"{masks[stray].name} is a mask, but there is no picture {stray.name} beside it. Name both alike, or remove it."
        )
    return [_captioned(path, masks.get(path.with_suffix("")), word, side) for path in paths]


def contents(folder: Path) -> str:
    """What `read_folder` takes of a folder and what it leaves, in words: ``6 pictures, 5 with captions; skipped: 2.tif``."""
    paths, masks = _pictures(folder)
    counted = f"{len(paths)} picture{'s' * (len(paths) != 1)}, {sum(bool(_text(path)) for path in paths)} with captions"
    if masks:
        counted += f", {len(masks)} with masks"
    known = {*paths, *masks}
    others = sorted(path.name for path in folder.iterdir() if path not in known and path.suffix.lower() != CAPTION)
    skipped = [name for name in others if not name.startswith(".")]
    return f"{counted}; skipped: {few(skipped)}" if skipped else counted


def _pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """Pictures by name, and what are masks of such."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [path for path in found if not _is_mask(path)], [path for path in found if _is_mask(path)]


def _is_mask(path: Path) -> bool:
    return path.stem.lower().endswith(MASK)


def _masks(paths: Iterable[Path]) -> dict[Path, Path]:
    """Each under the path of its picture without the suffix: paths compare as the system compares them.

    :raises ValueError: two are of one picture.
    """
    masks: dict[Path, Path] = {}
    for path in paths:
        first = masks.setdefault(path.with_suffix("").with_suffix(""), path)
        if first is not path:
            raise ValueError(f"{first.name} and {path.name} are masks of one picture; expected one. Remove the other.")
    return masks


def _captioned(path: Path, where: Path | None, word: str | None, side: int) -> CaptionedPicture:
    picture, mask = read_picture(path), None
    if where is not None:
        mask = read_mask(where)
        if mask.size != picture.size:
            raise ValueError(
                f"{where.name} has {mask.width}x{mask.height} pixels and {path.name} {picture.width}x{picture.height}; "
                "expected the same size. Draw the mask over the picture."
            )
        mask = fit(mask, side)
        if mask.getbbox() is None:
            raise ValueError(
                f"{where.name} is black everywhere, so nothing of {path.name} would be learnt. Paint white what counts, or "
                "remove the mask."
            )
    return CaptionedPicture(path.name, fit(picture, side), _caption(path, word), mask)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """The picture with about ``side`` x ``side`` pixels in its own shape, its sides cut to multiples of `GRID`."""
    scale = side / (picture.width * picture.height) ** 0.5
    width, height = (max(1, round(length * scale / GRID)) * GRID for length in picture.size)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)


def trimmed(picture: CaptionedPicture, height: int, width: int) -> CaptionedPicture:
    """The picture, with its mask, scaled and cut to these pixels."""
    whole, mask = (
        image if image is None else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        for image in (picture.picture, picture.mask)
    )
    return picture._replace(picture=whole, mask=mask)


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
    return _read_on(path, "white")


def read_mask(path: Path) -> Image.Image:
    """The picture in greys, on black where it is transparent: what is not painted white does not count.

    :raises ValueError: it can't be read.
    """
    return _read_on(path, "black").convert("L")


def _read_on(path: Path, paper: str) -> Image.Image:
    """The picture in RGB on paper of a colour."""
    try:
        with warnings.catch_warnings():
            # A scan of a hundred megapixels is fitted to the model like any other picture.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = _in_8_bits(ImageOps.exif_transpose(Image.open(path))).convert("RGBA")
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path.name} can't be read as a picture: it is too large, or damaged. {error} Scale it down, or remove it."
        ) from error
    except _DAMAGED as error:
        raise ValueError(f"{path.name} can't be read as a picture: {error}.") from error
    return Image.alpha_composite(Image.new("RGBA", picture.size, paper), picture).convert("RGB")


def _in_8_bits(picture: Image.Image) -> Image.Image:
    """Greys of 16 bits scaled down: Pillow cuts them off at 255, which is nearly white all over."""
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    greys = (np.asarray(picture).astype(np.int64) + 128) // 257  # 65535 is 255 * 257
    return Image.fromarray(greys.clip(0, 255).astype(np.uint8))


def read_text(path: Path) -> str:
    """A text that a person wrote, without the mark that Windows sets before UTF-8.

    :raises ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8: {error}. Save it as UTF-8 in a text editor.") from error


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
    caption = _text(path) or word
    if not caption:
        raise ValueError(
            f"{path.name} has no caption: write one into {path.stem}{CAPTION}, or give a word for all with --word."
        )
    return caption


def _text(path: Path) -> str:
    """What stands beside a picture, if anything. ``1.TXT`` is another file than ``1.txt`` on some systems."""
    text = path.with_suffix(CAPTION)
    if not text.is_file():
        alike = path.parent.glob(f"{glob.escape(path.stem)}.[tT][xX][tT]")
        text = min(filter(Path.is_file, alike), default=None)
    return read_text(text).strip() if text else ""
