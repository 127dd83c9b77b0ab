"""What controls promise, on a whole model run by ComfyUI's own sampler."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.hooks
import comfy.ldm.modules.attention as comfy_attention
import comfy.model_management
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from factories import random_dictionary
from torch import Tensor
from world import assert_close, noise_of, random_model, sample, text, tiny_layers, tiny_model

from nodes import ConditioningZeroOut
from sparse_core.addresses import parse_selection
from sparse_core.analysis.recording import Recorder, Recording
from sparse_core.controls import Conditioning, Control, Curve, Keep, Listen, Mask, Schedule, Solo, SparseAdapter, Weight
from sparse_core.hosts.comfyui import HEARD, KEY, ComfyHost, Wrapper, apply_adapter, hook_adapter, list_layers
from sparse_core.layers import Site
from sparse_core.plan import Heard, MaskPlacementError

ALL = parse_selection("*")


def adapter(*controls: Control, seed: int = 0, sites: list[Site] | None = None) -> SparseAdapter:
    """A random dictionary of the tiny model under controls."""
    return SparseAdapter(random_dictionary(tiny_layers(), seed=seed, sites=sites)).with_controls(*controls)


def patched(*controls: Control, model: ModelPatcher | None = None, **kwargs: Any) -> ModelPatcher:
    return apply_adapter(model or tiny_model(), adapter(*controls, **kwargs))


def right_half(height: int = 16, width: int = 16) -> Tensor:
    """(height, width): 1 in the right half."""
    mask = torch.zeros(height, width)
    mask[:, width // 2 :] = 1
    return mask


def gradient(height: int = 16, width: int = 16) -> Tensor:
    """(height, width): 0 on the left to 1 on the right."""
    return torch.linspace(0, 1, width).expand(height, width)


@pytest.fixture(scope="module")
def plain() -> Tensor:
    return sample(tiny_model())


@pytest.fixture(scope="module")
def whole() -> Tensor:
    """The dictionary without any control."""
    return sample(patched())


# ------------------------------------------------------------------------------------------------- to the last bit

NOTHING = {
    "mask of zeros": [Mask(torch.zeros(64, 64))],
    "strength 0": [Weight(ALL, 0.0, "scale")],
    "density 0": [Keep(0.0)],
    "everything muted": [Weight(ALL, 0.0)],
    "masks that do not meet": [Mask(right_half()), Mask(1 - right_half())],
    "on no prompt": [Conditioning("positive"), Conditioning("negative")],
    "never": [Schedule(Curve(0, 1, (0.0,)))],
}
EVERYTHING = {
    "mask of ones": [Mask(torch.ones(64, 64))],
    "strength 1": [Weight(ALL, 1.0, "scale")],
    "density 1": [Keep(1.0)],
    "all solo": [Solo(ALL)],
    "always": [Schedule(Curve())],
    "two masks that together hide nothing": [Mask(torch.ones(1, 8, 8)), Mask(torch.ones(3, 24, 16))],
}


@pytest.mark.parametrize("name", NOTHING)
def test_controls_that_leave_nothing_give_the_plain_picture(name: str, plain: Tensor) -> None:
    assert torch.equal(sample(patched(*NOTHING[name])), plain)


@pytest.mark.parametrize("name", EVERYTHING)
def test_controls_that_change_nothing_give_the_uncontrolled_picture(name: str, plain: Tensor, whole: Tensor) -> None:
    assert torch.equal(sample(patched(*EVERYTHING[name])), whole)
    assert not torch.allclose(whole, plain, atol=1e-2)


def test_applying_leaves_the_source_and_its_weights_alone(plain: Tensor) -> None:
    model = tiny_model()
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    with_atoms = patched(Mask(right_half()))
    sample(with_atoms)
    assert with_atoms.model is model.model
    assert with_atoms.patches == {}
    assert all(torch.equal(value, weights[name]) for name, value in model.model.state_dict().items())
    assert torch.equal(sample(model), plain)


def test_two_branches_with_other_controls_do_not_disturb_each_other() -> None:
    left, right = patched(Mask(1 - right_half())), patched(Mask(right_half()))
    alone = [sample(left), sample(right)]
    again = [sample(left), sample(right), sample(left)]
    assert torch.equal(alone[0], again[0]) and torch.equal(alone[0], again[2])
    assert torch.equal(alone[1], again[1])
    assert not torch.equal(*alone)


def test_stacked_dictionaries_add_up_in_any_order() -> None:
    first = patched(Weight(ALL, 0.7, "scale"), model=patched(Mask(gradient()), seed=1))
    second = patched(Mask(gradient()), seed=1, model=patched(Weight(ALL, 0.7, "scale")))
    assert_close(sample(first), sample(second))


def test_a_kept_plan_never_serves_another_dictionary() -> None:
    """Each new upper dictionary may lie in memory where the one before it was."""
    unet, lower = tiny_model().model.diffusion_model, Wrapper((adapter(seed=1),))
    weights = [2.0, 3.0, 4.0, 5.0]
    for weight, upper_adapter in zip(
        weights, [adapter(Weight(ALL, weight), seed=2) for weight in weights], strict=True
    ):
        upper = Wrapper((upper_adapter,))
        plan = lower.compiled([lower, upper], unet, torch.device("cpu"), torch.float32).plan
        norms = plan.layers[0].decoders["q"].directions.norm(dim=1)
        torch.testing.assert_close(norms, torch.tensor([1.0] * 4 + [weight] * 4))
        del upper


# ------------------------------------------------------------------------------------------------------------- memory


def test_comfyui_counts_the_atoms_and_can_unload_them(whole: Tensor) -> None:
    model = patched()
    sample(model)
    (atoms,) = model.get_additional_models_with_key(KEY)
    assert atoms in [loaded.model for loaded in comfy.model_management.current_loaded_models]
    dictionary = adapter().dictionary
    assert atoms.model_size() >= 4 * dictionary.parameters()
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(model), whole)
    assert model.get_additional_models_with_key(KEY) == [atoms]


def test_only_the_atoms_that_act_take_memory() -> None:
    models = [patched(), patched(Keep(0.25))]
    for model in models:
        sample(model)
    whole, quarter = (model.get_additional_models_with_key(KEY)[0].model_size() for model in models)
    assert 0.2 * whole < quarter < 0.3 * whole


def test_a_plan_goes_where_its_module_goes() -> None:
    wrapper = Wrapper((adapter(Mask(right_half())),))
    held = wrapper.resident([wrapper], tiny_model()).model.to(torch.float64)
    assert {coder.encoder.dtype for layer in held.plan.layers.values() for coder in [layer.query]} == {torch.float64}
    assert {decoder.directions.dtype for decoder in held.plan.layers[0].decoders.values()} == {torch.float64}


def test_conditionings_with_and_without_a_hook_keep_their_plans() -> None:
    unet, wrapper, other = tiny_model().model.diffusion_model, Wrapper((adapter(),)), Wrapper((adapter(seed=1),))
    found = [
        wrapper.compiled(team, unet, torch.device("cpu"), torch.float32) for team in [[wrapper], [wrapper, other]] * 2
    ]
    assert found[0] is found[2] and found[1] is found[3] and found[0] is not found[1]


def test_what_was_tried_on_top_of_a_model_goes_with_it() -> None:
    """The MODEL below stays in ComfyUI's cache."""
    base, tried = patched(), []
    for seed in (1, 2, 3):
        top = adapter(seed=seed)
        recorder = Recorder(top.dictionary, ["L0.q[0]"])
        sample(apply_adapter(base, top, recorder), steps=1)
        tried += map(weakref.ref, (top, recorder))
        del top, recorder
    gc.collect()
    assert not any(one() for one in tried)


