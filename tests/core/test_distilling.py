"""A teacher's answers as something to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import CHANNELS, TEXT, random_condition, random_dictionary, tiny_host
from safetensors.torch import save_file
from torch import Generator, Tensor

from sparse_core import cli
from sparse_core.controls import SparseAdapter, Stack
from sparse_core.examples import Batch, draw_batch
from sparse_core.files import load_dictionary
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Layer, Site
from sparse_core.training import Example, TrainingSettings, distil, distilling, questioned, train
from sparse_core.training.distilling import MatchingTrainer, feature_error
from sparse_core.training.learners import DictionaryLearner, initial_dictionary
from sparse_core.training.loop import Trainer

SHAPE = (CHANNELS, 8, 8)
SETTINGS = TrainingSettings(steps=60, batch=4, atoms=8, threshold=0.5, learning_rate=0.01)


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    return tiny_host()


@pytest.fixture(scope="module")
def teacher(host: DiffusersHost) -> SparseAdapter:
    """As a LoRA is: dense."""
    lora = random_dictionary(host.layers, seed=7, normalise=False, threshold=0.0)
    return SparseAdapter(lora).at_strength(0.3)


@pytest.fixture(scope="module")
def asked(host: DiffusersHost, teacher: SparseAdapter) -> list[Example]:
    prompts = [random_condition(1, seed=seed) for seed in (1, 2)]
    return questioned(host, prompts, random_condition(1, seed=3), SHAPE, stack=[teacher], pictures=4, questions=3)


class Reader:
    """Keeps what an adapter's sites read."""

    def __init__(self) -> None:
        self.x: dict[Site, Tensor] = {}

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, *_: object) -> None:
        self.x[site] = x


@torch.no_grad()
def features_apart(host: DiffusersHost, batch: Batch, adapter: SparseAdapter) -> float:
    """Mean `feature_error` of a batch."""
    reader = Reader()
    with host.patched([adapter], reader):
        host.denoise(host.add_noise(batch.latents, batch.noise, batch.progress), batch.progress, batch.condition)
    return float(torch.stack([feature_error(reader.x[site], goal) for site, goal in batch.features.items()]).mean())


