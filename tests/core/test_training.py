"""Training: where it starts, that it learns, repeats and resumes, and how it fails."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
import torch
from factories import CHANNELS, random_condition, random_dictionary, tiny_host
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Generator, Tensor

from sparse_core.analysis.importance import measure
from sparse_core.controls import SparseAdapter
from sparse_core.dictionary import SparseDictionary
from sparse_core.examples import draw_batch
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.hosts.diffusers import Condition, DiffusersHost
from sparse_core.layers import Layer, Site
from sparse_core.training import (
    PRESETS,
    Example,
    Preview,
    Progress,
    TrainingSettings,
    TrainingStopped,
    loop,
    shared_out,
    train,
)
from sparse_core.training.learners import DictionaryLearner, initial_dictionary
from sparse_core.training.loop import Trainer, learning_rate_factor
from sparse_core.training.objective import SNR_CAP, loss_weight
from sparse_core.training.processes import Processes
from sparse_core.training.scaling import GROWS_AFTER, HIGHEST, LossScale
from sparse_core.training.state import FORMAT, TrainingState

QUICK = TrainingSettings(steps=4, batch=2, atoms=8, threshold=0.5, learning_rate=0.01, reseed_every=0)


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    """A tiny UNet that predicts noise."""
    return tiny_host()


def make_examples(count: int = 3, size: tuple[int, int] = (8, 8), seed: int = 0, **options: object) -> list[Example]:
    generator = Generator().manual_seed(seed)
    return [
        Example(torch.randn(CHANNELS, *size, generator=generator), random_condition(1, seed=seed + n), **options)
        for n in range(count)
    ]


def same(one: SparseDictionary, other: SparseDictionary) -> bool:
    return all(
        torch.equal(t, other.sites[site].tensors()[name])
        for site, atoms in one.sites.items()
        for name, t in atoms.tensors().items()
    )


def stop_at(step: int) -> Callable[[Progress], None]:
    def on_step(progress: Progress) -> None:
        if progress.step == step:
            raise TrainingStopped

    return on_step


@torch.no_grad()
def loss_of(host: DiffusersHost, dictionary: SparseDictionary | None, examples: list[Example]) -> float:
    """The loss on noise that does not change from call to call."""
    batch = draw_batch(host, examples, 12, Generator().manual_seed(99))
    with host.patched([] if dictionary is None else [SparseAdapter(dictionary)]):
        noisy = host.add_noise(batch.latents, batch.noise, batch.progress)
        estimate = host.denoise(noisy, batch.progress, batch.condition)
    error = (estimate - batch.latents).square().mean(dim=(1, 2, 3))
    return float((loss_weight(host.prediction, host.snr(batch.progress)) * error).mean())


# ------------------------------------------------------------------------------------------------------------ the start


@pytest.mark.parametrize(("kind", "prediction"), [("sd", "epsilon"), ("sd", "v_prediction"), ("sdxl", "epsilon")])
def test_the_first_step_starts_from_the_unpatched_model_bit_for_bit(kind: str, prediction: str) -> None:
    host = tiny_host(kind, prediction)
    start = initial_dictionary(host.layers, TrainingSettings())
    x = torch.randn(2, CHANNELS, 8, 8, generator=Generator().manual_seed(0)), torch.tensor([0.3, 0.3])
    with torch.no_grad():
        base = host.denoise(*x, random_condition(2, kind))
        with host.patched([SparseAdapter(start)]):
            assert torch.equal(host.denoise(*x, random_condition(2, kind)), base)


def test_the_start_has_unit_encoders_no_directions_and_the_threshold_asked_for(host: DiffusersHost) -> None:
    start = initial_dictionary(host.layers, replace(QUICK, threshold=1.5))
    assert len(start) == 8 * 4 * len(host.layers)
    for atoms in start.sites.values():
        torch.testing.assert_close(atoms.encoder.norm(dim=1), torch.ones(8))
        assert not atoms.directions.any() and not atoms.bias.any() and bool((atoms.threshold == 1.5).all())


def test_only_the_sites_asked_for_get_atoms(host: DiffusersHost) -> None:
    settings = replace(QUICK, projections=("v", "q"), attentions=("attn2",))
    sites = list(initial_dictionary(host.layers, settings).sites)
    assert sites == [Site(n, p) for n in range(1, len(host.layers), 2) for p in "qv"]


# ------------------------------------------------------------------------------------------------------------- learning


def test_the_loss_falls(host: DiffusersHost) -> None:
    examples = make_examples(2)
    learnt = train(host, examples, replace(QUICK, steps=40, batch=4))
    assert loss_of(host, learnt, examples) < 0.9 * loss_of(host, None, examples)


def test_gradients_reach_every_site_after_one_step(host: DiffusersHost) -> None:
    with host.trainable():
        learner = DictionaryLearner(host, QUICK)
        trainer = Trainer(host, learner, make_examples(), QUICK)
        before = {name: tensor.detach().clone() for name, tensor in learner.parameters().items()}
        trainer.advance()
        for name, tensor in learner.parameters().items():
            assert torch.equal(tensor, before[name]) != name.endswith("directions")  # they alone have a gradient at 0
        batch = draw_batch(host, trainer.examples, 4, Generator().manual_seed(1))
        with learner.at_work(batch.prior):
            trainer.errors(batch)[0].mean().backward()
    for name, tensor in learner.parameters().items():
        assert tensor.grad is not None and bool(tensor.grad.any()), name
    assert all(parameter.grad is None for parameter in host.unet.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(host: DiffusersHost) -> None:
    examples = make_examples()
    first, again, other = (train(host, examples, replace(QUICK, seed=seed)) for seed in (1, 1, 2))
    assert same(first, again) and first.metadata == again.metadata
    assert not same(first, other)


def test_training_leaves_the_model_as_it_was(host: DiffusersHost) -> None:
    examples = make_examples()
    weights = {name: tensor.clone() for name, tensor in host.unet.state_dict().items()}
    processors = [attention.processor for _, attention, _ in host.attentions]
    before = loss_of(host, None, examples)
    train(host, examples, QUICK)
    assert loss_of(host, None, examples) == before
    assert [attention.processor for _, attention, _ in host.attentions] == processors
    assert all(torch.equal(tensor, weights[name]) for name, tensor in host.unet.state_dict().items())


def test_what_was_learnt_is_ready_to_be_saved(host: DiffusersHost, tmp_path: Path) -> None:
    learnt = train(host, make_examples(), QUICK, metadata={"title": "a fox"})
    for atoms in learnt.sites.values():
        norm = atoms.directions.norm(dim=1)
        torch.testing.assert_close(norm, (norm > 0).float(), rtol=1e-4, atol=1e-4)  # 0 where an atom never fired
        assert bool(norm.any())
        assert bool((atoms.importance >= 0).all()) and bool(atoms.importance.any())
        assert not any(tensor.requires_grad for tensor in atoms.tensors().values())
    record = learnt.metadata["training"]
    assert learnt.metadata["title"] == "a fox"
    assert record["steps"] == QUICK.steps and record["seed"] == 0 and record["threshold"] == 0.5
    assert 0 < record["active_share"] < 1 and math.isfinite(record["final_loss"])
    loaded = load_dictionary(save_dictionary(learnt, tmp_path / "fox.safetensors", torch.float32))
    assert same(loaded, learnt) and loaded.metadata == json.loads(json.dumps(learnt.metadata))


def test_progress_is_reported_after_every_step(host: DiffusersHost) -> None:
    seen: list[tuple[int, int, float, tuple]] = []
    train(host, make_examples(), QUICK, lambda p: seen.append((p.step, p.steps, p.loss, tuple(p.estimate.shape))))
    assert [(step, steps, shape) for step, steps, _, shape in seen] == [
        (n, 4, (2, CHANNELS, 8, 8)) for n in (1, 2, 3, 4)
    ]
    assert all(math.isfinite(loss) for *_, loss, _ in seen)


@pytest.mark.parametrize("option", [{"checkpointing": True}, {"accumulate": 2}, {"ema": 0.5}, {"autocast": True}])
def test_options_learn_too(host: DiffusersHost, option: dict[str, object]) -> None:
    learnt = train(host, make_examples(), replace(QUICK, steps=2, **option))
    assert all(bool(torch.isfinite(t).all()) for atoms in learnt.sites.values() for t in atoms.tensors().values())
    assert all(bool(atoms.directions.any()) for atoms in learnt.sites.values())


def test_checkpointing_changes_nothing_but_memory(host: DiffusersHost) -> None:
    plain, checkpointed = (train(host, make_examples(), replace(QUICK, checkpointing=on)) for on in (False, True))
    for site, atoms in plain.sites.items():
        torch.testing.assert_close(atoms.directions, checkpointed.sites[site].directions, rtol=1e-3, atol=1e-3)


def test_the_group_term_empties_atoms(host: DiffusersHost) -> None:
    free, sparse = (train(host, make_examples(), replace(QUICK, steps=10, sparsity=s)) for s in (0.0, 1.0))

    def total(dictionary: SparseDictionary) -> float:
        return sum(float(atoms.importance.sum()) for atoms in dictionary.sites.values())

    assert total(sparse) < 0.5 * total(free)


def test_the_running_mean_of_one_step_is_that_step(host: DiffusersHost) -> None:
    """However slowly it decays: what it starts from has no share in it."""
    plain, mean = (train(host, make_examples(), replace(QUICK, steps=1, ema=ema)) for ema in (0.0, 0.99))
    for site, atoms in plain.sites.items():
        torch.testing.assert_close(mean.sites[site].encoder, atoms.encoder, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(mean.sites[site].directions, atoms.directions, rtol=1e-3, atol=1e-3)


def test_pictures_to_keep_alone_can_be_trained_on(host: DiffusersHost) -> None:
    learnt = train(host, make_examples(prior=True), replace(QUICK, steps=2, selective=0.1))
    assert math.isfinite(learnt.metadata["training"]["final_loss"])


def test_importance_elsewhere_is_measured_on_the_pictures_to_keep(host: DiffusersHost) -> None:
    alone = train(host, make_examples(), replace(QUICK, steps=2))
    both = train(host, make_examples() + make_examples(seed=9, prior=True), replace(QUICK, steps=2))
    assert not any(bool(atoms.elsewhere.any()) for atoms in alone.sites.values())
    assert all(bool(atoms.elsewhere.any()) for atoms in both.sites.values())
    assert not any(torch.equal(atoms.elsewhere, atoms.importance) for atoms in both.sites.values())


# ------------------------------------------------------------------------------------------------------------- previews


def preview_into(shown: dict[int, Tensor], **options: object) -> Preview:
    shape = (CHANNELS, 8, 8)
    return Preview(random_condition(1, seed=7), random_condition(1, seed=8), shape, shown.__setitem__, **options)


def test_previews_come_every_so_often_and_change_nothing_that_is_learnt(host: DiffusersHost) -> None:
    shown: dict[int, Tensor] = {}
    watched = train(host, make_examples(), QUICK, preview=preview_into(shown, every=2))
    assert list(shown) == [2, 4] and all(latents.shape == (1, CHANNELS, 8, 8) for latents in shown.values())
    unwatched = train(host, make_examples(), QUICK)
    assert same(watched, unwatched) and watched.metadata == unwatched.metadata


def test_a_preview_shows_the_dictionary_as_it_stands_from_the_same_noise(host: DiffusersHost) -> None:
    shown: dict[int, Tensor] = {}
    learnt = train(host, make_examples(), QUICK, preview=preview_into(shown, every=2))
    again = preview_into({})
    torch.testing.assert_close(shown[4], again.draw(host, SparseAdapter(learnt)), rtol=1e-4, atol=1e-4)
    start = again.draw(host, SparseAdapter(initial_dictionary(host.layers, QUICK)))
    distances = [float((latents - start).norm()) for latents in shown.values()]
    assert 0 < distances[0] < distances[1]


def test_a_preview_in_a_resumed_training_changes_nothing_either(host: DiffusersHost, tmp_path: Path) -> None:
    state, shown = tmp_path / "fox.training", {}
    train(host, make_examples(), QUICK, stop_at(2), preview=preview_into(shown, every=1), autosave=state)
    resumed = train(host, make_examples(), QUICK, preview=preview_into(shown, every=1), autosave=state)
    assert list(shown) == [1, 2, 3, 4] and same(resumed, train(host, make_examples(), QUICK))


def test_a_stop_while_a_preview_is_drawn_keeps_what_was_learnt(host: DiffusersHost) -> None:
    def stop() -> None:
        raise TrainingStopped

    learnt = train(host, make_examples(), QUICK, preview=preview_into({}, every=2, on_step=stop))
    assert learnt.metadata["training"]["steps_done"] == 2


# ------------------------------------------------------------------------------------------------- stopping and resuming


def test_a_stop_keeps_what_was_learnt(host: DiffusersHost) -> None:
    seen: list[int] = []

    def on_step(progress: Progress) -> None:
        seen.append(progress.step)
        stop_at(2)(progress)

    learnt = train(host, make_examples(), QUICK, on_step)
    assert seen == [1, 2] and learnt.metadata["training"]["steps_done"] == 2
    assert all(bool(atoms.directions.any()) and bool(atoms.importance.any()) for atoms in learnt.sites.values())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    host: DiffusersHost, tmp_path: Path, ema: float
) -> None:
    state, examples, settings = tmp_path / "fox.state.safetensors", make_examples(), replace(QUICK, ema=ema)
    stopped = train(host, examples, settings, stop_at(2), autosave=state)
    resumed = train(host, examples, settings, autosave=state)
    assert same(resumed, train(host, examples, settings))
    assert resumed.metadata["training"]["finished"] and not stopped.metadata["training"]["finished"]


class Cancelled(Exception):
    """What a host raises in the middle of a model call."""


@contextmanager
def cancelled_in_call(host: DiffusersHost, number: int) -> Iterator[None]:
    """The host is interrupted in this call of the model, counted from 1."""
    denoise, calls = host.denoise, itertools.count(1)

    def interrupted(*arguments: object) -> Tensor:
        if next(calls) == number:
            raise Cancelled
        return denoise(*arguments)

    host.denoise, host.interruptions = interrupted, (Cancelled,)
    yield
    del host.denoise, host.interruptions


@pytest.mark.parametrize("call", [1, 4, 7, 10, 15, 17])
def test_a_training_cancelled_in_a_model_call_goes_on_as_if_it_had_not_been(
    host: DiffusersHost, tmp_path: Path, call: int
) -> None:
    """Calls are of steps, of two batches each, and of looks at the held-out pictures."""
    state, examples, held_out = tmp_path / "fox.training", make_examples(), {"held_out": make_examples(2, seed=5)}
    options = {"accumulate": 2, "ema": 0.9, "check_every": 2, "reseed_every": 2, "threshold": 3.0}
    settings = replace(QUICK, **options)
    with cancelled_in_call(host, call):
        stopped = train(host, examples, settings, autosave=state, **held_out)
    assert all(bool(torch.isfinite(t).all()) for atoms in stopped.sites.values() for t in atoms.tensors().values())
    seen: list[list[float]] = []
    resumed = train(host, examples, settings, lambda p: seen.append(p.held_out), autosave=state, **held_out)
    whole = train(host, examples, settings, lambda p: seen.append(p.held_out), **held_out)
    assert same(resumed, whole) and resumed.metadata == whole.metadata
    assert whole.metadata["training"]["atoms_reseeded"] > 0
    assert seen[-1] == TrainingState.load(state).held_out and len(seen[-1]) == 2


def test_what_was_learnt_is_still_there_when_measuring_it_fails(
    host: DiffusersHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, examples = tmp_path / "fox.training", make_examples()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop, "measure", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        train(host, examples, QUICK, autosave=state)
    steps: list[int] = []
    resumed = train(host, examples, QUICK, lambda p: steps.append(p.step), autosave=state)
    assert not steps and same(resumed, train(host, examples, QUICK))


def test_memory_that_does_not_suffice_is_told_on_a_processor_too(
    host: DiffusersHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_into(error: Callable[[], object]) -> None:
        monkeypatch.setattr(loop.Trainer, "draw", lambda *_: error())
        train(host, make_examples(), QUICK, autosave=tmp_path / "fox.training")

    with pytest.raises(
        MemoryError, match=r"Training ran out of memory .* Lower the batch .* train with resume to go on"
    ):
        train_into(lambda: torch.empty(1 << 50))
    with pytest.raises(RuntimeError, match="must match the size"):
        train_into(lambda: torch.ones(2) + torch.ones(3))


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_another_running_mean_is_refused(host: DiffusersHost, tmp_path: Path, before: float, after: float) -> None:
    state = tmp_path / "fox.training"
    train(host, make_examples(), replace(QUICK, ema=before), stop_at(1), autosave=state)
    with pytest.raises(ValueError, match=f"ema {before:g}"):
        train(host, make_examples(), replace(QUICK, ema=after), autosave=state)


def test_a_crash_loses_no_more_than_the_steps_since_the_last_autosave(host: DiffusersHost, tmp_path: Path) -> None:
    state, examples = tmp_path / "fox.state.safetensors", make_examples()

    def crash(progress: Progress) -> None:
        if progress.step == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(host, examples, QUICK, crash, autosave=state, autosave_every=2)
    steps: list[int] = []
    resumed = train(host, examples, QUICK, lambda p: steps.append(p.step), autosave=state)
    assert steps == [3, 4] and same(resumed, train(host, examples, QUICK))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"atoms": 5}, r"with atoms 8 \(now 5\)"),
        ({"check_every": 2}, r"with check_every 50 \(now 2\)"),
        ({"threshold": 0.1}, r"with threshold 0.5 \(now 0.1\)"),
        ({"sparsity": 0.0, "seed": 3}, r"with sparsity 0.0001 \(now 0.0\), seed 0 \(now 3\)"),
    ],
)
def test_a_state_of_another_training_is_refused(
    host: DiffusersHost, tmp_path: Path, other: dict[str, object], said: str
) -> None:
    state = tmp_path / "fox.state.safetensors"
    train(host, make_examples(), QUICK, stop_at(1), autosave=state)
    with pytest.raises(ValueError, match=said):
        train(host, make_examples(), replace(QUICK, **other), autosave=state)


def test_a_state_for_another_model_is_refused(host: DiffusersHost, tmp_path: Path) -> None:
    state = tmp_path / "fox.state.safetensors"
    train(host, make_examples(), QUICK, stop_at(1), autosave=state)
    examples = [replace(example, condition=random_condition(1, "sdxl")) for example in make_examples()]
    with pytest.raises(ValueError, match="another model"):
        train(tiny_host("sdxl"), examples, QUICK, autosave=state)


def test_a_training_goes_on_with_more_steps_a_lower_rate_and_less_memory(host: DiffusersHost, tmp_path: Path) -> None:
    state = tmp_path / "fox.state.safetensors"
    train(host, make_examples(), QUICK, stop_at(1), autosave=state)
    other = replace(QUICK, steps=6, learning_rate=1e-3, batch=1, checkpointing=True)
    assert train(host, make_examples(), other, autosave=state).metadata["training"]["steps_done"] == 6


@pytest.mark.parametrize("damage", ["cut", "random", "dictionary", "incomplete"])
def test_a_file_that_is_no_state_is_refused_by_name(host: DiffusersHost, tmp_path: Path, damage: str) -> None:
    state = tmp_path / "fox.state.safetensors"
    train(host, make_examples(), QUICK, stop_at(1), autosave=state)
    match damage:
        case "cut":
            state.write_bytes(state.read_bytes()[:-10])
        case "random":
            state.write_bytes(b"\x07" * 100)
        case "dictionary":
            save_dictionary(random_dictionary(), state)
        case "incomplete":
            save_file({"tensor/x": torch.zeros(1)}, state, {"format": FORMAT, "record": "{}"})
    with pytest.raises(ValueError, match=r"fox\.state\.safetensors .*Remove it"):
        train(host, make_examples(), QUICK, autosave=state)


def test_training_ends_when_the_held_out_loss_has_turned(host: DiffusersHost) -> None:
    with host.trainable():
        settings = replace(QUICK, patience=2)
        trainer = Trainer(host, DictionaryLearner(host, settings), make_examples(), settings)
    for losses, finished in (([3.0, 2.0], False), ([3.0, 2.0, 1.0, 1.5], False), ([3.0, 1.0, 1.5, 1.2], True)):
        trainer.held_out = losses
        assert trainer.finished == finished


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_when_the_held_out_loss_has_turned_the_weights_from_before_are_kept(
    host: DiffusersHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    settings = replace(QUICK, steps=8, check_every=1, ema=ema)
    goal = train(host, make_examples(), settings, stop_at(2))

    def turning(self: Trainer) -> float:
        return [2.0, 1.0, 3.0, 4.0][len(self.held_out)]

    monkeypatch.setattr(Trainer, "check", turning)
    watched = replace(settings, patience=2), {"held_out": make_examples(1, seed=5)}
    whole = train(host, make_examples(), watched[0], **watched[1])
    assert whole.metadata["training"]["steps_done"] == 4 and whole.metadata["training"]["held_out"] == [2, 1, 3, 4]
    assert same(whole, goal)
    state = tmp_path / "fox.training"
    train(host, make_examples(), watched[0], stop_at(3), autosave=state, **watched[1])
    assert same(train(host, make_examples(), watched[0], autosave=state, **watched[1]), goal)


# ------------------------------------------------------------------------------------------------------- half precision


def test_gradients_smaller_than_half_precision_reach_the_atoms() -> None:
    scale = LossScale(torch.float16)
    weight = torch.ones(3, requires_grad=True)

    def gradient(loss: Callable[[Tensor], Tensor]) -> Tensor:
        (found,) = torch.autograd.grad(loss((weight.half().float() * 1e-9).sum()), weight)
        return found

    assert not gradient(lambda loss: loss).any()
    found = gradient(scale.scaled)
    assert scale.unscale([found])
    torch.testing.assert_close(found, torch.full((3,), 1e-9), rtol=1e-2, atol=0)


def test_an_overflow_is_no_step_and_halves_the_scale_until_calm_doubles_it() -> None:
    scale = LossScale(torch.float16)
    assert not scale.unscale([torch.tensor([float("inf"), 1.0])])
    assert scale.state.tolist() == [HIGHEST / 2, 0]
    for _ in range(GROWS_AFTER):
        assert scale.unscale([torch.ones(2)])
    assert scale.state.tolist() == [HIGHEST, 0]
    scale.state[0] = 1
    with pytest.raises(ValueError, match="Lower the learning rate"):
        scale.unscale([torch.tensor([float("nan")])])


def test_other_precisions_are_left_alone() -> None:
    scale, loss = LossScale(torch.bfloat16), torch.ones(())
    assert scale.scaled(loss) is loss and scale.unscale([torch.tensor([float("inf")])])


def test_a_model_in_half_precision_learns_nearly_the_same_and_resumes(tmp_path: Path) -> None:
    half, state, settings = tiny_host(), tmp_path / "fox.training", replace(QUICK, steps=12)
    half.unet.half()
    full = train(tiny_host(), make_examples(), settings)
    texts = [Condition(example.condition.text.half()) for example in make_examples()]
    examples = [replace(example, condition=text) for example, text in zip(make_examples(), texts, strict=True)]
    learnt = train(half, examples, settings)
    one, other = (torch.cat([a.directions.flatten() for a in d.sites.values()]) for d in (learnt, full))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.9
    train(half, examples, settings, stop_at(5), autosave=state)
    assert same(train(half, examples, settings, autosave=state), learnt)


# ---------------------------------------------------------------------------------------------------- several processes


class InThread(Processes):
    """A process played by a thread."""

    def __init__(self, count: int, rank: int, barrier: Barrier, said: list[Tensor | None]) -> None:
        super().__init__(count, rank)
        self.barrier, self.said = barrier, said

    def everybodys(self, tensor: Tensor) -> list[Tensor]:
        self.said[self.rank] = tensor.detach().clone()
        self.barrier.wait(60)
        heard = list(self.said)
        self.barrier.wait(60)
        return heard

    def mean(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.everybodys(tensor)).mean(dim=0)

    def whole(self, rows: Tensor) -> Tensor:
        return torch.stack(self.everybodys(rows), dim=1).flatten(0, 1)


def train_in_threads(count: int, examples: list[Example], settings: TrainingSettings, **others: object) -> list:
    barrier, said = Barrier(count), [None] * count
    hosts = [tiny_host() for _ in range(count)]  # not in the threads: they share the generator that weights come from

    def one(rank: int) -> SparseDictionary:
        try:
            return train(hosts[rank], examples, settings, processes=InThread(count, rank, barrier, said), **others)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize(
    ("count", "batch", "options"),
    [
        (2, 2, {}),
        (2, 1, {}),  # one process sees nothing but pictures to learn, the other nothing but pictures to keep
        (3, 2, {"accumulate": 2}),
        (2, 2, {"reseed_every": 2, "threshold": 2.5}),
    ],
)
def test_several_processes_train_as_one_with_the_whole_batch_does(
    host: DiffusersHost, count: int, batch: int, options: dict[str, object]
) -> None:
    """Also the terms that are no sum over rows: the group term, and the search for atoms that never fired."""
    settings = replace(QUICK, sparsity=1e-2, selective=1e-2, **options)
    examples = make_examples(4) + make_examples(3, seed=9, prior=True)
    held_out = {"held_out": make_examples(2, seed=5)}
    settings = replace(settings, check_every=2)
    alone = train(host, examples, replace(settings, batch=batch * count), **held_out)
    shared = train_in_threads(count, examples, replace(settings, batch=batch), **held_out)
    assert all(same(shared[0], other) and shared[0].metadata == other.metadata for other in shared[1:])
    for site, atoms in alone.sites.items():
        for name, tensor in atoms.tensors().items():
            torch.testing.assert_close(shared[0].sites[site].tensors()[name], tensor, rtol=1e-2, atol=1e-3)
    records = [dictionary.metadata["training"] for dictionary in (alone, shared[0])]
    assert records[1]["final_loss"] == pytest.approx(records[0]["final_loss"], rel=1e-4)
    assert records[1]["atoms_reseeded"] == records[0]["atoms_reseeded"]
    assert bool(records[0]["atoms_reseeded"]) == bool(settings.reseed_every)


def test_the_leading_process_alone_keeps_the_state_and_all_go_on_from_it(host: DiffusersHost, tmp_path: Path) -> None:
    state, examples = tmp_path / "fox.training", make_examples(4)
    train_in_threads(2, examples, QUICK, on_step=stop_at(2), autosave=state)
    assert TrainingState.load(state).step == 2
    resumed = train_in_threads(2, examples, QUICK, autosave=state)
    assert same(resumed[0], train_in_threads(2, examples, QUICK)[0])


def test_a_batch_of_one_is_a_picture_to_keep_every_other_time(host: DiffusersHost) -> None:
    examples, generator = make_examples(3) + make_examples(3, seed=9, prior=True), Generator().manual_seed(0)
    kept = sum(bool(draw_batch(host, examples, 1, generator).prior) for _ in range(200))
    assert 70 < kept < 130


@given(st.integers(1, 40), st.integers(1, 12))
def test_prior_prompts_are_shared_out_among_sizes(prompts: int, sizes: int) -> None:
    shares = shared_out(range(prompts), sizes)
    drawn = [prompt for share in shares for prompt in share]
    assert set(drawn) == set(range(prompts)) and 16 <= len(drawn) < max(16, prompts) + sizes
    assert len(shares) == sizes and len(set(map(len, shares))) == 1


def test_an_atom_that_starts_anew_changes_nothing_yet(host: DiffusersHost) -> None:
    settings = replace(QUICK, steps=20, reseed_every=4, threshold=2.0, batch=4, ema=0.5)
    with host.trainable():
        learner = DictionaryLearner(host, settings)
        trainer = Trainer(host, learner, make_examples(), settings)
        for _ in range(7):
            trainer.advance()
        silent = {site: ~fired for site, fired in learner.fired.items()}
        moved = sum(
            float(learner.dictionary.sites[site].directions[rows].detach().abs().sum()) for site, rows in silent.items()
        )
        assert moved > 0  # they fired before they fell silent
        for tensor in learner.buffers().values():
            if tensor.dtype == torch.bool:
                tensor.zero_()
        before = {site: atoms.encoder.detach().clone() for site, atoms in learner.dictionary.sites.items()}
        trainer._forget(learner.maintain(torch.rand(4, 1, 8, 8)))
    anew = 0
    for site, atoms in learner.dictionary.sites.items():
        rows = (atoms.encoder != before[site]).any(dim=1)
        anew += int(rows.sum())
        assert not atoms.directions[rows].any() and not atoms.bias[rows].any()
        assert not trainer.smoothed()[f"{site}.directions"][rows].any()
        torch.testing.assert_close(trainer.smoothed()[f"{site}.encoder"][rows], atoms.encoder[rows].detach())
    assert anew > 0


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (12, 7)])
def test_atoms_start_anew_as_detectors_of_the_worst_places_whatever_the_pictures_shape(
    host: DiffusersHost, size: tuple[int, int]
) -> None:
    settings = replace(QUICK, attentions=("attn1",), projections=("q",), atoms=2)
    with host.trainable():
        learner = DictionaryLearner(host, settings)
        Trainer(host, learner, make_examples(size=size), settings).advance()
        error = torch.zeros(2, 1, *size)
        error[1, :, -1, -1] = 1  # the lower right corner of the second picture
        for fired in learner.fired.values():
            fired.zero_()
        learner.maintain(error)
        for site, seen in learner.seen.items():
            corner = torch.nn.functional.normalize(seen.x[1, -1], dim=0)
            torch.testing.assert_close(learner.dictionary.sites[site].encoder[0].detach(), corner)


def test_measuring_takes_the_precision_of_training_and_goes_picture_by_picture_where_memory_is_short(
    host: DiffusersHost,
) -> None:
    denoise, rows = host.denoise, []

    def watched(noisy: Tensor, *others: object) -> Tensor:
        assert torch.is_autocast_enabled("cpu")
        if not torch.is_grad_enabled():
            rows.append(len(noisy))
            if len(noisy) > 1:
                raise torch.OutOfMemoryError
        return denoise(noisy, *others)

    host.denoise = watched
    learnt = train(host, make_examples(5), replace(QUICK, batch=1, autocast=True))
    del host.denoise
    assert rows == [4, *[1] * 8]
    assert any(bool(atoms.importance.any()) for atoms in learnt.sites.values())


def test_atoms_do_not_start_anew_where_the_loss_does_not_count(
    host: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    examples, seen = [replace(example, mask=mask) for example in make_examples()], []
    monkeypatch.setattr(DictionaryLearner, "maintain", lambda self, error: seen.append(error) or [])
    train(host, examples, replace(QUICK, reseed_every=2))
    (error,) = seen
    assert bool(error[..., :4].all()) and not error[..., 4:].any()


def test_each_process_gets_its_rows_of_the_whole_batch(host: DiffusersHost) -> None:
    examples = make_examples(3) + make_examples(3, seed=9, prior=True)
    whole = draw_batch(host, examples, 6, Generator().manual_seed(0))
    parts = [draw_batch(host, examples, 6, Generator().manual_seed(0), Processes(3, rank).own) for rank in range(3)]
    for name in ("latents", "noise", "progress", "mask", "prior"):
        together = torch.stack([getattr(part, name) for part in parts], dim=1).flatten(0, 1)
        assert torch.equal(together, getattr(whole, name)), name
    texts = torch.stack([part.condition.text for part in parts], dim=1).flatten(0, 1)
    assert torch.equal(texts, whole.condition.text)
    assert all(part.prior.tolist() == [False, True] for part in parts)


# -------------------------------------------------------------------------------------------------------------- refusals


def test_nothing_to_learn_from_is_an_error(host: DiffusersHost) -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        train(host, [], QUICK)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_says_at_which_step_and_what_to_do(host: DiffusersHost, value: float) -> None:
    bad = [Example(torch.full((CHANNELS, 8, 8), value), random_condition(1))]
    with pytest.raises(ValueError, match=r"The loss is (nan|inf) at step 1\. Lower the learning rate \(now 0\.01\)"):
        train(host, bad, QUICK)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("atoms", 0),
        ("threshold", -0.1),
        ("threshold", math.nan),
        ("sparsity", -1),
        ("learning_rate", 0),
        ("learning_rate", 1),
        ("learning_rate", math.nan),
    ],
)
def test_a_setting_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} is {value}; expected"):
        replace(QUICK, **{name: value})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_in_range_and_leaves_memory_time_and_chance_alone(name: str) -> None:
    assert replace(TrainingSettings(), **PRESETS[name]).steps >= 1
    assert not {"accumulate", "checkpointing", "autocast", "seed"} & PRESETS[name].keys()


def test_presets_differ_in_what_they_are_for() -> None:
    assert TrainingSettings().steps > PRESETS["single picture"]["steps"]
    assert TrainingSettings().threshold > PRESETS["style"]["threshold"]


def test_patience_with_nothing_held_out_is_refused(host: DiffusersHost) -> None:
    with pytest.raises(ValueError, match="patience is 2, but no pictures are held out"):
        train(host, make_examples(), replace(QUICK, patience=2))


def test_a_preview_every_0_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="every 0 steps; expected at least 1"):
        preview_into({}, every=0)


def test_sites_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="no projection x; expected some of q, k, v, o"):
        replace(QUICK, projections=("q", "x"))
    with pytest.raises(ValueError, match="No site is chosen"):
        replace(QUICK, projections=())


# ------------------------------------------------------------------------------------------------------------ objective


@pytest.mark.parametrize("signal", [0.05, 0.3, 0.8])  # signal-to-noise ratios below the cap
@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_the_loss_on_clean_latents_is_the_loss_on_what_the_model_predicts(prediction: str, signal: float) -> None:
    generator = Generator().manual_seed(0)
    latents, noise, wrong = (torch.randn(100, generator=generator).double() for _ in range(3))

    def errors(a: float, b: float, target: Tensor, clean: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        noisy, prediction = a * latents + b * noise, target + 0.1 * wrong
        return (clean(noisy, prediction) - latents).square().mean(), (prediction - target).square().mean()

    a, b = math.sqrt(signal), math.sqrt(1 - signal)
    match prediction:
        case "eps":
            on_clean, direct = errors(a, b, noise, lambda x, p: (x - b * p) / a)
        case "v":
            on_clean, direct = errors(a, b, a * noise - b * latents, lambda x, p: a * x - b * p)
        case "flow":
            a, b = signal, 1 - signal
            on_clean, direct = errors(a, b, noise - latents, lambda x, p: x - b * p)
    snr = (a / b) ** 2
    capped = min(snr, SNR_CAP)
    weight = float(loss_weight(prediction, torch.tensor([snr]).double()))
    if snr <= SNR_CAP:
        assert weight * float(on_clean) == pytest.approx(float(direct), rel=1e-6)
    else:
        assert weight == pytest.approx(float(loss_weight(prediction, torch.tensor([capped]).double())))


@pytest.mark.parametrize(("prediction", "largest"), [("eps", 5.0), ("v", 6.0), ("flow", (1 + math.sqrt(5)) ** 2)])
def test_nearly_clean_pictures_do_not_dominate(prediction: str, largest: float) -> None:
    weights = loss_weight(prediction, torch.tensor([0.0, 1.0, 5.0, 100.0, 1e8]))
    assert float(weights.max()) == pytest.approx(largest)
    assert bool((weights[1:] >= weights[:-1]).all()) and bool(torch.isfinite(weights).all())


def test_an_unknown_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="no prediction type 'x0'"):
        loss_weight("x0", torch.ones(1))


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = replace(QUICK, steps=200)
    factors = [learning_rate_factor(step, settings) for step in range(200)]
    peak = factors.index(max(factors))
    assert max(factors) == pytest.approx(1) and 0 < factors[0] <= 0.1 and 9 <= peak <= 11
    assert factors[:peak] == sorted(factors[:peak]) and factors[peak:] == sorted(factors[peak:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_coefficients_of_a_wider_model_move_no_faster() -> None:
    """One step of Adam changes every entry of an encoder by its rate; what it reads has rms 1."""

    def fastest(width: int) -> float:
        layers = (Layer("middle.0.0.attn1", width, width, width),)
        host = SimpleNamespace(layers=layers, device=torch.device("cpu"))
        return width * DictionaryLearner(host, TrainingSettings(atoms=2)).learning_rate("L0.q.encoder")

    assert fastest(64) < fastest(128) == pytest.approx(fastest(512)) == pytest.approx(fastest(1280))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_shortest_trainings_have_a_learning_rate(steps: int) -> None:
    settings = replace(QUICK, steps=steps)
    assert all(0 < learning_rate_factor(step, settings) <= 1 for step in range(steps))


# -------------------------------------------------------------------------------------------------------------- batches


def test_a_batch_holds_pictures_of_one_size_and_all_sizes_get_their_turn(host: DiffusersHost) -> None:
    examples = make_examples(3) + make_examples(2, (6, 8), seed=5)
    generator = Generator().manual_seed(0)
    sizes = [tuple(draw_batch(host, examples, 4, generator).latents.shape) for _ in range(30)]
    assert set(sizes) == {(4, CHANNELS, 8, 8), (4, CHANNELS, 6, 8)}
    assert 10 <= sizes.count((4, CHANNELS, 8, 8)) <= 26


def test_a_batch_repeats_no_picture_before_it_has_all(host: DiffusersHost) -> None:
    examples = make_examples(3)
    batch = draw_batch(host, examples, 7, Generator().manual_seed(0))
    which = [next(n for n, e in enumerate(examples) if torch.equal(e.latents, row)) for row in batch.latents]
    assert sorted(which[:3]) == sorted(which[3:6]) == [0, 1, 2]
    for n, text in zip(which, batch.condition.text, strict=True):
        assert torch.equal(text, examples[n].condition.text[0])


def test_noise_levels_are_spread_evenly_and_draws_repeat_by_seed(host: DiffusersHost) -> None:
    examples = make_examples(3)
    first, again = (draw_batch(host, examples, 4, Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.latents, again.latents)
    assert [int(4 * p) for p in first.progress.sort().values.tolist()] == [0, 1, 2, 3]


def test_half_of_a_batch_is_prior_pictures_where_there_are_any(host: DiffusersHost) -> None:
    batch = draw_batch(host, make_examples(2) + make_examples(3, seed=9, prior=True), 4, Generator().manual_seed(0))
    assert batch.prior.tolist() == [False, False, True, True]


# ------------------------------------------------------------------------------------------------------------- measuring


def test_atoms_that_never_fire_have_no_importance(host: DiffusersHost) -> None:
    dictionary = random_dictionary(host.layers).map(
        lambda atoms: replace(atoms, threshold=torch.tensor([0.0, 0.1, 0.2, 1e6]))
    )
    measured = measure(host, dictionary, make_examples())
    for importance in measured.mean_importance().values():
        assert float(importance[3]) == 0 and bool((importance[:3] > 0).all())
    assert 0.25 < measured.active_share() <= 0.75


def test_a_measurement_repeats_by_seed(host: DiffusersHost) -> None:
    dictionary, examples = random_dictionary(host.layers), make_examples()
    first, again = (measure(host, dictionary, examples, seed=3).mean_importance() for _ in range(2))
    assert all(torch.equal(first[site], again[site]) for site in first)


def test_a_cancel_inside_the_model_keeps_what_was_learnt_and_a_second_one_ends_measuring(host: DiffusersHost) -> None:
    class Cancelled(Exception):
        pass

    calls = 0

    class Cancelling(type(host)):
        interruptions = (Cancelled,)

        def denoise(self, *arguments: object) -> Tensor:
            nonlocal calls
            calls += 1
            if calls > 3:
                raise Cancelled
            return super().denoise(*arguments)

    learnt = train(Cancelling(host.pipeline), make_examples(), QUICK)
    assert learnt.metadata["training"]["steps_done"] == 3
    assert any(atoms.directions.any() for atoms in learnt.sites.values())