def test_what_one_hook_met_goes_while_the_hook_stays() -> None:
    """It is the first in its teams, before what is applied and other hooks."""
    stays, tried = hook_adapter(adapter()), []
    for seed in (1, 2, 3):
        top, other = adapter(seed=seed), adapter(seed=seed + 3)
        both = comfy.hooks.HookGroup()
        for hook in (*stays.hooks, *hook_adapter(other).hooks):
            both.add(hook)
        sample(apply_adapter(tiny_model(), top), steps=1, positive=hooked(text(1), both))
        tried += map(weakref.ref, (top, other))
        del top, other, both, hook
    gc.collect()
    assert not any(one() for one in tried)


def test_comfyui_counts_the_atoms_of_hooks_and_can_unload_them() -> None:
    applied, hook = patched(), hook_adapter(adapter(seed=1))
    prompts = dict(positive=hooked(text(1), hook))
    expected = sample(applied, **prompts)

    def loaded() -> list[ModelPatcher]:
        models = [one.model for one in comfy.model_management.current_loaded_models]
        return [model for model in models if type(model.model).__name__ == "_Held"]

    comfy.model_management.unload_all_models()
    before = applied.get_additional_models_with_key(KEY)
    assert torch.equal(sample(applied, **prompts), expected)
    assert len(loaded()) == 2 and applied.get_additional_models_with_key(KEY) == before
    both = max(loaded(), key=lambda model: model.model_size())
    assert both.model_size() == pytest.approx(2 * before[0].model_size(), rel=0.05)

    comfy.model_management.unload_all_models()
    plain = tiny_model()
    sample(plain, **prompts)
    assert len(loaded()) == 1 and plain.get_additional_models_with_key(KEY) == []


