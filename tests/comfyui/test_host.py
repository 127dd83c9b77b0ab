"""ComfyUI's models as training, analysis and inversion ask them, beside ComfyUI's own samplers."""

from __future__ import annotations

import re
from typing import Any

import comfy.sample
import pytest
import torch
from comfy.model_base import SDXL
from comfy.model_patcher import ModelPatcher, ModelPatcherDynamic
from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow
from factories import random_dictionary
from torch import Tensor
from world import assert_close, demo_model, noise_of, pack, random_model, text, tiny_layers, tiny_model

from sparse_core.controls import Conditioning, SparseAdapter
from sparse_core.demo.model import bundled_path
from sparse_core.files import load_dictionary
from sparse_core.hosts.comfyui import ComfyHost, Condition, apply_adapter, invert_latent, list_layers

AT = torch.tensor([0.3])


def denoised(host: ComfyHost, condition: Condition, rows: int = 1) -> Tensor:
    with torch.no_grad():
        return host.denoise(noise_of(rows, (16, 16)), AT.expand(rows), condition)


# ---------------------------------------------------------------------------------------------------- kinds of models


def test_an_inpainting_model_reads_an_empty_picture_all_masked() -> None:
    model = random_model(in_channels=9)
    model.model.set_inpaint()
    host, noisy = ComfyHost(model), noise_of(1, (16, 16))
    empty = torch.cat([torch.ones(1, 1, 16, 16), model.model.blank_inpaint_image_like(noisy)], dim=1)
    with torch.no_grad():
        expected = model.model.apply_model(noisy, host.sigma(AT), c_concat=empty, c_crossattn=text(1)[0][0])
    assert_close(denoised(host, host.stack_conditions([text(1)])), expected)


def test_a_unet_without_a_middle_has_its_other_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    unet = random_model().model.diffusion_model
    monkeypatch.setattr(unet, "middle_block", None)
    found = [layer.name for layer in list_layers(unet).values()]
    assert found == [layer.name for layer in tiny_layers() if not layer.name.startswith("middle")]


def sized(seed: int, **sizes: int) -> list:
    """As CLIPTextEncodeSDXL gives it."""
    ((said, _),) = text(seed)
    return [[said, {"pooled_output": torch.full((1, 24), float(seed)), **sizes}]]


def test_every_row_of_a_batch_has_the_size_of_its_own_conditioning() -> None:
    host = ComfyHost(random_model(SDXL, num_classes="sequential", adm_in_channels=24 + 6 * 256))
    sizes = dict(width=1024, height=512, crop_w=64, crop_h=0, target_width=768, target_height=512)
    prompts = [sized(1), sized(1, **sizes), sized(2, **sizes)]
    together = denoised(host, host.stack_conditions(prompts), 3)
    noisy = noise_of(3, (16, 16))
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            alone = host.denoise(noisy[row : row + 1], AT, host.stack_conditions([prompt]))
            unsized = host.denoise(noisy[row : row + 1], AT, host.stack_conditions([sized(1)]))
        assert_close(together[row : row + 1], alone)
        assert torch.allclose(alone, unsized, atol=1e-3) == (row == 0)


def test_conditionings_of_which_some_lack_the_pooled_text_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 conditionings carry no pooled_output"):
        ComfyHost(tiny_model()).stack_conditions([sized(1), text(2)])


# ----------------------------------------------------------------------------------------------------- dynamic memory


class DynamicStandIn(ModelPatcher):
    """What ComfyUI's dynamic memory makes of a MODEL, without a GPU: it may be cloned and asked for the other kind, not loaded."""

    non_dynamic_delegate_model = None
    get_non_dynamic_delegate = ModelPatcherDynamic.get_non_dynamic_delegate

    def is_dynamic(self) -> bool:
        return True

    def partially_load(self, *_: Any, **__: Any) -> None:
        raise AssertionError("loaded")


def in_dynamic_memory() -> DynamicStandIn:
    found = tiny_model()
    return DynamicStandIn(found.model, found.load_device, found.offload_device)


def test_training_takes_a_model_out_of_dynamic_memory() -> None:
    model = in_dynamic_memory()
    model.cached_patcher_init = (lambda disable_dynamic: random_model(), ())
    adapter = SparseAdapter(random_dictionary(tiny_layers()))
    host = ComfyHost(apply_adapter(model, adapter))
    with host.trainable():
        assert not host.model.is_dynamic() and host.model.model is not model.model
        found = denoised(host, host.stack_conditions([text(1)]))
    usual = ComfyHost(apply_adapter(tiny_model(), adapter))
    assert_close(found, denoised(usual, usual.stack_conditions([text(1)])))


def test_a_model_that_cannot_leave_dynamic_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="disable-dynamic-vram"), ComfyHost(in_dynamic_memory()).trainable():
        pass


# ---------------------------------------------------------------------------------------------------------- inverting


def test_a_picture_of_atoms_on_the_positive_prompt_comes_back_as_the_report_says() -> None:
    robot = load_dictionary(bundled_path().parent / "dictionaries" / "robot.safetensors")
    model = apply_adapter(demo_model(), SparseAdapter(robot).with_controls(Conditioning("positive")))
    clip = pack().nodes.demo.load_clip(bundled_path())
    prompts = [clip.encode_from_tokens_scheduled(clip.tokenize(said)) for said in ("a robot in the snow", "")]

    def drawn(noise: Tensor, latent: Tensor, **settings: Any) -> Tensor:
        settings |= {"seed": 1, "disable_pbar": True}
        with torch.inference_mode():
            return comfy.sample.sample(model, noise, 8, 3.0, "euler", "simple", *prompts, latent, **settings)

    nothing = torch.zeros(1, 12, 16, 16)
    picture = drawn(noise_of(1, (16, 16), 12), nothing)
    with torch.inference_mode():
        found = invert_latent(model, {"samples": picture}, *prompts, 8, 3.0, 3, lambda: None)
    again = drawn(nothing, found.latent["samples"], disable_noise=True)
    said = float(re.search(r"by ([\d.]+)% of their spread", found.report)[1]) / 100
    assert abs(float((again - picture).square().mean().sqrt() / picture.std()) - said) < 0.02


def test_the_report_says_where_the_latent_output_is_of_no_use() -> None:
    class Flow(ModelSamplingDiscreteFlow, CONST):
        pass

    flow = random_model()
    flow.add_object_patch("model_sampling", Flow())
    for model, useless in ((flow, True), (tiny_model(), False)):
        found = invert_latent(model, {"samples": noise_of(1, (16, 16))}, text(1), text(2), 2, 1.0, 0, lambda: None)
        assert ("SamplerCustomAdvanced" in found.report) == useless
