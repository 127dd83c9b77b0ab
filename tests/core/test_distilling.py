"""A teacher's answers as something to learn from."""

from __future__ import annotations

import pytest
import torch
from factories import CHANNELS, random_condition, random_dictionary, tiny_host
from torch import Generator

from sparse_core.controls import SparseAdapter
from sparse_core.examples import draw_batch
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.training import Example, TrainingSettings, questioned, train

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
    with host.patched([teacher]):
        prompts = [random_condition(1, seed=seed) for seed in (1, 2)]
        return questioned(host, prompts, random_condition(1, seed=3), SHAPE, pictures=4, questions=3)


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


def test_pictures_without_answers_are_their_own_target(host: DiffusersHost) -> None:
    example = Example(torch.randn(SHAPE), random_condition(1))
    batch = draw_batch(host, [example], 2, Generator().manual_seed(0))
    assert torch.equal(batch.target, batch.latents)


def test_the_pupil_comes_closer_to_the_teacher_than_the_plain_model(
    host: DiffusersHost, teacher: SparseAdapter, asked: list[Example]
) -> None:
    learnt = SparseAdapter(train(host, asked, SETTINGS))
    noise = torch.randn(6, *SHAPE, generator=Generator().manual_seed(0))
    x, at, condition = noise, torch.linspace(0.1, 0.9, 6), random_condition(6, seed=1)
    said = []
    for stack in ([], [teacher], [learnt]):
        with torch.no_grad(), host.patched(stack):
            said.append(host.denoise(x, at, condition))
    plain, goal, pupil = said
    assert (pupil - goal).square().mean() < 0.6 * (plain - goal).square().mean()


@pytest.mark.parametrize(("prompts", "pictures", "said"), [(0, 1, "no prompts"), (1, 0, "There are 0 pictures")])
def test_nothing_to_ask_is_refused(host: DiffusersHost, prompts: int, pictures: int, said: str) -> None:
    condition = random_condition(1)
    with pytest.raises(ValueError, match=said):
        questioned(host, [condition] * prompts, condition, SHAPE, pictures=pictures)
