"""ComfyUI's models as training, analysis and inversion ask them, beside ComfyUI's own samplers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
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
from sparse_core.examples import Example
from sparse_core.files import load_dictionary
from sparse_core.hosts.comfyui import ComfyHost, Condition, apply_adapter, examples_of, invert_latent, list_layers
from sparse_core.training import TrainingSettings
from sparse_core.training import train as train_dictionary

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


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mask": torch.ones(1, 8, 8)}, "mask"),
        ({"start_percent": 0.0, "end_percent": 0.5}, "end_percent"),
        ({"clip_start_percent": 0.5, "clip_end_percent": 1.0}, "clip_start_percent"),
    ],
)
def test_what_only_samplers_honour_is_refused_by_name(options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=f"carries {named}, which this node can't honour"):
        ComfyHost(tiny_model()).stack_conditions([text(1, **options)])


def test_a_conditioning_that_says_it_always_holds_is_taken() -> None:
    always = dict(start_percent=0.0, end_percent=1.0, clip_start_percent=0.0, clip_end_percent=1.0)
    host = ComfyHost(tiny_model())
    found, expected = (denoised(host, host.stack_conditions([text(1, **said)])) for said in (always, {}))
    assert torch.equal(found, expected)


def test_a_conditioning_with_the_texts_of_several_pictures_is_refused() -> None:
    both = [[torch.cat([text(1)[0][0], text(2)[0][0]]), {"pooled_output": None}]]
    with pytest.raises(ValueError, match="holds the texts of 2 pictures in one"):
        ComfyHost(tiny_model()).stack_conditions([both])


@pytest.mark.parametrize("shape", [(1, 64, 64), (64, 64)], ids=["a batch of one", "no batch"])
def test_a_mask_that_is_black_everywhere_is_refused_by_its_number(shape: tuple[int, ...]) -> None:
    latents, masks = [{"samples": noise_of(2, (16, 16))}], [torch.ones(1, 8, 8), torch.zeros(shape)]
    with pytest.raises(ValueError, match=r"Mask 2 is black everywhere.*disconnect the masks"):
        examples_of(ComfyHost(tiny_model()), latents, [text(0)], masks)


@pytest.mark.parametrize("which", ["positive", "negative"])
def test_two_combined_prompts_are_not_shared_out_among_two_pictures(which: str) -> None:
    prompts = {"positive": text(1), "negative": text(2), which: text(3) + text(4)}
    latent = {"samples": noise_of(2, (16, 16))}
    with pytest.raises(ValueError, match=f"The {which} prompt holds 2 conditionings; expected one"):
        invert_latent(tiny_model(), latent, *prompts.values(), 2, 1.0, 0, lambda: None)


def train(inputs: dict, combined: list) -> None:
    shown = dict(latents=[inputs["latent"]], captions=[text(1)], name=["never"], preset=["character"])
    ignored = {key: [1] for key in ("steps", "learning_rate", "batch", "atoms", "threshold", "sparsity", "seed")}
    both = dict(attention=["both"], projections=["qkvo"])
    node = pack().nodes.train.TrainSparseDictionary
    node.execute(model=[inputs["model"]], **shown, **ignored, **both, prior=[text(5)], negative=[combined])


def distil(inputs: dict, combined: list) -> None:
    numbers = ("steps", "batch", "atoms", "threshold", "sparsity", "pictures", "seed")
    models = dict(model=[inputs["model"]], patched=[inputs["model"]], latent=[inputs["latent"]], name=["never"])
    node = pack().nodes.distil.DistilIntoDictionary
    ones = {key: [1] for key in numbers}
    node.execute(**models, **ones, learning_rate=[0.1], prompts=[text(1)], negative=[combined])


def collide(inputs: dict, combined: list) -> None:
    one = pack().sparse_core.controls.SparseAdapter(random_dictionary(tiny_layers()))
    node = pack().nodes.collisions.CollisionReport
    node.execute(**inputs, first=one, second=one, positive=text(1), negative=combined, pictures=1, seed=0)


def record(inputs: dict, combined: list) -> None:
    one = pack().sparse_core.controls.SparseAdapter(random_dictionary(tiny_layers()))
    drawing = dict(seed=1, steps=1, cfg=3.0, sampler_name="euler", scheduler="simple", latent_image=inputs["latent"])
    node = pack().nodes.analysis.RecordCoefficients
    node.execute(one, "*", model=inputs["model"], positive=text(1), negative=combined, **drawing)


@pytest.mark.parametrize("node", [train, distil, collide, record], ids=lambda node: node.__name__)
def test_a_combined_negative_prompt_is_refused_where_one_is_read(node: Callable[[dict, list], None]) -> None:
    inputs = dict(model=tiny_model(), latent={"samples": torch.zeros(1, 4, 16, 16)})
    with pytest.raises(ValueError, match=r"The negative prompt holds 2 conditionings; expected one.*\(Concat\)"):
        node(inputs, text(3) + text(4))


# ----------------------------------------------------------------------------------------------- copies of one picture


def test_copies_of_the_first_picture_have_its_masks_and_its_recording() -> None:
    """As effects compare them, whatever a batch deals out to its pictures in turn."""
    core, drawing = pack().sparse_core, pack().nodes.drawing
    learnt, halves = random_dictionary(tiny_layers()), torch.zeros(2, 16, 16)
    halves[0, :, 8:] = halves[1, :, :8] = 1
    latent = {"samples": noise_of(2, (16, 16), seed=5), "noise_mask": 1 - halves[:, None]}
    settings = dict(positive=text(1), negative=text(2), latent_image=latent, seed=1, steps=2, cfg=3.0)
    settings |= dict(sampler_name="euler", scheduler="simple")
    one = core.controls.SparseAdapter(learnt)
    recorder = core.analysis.recording.Recorder(learnt, ["L0.q[0]", "L0.q[1]", "L1.v[0]"])
    with torch.inference_mode():
        drawing.Drawing(model=tiny_model(), **settings).latents(one, lambda: None, recorder)
        replay = core.replaying.Replay(recorder.recording())
        applied = core.hosts.comfyui.apply_adapter(
            tiny_model(), one.with_controls(core.controls.Mask(1 - halves), replay)
        )
        drawn = drawing.Drawing(model=applied, **settings)
        masked = one.with_controls(core.controls.Mask(halves), replay)
        first, second = drawn.latents(masked, lambda: None)
        copies = drawn.latents(masked, lambda: None, repeated=3)
    assert not torch.allclose(first, second, atol=1e-2)
    for copy in copies:
        assert_close(copy, first, 1e-4)


# ------------------------------------------------------------------------------------------------------ checkpointing


def test_checkpointing_learns_what_training_without_it_does() -> None:
    generator = torch.Generator().manual_seed(0)
    settings = TrainingSettings(steps=3, batch=2, atoms=2, threshold=0.5)
    learnt = []
    for checkpointing in (False, True):
        with torch.inference_mode():
            host = ComfyHost(random_model())
            examples = [Example(torch.randn(4, 16, 16, generator=generator.manual_seed(n)), text(n)) for n in range(3)]
            learnt.append(train_dictionary(host, examples, replace(settings, checkpointing=checkpointing)))
    plain, checkpointed = (torch.cat([a.directions.flatten() for a in d.sites.values()]) for d in learnt)
    assert plain.any() and torch.equal(plain, checkpointed)


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
