"""A diffusers UNet as a host: exactness on a whole model, and leaving it as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from factories import CHANNELS, random_condition, random_dictionary, tiny_host, tiny_unet
from torch import Generator, Tensor

from sparse_core.addresses import parse_selection
from sparse_core.controls import Conditioning, Curve, Keep, Mask, Schedule, SparseAdapter, Stack, Weight
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.hosts.diffusers import DiffusersHost, _State, list_attentions
from sparse_core.layers import Site, family
from sparse_core.plan import compile_plan

KINDS = [("sd", "epsilon"), ("sd", "v_prediction"), ("sdxl", "epsilon")]


@pytest.fixture(scope="module", params=KINDS, ids=["sd eps", "sd v", "sdxl eps"])
def host(request: pytest.FixtureRequest) -> DiffusersHost:
    """Every layout with every prediction."""
    return tiny_host(*request.param)


@pytest.fixture(scope="module")
def sd() -> DiffusersHost:
    """The layout of SD1.5."""
    return tiny_host()


@pytest.fixture(scope="module")
def guided() -> DiffusersHost:
    """A pipeline that runs the negative and the positive prompt in one batch."""
    return tiny_host(guided=True)


def kind_of(host: DiffusersHost) -> str:
    return "sd" if len(host.layers) == len(list_attentions(tiny_unet("sd"))) else "sdxl"


def denoise(host: DiffusersHost, stack: Stack | None, *, rows: int = 2, size: tuple[int, int] = (8, 8)) -> Tensor:
    """One estimate; without a stack, by the model as it is."""
    x = torch.randn(rows, CHANNELS, *size, generator=Generator().manual_seed(1))
    arguments = x, torch.full((rows,), 0.3), random_condition(rows, kind_of(host))
    with torch.no_grad():
        if stack is None:
            return host.denoise(*arguments)
        with host.patched(stack):
            return host.denoise(*arguments)


def call(host: DiffusersHost, stack: Stack, rows: int, text: Tensor | None = None) -> Tensor:
    """What the UNet gives when a pipeline calls it."""
    x = torch.randn(rows // 2, CHANNELS, 8, 8, generator=Generator().manual_seed(1)).repeat(2, 1, 1, 1)
    text = random_condition(rows).text if text is None else text
    with torch.no_grad(), host.patched(stack):
        return host.unet(x, torch.tensor(400), encoder_hidden_states=text).sample


def adapter_for(host: DiffusersHost, **options: object) -> SparseAdapter:
    return SparseAdapter(random_dictionary(host.layers, **options))


@contextmanager
def attention_outputs(host: DiffusersHost, number: int) -> Iterator[list[Tensor]]:
    """Collects what one attention gives."""
    seen: list[Tensor] = []
    handle = host.attentions[number][1].register_forward_hook(lambda module, args, y: seen.append(y))
    try:
        yield seen
    finally:
        handle.remove()


def snapshot(host: DiffusersHost) -> tuple:
    """Everything that patching touches."""
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in m.__dict__) for m in host.unet.modules()]
    return [id(attention.processor) for _, attention, _ in host.attentions], hooks


# --------------------------------------------------------------------------------------------------------------- layers


def full_size(config: str) -> list:
    """The layers of a real architecture, without its weights."""
    shared = dict(in_channels=4, out_channels=4, layers_per_block=2, sample_size=64)
    with torch.device("meta"):
        if config == "SD1.x":
            unet = UNet2DConditionModel(**shared, cross_attention_dim=768, attention_head_dim=8)
        else:
            unet = UNet2DConditionModel(
                **shared,
                block_out_channels=(320, 640, 1280),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=2048,
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            )
    return [layer for layer, _, _ in list_attentions(unet)]


def test_the_layers_of_sd15_are_named_and_counted() -> None:
    layers = full_size("SD1.x")
    assert family(layers) == "SD1.x" and len(layers) == 32
    assert [layer.name for layer in layers[:4]] == [
        "down.0.0.attn1",
        "down.0.0.attn2",
        "down.1.0.attn1",
        "down.1.0.attn2",
    ]
    assert [layer.name for layer in layers[12:14]] == ["middle.0.0.attn1", "middle.0.0.attn2"]
    assert layers[-1] == ("up.8.0.attn2", 320, 768, 320)


def test_the_layers_of_sdxl_are_named_and_counted() -> None:
    layers = full_size("SDXL")
    assert family(layers) == "SDXL" and len(layers) == 140
    assert layers[0] == ("down.0.0.attn1", 640, 640, 640)
    assert layers[3] == ("down.0.1.attn2", 640, 2048, 640)
    assert layers[-1].name == "up.5.1.attn2"
    assert sum(layer.stage == "middle" for layer in layers) == 20


def test_layers_come_in_the_order_in_which_they_run(host: DiffusersHost) -> None:
    order, handles = [], []
    for number, (_, attention, _) in enumerate(host.attentions):
        handles.append(attention.register_forward_hook(lambda *_, n=number: order.append(n)))
    denoise(host, None)
    for handle in handles:
        handle.remove()
    assert order == list(range(len(host.layers)))


def test_a_unet_without_transformers_is_refused() -> None:
    unet = SimpleNamespace(down_blocks=[], mid_block=SimpleNamespace(), up_blocks=[])
    with pytest.raises(ValueError, match="no transformer blocks"):
        list_attentions(unet)


def test_an_unknown_prediction_is_refused_by_name() -> None:
    pipeline = SimpleNamespace(unet=tiny_unet(), scheduler=DDIMScheduler(prediction_type="sample"))
    with pytest.raises(ValueError, match="predicts 'sample'; expected one of epsilon, v_prediction"):
        DiffusersHost(pipeline)
    flow = SimpleNamespace(unet=tiny_unet(), scheduler=FlowMatchEulerDiscreteScheduler())
    with pytest.raises(
        ValueError, match="predicts 'FlowMatchEulerDiscreteScheduler'; expected one of epsilon, v_prediction"
    ):
        DiffusersHost(flow)


# ------------------------------------------------------------------------------------------------------ bit for bit


def test_a_dictionary_changes_the_picture(host: DiffusersHost) -> None:
    assert (denoise(host, [adapter_for(host)]) - denoise(host, None)).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=["even", "odd"])
def test_nothing_to_do_is_the_base(host: DiffusersHost, size: tuple[int, int]) -> None:
    base, adapter = denoise(host, None, size=size), adapter_for(host)
    for stack in (
        [],
        [adapter.at_strength(0)],
        [adapter.with_controls(Keep(0))],
        [adapter.with_controls(Mask(torch.zeros(64, 64)))],
        [adapter.with_controls(Schedule(Curve(0.5, 1)))],
        [adapter.with_controls(Weight(parse_selection("*"), 0)), adapter.at_strength(0)],
    ):
        assert torch.equal(denoise(host, stack, size=size), base)


def test_directions_of_zero_are_the_base(host: DiffusersHost) -> None:
    silent = random_dictionary(host.layers).map(lambda atoms: replace(atoms, directions=0 * atoms.directions))
    assert torch.equal(denoise(host, [SparseAdapter(silent)]), denoise(host, None))


def test_the_base_with_diffusers_older_processor_differs_by_rounding_only(sd: DiffusersHost) -> None:
    host = tiny_host()
    host.unet.set_attn_processor(AttnProcessor())
    silent = random_dictionary(host.layers).map(lambda atoms: replace(atoms, directions=0 * atoms.directions))
    torch.testing.assert_close(denoise(host, [SparseAdapter(silent)]), denoise(host, None), rtol=1e-4, atol=1e-5)


def test_controls_that_exclude_nothing_change_nothing(host: DiffusersHost) -> None:
    adapter = adapter_for(host)
    full = denoise(host, [adapter])
    for control in (Keep(1), Mask(torch.ones(64, 64)), Schedule(Curve(0, 0.5)), Weight(parse_selection("*"), 1)):
        assert torch.equal(denoise(host, [adapter.with_controls(control)]), full)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_base_stays_the_base_in_half_precision(dtype: torch.dtype) -> None:
    host = tiny_host()
    host.unet.to(dtype)
    x, text = torch.randn(1, CHANNELS, 8, 8).to(dtype), random_condition(1).text.to(dtype)
    outputs = []
    silent = random_dictionary(host.layers).map(lambda atoms: replace(atoms, directions=0 * atoms.directions))
    for stack in ([], [SparseAdapter(silent)], [adapter_for(host)]):
        with torch.no_grad(), host.patched(stack):
            outputs.append(host.unet(x, torch.tensor(500), text).sample)
    assert torch.equal(outputs[1], outputs[0])
    assert outputs[2].dtype == dtype and not torch.equal(outputs[2], outputs[0])


# ------------------------------------------------------------------------------------------------------ as it was before


def test_the_model_is_as_it_was_after_the_context(host: DiffusersHost) -> None:
    before, base = snapshot(host), denoise(host, None)
    with host.patched([adapter_for(host).with_controls(Mask(torch.eye(8)))]):
        assert snapshot(host) != before
    assert snapshot(host) == before
    assert torch.equal(denoise(host, None), base)


def test_the_model_is_as_it_was_after_an_exception(sd: DiffusersHost) -> None:
    before = snapshot(sd)
    with pytest.raises(KeyboardInterrupt), sd.patched([adapter_for(sd)]):
        raise KeyboardInterrupt
    assert snapshot(sd) == before
    with pytest.raises(RuntimeError), sd.patched([adapter_for(sd)]):
        sd.denoise(torch.zeros(1, CHANNELS + 1, 8, 8), torch.zeros(1), random_condition(1))
    assert snapshot(sd) == before


def test_an_empty_stack_touches_nothing(sd: DiffusersHost) -> None:
    before = snapshot(sd)
    with sd.patched([adapter_for(sd).at_strength(0)]):
        assert snapshot(sd) == before


def test_layers_without_atoms_keep_their_own_attention(sd: DiffusersHost) -> None:
    before = [id(attention.processor) for _, attention, _ in sd.attentions]
    with sd.patched([adapter_for(sd, sites=[Site(2, "v")])]):
        now = [id(attention.processor) for _, attention, _ in sd.attentions]
    assert [a != b for a, b in zip(now, before, strict=True)] == [n == 2 for n in range(len(sd.layers))]


def test_a_foreign_attention_processor_is_refused_by_name_and_nothing_stays_behind() -> None:
    class RegionalAttention:
        def __call__(self, *_: object, **__: object) -> None: ...

    host = tiny_host()
    host.attentions[3][1].set_processor(RegionalAttention())
    before = snapshot(host)
    with (
        pytest.raises(ValueError, match="Layer L3 runs RegionalAttention, which a sparse dictionary can't share"),
        host.patched([adapter_for(host)]),
    ):
        pass
    assert snapshot(host) == before
    with host.patched([adapter_for(host, sites=[Site(2, "v")])]):
        pass  # that layer is not concerned


def test_a_dictionary_of_another_model_is_refused(sd: DiffusersHost) -> None:
    with pytest.raises(ValueError, match="made for another model"), sd.patched([SparseAdapter(random_dictionary())]):
        pass


def test_patching_can_be_nested_only_by_refusal(sd: DiffusersHost) -> None:
    with (
        sd.patched([adapter_for(sd)]),
        pytest.raises(ValueError, match=r"L0 is patched already.*host\.patched\(\[first, second\]\)"),
        sd.patched([adapter_for(sd, seed=1)]),
    ):
        pass


# ---------------------------------------------------------------------------------------------------------- composition


def test_a_stack_of_two_equals_one_dictionary_with_the_atoms_of_both(host: DiffusersHost) -> None:
    a = random_dictionary(host.layers, seed=1, atoms=(2, 3))
    b = random_dictionary(host.layers, seed=2, atoms=(4, 1))
    joined = SparseDictionary(
        host.layers,
        {
            site: Atoms(**{name: torch.cat([t, b.sites[site].tensors()[name]]) for name, t in atoms.tensors().items()})
            for site, atoms in a.sites.items()
        },
    )
    both = denoise(host, [SparseAdapter(a), SparseAdapter(b)])
    torch.testing.assert_close(both, denoise(host, [SparseAdapter(joined)]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both, denoise(host, [SparseAdapter(b), SparseAdapter(a)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_updates_of_one_attentions_output_add_up(sd: DiffusersHost, number: int) -> None:
    a, b = (adapter_for(sd, seed=seed, sites=[Site(number, "o")]) for seed in (1, 2))
    outputs = []
    for stack in ([], [a], [b], [a, b], [a.at_strength(-0.5)]):
        with attention_outputs(sd, number) as seen:
            denoise(sd, stack)
        outputs.append(seen[0])
    base, only_a, only_b, both, negative = outputs
    torch.testing.assert_close(both - base, (only_a - base) + (only_b - base), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(negative - base, -0.5 * (only_a - base), rtol=1e-4, atol=1e-5)


def test_a_lora_of_all_projections_equals_its_weights_merged(sd: DiffusersHost) -> None:
    lora = random_dictionary(sd.layers, normalise=False).map(
        lambda atoms: replace(atoms, bias=0 * atoms.bias, threshold=0 * atoms.threshold)
    )
    merged = tiny_host()
    for site, atoms in lora.sites.items():
        attention = merged.attentions[site.layer][1]
        module = {"q": attention.to_q, "k": attention.to_k, "v": attention.to_v, "o": attention.to_out[0]}
        module[site.projection].weight.data += atoms.directions.T @ atoms.encoder
    torch.testing.assert_close(denoise(sd, [SparseAdapter(lora)]), denoise(merged, None), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("projection", ["q", "k", "v", "o", "qkvo"])
@pytest.mark.parametrize("size", [(8, 8), (7, 5)], ids=["even", "odd"])
def test_a_mask_changes_nothing_outside_where_it_acts(
    host: DiffusersHost, projection: str, size: tuple[int, int]
) -> None:
    """At the one layer that has atoms: later layers spread what changed."""
    mask = torch.zeros(size)
    mask[:, : size[1] // 2] = 1
    for number in (0, 1):
        _, _, transformer = host.attentions[number]
        grids: list[tuple[int, int]] = []
        handle = transformer.register_forward_pre_hook(lambda m, args, grids=grids: grids.append(args[0].shape[-2:]))
        adapter = adapter_for(host, sites=[Site(number, p) for p in projection], threshold=0)
        outputs = []
        for stack in ([], [adapter.with_controls(Mask(mask))], [adapter]):
            with attention_outputs(host, number) as seen:
                denoise(host, stack, size=size)
            outputs.append(seen[0])
        handle.remove()
        inside = torch.nn.functional.interpolate(mask[None, None], grids[0], mode="area").flatten() > 0
        base, masked, full = outputs
        assert 0 < int(inside.sum()) < len(inside)
        # Fewer queries may take another path through the kernel at sizes as small as this model's.
        tolerance = 0.0 if projection in ("q", "o") else 1e-6
        torch.testing.assert_close(masked[:, ~inside], base[:, ~inside], rtol=0, atol=tolerance)
        assert not torch.isclose(masked[:, inside], base[:, inside]).all()
        assert not torch.isclose(full[:, ~inside], base[:, ~inside]).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (6, 13)])
def test_masks_of_any_size_fit_pictures_of_any_size(host: DiffusersHost, size: tuple[int, int]) -> None:
    adapter = adapter_for(host).with_controls(Mask(torch.rand(65, 33, generator=Generator().manual_seed(0))))
    result = denoise(host, [adapter], size=size)
    assert bool(torch.isfinite(result).all()) and not torch.equal(result, denoise(host, None, size=size))


# ---------------------------------------------------------------------------------------------- prompts, batches, steps


@pytest.mark.parametrize(("prompt", "row"), [("positive", 1), ("negative", 0)])
def test_guided_rows_get_the_atoms_of_their_prompt_only(guided: DiffusersHost, prompt: str, row: int) -> None:
    adapter = adapter_for(guided)
    base, full = call(guided, [], 2), call(guided, [adapter], 2)
    result = call(guided, [adapter.with_controls(Conditioning(prompt))], 2)
    assert torch.equal(result[row], full[row]) and torch.equal(result[1 - row], base[1 - row])


def test_without_guidance_every_row_is_positive(sd: DiffusersHost) -> None:
    adapter = adapter_for(sd)
    assert torch.equal(call(sd, [adapter.with_controls(Conditioning("positive"))], 2), call(sd, [adapter], 2))
    assert torch.equal(call(sd, [adapter.with_controls(Conditioning("negative"))], 2), call(sd, [], 2))


def test_a_direct_estimate_is_positive_even_where_the_pipeline_is_guided(guided: DiffusersHost) -> None:
    adapter = adapter_for(guided)
    full = denoise(guided, [adapter])
    assert torch.equal(denoise(guided, [adapter.with_controls(Conditioning("positive"))]), full)
    assert guided.guided


def test_both_prompts_of_a_picture_share_its_mask(guided: DiffusersHost) -> None:
    """Rows are pictures 0 and 1 with the negative prompt, then with the positive."""
    masks = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)])
    adapter = adapter_for(guided)
    base, full = call(guided, [], 4), call(guided, [adapter], 4)
    result = call(guided, [adapter.with_controls(Mask(masks))], 4)
    for row in range(4):
        expected = full if row % 2 else base
        torch.testing.assert_close(result[row], expected[row], rtol=1e-4, atol=1e-5)
    assert torch.equal(result[::2], base[::2])


def test_a_picture_in_a_batch_equals_the_picture_alone(sd: DiffusersHost) -> None:
    """Within tolerance: kernels round differently for another number of rows."""
    adapter = adapter_for(sd).with_controls(Mask(torch.eye(8)))
    x, text = torch.randn(3, CHANNELS, 8, 8, generator=Generator().manual_seed(2)), random_condition(3)
    progress = torch.full((3,), 0.3)
    with torch.no_grad(), sd.patched([adapter]):
        together = sd.denoise(x, progress, text)
        for row in range(3):
            alone = sd.denoise(x[row : row + 1], progress[:1], replace(text, text=text.text[row : row + 1]))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-4)


def test_what_the_other_pictures_are_does_not_matter(sd: DiffusersHost) -> None:
    """Exactly: sizes stay, so kernels do."""
    adapter = adapter_for(sd).with_controls(Mask(torch.eye(8)), Keep(0.7))
    x, progress = torch.randn(3, CHANNELS, 8, 8, generator=Generator().manual_seed(2)), torch.full((3,), 0.3)
    text = random_condition(3)
    other_x, other_text = -9 * x, replace(text, text=5 * text.text)
    other_x[1], other_text.text[1] = x[1], text.text[1]
    with torch.no_grad(), sd.patched([adapter]):
        assert torch.equal(sd.denoise(x, progress, text)[1], sd.denoise(other_x, progress, other_text)[1])


@pytest.mark.parametrize(("timestep", "acts"), [(999, True), (600, True), (400, False), (0, False)])
def test_schedules_follow_the_timestep_of_the_call(sd: DiffusersHost, timestep: int, acts: bool) -> None:
    adapter = adapter_for(sd)
    x, text = torch.randn(1, CHANNELS, 8, 8), random_condition(1).text

    def output(stack: Sequence[SparseAdapter]) -> Tensor:
        with torch.no_grad(), sd.patched(stack):
            return sd.unet(x, timestep, text).sample

    scheduled = output([adapter.with_controls(Schedule(Curve(0, 0.5)))])
    assert torch.equal(scheduled, output([adapter] if acts else []))


def test_one_context_serves_calls_of_different_sizes(sd: DiffusersHost) -> None:
    adapter = adapter_for(sd).with_controls(Mask(torch.eye(16)))
    with torch.no_grad(), sd.patched([adapter]):
        results = [
            sd.denoise(torch.ones(rows, CHANNELS, *size), torch.full((rows,), 0.3), random_condition(rows))
            for rows, size in ((1, (8, 8)), (2, (8, 10)), (1, (8, 8)))
        ]
    assert torch.equal(results[0], results[2])


# --------------------------------------------------------------------------------------------------------- the schedule


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_the_clean_latents(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tiny_host(prediction=prediction)
    latents, noise = torch.randn(3, CHANNELS, 8, 8), torch.randn(3, CHANNELS, 8, 8)
    progress = torch.tensor([0.2, 0.6, 0.9])
    noisy, snr = host.add_noise(latents, noise, progress), host.snr(progress)[:, None, None, None]
    signal = snr / (1 + snr)
    perfect = noise if prediction == "epsilon" else signal.sqrt() * noise - (1 - signal).sqrt() * latents
    monkeypatch.setattr(host.unet, "forward", lambda *_, **__: SimpleNamespace(sample=perfect))
    torch.testing.assert_close(host.denoise(noisy, progress, random_condition(3)), latents, rtol=1e-3, atol=1e-3)


def test_progress_runs_from_pure_noise_to_the_clean_picture(host: DiffusersHost) -> None:
    assert host.timestep(torch.tensor([0.0, 0.5, 1.0])).tolist() == [999, 500, 0]
    snr = host.snr(torch.linspace(0, 1, 20))
    assert bool((snr[1:] > snr[:-1]).all())
    assert (float(snr[0]) == pytest.approx(0, abs=1e-6)) == (host.prediction == "v")


def test_noise_is_added_as_the_models_own_scheduler_does(host: DiffusersHost) -> None:
    latents, noise, progress = torch.randn(3, CHANNELS, 8, 8), torch.randn(3, CHANNELS, 8, 8), torch.tensor([0, 0.4, 1])
    expected = host.pipeline.scheduler.add_noise(latents, noise, host.timestep(progress))
    torch.testing.assert_close(host.add_noise(latents, noise, progress), expected)


def test_any_scheduler_with_a_known_prediction_serves() -> None:
    pipeline = SimpleNamespace(unet=tiny_unet(), scheduler=EulerDiscreteScheduler(), do_classifier_free_guidance=False)
    assert DiffusersHost(pipeline).prediction == "eps"


def test_conditions_are_stacked_with_all_their_parts(host: DiffusersHost) -> None:
    kind = kind_of(host)
    stacked = host.stack_conditions([random_condition(1, kind, seed) for seed in (1, 2)])
    assert torch.equal(stacked.text[1:], random_condition(1, kind, 2).text)
    if kind == "sdxl":
        assert {name: len(value) for name, value in stacked.added.items()} == {"text_embeds": 2, "time_ids": 2}


def test_gradients_reach_every_site_and_no_weight_of_the_model(host: DiffusersHost) -> None:
    dictionary = random_dictionary(host.layers).map(lambda atoms: atoms.map(lambda t: t.clone().requires_grad_()))
    with host.trainable(), host.patched([SparseAdapter(dictionary)]):
        x = torch.randn(2, CHANNELS, 8, 8, generator=Generator().manual_seed(3))
        host.denoise(x, torch.full((2,), 0.3), random_condition(2, kind_of(host))).square().sum().backward()
    for atoms in dictionary.sites.values():
        for tensor in (atoms.encoder, atoms.bias, atoms.directions):
            assert tensor.grad is not None and bool(tensor.grad.any())
    assert all(parameter.grad is None for parameter in host.unet.parameters())


def test_atoms_follow_a_pipeline_that_is_offloaded_to_the_device_of_the_call(sd: DiffusersHost) -> None:
    state = _State(compile_plan([adapter_for(sd)], sd.layers))
    for device in ("cpu", "meta"):
        state.begin(sd, [None], torch.zeros(2, CHANNELS, 8, 8, device=device), torch.tensor(400))
        assert state.run.plan.device == torch.device(device)


def test_a_pipeline_that_has_not_drawn_yet_runs_one_prompt(sd: DiffusersHost) -> None:
    parts = {name: None for name in ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")}
    fresh = StableDiffusionPipeline(
        unet=tiny_unet(),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        requires_safety_checker=False,
        **parts,
    )
    assert not DiffusersHost(fresh).guided
