"""One dictionary file in both hosts: the same noise gives the same prediction."""

from __future__ import annotations

from collections.abc import Iterator

import comfy.sample
import comfy.samplers
import pytest
import torch
from diffusers import StableDiffusionPipeline
from factories import random_dictionary
from torch import Tensor
from world import assert_close, demo_layers, demo_model, text

from sparse_core.addresses import parse_lines, parse_selection
from sparse_core.controls import (
    Conditioning,
    Control,
    Curve,
    Keep,
    Mask,
    Schedule,
    SparseAdapter,
    controls_of_lines,
)
from sparse_core.demo.model import load_pipeline
from sparse_core.dictionary import SparseDictionary
from sparse_core.examples import Feature
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.hosts.comfyui import ComfyHost, apply_adapter
from sparse_core.hosts.diffusers import Condition, DiffusersHost
from sparse_core.layers import Site
from sparse_core.training import TrainingSettings, questioned
from sparse_core.training.distilling import feature_error
from sparse_core.training.learners import initial_dictionary

WIDTH = 128
"""Features of the demo model's text."""

CONTROLS: dict[str, list[Control]] = {
    "plain": [],
    "weights": controls_of_lines(parse_lines("L3-L9.v *= -0.5\nmute attn1.q\ntop:20% = 1.5")),
    "mask": [Mask(torch.linspace(0, 1, 16).expand(16, 16))],
    "mask on some": [Mask(torch.eye(32), parse_selection("attn2 | down.kv"))],
    "schedule": [Schedule(Curve.named("fade in", 0.2, 0.9))],
    "density": [Keep(0.3, "layer")],
    "prompt": [Conditioning("positive")],
}


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory: pytest.TempPathFactory) -> SparseDictionary:
    """As a file gives it."""
    path = tmp_path_factory.mktemp("parity") / "random.safetensors"
    save_dictionary(random_dictionary(demo_layers(), seed=4), path)
    return load_dictionary(path)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[StableDiffusionPipeline]:
    yield load_pipeline()


def test_both_hosts_name_the_layers_alike(pipeline: StableDiffusionPipeline) -> None:
    assert DiffusersHost(pipeline).layers == demo_layers() == ComfyHost(demo_model()).layers


NOISY = torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(3))
"""Two pictures, in the scale the UNet reads."""


@torch.no_grad()
def in_diffusers(
    pipeline: StableDiffusionPipeline, adapter: SparseAdapter, timestep: int, noisy: Tensor = NOISY
) -> Tensor:
    """Estimates for the negative and then the positive prompt, in the one batch that guidance runs."""
    host = DiffusersHost(pipeline)
    pipeline._guidance_scale = 3.0
    signal, both = host.signal[timestep], noisy.repeat(2, 1, 1, 1)
    prompts = torch.cat([text(seed, width=WIDTH)[0][0].repeat(2, 1, 1) for seed in (2, 1)])
    with host.patched([adapter]):
        velocity = pipeline.unet(both, timestep, prompts).sample
    return signal.sqrt() * both - (1 - signal).sqrt() * velocity


def in_comfyui(adapter: SparseAdapter, timestep: int, noisy: Tensor = NOISY) -> Tensor:
    """The same, as ComfyUI's sampler asks for them at the step with this noise level."""
    model, seen = apply_adapter(demo_model(), adapter), []

    def look(step: dict) -> Tensor:
        seen.append(torch.cat([step["uncond_denoised"], step["cond_denoised"]]))
        return step["denoised"]

    model.set_model_sampler_post_cfg_function(look)
    sigma = model.model.model_sampling.sigmas[timestep]
    noise = (
        noisy * (1 + sigma**2).sqrt() / sigma
    )  # the sampler's noisy latents: latent + sigma noise, and no latent here
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.stack([sigma, torch.tensor(0.0)])
    prompts = [text(seed, width=WIDTH) for seed in (1, 2)]
    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, noise, 3.0, euler, sigmas, *prompts, torch.zeros_like(noise), disable_pbar=True
        )
    return seen[0].clone()


@pytest.mark.parametrize("timestep", [980, 640, 250, 20])
@pytest.mark.parametrize("name", CONTROLS)
def test_both_hosts_predict_the_same(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary, name: str, timestep: int
) -> None:
    adapter = SparseAdapter(dictionary).with_controls(*CONTROLS[name])
    assert_close(in_comfyui(adapter, timestep), in_diffusers(pipeline, adapter, timestep), 1e-4)


