"""The editing benchmark: edits are what they say, scores know right from wrong, and a stopped run goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from factories import needs_model

from benchmarks.editing import table
from benchmarks.editing.__main__ import TIERS, read_arguments
from benchmarks.editing.edits import CHANGES, Edit, distance, edits, named, truths
from benchmarks.editing.learning import learn, single_picture
from benchmarks.editing.methods import (
    DENSITIES,
    GUIDANCE,
    OURS,
    STEPS,
    Editor,
    Look,
    edited,
    editors,
    inverted_noise,
    random_noises,
)
from benchmarks.editing.report import Measured, as_markdown, success_at, summary, write
from benchmarks.editing.scores import check, obeyed, preserved, text
from benchmarks.editing.table import Bench
from benchmarks.quality.concepts import half_of
from benchmarks.quality.methods import Method, Point, at_work
from benchmarks.quality.words import PromptedHost
from sparse_core.demo.judge import Judge, answers
from sparse_core.demo.model import load_pipeline
from sparse_core.demo.sprites import FluentArt
from sparse_core.demo.world import CORE, World
from sparse_core.sampling import sample
from sparse_core.training import Example, TrainingSettings

SHORT = Method(OURS, "dictionary", TrainingSettings(steps=2, batch=1, warm_up=0))


@pytest.fixture(scope="module")
def world() -> World:
    try:
        return World(FluentArt())
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def host() -> PromptedHost:
    return PromptedHost(load_pipeline())


# ---------------------------------------------------------------------------------------------------------------- edits


def test_there_are_thirty_held_out_edits_of_all_kinds() -> None:
    chosen = edits("held_out", TIERS["whole"].edits)
    assert len(chosen) >= 30
    assert set(Counter(edit.kind for edit in chosen)) == set(CHANGES)
    assert len({edit.prompts for edit in chosen}) == len(chosen)


@pytest.mark.parametrize("half", ["dev", "held_out"])
def test_an_edit_stays_in_its_half(half: str) -> None:
    for edit in edits(half, 24):
        assert half_of(edit.source) == half_of(edit.target) == half


def test_an_edit_changes_what_its_kind_says_and_nothing_else() -> None:
    questions = {
        "colour": {"colour"},
        "thing": {"thing"},
        "scene": {"scene"},
        "style": {"style"},
        "add": {"thing", "colour", "size"},
        "remove": {"thing", "colour", "size"},
    }
    for edit in edits("held_out", 36):
        before, after = (answers(named(scene)) for scene in (edit.source, edit.target))
        changed = {question for question in after if after[question] != before[question]}
        assert changed and {question.split()[0] for question in changed} <= questions[edit.kind], edit.name
        assert len({question.split()[1:][0] for question in changed if " " in question}) <= 1, "at one place"
        assert edit.source.seed == edit.target.seed


def test_prompts_name_no_colour_that_a_thing_has_in_this_picture_alone() -> None:
    strange = 0
    for edit in edits("held_out", 36):
        for scene, prompt in zip((edit.source, edit.target), edit.prompts, strict=True):
            for thing in scene.things:
                assert thing.word in prompt
                if thing.word not in CORE:
                    assert f"{thing.colour} {thing.word}" not in prompt
                    strange += thing.colour is not None
    assert strange > 20


def test_pictures_differ_only_where_the_edit_is(world: World) -> None:
    for edit in edits("held_out", 12):
        source, target, kept = truths(world, edit)
        assert (source[kept] == target[kept]).all()
        assert kept.mean() > 0.03
        assert (source != target).any()


# --------------------------------------------------------------------------------------------------------------- scores


@needs_model
def test_the_judge_tells_right_answers_from_untouched_sources(world: World) -> None:
    judge, chosen = Judge.load(), edits("held_out", 24)
    pictures = [truths(world, edit)[:2] for edit in chosen]
    seen_source, seen_target = (judge.read(np.stack([pair[n] for pair in pictures])) for n in (0, 1))
    assert np.mean([obeyed(edit, seen) for edit, seen in zip(chosen, seen_target, strict=True)]) > 0.9
    assert np.mean([obeyed(edit, seen) for edit, seen in zip(chosen, seen_source, strict=True)]) < 0.05


@needs_model
def test_text_asks_only_for_what_the_judge_can_read_in_the_right_answer() -> None:
    edit = next(edit for edit in edits("held_out", 36) if edit.kind == "scene")
    right = answers(named(edit.target))
    thing = edit.target.things[0]
    blind = {**right, f"thing {thing.place}": "nothing"}
    assert text(edit, right, right) == 1
    assert 0 < text(edit, blind, right) < 1
    assert text(edit, answers(named(edit.source)), right) < 1
    assert text(edit, {**right, f"size {thing.place}": "nothing"}, {**right, f"size {thing.place}": "nothing"}) == 1


def test_distance_looks_at_what_is_to_stay() -> None:
    source = np.zeros((8, 8, 3), np.uint8)
    made = source.copy()
    made[:4] = 100
    kept = np.zeros((8, 8), bool)
    kept[4:] = True
    assert distance(made, source, kept) == 0
    assert distance(made, source, ~kept) == 100


def test_preserved_goes_from_unrelated_to_as_near_as_can_be() -> None:
    lowest, unrelated = [1.0, 3.0], [11.0, 23.0]
    assert preserved(lowest, lowest, unrelated) == 1
    assert preserved(unrelated, lowest, unrelated) == 0
    assert preserved([6.0, 13.0], lowest, unrelated) == pytest.approx(0.5)
    assert preserved([0.0, 0.0], lowest, unrelated) == 1


def test_scores_that_know_nothing_are_refused() -> None:
    good, bad = {"obeyed": 1.0, "preserved": 1.0}, {"obeyed": 0.0, "preserved": 0.0}
    check(good, {**bad, "preserved": 1.0}, {**good, "preserved": 0.0})
    with pytest.raises(ValueError, match=r"'obeyed'.*untouched sources"):
        check(good, good, {**good, "preserved": 0.0})
    with pytest.raises(ValueError, match=r"'preserved'.*base's pictures"):
        check(good, {**bad, "preserved": 1.0}, good)


@pytest.mark.parametrize(
    ("points", "success"),
    [
        ([(0.2, 0.9), (0.8, 0.5)], 0.5),  # half way between the two
        ([(0.2, 0.9), (0.1, 0.8), (0.8, 0.5)], 0.5),  # a worse setting adds nothing
        ([(0.6, 0.9)], 0.6),  # more is preserved than asked
        ([(1.0, 0.6)], 0.0),  # never reached
        ([], 0.0),
    ],
)
def test_success_at_a_level_of_preservation(points: list[tuple[float, float]], success: float) -> None:
    assert success_at(points, 0.7) == pytest.approx(success)


# -------------------------------------------------------------------------------------------------------------- methods


def test_ours_and_the_lora_have_the_same_sliders_and_settings() -> None:
    by_name = {editor.name: editor for editor in editors(single_picture(), 1e-3, (0.5, 1.5))}
    ours, lora = by_name[OURS], by_name["LoRA"]
    assert ours.looks == lora.looks
    assert {look.density for look in ours.looks} == set(DENSITIES)
    assert replace(lora.method.settings, learning_rate=ours.method.settings.learning_rate) == ours.method.settings
    assert len({editor.name for editor in by_name.values()}) == 6


@needs_model
def test_the_sampler_takes_the_packs_own_steps(host: PromptedHost) -> None:
    noise = random_noises(torch.zeros(host.unet.config.in_channels, 8, 8), 2)
    prompt = "a big red cat on the left in the snow, picture book"
    positive, negative = (host.stack_conditions([words] * 2) for words in (prompt, ""))
    expected = sample(host, positive, noise, steps=STEPS, guidance=GUIDANCE, negative=negative)
    found = edited(host, torch.zeros_like(noise[0]), noise, ("", prompt), Look())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@needs_model
def test_inverted_noise_leads_back_to_the_source(host: PromptedHost) -> None:
    shape = (host.unet.config.in_channels, 8, 8)
    prompt = "a big red cat on the left in the snow, picture book"
    source = sample(host, host.stack_conditions([prompt]), torch.randn(1, *shape), steps=STEPS, guidance=1)[0]
    noise = inverted_noise(host, source, prompt, STEPS)
    back = sample(host, host.stack_conditions([prompt]), noise, steps=STEPS, guidance=1)
    away = edited(host, source, noise, (prompt, "a small blue car on the right at sunset, paper cutout"), Look())
    assert (back[0] - source).abs().mean() < 0.1 * (away[0] - source).abs().mean()


@needs_model
@pytest.mark.parametrize("family", ["dictionary", "lora"])
def test_learning_a_picture_brings_the_model_nearer_to_it_and_leaves_no_trace(host: PromptedHost, family: str) -> None:
    method = Method(family, family, TrainingSettings(steps=12, batch=2, learning_rate=8e-3, warm_up=0))
    example = Example(torch.randn(host.unet.config.in_channels, 8, 8), "a big cat on the left in the snow")

    @torch.no_grad()
    def error() -> float:
        progress, noise = torch.tensor([0.4]), random_noises(example.latents, 1)
        noisy = host.add_noise(example.latents[None], noise, progress)
        estimate = host.denoise(noisy, progress, host.stack_conditions([example.condition]))
        return float((estimate - example.latents).square().mean())

    before = error()
    learnt = learn(host, example, method, seed=0)
    assert error() == before
    with at_work(host, method, learnt.taught, Point()):
        assert error() < before


# ---------------------------------------------------------------------------------------------------------- the table


def _bench(world: World, tmp_path: Path) -> Bench:
    return Bench(world, tmp_path / "cache", pictures=1, sheets=tmp_path / "pictures")


@needs_model
def test_a_stopped_run_goes_on_where_it_was(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = [Editor(OURS, SHORT, (Look(), Look(0.5, 0.25))), Editor("inversion", None, (Look(1.0, 1.0, 9, True),))]
    edit = edits("held_out", 1)
    trained: list[str] = []

    def counted(host: Any, example: Any, method: Method, seed: int) -> Any:
        trained.append(method.name)
        return learn(host, example, method, seed)

    monkeypatch.setattr(table, "learn", counted)
    bench = _bench(world, tmp_path)
    bench.looks(edit[0], compared[0], 0)
    assert not bench.complete(edit[0], compared, 0)
    again = _bench(world, tmp_path)
    again.fill(edit, compared, 0)
    assert again.complete(edit[0], compared, 0)
    assert trained == [OURS]
    assert not again.complete(edit[0], compared, seed=1)
    found = again.looks(edit[0], compared[0], 0)
    assert len(found) == 2 and len(found[0]["distance"]) == 1
    assert again.reference(edit[0])["unrelated"]["distance"][0] > again.reference(edit[0])["vae"]["distance"][0]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2


# ---------------------------------------------------------------------------------------------------------- the report


def _made_up(edit: Edit, compared: list[Editor]) -> Measured:
    """Ours is obeyed more the fewer atoms are left; the LoRA's sliders do nothing."""

    def cell(share: float, far: float) -> dict[str, list[float]]:
        return {"obeyed": [share], "text": [share], "distance": [far]}

    reference = {
        "target": cell(1, 0),
        "source": cell(0, 0),
        "vae": cell(0, 1),
        "base": cell(1, 11),
        "unrelated": cell(1, 11),
    }
    looks = {
        editor.name: [
            cell(1 - look.density / 2, 3 - look.density) if editor.name == OURS else cell(0.5, 7)
            for look in editor.looks
        ]
        for editor in compared
    }
    learnt = {e.name: {"seconds": 60.0, "parameters": 1000} for e in compared if e.method}
    return Measured(edit, reference, looks, learnt)


