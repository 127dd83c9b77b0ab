"""The autoencoder: shape, training on world and foreign artwork, and how faithful it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import trange

from .pictures import collages, render_all, training_scenes
from .training import Average, load_checkpoint, rate, reduced_precision, save_checkpoint

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

    from .sprites import FluentArt

LATENT_CHANNELS = 12


def new_vae() -> AutoencoderTiny:
    """The shape that ComfyUI knows as TAESD, with more latent channels: 64 wide, 8 x smaller, no norm."""
    from diffusers import AutoencoderTiny

    widths = (64,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        latent_channels=LATENT_CHANNELS,
    )


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float32 (n, 3, h, w) in -1..1"""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(tensor: torch.Tensor) -> np.ndarray:
    """float (n, 3, h, w) in -1..1 to uint8 (n, h, w, 3)"""
    return ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def reconstruction_loss(made: torch.Tensor, wanted: torch.Tensor, squared: float) -> torch.Tensor:
    """Absolute and squared error, with colour differences and gradients weighed again; both (n, 3, h, w) in 0..1."""
    error = made - wanted
    colour = (error[:, 0] - error[:, 1]).abs().mean() + (error[:, 2] - error[:, 1]).abs().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + squared * error.square().mean() + 0.5 * colour + 0.5 * edges


def latent_penalty(z: torch.Tensor) -> torch.Tensor:
    """Keeps every latent channel near zero mean and unit variance, and inside what the decoder's clamp lets through."""
    variance, mean = torch.var_mean(z, dim=(0, 2, 3))
    return 0.02 * ((variance - 1).square() + mean.square()).mean() + 0.1 * F.relu(z.abs() - 2.5).square().mean()


def training_pictures(art: FluentArt, work: Path, seed: int) -> np.ndarray:
    """Half world, half collages, uint8 (n, 128, 128, 3); kept in the work folder, read without loading it whole."""
    from .world import World

    path = work / "vae_pictures.npy"
    if not path.is_file():
        rendered = [r.picture for r in render_all(World(art), training_scenes(5000, seed, core_share=0.5))]
        foreign = collages(art, art.training_names(), 5000, seed)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, np.concatenate([np.stack(rendered), foreign]))
        partial.rename(path)
    return np.load(path, mmap_mode="r")


def train_vae(art: FluentArt, work: Path, steps: int, seed: int, decoder_only: bool = False) -> Path:
    """Train on 64 x 64 crops, or go on with the decoder alone while latents stay what they are. Resumes.

    Returns the checkpoint, which holds averaged weights under "average".
    """
    torch.manual_seed(seed)
    pictures = training_pictures(art, work, seed)
    vae = new_vae()
    path = work / ("decoder.pt" if decoder_only else "vae.pt")
    state = load_checkpoint(path)
    if decoder_only:
        vae.load_state_dict((load_checkpoint(work / "vae.pt") or {})["average"])
        vae.encoder.requires_grad_(False)
    if state:
        vae.load_state_dict(state["vae"])
    vae.to(memory_format=torch.channels_last)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=6e-4 if decoder_only else 1.5e-3, weight_decay=0, fused=True)
    average = Average({"vae": vae}, 0.998)
    start, seconds = 0, 0.0
    if state:
        optimiser.load_state_dict(state["optimiser"])
        average.shadow = state["shadow"]
        start, seconds = state["step"], state["seconds"]
    base_rate = optimiser.param_groups[0]["initial_lr"] if state else optimiser.param_groups[0]["lr"]
    optimiser.param_groups[0]["initial_lr"] = base_rate
    # Squared error is what PSNR measures: the last, decoder-only stage leans on it.
    squared = 8.0 if decoder_only else 3.0
    began = time.monotonic()
    progress = trange(start, steps, initial=start, total=steps, desc=path.stem, mininterval=10)
    for step in progress:
        rng = np.random.default_rng((seed, step))
        corners = rng.integers(0, pictures.shape[1] - 64 + 1, (8, 2))
        chosen = rng.integers(0, len(pictures), 8)
        crops = np.stack([pictures[i, y : y + 64, x : x + 64] for i, (y, x) in zip(chosen, corners, strict=True)])
        wanted = to_tensor(crops).to(memory_format=torch.channels_last)
        optimiser.param_groups[0]["lr"] = base_rate * rate(step, steps)
        with reduced_precision():
            with torch.set_grad_enabled(not decoder_only):
                z = vae.encoder(wanted)
            made = vae.decoder(z + 0.05 * torch.randn_like(z))
        loss = reconstruction_loss((made.float() + 1) / 2, (wanted + 1) / 2, squared)
        if not decoder_only:
            loss = loss + latent_penalty(z.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_checkpoint(
                path,
                {
                    "vae": vae.state_dict(),
                    "average": vae.state_dict() | average.weights("vae"),
                    "shadow": average.shadow,
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                    "seconds": seconds + time.monotonic() - began,
                },
            )
    return path


@torch.no_grad()
def psnr(vae: AutoencoderTiny, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB of uint8 pictures (n, 128, 128, 3) after a round trip."""
    errors = []
    for i in range(0, len(pictures), 16):
        wanted = to_tensor(pictures[i : i + 16])
        made = vae.decode(vae.encode(wanted).latents).sample.clamp(-1, 1)
        errors.append(((made - wanted) / 2).square().mean(dim=(1, 2, 3)))
    return float((-10 * torch.log10(torch.cat(errors))).mean())