def test_the_comparison_would_notice_the_dictionary(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary
) -> None:
    with pytest.raises(AssertionError, match="differs"):
        assert_close(
            in_comfyui(SparseAdapter(dictionary), 640),
            in_diffusers(pipeline, SparseAdapter(dictionary).at_strength(0.0), 640),
            1e-2,
        )


def test_training_hosts_agree_on_noise_and_estimate(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary
) -> None:
    """Training asks both hosts for the same things."""
    hosts = ComfyHost(demo_model()), DiffusersHost(pipeline)
    clean, noise, progress = NOISY, NOISY.flip(0), torch.tensor([0.3, 0.8])
    prompt = text(1, width=WIDTH)
    conditions = hosts[0].stack_conditions([prompt, prompt]), Condition(prompt[0][0].repeat(2, 1, 1))
    estimates = []
    for host, condition in zip(hosts, conditions, strict=True):
        with torch.no_grad(), host.patched([SparseAdapter(dictionary)]):
            estimates.append(host.denoise(host.add_noise(clean, noise, progress), progress, condition))
    assert_close(*estimates, 0.05)  # one rounds to whole timesteps, the other does not


def test_both_hosts_tell_the_negative_prompt_from_the_positive(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary
) -> None:
    prompt, at = text(1, width=WIDTH), torch.tensor([0.3, 0.8])
    comfy_host, diffusers_host = ComfyHost(demo_model()), DiffusersHost(pipeline)
    asked = {
        comfy_host: comfy_host.stack_conditions([prompt, prompt]),
        diffusers_host: Condition(prompt[0][0].repeat(2, 1, 1)),
    }
    everywhere, choosy = SparseAdapter(dictionary), SparseAdapter(dictionary).with_controls(Conditioning("positive"))
    for host, condition in asked.items():
        with torch.no_grad():
            plain = host.denoise(NOISY, at, condition)
            with host.patched([everywhere]):
                whole = host.denoise(NOISY, at, condition)
            with host.patched([choosy]):
                positive, negative = (host.denoise(NOISY, at, condition, side) for side in (True, False))
        assert torch.equal(negative, plain) and torch.equal(positive, whole) and not torch.equal(whole, plain)


def test_what_a_patched_model_is_asked_is_what_the_other_host_sees(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary
) -> None:
    """The teacher has its patches on it already, as a MODEL that comes into the Distil node has."""
    adapter = SparseAdapter(dictionary)
    prompt = text(1, width=WIDTH)
    teacher = ComfyHost(apply_adapter(demo_model(), adapter)).load()
    (asked, *_) = questioned(teacher, [prompt], prompt, tuple(NOISY.shape[1:]), pictures=1, questions=2)
    assert {site.layer for site in asked.answer.features} == set(range(len(dictionary.layers)))
    host = DiffusersHost(pipeline)
    silent = SparseAdapter(initial_dictionary(host.layers, TrainingSettings(atoms=1)))
    apart = {}
    for name, stack in {"patched": [adapter, silent], "plain": [silent]}.items():
        read: dict[Site, Tensor] = {}
        with torch.no_grad(), host.patched(stack, lambda site, atoms, x, *_, read=read: read.update({site: x})):
            progress = torch.tensor([asked.answer.progress])
            noisy = host.add_noise(asked.latents[None], asked.answer.noise[None], progress)
            host.denoise(noisy, progress, Condition(prompt[0][0]))
        goals = asked.answer.features.items()
        errors = [feature_error(read[site], Feature(f.tokens[None], f.values[None])) for site, f in goals]
        apart[name] = float(torch.stack(errors).mean())
    assert apart["patched"] < 0.05 * apart["plain"]


def test_a_picture_made_by_one_file_in_both_hosts_is_the_same(
    pipeline: StableDiffusionPipeline, dictionary: SparseDictionary
) -> None:
    """Three DDIM steps with guidance, the noise given."""
    adapter = SparseAdapter(dictionary).with_controls(*CONTROLS["mask"], *CONTROLS["schedule"])
    steps = [901, 601, 301]
    signals = DiffusersHost(pipeline).signal[steps]
    pictures = []
    for estimate in (lambda *_: in_diffusers(pipeline, adapter, *_), lambda *_: in_comfyui(adapter, *_)):
        x = NOISY
        for step, (timestep, signal) in enumerate(zip(steps, signals, strict=True)):
            negative, positive = estimate(timestep, x).chunk(2)
            clean = negative + 3.0 * (positive - negative)
            noise = (x - signal.sqrt() * clean) / (1 - signal).sqrt()
            following = signals[step + 1] if step + 1 < len(steps) else torch.tensor(1.0)
            x = following.sqrt() * clean + (1 - following).sqrt() * noise
        pictures.append(x)
    assert_close(*pictures, 1e-3)
