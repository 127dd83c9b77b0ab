"""Stable Diffusion pipelines from files on this machine. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from .demo.model import bundled_path

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

CONFIGURATIONS = {
    StableDiffusionPipeline: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    StableDiffusionXLPipeline: "stabilityai/stable-diffusion-xl-base-1.0",
}
"""Whose tokenizer and configuration complete a single-file checkpoint, if the Hugging Face cache holds them."""
FAMILIES = {StableDiffusionPipeline: "SD1.x or SD2.x", StableDiffusionXLPipeline: "SDXL"}


class ModelError(ValueError):
    """A model can't be loaded; the message says why and what to do."""


def load_pipeline(model: Path | None = None, config: Path | None = None) -> Pipeline:
    """A pipeline on the best device of this machine, without progress bars of its own.

    :param model: a diffusers folder or a ``.safetensors`` checkpoint; without it, the bundled demo model.
    :param config: the diffusers folder that completes a checkpoint: configurations and tokenizers, no weights.
    :raises ModelError: the model is missing, broken or of another kind.
    """
    model = model or bundled_path()
    if not model.exists():
        raise ModelError(f"There is no model at {model}. Give a diffusers folder or a .safetensors checkpoint.")
    device = best_device()
    with _quiet():
        pipeline = _from_folder(model) if model.is_dir() else _from_checkpoint(model, config)
        pipeline.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
        if device.type == "cpu":
            pipeline.vae.to(memory_format=torch.channels_last)  # decodes a third faster
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def native_side(pipeline: Pipeline) -> int:
    """Pixels along a side of the square pictures the model was trained on."""
    return pipeline.unet.config.sample_size * pipeline.vae_scale_factor


def best_device() -> torch.device:
    """The GPU where there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _from_folder(folder: Path) -> Pipeline:
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder} is no complete diffusers folder with .safetensors weights: {error}") from error
    if not isinstance(pipeline, Pipeline):
        raise ModelError(
            f"{folder} holds a {type(pipeline).__name__}; expected Stable Diffusion 1.x, 2.x or XL (text to image)."
        )
    return pipeline


def _from_checkpoint(path: Path, config: Path | None) -> Pipeline:
    kind = _kind_of(path)
    if config is not None and not config.is_dir():
        # diffusers would take it for a repository's name, and ask huggingface.co even where told to use local files only.
        raise ModelError(
            f"There is no folder {config}. Give --config a diffusers folder on this machine, of the checkpoint's family; no "
            "weights are needed in it."
        )
    config = config or _cached_configuration(path, kind)
    try:
        return kind.from_single_file(str(path), config=str(config), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SingleFileComponentError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path.name} does not fit the configuration in {config}: {reason}") from error


def _kind_of(path: Path) -> type[Pipeline]:
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise ModelError(
            f"{path.name} is not a safetensors file. Pickle checkpoints (.ckpt, .pt, .bin) are never read."
        ) from error
    if not any(name.startswith("model.diffusion_model.") for name in names):
        raise ModelError(
            f"{path.name} is not a checkpoint: it holds no diffusion model (a LoRA or a part of a model?)."
        )
    if any(name.startswith("conditioner.embedders.1.") for name in names):
        return StableDiffusionXLPipeline
    return StableDiffusionPipeline


def _cached_configuration(path: Path, kind: type[Pipeline]) -> Path:
    try:
        return Path(snapshot_download(CONFIGURATIONS[kind], local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{path.name} is a bare checkpoint, and its tokenizer and configuration are not on this machine. Give them "
            f"with --config FOLDER: a diffusers folder of {FAMILIES[kind]} on this machine (no weights needed)."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading without bars and warnings: diffusers expects a wider autoencoder class than the demo model's."""
    libraries = diffusers_logging, transformers_logging
    verbosities = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity in zip(libraries, verbosities, strict=True):
            library.set_verbosity(verbosity)
            library.enable_progress_bar()