def test_plans_end_with_the_unet_that_they_are_for() -> None:
    hook, model = hook_adapter(adapter()), random_model()
    unet = weakref.ref(model.model.diffusion_model)
    sample(model, positive=hooked(text(1), hook))
    del model
    gc.collect()
    comfy.model_management.cleanup_models()
    gc.collect()
    assert unet() is None


@pytest.mark.parametrize("first", [True, False], ids=["compiled first", "atoms first"])
def test_a_compiled_model_draws_the_same(whole: Tensor, first: bool) -> None:
    def compiled(model: ModelPatcher) -> ModelPatcher:
        copy = model.clone()
        set_torch_compile_wrapper(copy, backend="eager")
        return copy

    model = patched(model=compiled(tiny_model())) if first else compiled(patched())
    assert_close(sample(model), whole)


# ---------------------------------------------------------------------------------------------- layer by layer, masked


def attention_output(model: ModelPatcher, layer: int, **settings: Any) -> tuple[Tensor, tuple[int, int]]:
    """What one attention gave at the first step, (rows, tokens, width), and its token grid."""
    places = list(list_layers(model.model.diffusion_model))
    seen = []

    def look(n: Tensor, extra: dict) -> Tensor:
        if (extra["transformer_index"], extra["block_index"], places[layer][2]) == places[layer] and not seen:
            seen.append((n.clone(), tuple(extra["activations_shape"][-2:])))
        return n

    watched = model.clone()
    setter = (
        watched.set_model_attn1_output_patch if places[layer][2] == "attn1" else watched.set_model_attn2_output_patch
    )
    setter(look)
    sample(watched, **{"steps": 1, "cfg": 1.0, **settings})
    return seen[0]


@pytest.mark.parametrize("size", [(16, 16), (17, 25)])
@pytest.mark.parametrize("layer", [0, 1, 4, 5])
@pytest.mark.parametrize("projection", ["q", "k", "v", "o"])
def test_nothing_changes_outside_a_mask_where_it_acts(layer: int, projection: str, size: tuple[int, int]) -> None:
    sites = [Site(layer, projection)]
    masked = patched(Mask(right_half(*size)), sites=sites)
    before, grid = attention_output(tiny_model(), layer, size=size)
    after, _ = attention_output(masked, layer, size=size)
    everywhere, _ = attention_output(patched(sites=sites), layer, size=size)
    cover = F.interpolate(right_half(*size)[None, None], grid, mode="area").flatten()

    assert torch.equal(after[:, cover == 0], before[:, cover == 0])
    assert_close(after[:, cover == 1], everywhere[:, cover == 1])
    assert (after - before)[:, cover == 1].abs().amax(dim=-1).gt(0).float().mean() > 0.5
    assert 0 < (cover == 1).sum() < len(cover)


@pytest.mark.parametrize("projection", ["k", "v", "o"])
def test_a_soft_mask_blends_in_proportion(projection: str) -> None:
    sites = [Site(0, projection)]
    before, _ = attention_output(tiny_model(), 0)
    full, _ = attention_output(patched(sites=sites), 0)
    after, _ = attention_output(patched(Mask(gradient()), sites=sites), 0)
    weight = gradient().reshape(1, -1, 1)
    assert_close(after, before + weight * (full - before))


