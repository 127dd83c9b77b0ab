"""The denoising UNet with its text encoder: shape, noise schedule, latents to train on, training."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm, trange

from .pictures import training_scenes
from .text import TEXT_WIDTH, load_tokenizer, new_text_encoder, tokenize, write_tokenizer
from .training import Average, batches, load_checkpoint, rate, reduced_precision, save_checkpoint
from .vae import LATENT_CHANNELS, new_vae, to_tensor
from .world import Scene, World, caption, paraphrase

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    from .sprites import Artwork

_BATCH = 16
_UNCONDITIONAL_SHARE = 0.08
_SNR_CEILING = 5.0
_THING_FOCUS = 3.0
_EARLY_STEPS = 0.55
_SHARD = 2000


def new_unet(widths: tuple[int, ...] = (64, 128, 128), layers: int = 1, heads: int = 4) -> UNet2DConditionModel:
    """SD1.5's layout in small. Widths are whole multiples of the first, which ComfyUI's UNet needs."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths,
        layers_per_block=layers,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        cross_attention_dim=TEXT_WIDTH,
        # diffusers takes this as the number of heads, whatever it is called
        attention_head_dim=heads,
        norm_num_groups=32,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's betas stretched to zero terminal SNR, v prediction, steps counted from the last."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        # Latents reach past 1: diffusers' default of clipping them turns pictures to mud.
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def cache_latents(art: Artwork, work: Path, count: int, seed: int) -> Path:
    """Encode `count` renders once; two captions each are kept as tokens. Resumes where an earlier call stopped.

    Returns the folder with latents-*.npy, float16 (n, channels, 16, 16), things-*.npy, float16 (n, 16, 16), the share
    of each latent's patch that things cover, and tokens-*.npy, int16 (n, 2, text length).
    """
    folder = work / "latents"
    write_tokenizer(work / "tokenizer")
    tokenizer = load_tokenizer(work / "tokenizer")
    vae = new_vae()
    vae.load_state_dict((load_checkpoint(work / "vae.pt") or {})["average"])
    vae.to(memory_format=torch.channels_last)
    folder.mkdir(parents=True, exist_ok=True)
    world = World(art)
    for index in tqdm(range(-(-count // _SHARD)), "latents"):
        done = folder / f"tokens-{index:03d}.npy"
        if done.is_file():
            continue
        scenes = _shard_scenes(index, seed)
        rng = random.Random(seed + index)
        texts = [[caption(s), paraphrase(s, rng)] for s in scenes]
        latents, attention = [], []
        for i in range(0, _SHARD, 16):
            renderings = [world.render(s) for s in scenes[i : i + 16]]
            pictures = np.stack([r.picture for r in renderings])
            attention += [np.max(r.masks, axis=0).reshape(16, 8, 16, 8).mean((1, 3)) for r in renderings]
            with torch.no_grad(), reduced_precision():
                latents.append(vae.encoder(to_tensor(pictures).to(memory_format=torch.channels_last)).half().numpy())
        np.save(folder / f"latents-{index:03d}.npy", np.concatenate(latents))
        np.save(folder / f"things-{index:03d}.npy", np.stack(attention).astype(np.float16))
        tokens = tokenize(tokenizer, [t for pair in texts for t in pair]).reshape(_SHARD, 2, -1)
        partial = folder / "tokens.partial.npy"
        np.save(partial, tokens.numpy().astype(np.int16))
        partial.rename(done)
    return folder


def _shard_scenes(index: int, seed: int) -> list[Scene]:
    return training_scenes(_SHARD, seed + 1000 + index)


def latent_shards(work: Path, seed: int) -> Iterator[tuple[list[Scene], np.ndarray]]:
    """What `cache_latents` with the same seed has encoded so far: scenes and float16 latents, shard by shard."""
    for index, path in enumerate(sorted((work / "latents").glob("latents-*.npy"))):
        if path.with_name(path.name.replace("latents", "tokens")).is_file():
            yield _shard_scenes(index, seed), np.load(path)


def _load_latents(folder: Path) -> tuple[np.ndarray, ...]:
    numbers = [path.stem[len("tokens") :] for path in sorted(folder.glob("tokens-*.npy"))]
    kinds = ("latents", "things", "tokens")
    return tuple(np.concatenate([np.load(folder / f"{kind}{n}.npy") for n in numbers]) for kind in kinds)


def train_denoiser(work: Path, steps: int, seed: int, unet_shape: dict[str, Any]) -> Path:
    """Train UNet and text encoder together on the cached latents. Resumes, also to a larger number of steps.

    Returns the checkpoint; averaged weights lie under "unet" and "text_encoder".
    """
    torch.manual_seed(seed)
    latents, things, tokens = _load_latents(work / "latents")
    tokenizer = load_tokenizer(work / "tokenizer")
    empty = tokenize(tokenizer, [""])[0]
    unet = new_unet(**unet_shape).to(memory_format=torch.channels_last)
    text_encoder = new_text_encoder(tokenizer)
    modules = {"unet": unet, "text_encoder": text_encoder}
    optimiser = torch.optim.AdamW(
        [
            {"params": list(unet.parameters()), "initial_lr": 1e-3, "lr": 1e-3},
            {"params": list(text_encoder.parameters()), "initial_lr": 1e-3, "lr": 1e-3},
        ],
        betas=(0.9, 0.99),
        weight_decay=0.0,
        fused=True,
    )
    average = Average(modules, 0.9985)
    path = work / "denoiser.pt"
    start, seconds = 0, 0.0
    if state := load_checkpoint(path):
        for name, module in modules.items():
            module.load_state_dict(state["live"][name])
        optimiser.load_state_dict(state["optimiser"])
        average.shadow = state["shadow"]
        start, seconds = state["step"], state["seconds"]
    alphas = new_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    weights = ((_SNR_CEILING + 1) / (snr + 1)).clamp(max=1)
    began = time.monotonic()
    losses: list[float] = []
    progress = trange(start, steps, initial=start, total=steps, desc="denoiser", mininterval=20)
    for step, chosen in zip(progress, batches(len(latents), _BATCH, seed, start), strict=False):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        clean = torch.from_numpy(latents[chosen]).float()
        ids = torch.from_numpy(tokens[chosen].astype(np.int64))
        # The plain caption is what evaluation asks with; paraphrases come up two times in five.
        ids = torch.where(torch.rand(_BATCH, 1, generator=generator) < 0.6, ids[:, 0], ids[:, 1])
        dropped = torch.rand(_BATCH, 1, generator=generator) < _UNCONDITIONAL_SHARE
        ids = torch.where(dropped, empty, ids)
        # One time step from each sixteenth of the range: less noise in the gradient than independent draws. The power
        # favours steps where nothing but the words says what stands there; elsewhere the picture itself gives it away.
        spread = (torch.randperm(_BATCH, generator=generator) + torch.rand(_BATCH, generator=generator)) / _BATCH
        t = (spread**_EARLY_STEPS * len(alphas)).long()
        noise = torch.randn(clean.shape, generator=generator)
        signal, spoil = (v.view(-1, 1, 1, 1) for v in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        noisy = (signal * clean + spoil * noise).to(memory_format=torch.channels_last)
        wanted = signal * noise - spoil * clean
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * rate(step, steps)
        with reduced_precision():
            context = text_encoder(ids).last_hidden_state
            made = unet(noisy, t, context).sample
        # Backdrops are learnt at once; what the things look like is the lesson.
        focus = 1 + _THING_FOCUS * torch.from_numpy(things[chosen]).float()
        loss = ((made.float() - wanted).square().mean(dim=1) * focus).mean(dim=(1, 2))
        loss = (loss * weights[t]).mean() / focus.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for m in modules.values() for p in m.parameters()], 1.0)
        optimiser.step()
        optimiser.zero_grad()
        average.update(step)
        losses.append(loss.item())
        if step % 50 == 0:
            progress.set_postfix(loss=f"{np.mean(losses[-200:]):.4f}")
        if (step + 1) % 500 == 0 or step + 1 == steps:
            save_checkpoint(
                path,
                {
                    "live": {name: module.state_dict() for name, module in modules.items()},
                    **{name: module.state_dict() | average.weights(name) for name, module in modules.items()},
                    "shadow": average.shadow,
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                    "seconds": seconds + time.monotonic() - began,
                },
            )
    return path