def test_the_report_holds_what_is_asked_of_it(tmp_path: Path) -> None:
    compared = editors(single_picture(), 1e-3, (0.5, 1.5))
    figures = summary([_made_up(edit, compared) for edit in edits("held_out", 6)], compared)
    report = figures | {
        "tier": "quick",
        "half": "held_out",
        "pictures": 1,
        "seeds": [0],
        "versions": {"python": "3"},
        "settings": {},
    }
    write(report, tmp_path)
    written = json.loads((tmp_path / "edit.json").read_text())
    assert {"methods", "density_curve", "seeds", "versions"} <= written.keys()
    assert set(written["density_curve"]) == {"1.0", "0.5", "0.25", "0.1", "0.03"}
    ours, lora = written["methods"][OURS], written["methods"]["LoRA"]
    assert written["density_curve"]["0.25"]["text"] > written["density_curve"]["1.0"]["text"]
    assert ours["hypervolume"][1] > lora["hypervolume"][1] == pytest.approx(0.2)
    assert ours["success_at_equal_preservation"] > lora["success_at_equal_preservation"] == 0
    assert ours["hypervolume"][0] <= ours["hypervolume"][1] <= ours["hypervolume"][2]
    assert "tier: quick" in as_markdown(report)
    assert (tmp_path / "edit.png").stat().st_size > 10_000


def test_command_line_has_a_quick_tier() -> None:
    assert read_arguments(["--quick"]).quick
    assert TIERS["quick"].edits >= 10 and TIERS["quick"].edits % len(CHANGES) == 0