def test_masks_of_two_dictionaries_act_each_in_its_place() -> None:
    sites = [Site(0, p) for p in "qkvo"]
    left, right = 1 - right_half(), right_half()
    both = patched(Mask(right), seed=2, sites=sites, model=patched(Mask(left), seed=1, sites=sites))
    first, _ = attention_output(patched(seed=1, sites=sites), 0)
    second, _ = attention_output(patched(seed=2, sites=sites), 0)
    together, _ = attention_output(both, 0)
    expected = torch.where(right.reshape(1, -1, 1) == 1, second, first)
    assert_close(together, expected)


# ------------------------------------------------------------------------------------------------- prompts and batches


def predictions(model: ModelPatcher, **settings: Any) -> tuple[Tensor, Tensor]:
    """The first step's estimates for the positive and the negative prompt."""
    seen = []
    watched = model.clone()

    def look(arguments: dict) -> Tensor:
        seen.append((arguments["cond_denoised"].clone(), arguments["uncond_denoised"].clone()))
        return arguments["denoised"]

    watched.set_model_sampler_post_cfg_function(look)
    sample(watched, **{"steps": 1, **settings})
    return seen[0]


def test_the_prompt_choice_reaches_that_prompt_alone() -> None:
    plain, whole = predictions(tiny_model()), predictions(patched())
    positive = predictions(patched(Conditioning("positive")))
    negative = predictions(patched(Conditioning("negative")))
    assert_close(positive[0], whole[0])
    assert_close(positive[1], plain[1])
    assert_close(negative[0], plain[0])
    assert_close(negative[1], whole[1])
    assert not torch.allclose(whole[0], plain[0], atol=1e-2)
    assert not torch.allclose(whole[1], plain[1], atol=1e-2)


def test_prompts_of_other_lengths_run_apart_and_are_told_apart() -> None:
    prompts = dict(positive=text(1, tokens=7), negative=text(2, tokens=4))
    plain, positive = predictions(tiny_model(), **prompts), predictions(patched(Conditioning("positive")), **prompts)
    assert not torch.allclose(positive[0], plain[0], atol=1e-2)
    assert_close(positive[1], plain[1])


def test_two_positive_prompts_are_both_patched() -> None:
    model = patched(Conditioning("positive"), Mask(right_half()))
    one, two = (predictions(model, positive=text(seed))[0] for seed in (1, 3))
    both, negative = predictions(model, positive=text(1) + text(3))
    assert_close(both, (one + two) / 2)
    assert_close(negative, predictions(tiny_model())[1])


def test_one_conditioning_at_a_time_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    controls = [Mask(torch.stack([right_half(), 1 - right_half()])), Conditioning("positive")]
    noise, prompts = noise_of(2, (16, 16)), text(1) + text(3)
    together = sample(patched(*controls), noise=noise, positive=prompts)
    calls = []
    model = patched(*controls)
    model.set_model_unet_function_wrapper(
        lambda apply, call: calls.append(call["cond_or_uncond"]) or apply(call["input"], call["timestep"], **call["c"])
    )
    monkeypatch.setattr(model.model, "memory_required", lambda *args, **kwargs: 1e30)
    apart = sample(model, noise=noise, positive=prompts)
    assert sorted(map(len, calls)) == [1] * 6
    assert_close(apart, together)


def test_every_picture_of_a_batch_has_its_own_mask() -> None:
    masks = torch.stack([right_half(), 1 - right_half(), gradient()])
    noise = noise_of(3, (16, 16))
    batch = sample(patched(Mask(masks)), noise=noise)
    alone = [sample(patched(Mask(mask)), noise=noise[i : i + 1]) for i, mask in enumerate(masks)]
    assert_close(batch, torch.cat(alone))


def test_masks_go_to_the_pictures_of_a_longer_batch_in_turn() -> None:
    noise = noise_of(1, (16, 16)).repeat(4, 1, 1, 1)
    one, two, three, four = sample(patched(Mask(torch.stack([right_half(), 1 - right_half()]))), noise=noise)
    assert_close(torch.stack([one, two]), torch.stack([three, four]))
    assert not torch.allclose(one, two, atol=1e-2)


def test_a_picture_does_not_depend_on_its_batch_mates() -> None:
    model = patched(Mask(gradient()), Keep(0.5))
    noise = noise_of(4, (16, 16))
    first = sample(model, noise=noise[[0, 1]])[0]
    second = sample(model, noise=noise[[0, 3]])[0]
    assert_close(first, second)


# ------------------------------------------------------------------------------------------------------- other guiders