def test_every_picture_is_asked_at_all_noise_levels(asked: list[Example]) -> None:
    assert len(asked) == 12
    assert not any(example.prior for example in asked)
    levels = sorted(example.answer.progress for example in asked)
    assert all(level // (1 / 3) == number // 4 for number, level in enumerate(levels))


def test_an_answer_is_what_the_teacher_says_and_stands_in_the_pictures_place(
    host: DiffusersHost, teacher: SparseAdapter, asked: list[Example]
) -> None:
    batch = draw_batch(host, asked, 5, Generator().manual_seed(0))
    with torch.no_grad(), host.patched([teacher]):
        said = host.denoise(host.add_noise(batch.latents, batch.noise, batch.progress), batch.progress, batch.condition)
    torch.testing.assert_close(batch.target, said, rtol=1e-4, atol=1e-5)


class Elsewhere:
    """A teacher whose device is not the processor's memory, where pictures are kept."""

    device = torch.device("meta")

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers
        self.met: list[torch.device] = []

    def patched(self, stack: Stack, observer: object = None) -> nullcontext:
        return nullcontext()

    def stack_conditions(self, conditions: Sequence[object]) -> object:
        return conditions

    def add_noise(self, latents: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
        self.met = [latents.device, noise.device]
        return noise

    def denoise(self, noisy: Tensor, progress: Tensor, condition: object) -> Tensor:
        raise InterruptedError


def test_pictures_and_noise_meet_on_the_teachers_device(host: DiffusersHost, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [Example(torch.zeros(SHAPE), None)]
    monkeypatch.setattr(distilling, "prior_examples", lambda *_, **__: kept)
    teacher = Elsewhere(host.layers)
    with pytest.raises(InterruptedError):
        questioned(teacher, [None], None, SHAPE, pictures=1, questions=2)
    assert teacher.met == [teacher.device] * 2


def test_features_are_those_of_the_teacher_and_not_of_the_plain_model(
    host: DiffusersHost, teacher: SparseAdapter, asked: list[Example]
) -> None:
    batch = draw_batch(host, asked, 5, Generator().manual_seed(0))
    assert {site.projection for site in batch.features} == {"q", "o"}
    assert {site.layer for site in batch.features} == set(range(len(host.layers)))
    assert features_apart(host, batch, teacher) < 1e-4  # they are kept in half precision
    silent = SparseAdapter(initial_dictionary(host.layers, SETTINGS))
    assert features_apart(host, batch, silent) > 0.01


def test_pictures_among_answers_have_no_features(host: DiffusersHost, asked: list[Example]) -> None:
    picture = replace(asked[0], answer=None)
    assert draw_batch(host, [picture], 2, Generator().manual_seed(0)).features == {}


def test_features_guide_the_first_part_of_a_training(host: DiffusersHost, asked: list[Example]) -> None:
    batch = draw_batch(host, asked, 8, Generator().manual_seed(3))
    guided, unguided = (SparseAdapter(learn(host, asked, SETTINGS)) for learn in (distil, train))
    assert features_apart(host, batch, guided) < 0.9 * features_apart(host, batch, unguided)
    trainer = MatchingTrainer(host, DictionaryLearner(host, SETTINGS), asked, SETTINGS)
    with trainer.learner.at_work(batch.prior):
        first = trainer.errors(batch)[0]
        trainer.step = SETTINGS.steps
        last = trainer.errors(batch)[0]
    assert (first > last).all() and torch.equal(last, Trainer.errors(trainer, batch)[0])


def test_pictures_without_answers_are_their_own_target(host: DiffusersHost) -> None:
    example = Example(torch.randn(SHAPE), random_condition(1))
    batch = draw_batch(host, [example], 2, Generator().manual_seed(0))
    assert torch.equal(batch.target, batch.latents)


def test_the_pupil_comes_closer_to_the_teacher_than_the_plain_model(
    host: DiffusersHost, teacher: SparseAdapter, asked: list[Example]
) -> None:
    learnt = SparseAdapter(distil(host, asked, SETTINGS))
    noise = torch.randn(6, *SHAPE, generator=Generator().manual_seed(0))
    x, at, condition = noise, torch.linspace(0.1, 0.9, 6), random_condition(6, seed=1)
    said = []
    for stack in ([], [teacher], [learnt]):
        with torch.no_grad(), host.patched(stack):
            said.append(host.denoise(x, at, condition))
    plain, goal, pupil = said
    assert (pupil - goal).square().mean() < 0.6 * (plain - goal).square().mean()


def test_answers_of_another_model_are_refused(host: DiffusersHost, asked: list[Example]) -> None:
    site, feature = next(iter(asked[0].answer.features.items()))
    wider = feature._replace(values=feature.values.repeat(1, 2))
    other = replace(asked[0], answer=asked[0].answer._replace(features={site: wider}))
    with pytest.raises(ValueError, match="other attention layers"):
        distil(host, [other], SETTINGS)


@pytest.mark.parametrize(("prompts", "pictures", "said"), [(0, 1, "no prompts"), (1, 0, "There are 0 pictures")])
def test_nothing_to_ask_is_refused(host: DiffusersHost, prompts: int, pictures: int, said: str) -> None:
    condition = random_condition(1)
    with pytest.raises(ValueError, match=said):
        questioned(host, [condition] * prompts, condition, SHAPE, pictures=pictures)


# ------------------------------------------------------------------------------------------------------ the command line

OF_THE_UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
OF_THE_TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model in place of the one that the command loads."""
    pipeline = tiny_host().pipeline
    pipeline.encode_prompt = lambda prompt, *_: (random_condition(1, seed=len(prompt)).text, None)
    monkeypatch.setattr("sparse_core.pipelines.load_pipeline", lambda *_: pipeline)


def write_lora(path: Path, *modules: str) -> Path:
    down, up = torch.ones(2, TEXT["sd"]), torch.ones(16, 2)
    pairs = {module: {"A": down, "B": up} for module in modules}
    save_file({f"{m}.lora_{n}.weight": t.clone() for m, pair in pairs.items() for n, t in pair.items()}, path)
    return path


def run_distil(lora: Path, out: Path) -> int:
    quick = ["--pictures", "1", "--steps", "1", "--atoms", "2"]
    return cli.main(["distil", str(lora), "--prompt", "a zib", "--out", str(out), *quick])


@pytest.mark.usefixtures("plain")
def test_what_the_teacher_lacks_of_the_lora_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    lora = write_lora(tmp_path / "both.safetensors", OF_THE_UNET, OF_THE_TEXT)
    assert run_distil(lora, tmp_path / "made.safetensors") == 0
    said = capsys.readouterr()
    assert "both.safetensors: 1 atoms in 1 sites" in said.out and "100%" in said.out
    warning = next(line for line in said.err.splitlines() if line.startswith("Warning"))
    for words in ("the teacher lacks what both.safetensors does to the text encoder", "ComfyUI", "CLIP"):
        assert words in warning


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("name", ["made", "made.safetensors", "made.v2"])
def test_a_distilled_file_is_named_as_load_sparse_dictionary_looks_for_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    lora = write_lora(tmp_path / "lora.safetensors", OF_THE_UNET)
    assert run_distil(lora, tmp_path / name) == 0
    stem = name.removesuffix(".safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {lora.name, f"{stem}.safetensors"}
    assert load_dictionary(tmp_path / f"{stem}.safetensors").metadata["modelspec.title"] == stem
    assert "Warning" not in capsys.readouterr().err
