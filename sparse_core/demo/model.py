"""Where the bundled model lies, and how to get a pipeline from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline


def bundled_path() -> Path:
    """The diffusers folder that ships with the package. FileNotFoundError where the weights are missing."""
    folder = Path(__file__).with_name("model")
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder}: the demo model's weights are missing; reinstall, or train them again.")
    return folder


def load_pipeline(folder: Path | str | None = None) -> StableDiffusionPipeline:
    """The bundled model, or another folder of its kind, as a stock pipeline on the CPU in float32."""
    import torch
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import logging

    # The stock pipeline says that it expected a wider autoencoder class; the tiny one is meant.
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(folder or bundled_path()).to(torch.float32)
    finally:
        logging.set_verbosity(verbosity)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