def dual_guided(model: ModelPatcher, first: list, second: list, negative: list, nested: bool = False) -> Tensor:
    """DualCFGGuider, which runs the negative prompt first."""
    guider = Guider_DualCFG(model)
    guider.set_conds(first, second, negative)
    guider.set_cfg(3.0, 2.0, nested)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    euler, noise = comfy.samplers.sampler_object("euler"), noise_of(1, (16, 16))
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)


def self_guided(model: ModelPatcher) -> ModelPatcher:
    """With SelfAttentionGuidance, which runs the negative prompt once more, alone."""
    return SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


@pytest.mark.parametrize("nested", [False, True])
def test_two_guided_prompts_are_positive_and_the_negative_is_not(nested: bool) -> None:
    first, second, negative = text(1), text(3), text(2)
    hook, choosy = hook_adapter(adapter()), hook_adapter(adapter(Conditioning("positive")))
    expected = dual_guided(tiny_model(), hooked(first, hook), hooked(second, hook), negative, nested)
    assert_close(dual_guided(patched(Conditioning("positive")), first, second, negative, nested), expected)
    everywhere = (hooked(prompt, choosy) for prompt in (first, second, negative))
    assert_close(dual_guided(tiny_model(), *everywhere, nested), expected)
    opposite = dual_guided(tiny_model(), first, second, hooked(negative, hook), nested)
    assert_close(dual_guided(patched(Conditioning("negative")), first, second, negative, nested), opposite)


def test_a_negative_prompt_that_runs_once_more_is_still_negative() -> None:
    expected = sample(self_guided(tiny_model()), positive=hooked(text(1), hook_adapter(adapter())))
    assert_close(sample(self_guided(patched(Conditioning("positive")))), expected)


def test_recordings_keep_prompts_apart_or_are_refused() -> None:
    places, words = "L0.q[0]", "L1.k[0]"

    def recorded(draw: Callable[[ModelPatcher], Tensor]) -> Recording:
        recorder = Recorder(adapter().dictionary, [places, words])
        draw(apply_adapter(tiny_model(), adapter(), recorder))
        return recorder.recording()

    plain = recorded(lambda model: sample(model, steps=1))
    degraded = recorded(lambda model: sample(self_guided(model), steps=1))
    with pytest.raises(RuntimeError, match="several prompts act"):
        recorded(lambda model: dual_guided(model, text(1), text(3), text(2)))
    assert_close(degraded.negative.words[words], plain.negative.words[words])
    assert_close(degraded.positive.places[places].float(), plain.positive.places[places].float(), 1e-3)


# ------------------------------------------------------------------------------------------------------ parts of a picture

LEFT, RIGHT = (16, 8, 0, 0), (16, 8, 0, 8)
"""Areas as ConditioningSetArea writes them: height, width, top, left in latent pixels."""


def test_a_regional_prompt_sees_its_part_of_the_mask() -> None:
    """The prompt of one half runs on a crop: where the mask is 1 it is the unmasked dictionary, where it is 0 nothing."""
    masked = patched(Mask(right_half()))
    for area, reference in ((LEFT, tiny_model()), (RIGHT, patched())):
        prompt = text(1, area=area, strength=1.0)
        found, expected = (predictions(model, positive=prompt)[0] for model in (masked, reference))
        half = slice(area[3], area[3] + 8)
        assert_close(found[..., half], expected[..., half])


@pytest.mark.parametrize("area", [(8, 12, 4, 2), (10, 6, 0, 6)])
def test_a_mask_lands_in_its_place_of_a_crop(area: tuple[int, int, int, int]) -> None:
    height, width, _, left = area
    prompt = text(1, area=area, strength=1.0)
    before, grid = attention_output(tiny_model(), 0, positive=prompt)
    after, _ = attention_output(patched(Mask(right_half()), sites=[Site(0, p) for p in "qkvo"]), 0, positive=prompt)
    assert grid == (height, width)
    changed = (after - before).abs().amax(dim=(0, 2)).reshape(grid).gt(0).any(dim=0)
    assert changed.tolist() == [left + column >= 8 for column in range(width)]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_a_prompt_for_a_part_of_the_picture_is_not_recorded(cfg: float) -> None:
    """Nor are those of two halves, whose maps would be of one size."""
    for prompt in (text(1, area=LEFT), text(1, area=LEFT) + text(3, area=RIGHT)):
        recorder = Recorder(adapter().dictionary, ["L0.q[0]"])
        with pytest.raises(RuntimeError, match="one on a part of the picture"):
            sample(apply_adapter(tiny_model(), adapter(), recorder), positive=prompt, cfg=cfg)


def test_prompts_for_two_regions_and_the_whole() -> None:
    prompts = text(1, area=LEFT, strength=1.0) + text(3, area=RIGHT, strength=0.5) + text(4)
    everywhere, nowhere = Mask(torch.ones(16, 16)), Mask(torch.zeros(16, 16))
    assert torch.equal(sample(patched(everywhere), positive=prompts), sample(patched(), positive=prompts))
    assert torch.equal(sample(patched(nowhere), positive=prompts), sample(tiny_model(), positive=prompts))
    masked = sample(patched(Mask(right_half())), positive=prompts)
    assert torch.isfinite(masked).all()


def test_atoms_that_wait_for_the_word_of_a_half_act_on_its_prompt_alone() -> None:
    """Two dictionaries, each waiting for the word of its own half. ComfyUI runs the negative prompt on both halves too."""

    def said(seed: int, *words: str, **options: Any) -> list:
        return text(seed, **{HEARD: Heard(frozenset({"robot", "owl"}), frozenset(words)), **options})

    halves = said(1, "robot", area=LEFT, strength=1.0) + said(3, "owl", area=RIGHT, strength=1.0)
    prompts = dict(positive=halves, negative=said(2))
    first, second = adapter(), adapter(seed=1)
    waiting = tiny_model()
    for one, word in ((first, "robot"), (second, "owl")):
        waiting = apply_adapter(waiting, one.with_controls(Listen((word,))))
    models = (waiting, tiny_model(), apply_adapter(tiny_model(), first), apply_adapter(tiny_model(), second))
    found, plain, left, right = (predictions(model, **prompts) for model in models)
    assert_close(found[1], plain[1])
    assert_close(found[0][..., :8], left[0][..., :8])
    assert_close(found[0][..., 8:], right[0][..., 8:])
    assert not torch.allclose(left[1], plain[1], atol=1e-2)


def test_a_prompt_that_was_zeroed_out_names_nothing() -> None:
    said = text(1, **{HEARD: Heard(frozenset({"robot"}), frozenset({"robot"}))})
    (zeroed,) = ConditioningZeroOut().zero_out(said)
    model = apply_adapter(tiny_model(), adapter(Listen(("robot",))))
    found, plain, whole = (predictions(one, positive=said, negative=zeroed) for one in (model, tiny_model(), patched()))
    assert_close(found[0], whole[0])
    assert_close(found[1], plain[1])
    assert not torch.allclose(whole[1], plain[1], atol=1e-2)
    host = ComfyHost(model)
    assert [heard.named for heard in host.stack_conditions([said, zeroed]).heard] == [{"robot"}, set()]


def test_a_patch_that_tiles_the_picture_is_refused_with_a_mask_and_works_without() -> None:
    def by_halves(apply: Callable, call: dict) -> Tensor:
        return torch.cat(
            [apply(half, call["timestep"], **call["c"]) for half in call["input"].chunk(2, dim=-1)], dim=-1
        )

    tiled = tiny_model().clone()
    tiled.set_model_unet_function_wrapper(by_halves)
    assert not torch.allclose(sample(patched(model=tiled)), sample(tiled), atol=1e-2)
    with pytest.raises(MaskPlacementError, match="tiles the picture"):
        sample(patched(Mask(right_half()), model=tiled))
    with pytest.raises(MaskPlacementError, match="tiles the picture"):
        sample(apply_adapter(tiled, adapter(), Recorder(adapter().dictionary, ["L0.q[0]"])))


def test_a_second_pass_at_another_size_sees_the_mask_anew() -> None:
    used = patched(Mask(right_half()))
    first = sample(used)
    larger = F.interpolate(first, size=(26, 18), mode="bilinear")
    second = sample(used, latent=larger, denoise=0.5)
    assert second.shape == larger.shape
    assert torch.equal(second, sample(patched(Mask(right_half())), latent=larger, denoise=0.5))


def test_odd_sizes_keep_the_promises() -> None:
    size = (17, 25)
    assert torch.equal(sample(patched(Mask(torch.zeros(8, 8))), size=size), sample(tiny_model(), size=size))
    assert torch.equal(sample(patched(Mask(torch.ones(8, 8))), size=size), sample(patched(), size=size))


def test_a_start_from_a_picture_is_late_in_the_schedule() -> None:
    start = dict(latent=noise_of(1, (16, 16), seed=9), denoise=0.4, steps=4)
    early, late = (patched(Schedule(Curve(*span))) for span in ((0, 0.3), (0.3, 1)))
    assert torch.equal(sample(early, **start), sample(tiny_model(), **start))
    assert torch.equal(sample(late, **start), sample(patched(), **start))


def test_inpainting_keeps_what_is_outside_the_noise_mask() -> None:
    latent = noise_of(1, (16, 16), seed=9)
    settings = dict(latent=latent, denoise=0.8, noise_mask=right_half()[None, None])
    masked = sample(patched(Mask(right_half())), **settings)
    assert_close(masked[..., :8], latent[..., :8])
    assert not torch.allclose(masked, sample(tiny_model(), **settings), atol=1e-2)


# ------------------------------------------------------------------------------------------------------ other patches


@pytest.mark.parametrize("kernel", ["attention_basic", "attention_split", "attention_sub_quad"])
def test_every_attention_kernel_gives_the_same(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = patched(Mask(gradient()), Conditioning("positive"))
    expected = sample(model)
    function, used = getattr(comfy_attention, kernel), []
    for name in ("optimized_attention", "optimized_attention_masked"):
        monkeypatch.setattr(comfy_attention, name, lambda *a, **k: used.append(1) or function(*a, **k))
    assert_close(sample(model), expected)
    assert used


RETILING = {
    "HyperTile": lambda model: HyperTile.execute(model, 32, 1, 0, False)[0],
    "token merging": lambda model: TomePatchModel.execute(model, 0.4)[0],
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", RETILING)
def test_patches_that_move_tokens_work_without_a_mask_and_are_named_with_one(name: str, first: bool) -> None:
    retile = RETILING[name]

    def build(*controls: Control) -> ModelPatcher:
        return patched(*controls, model=retile(tiny_model())) if first else retile(patched(*controls))

    retiled = sample(retile(tiny_model()))
    assert torch.equal(sample(build(Weight(ALL, 0.0))), retiled)
    assert not torch.allclose(sample(build()), retiled, atol=1e-2)
    with pytest.raises(MaskPlacementError, match=name):
        sample(build(Mask(right_half())))


@pytest.mark.parametrize("projection", ["q", "k", "v", "o"])
@pytest.mark.parametrize("name", RETILING)
def test_moved_tokens_get_the_update_that_is_theirs(name: str, projection: str) -> None:
    """Dense atoms that read the input as it is are a change of the weights: that is the reference."""
    sites = [Site(layer, projection) for layer in (0, 12)]
    dictionary = random_dictionary(tiny_layers(), sites=sites, normalise=False, threshold=0.0)
    dense = dictionary.map(lambda atoms: replace(atoms, bias=torch.zeros_like(atoms.bias)))
    blocks = {0: "input_blocks.1.1", 12: "output_blocks.3.1"}
    part = {"o": "to_out.0"}.get(projection, f"to_{projection}")
    reference = tiny_model().clone()
    for site, atoms in dense.sites.items():
        key = f"diffusion_model.{blocks[site.layer]}.transformer_blocks.0.attn1.{part}.weight"
        assert reference.add_patches({key: (atoms.directions.T @ atoms.encoder,)})
    retile = RETILING[name]
    expected = sample(retile(reference), steps=1)
    assert_close(sample(retile(apply_adapter(tiny_model(), SparseAdapter(dense))), steps=1), expected, 1e-4)
    assert not torch.allclose(sample(retile(tiny_model()), steps=1), expected, rtol=1e-2)


def test_a_picture_shrunk_inside_the_model_takes_masks() -> None:
    shrink = PatchModelAddDownscale.execute(tiny_model(), 1, 2.0, 0.0, 1.0, True, "bilinear", "bilinear")[0]
    size = (16, 16)
    assert torch.equal(
        sample(patched(Mask(torch.ones(8, 8)), model=shrink), size=size), sample(patched(model=shrink), size=size)
    )
    assert torch.isfinite(sample(patched(Mask(right_half()), model=shrink), size=size)).all()


def plain_attention(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
    """What an IP-Adapter does, without an image."""
    return comfy_attention.optimized_attention(q, k, v, extra["n_heads"])


@pytest.mark.parametrize("controls", [[], [Mask(gradient())]], ids=["unmasked", "masked"])
@pytest.mark.parametrize("first", [True, False])
def test_attention_replaced_by_another_patch_gets_the_atoms(controls: list[Control], first: bool) -> None:
    def replaced(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.set_model_attn1_replace(plain_attention, "middle", 0)
        model.set_model_attn2_replace(plain_attention, "input", 1)
        return model

    model = patched(*controls, model=replaced(tiny_model())) if first else replaced(patched(*controls))
    assert_close(sample(model), sample(patched(*controls)))


@pytest.mark.parametrize("first", [True, False])
def test_another_attention_override_is_called_with_the_updated_projections(first: bool) -> None:
    calls = []

    def override(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(args[0])
        return 0.5 * function(*args, **kwargs)

    def with_override(model: ModelPatcher) -> ModelPatcher:
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return model

    alone = sample(with_override(tiny_model()), steps=1)
    plain_calls = len(calls)
    model = patched(model=with_override(tiny_model())) if first else with_override(patched())
    both = sample(model, steps=1)
    assert len(calls) == 2 * plain_calls > 0
    assert not torch.equal(calls[0], calls[plain_calls])
    assert not torch.allclose(both, alone, atol=1e-2)


def test_another_attention_override_gets_all_queries_under_a_mask() -> None:
    sizes = []

    def override(function: Callable, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes.append(q.shape[1])
        return function(q, *args, **kwargs)

    overridden = tiny_model().clone()
    overridden.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(overridden, steps=1)
    whole = set(sizes)
    masked = patched(Mask(right_half()), model=overridden)
    assert_close(sample(masked, steps=1), sample(patched(Mask(right_half())), steps=1))
    assert set(sizes) == whole


def test_a_patch_that_bypasses_attention_is_refused_by_name() -> None:
    bypassed = tiny_model().clone()
    bypassed.add_object_patch(
        "diffusion_model.middle_block.1.transformer_blocks.0.attn1.forward", lambda x, *args, **kwargs: x
    )
    sample(bypassed)
    with pytest.raises(RuntimeError, match="L4 computed its attention where sparse atoms could not reach"):
        sample(patched(model=bypassed))
    elsewhere = patched(Weight(parse_selection("L4"), 0.0), model=bypassed)
    assert not torch.allclose(sample(elsewhere), sample(bypassed), atol=1e-2)


# --------------------------------------------------------------------------------------------------------------- hooks


def hooked(prompt: list, hooks: comfy.hooks.HookGroup) -> list:
    return comfy.hooks.set_hooks_for_conditioning(prompt, hooks)


def test_a_hook_is_the_dictionary_on_one_prompt() -> None:
    plain, whole = predictions(tiny_model()), predictions(patched())
    found = predictions(tiny_model(), positive=hooked(text(1), hook_adapter(adapter())))
    assert_close(found[0], whole[0])
    assert_close(found[1], plain[1])


def test_a_hook_takes_masks_and_stands_beside_an_applied_dictionary() -> None:
    hook = hook_adapter(adapter(Mask(gradient()), seed=1))
    prompts = dict(positive=hooked(text(1), hook), negative=hooked(text(2), hook))
    expected = sample(patched(Mask(gradient()), seed=1, model=patched()))
    assert_close(sample(patched(), **prompts), expected)


def test_hook_keyframes_scale_the_atoms() -> None:
    hook = hook_adapter(adapter())
    keyframes = comfy.hooks.HookKeyframeGroup()
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.0, start_percent=0.0))
    keyframes.add(comfy.hooks.HookKeyframe(strength=0.5, start_percent=0.5))
    hook = hook.clone()
    hook.set_keyframes_on_hooks(keyframes)
    first = predictions(tiny_model(), positive=hooked(text(1), hook))
    assert_close(torch.cat(first), torch.cat(predictions(tiny_model())))
    late = dict(latent=noise_of(1, (16, 16), seed=9), denoise=0.3)
    found = predictions(tiny_model(), positive=hooked(text(1), hook), **late)
    half = predictions(patched(Weight(ALL, 0.5, "scale"), Conditioning("positive")), **late)
    assert_close(torch.cat(found), torch.cat(half))
