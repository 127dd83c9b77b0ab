"""The quality benchmark: its figures, what its cells depend on, and that peers play by the same rules."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from factories import needs_model

from benchmarks.cells import Cells
from benchmarks.quality import table, teaching
from benchmarks.quality.__main__ import QUICK, WHOLE, among, choose_tasks, copy_missing, read_arguments, units
from benchmarks.quality.concepts import (
    CONCEPTS,
    HALVES,
    STYLES_OF_HALF,
    WORD,
    lesson_scenes,
    prior_prompts,
    questions,
    tasks,
    unrelated,
)
from benchmarks.quality.curves import PARTS, along_sliders, best_likeness, bootstrap, hypervolume, least_cost
from benchmarks.quality.methods import POSITIVE, Method, Point, Taught, at_work, budget, keep, new_learner
from benchmarks.quality.presets import (
    BESIDE,
    CONTROLS,
    DENSITIES,
    MAIN,
    METHODS,
    ON_ONE_PROMPT,
    OURS,
    WORD_LEFT,
    has_density,
    named,
    points,
    points_on_one_prompt,
)
from benchmarks.quality.recogniser import Recogniser, style_labels
from benchmarks.quality.report import as_markdown
from benchmarks.quality.scores import Scorer, distance
from benchmarks.quality.summary import Look, comparable, summary
from benchmarks.quality.table import Keys, Setup, Unit, complete
from benchmarks.quality.words import EMBEDDING, PromptedHost
from sparse_core.demo.judge import NOTHING
from sparse_core.demo.model import load_pipeline
from sparse_core.demo.world import PLACES, Rendering, Scene
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.training import PRESETS, Example, train
from sparse_core.training.loop import Trainer

NOTES = {"tier": "Made up.", "trainings": {"done": 5, "planned": 6}, "seeds": [0], "versions": {}}
ALL = tasks({half: CONCEPTS[half][:4] for half in HALVES}, STYLES_OF_HALF)


# -------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(1.0, 1.0)], 1.0),
        ([(0.5, 0.5)], 0.25),
        ([(1.0, 0.5), (0.5, 1.0)], 0.75),
        ([(1.0, 0.5), (0.5, 1.0), (0.4, 0.4)], 0.75),  # a dominated point adds nothing
        ([(1.0, 0.5), (1.0, 0.3), (0.5, 1.0)], 0.75),
    ],
)
def test_hypervolume_of_known_curves(points: list[tuple[float, float]], area: float) -> None:
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(area)


def test_hypervolume_starts_at_its_reference() -> None:
    assert hypervolume([(0.9, 0.6), (0.4, 0.9), (0.8, 0.05)], (0.5, 0.1)) == pytest.approx(0.4 * 0.5)


def test_hypervolume_never_falls_with_more_points() -> None:
    rng = np.random.default_rng(0)
    points = [tuple(p) for p in rng.random((12, 2)).tolist()]
    areas = [hypervolume(points[:n], (0.2, 0.1)) for n in range(len(points) + 1)]
    assert areas == sorted(areas)


def test_best_likeness_looks_at_well_aligned_points_only() -> None:
    points = [(0.99, 0.3), (0.95, 0.5), (0.94, 0.9)]
    assert best_likeness(points, 0.95) == 0.5
    assert best_likeness(points, 1.0) is None


def test_least_cost_looks_at_what_is_like_enough_only() -> None:
    points = [(0.2, 1.0), (0.6, 5.0), (0.5, 9.0)]
    assert least_cost(points, 0.4) == 5.0
    assert least_cost(points, 0.1) == 1.0
    assert least_cost(points, 0.7) is None


def test_between_neighbouring_positions_of_a_slider_scores_lie_on_a_line() -> None:
    scores = {
        Point(1.0): (0.8, 0.4),
        Point(0.5): (0.9, 0.3),
        Point(1.0, 0.5): (1.0, 0.2),
        Point(1.0, 0.5, "random"): (0, 9),
    }
    places = along_sliders(scores, (1.0, 0.0))
    half = PARTS // 2
    assert places[0] == (1.0, 0.0)
    assert places[half] == pytest.approx((0.95, 0.15))  # between the plain model and half the strength
    assert places[PARTS + half] == pytest.approx((0.85, 0.35))  # between half and full strength
    assert places[-1 - half] == pytest.approx((0.9, 0.3))  # between all atoms and half of them
    assert len(places) == 3 * PARTS + 2
    assert max(likeness for _, likeness in places) == 0.4  # removal at random is no slider


def test_a_slider_measured_more_densely_on_the_line_gives_the_same_area() -> None:
    few = {Point(0.5): (0.9, 0.3), Point(1.0): (0.7, 0.7)}
    more = {**few, Point(0.75): (0.8, 0.5)}
    areas = [hypervolume(along_sliders(scores, (1.0, 0.0)), (0.4, 0.0)) for scores in (few, more)]
    assert areas[0] == pytest.approx(areas[1], rel=0.02)


def test_bootstrap_brackets_the_mean_and_is_repeatable() -> None:
    values = [np.random.default_rng(t).random(30) for t in range(5)]

    def mean(drawn) -> float:
        return float(np.mean([values[t][prompts].mean() for t, prompts in drawn]))

    low, middle, high = bootstrap(mean, [30] * 5, seed=0)
    assert low < middle < high
    assert middle == pytest.approx(np.mean(values))
    assert bootstrap(mean, [30] * 5, seed=0) == [low, middle, high]


def test_trainings_of_one_subject_are_resampled_together() -> None:
    values = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]

    def mean(drawn) -> float:
        return float(np.mean([values[t] for t, _ in drawn]))

    subjects = ["fox"] * 4 + ["owl"] * 4
    low, middle, high = bootstrap(mean, [30] * 8, seed=0, subjects=subjects)
    assert (low, middle, high) == (0.0, 0.5, 1.0)  # two subjects tell little, however often each was taught
    apart = bootstrap(mean, [30] * 8, seed=0)
    assert 0.0 < apart[0] < apart[2] < 1.0


def test_trainings_of_one_subject_are_asked_the_same_prompts() -> None:
    def alike(drawn) -> float:
        return float(len({tuple(prompts) for _, prompts in drawn}))

    assert bootstrap(alike, [30] * 3, seed=0, subjects=["fox"] * 3) == [1.0, 1.0, 1.0]


def test_distance_forgives_a_small_shift_and_ignores_what_is_outside() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24] = 1
    assert distance(np.roll(truth, (2, -4), (0, 1)), truth, mask) == 0
    outside = np.where(np.pad(mask[4:28, 4:28], 4)[..., None] > 0, truth, 255 - truth)
    outside[2:30, 2:30] = truth[2:30, 2:30]
    assert distance(outside.astype(np.uint8), truth, mask) == 0
    assert distance(255 - truth, truth, mask) > 30


# -------------------------------------------------------------------------------------------------------------- prompts


def test_halves_share_no_concept_and_no_prompt() -> None:
    assert not set(CONCEPTS["dev"]) & set(CONCEPTS["held_out"])
    asked = {half: {a.prompt for t in ALL if t.half == half for a in questions(t, 40)} for half in HALVES}
    assert not asked["dev"] & asked["held_out"]
    elsewhere = {half: {a.prompt for a in unrelated(half, 30)} for half in HALVES}
    assert not elsewhere["dev"] & elsewhere["held_out"]


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_every_concept_is_asked_for_in_forty_different_ways(task: table.Task) -> None:
    asked = questions(task, 40)
    assert len({a.prompt for a in asked}) == 40
    assert all(WORD in a.prompt for a in asked)
    scenes = {a.scene.scene for a in asked}
    assert len(scenes) > 3
    if task.kind == "concept":
        assert any(a.negative for a in asked)
        assert any(len(a.scene.things) == 2 for a in asked)
        assert all(task.companion.word not in a.prompt.split() for a in asked)


@pytest.mark.parametrize("task", ALL, ids=lambda task: task.name)
def test_lessons_share_scene_and_companion(task: table.Task) -> None:
    scenes = lesson_scenes(task)
    assert 4 <= len(scenes) <= 6
    assert len({scene.scene for scene in scenes}) == (1 if task.kind == "concept" else len(scenes))
    assert scenes[0].scene == task.scene
    assert all(any(t.word == task.companion.word for t in scene.things) for scene in scenes)


def test_what_a_style_hides_from_the_judge_is_not_asked_for() -> None:
    """A style in which the judge can't tell what stands there: right or wrong, that thing does not count; its size does."""
    task = next(task for task in ALL if task.kind == "style")
    asked = next(a for a in questions(task, 40) if len(a.scene.things) == 1)
    thing = asked.scene.things[0]
    truth, made = np.zeros((2, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 9, np.uint8)

    def read(pictures: np.ndarray) -> list[dict[str, str]]:
        known = {f"thing {place}": NOTHING for place in PLACES} | {"scene": asked.scene.scene}
        word = {0: "something else", 9: thing.word}
        return [known | {f"thing {thing.place}": word[p[0, 0, 0]], f"size {thing.place}": thing.size} for p in pictures]

    class Drawn:
        def render(self, scene: Scene, task: table.Task | None = None) -> Rendering:
            return Rendering(truth[0] if task else truth[1] + 50, (np.ones((16, 16), np.float32),), "")

        def world(self, task: table.Task) -> Drawn:
            return self

    class Sure:
        def certainty(self, views: np.ndarray, name: str) -> list[float]:
            return [1.0] * len(views)

    scorer = Scorer(SimpleNamespace(read=read), Drawn(), lambda kind: Sure())
    answers = scorer.answers(task, [asked], made)
    assert answers.asked == answers.hits == [3]  # scene, places and size


def test_prompts_that_are_kept_are_not_those_that_are_scored() -> None:
    for half in HALVES:
        kept, scored = prior_prompts(half, 16), {a.prompt for a in unrelated(half, 30)}
        assert len(set(kept)) == 16
        assert not set(kept) & scored
        assert not any(WORD in prompt for prompt in (*kept, *scored))


# ---------------------------------------------------------------------------------------------------------------- cells


def unit(**changes) -> Unit:
    return Unit(ALL[0], 0, METHODS[OURS], (Point(), Point(0.5)))._replace(**changes)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A run on a model of three small files."""
    for part in ("unet", "vae", "text_encoder", "judge"):
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "weights.safetensors").write_bytes(part.encode())
    return Setup(tmp_path / "model", tmp_path / "cache", tuple(ALL))


def test_a_training_depends_on_what_goes_into_it(setup: Setup) -> None:
    before = Keys(setup).training(unit())
    slower = replace(METHODS[OURS], settings=replace(METHODS[OURS].settings, learning_rate=1e-3))
    others = [unit(task=ALL[1]), unit(seed=1), unit(method=slower), unit(method=METHODS["LoRA"])]
    assert len({before, *(Keys(setup).training(other) for other in others)}) == 5
    (setup.model / "unet" / "weights.safetensors").write_bytes(b"another")
    assert Keys(setup).training(unit()) != before


def test_a_training_does_not_depend_on_how_it_is_looked_at(setup: Setup) -> None:
    other = replace(setup, prompts=10, unrelated=5, cache=setup.cache / "elsewhere")
    assert Keys(other).training(unit(points=())) == Keys(setup).training(unit())


def test_a_point_depends_on_its_sliders_the_prompts_and_the_judge(setup: Setup) -> None:
    points = [Point(), Point(0.5), Point(1.0, 0.5), Point(1.0, 0.5, "random")]
    names = {Keys(setup).point(unit(), point) for point in points}
    names.add(Keys(replace(setup, prompts=10)).point(unit(), Point()))
    (setup.model / "judge" / "weights.safetensors").write_bytes(b"another")
    names.add(Keys(setup).point(unit(), Point()))
    assert len(names) == 6


def test_a_killed_run_goes_on_where_it_was(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    class Lab(table.Lab):
        """One that measures nothing, and is killed at the third look."""

        limit = 3

        def __init__(self, setup: Setup) -> None:
            self.setup, self.keys = setup, Keys(setup)
            self.cells = Cells(setup.cache, {"table": "quality"})

        def recogniser(self, kind: str) -> None:
            return None

        def base_pictures(self, half: str) -> None:
            return None

        def reference(self, task: table.Task) -> None:
            self.cells[self.keys.reference(task)] = {}

        def taught(self, unit: Unit) -> Taught:
            key = self.keys.training(unit)
            if key not in self.cells:
                made.append(key)
                self.cells[key] = {}
            return Taught({})

        def overhead(self, unit: Unit, taught: Taught) -> None:
            self.cells[self.keys.overhead(unit)] = {"ratio": 1.0}

        def _look(self, unit: Unit, taught: Taught, point: Point) -> dict:
            if len(made) >= self.limit + 2:
                raise KeyboardInterrupt
            made.append(self.keys.point(unit, point))
            return {}

    monkeypatch.setattr(table, "Lab", Lab)
    work = [unit(), unit(seed=1)]
    with pytest.raises(KeyboardInterrupt):
        table.fill(setup, work, workers=1, threads=1)
    keys, cells = Keys(setup), Cells(setup.cache, {"table": "quality"})
    assert complete(keys, cells, work[0])
    assert not complete(keys, cells, work[1])
    Lab.limit = 100
    table.fill(setup, work, workers=1, threads=1)
    assert all(complete(keys, cells, one) for one in work)
    assert len(made) == len(set(made)) == 6  # two trainings and four looks, none of them twice


def test_figures_travel_in_a_file_and_keep_what_others_have_put_there(tmp_path: Path) -> None:
    first, second, third = (Cells(tmp_path / name, {}) for name in ("first", "second", "third"))
    first["point/a"] = {"drift": [1 / 3, 2.0], "hits": [3]}
    first["point/b"] = 1
    first.hand_on(tmp_path / "cells.jsonl", ["point/a", "point/unknown"])
    second["point/c"] = "other"
    second.hand_on(tmp_path / "cells.jsonl", ["point/c"])
    third["point/c"] = "own"
    third.take_over(tmp_path / "cells.jsonl")
    assert third["point/a"] == {"drift": [0.33333, 2.0], "hits": [3]}
    assert third["point/c"] == "own" and "point/b" not in third
    third.take_over(tmp_path / "nothing")


def test_a_style_is_taught_with_the_preset_for_styles_and_a_thing_is_not() -> None:
    for work in units(ALL, WHOLE, list(METHODS.values()), list(CONTROLS.values())):
        settings, style = work.method.settings, work.task.kind == "style"
        if work.method.name == OURS:
            chosen = PRESETS["style" if style else "character"]
            assert all(getattr(settings, name) == value for name, value in chosen.items())
        if work.method.name == "Adapter":
            assert work.method == METHODS["Adapter"]


def test_recognisers_travel_with_the_figures_and_none_is_replaced(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "recognisers"
    here.mkdir()
    for name in ("known", "new"):
        (here / name).write_bytes(b"of here")
    there.mkdir(parents=True)
    (there / "known").write_bytes(b"of there")
    copy_missing(["known", "new", "nowhere"], here, there)
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {"known": b"of there", "new": b"of here"}


def test_a_recogniser_that_was_brought_along_is_not_trained_again(setup: Setup) -> None:
    class Lab(table.Lab):
        """One without artwork to train with."""

        def __init__(self, setup: Setup) -> None:
            self.setup, self.keys = setup, Keys(setup)

    brought = Recogniser(style_labels())
    brought.save(setup.recognisers / Keys(setup).recogniser_files()["style"])
    found = Lab(setup).recogniser("style")
    assert all(torch.equal(mine, brought.state_dict()[name]) for name, mine in found.state_dict().items())


def test_a_method_is_compared_once_it_has_learnt_all_tasks_of_a_half() -> None:
    work = [unit(task=task, method=METHODS[name], seed=seed) for task in ALL for name in MAIN for seed in (0, 1)]
    missing = [next(u for u in work if u.task.half == "dev" and u.method.name == "LoRA" and u.seed == 1)]
    found = [Look(u, {}, {}, {}, 1.0) for u in work if u not in missing]
    left_out = {(u.task.half, u.method.name, u.seed) for u in work} - {
        (look.unit.task.half, look.unit.method.name, look.unit.seed) for look in comparable(found, work)
    }
    assert left_out == {("dev", "LoRA", 1)}


def test_what_matters_most_is_measured_first() -> None:
    whole = units(choose_tasks(WHOLE, None), WHOLE, named(list(WHOLE.methods)), named(list(WHOLE.controls)))
    kinds = ["main" if u.method.name in MAIN and u.seed == 0 else "again" if u.seed else "more" for u in whole]
    assert list(dict.fromkeys(kinds)) == ["main", "more", "again"] and kinds == sorted(
        kinds, key=["main", "more", "again"].index
    )
    assert {u.method.name for u in whole if u.seed} == set(MAIN)


def test_both_tiers_hold_what_is_to_be_shown() -> None:
    whole = units(choose_tasks(WHOLE, None), WHOLE, named(list(WHOLE.methods)), named(list(WHOLE.controls)))
    concepts = {u.task.name for u in whole if u.task.kind == "concept"}
    styles = {u.task.name for u in whole if u.task.kind == "style"}
    assert len(concepts) >= 8 and len(styles) >= 2
    assert {u.seed for u in whole} >= {0, 1}
    assert {u.method.name for u in whole if u.task.half == "held_out"} == set(METHODS | BESIDE)
    assert {u.method.name for u in whole if u.task.half == "dev"} == set(METHODS | CONTROLS)
    quick = units(choose_tasks(QUICK, None), QUICK, named(list(QUICK.methods)), [])
    assert {u.task.half for u in quick} == set(HALVES)


def test_command_line_takes_a_persons_own_sprites(tmp_path: Path) -> None:
    (tmp_path / "me.png").touch()
    options = read_arguments(["--sprites", str(tmp_path), "--methods", "ours,lora", "--out", str(tmp_path)])
    assert [m.name for m in named(options.methods.split(","))] == [OURS, "LoRA"]
    assert [task.name for task in choose_tasks(WHOLE, options.sprites)] == ["me"]
    with pytest.raises(ValueError, match="There is no method 'loro'"):
        named(["loro"])


def test_concepts_are_chosen_by_name_in_the_order_given() -> None:
    known = choose_tasks(WHOLE, None)
    assert [task.name for task in among(known, ["owl", "fox"])] == ["owl", "fox"]
    with pytest.raises(ValueError, match=r"There is no concept 'ow'; expected some of .*owl"):
        among(known, ["ow"])


# -------------------------------------------------------------------------------------------------------------- methods


@pytest.fixture(scope="module")
def host() -> PromptedHost:
    return PromptedHost(load_pipeline())


def look(host: PromptedHost) -> torch.Tensor:
    """What the model makes of a prompt with the word, (1, channels, height, width)."""
    config = host.unet.config
    noisy = torch.randn(1, config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return host.denoise(noisy, torch.tensor([0.3]), host.stack_conditions([f"a big {WORD} on the left"]))


def trained(host: PromptedHost, method: Method, steps: int = 2) -> Taught:
    """The method after a few steps on noise."""
    config = host.unet.config
    generator = torch.Generator().manual_seed(1)
    examples = [
        Example(torch.randn(config.in_channels, 16, 16, generator=generator), prompt, prior=prior)
        for prompt, prior in ((f"a big {WORD}", False), ("a red cat", True))
    ]
    host.pipeline.text_encoder.requires_grad_(False)
    with host.trainable():
        learner = new_learner(host, method, 0)
        for tensor in learner.parameters().values():
            tensor.requires_grad_()
        settings = replace(method.settings, steps=steps, batch=2, warm_up=0)
        trainer = Trainer(host, learner, examples, settings)
        with host.spoken(WORD, learner.embeddings[EMBEDDING]):
            while not trainer.finished:
                trainer.advance()
    return keep(host, learner, examples[:1], examples[1:], 0)


@needs_model
def test_what_is_measured_of_ours_is_what_the_trainer_gives(host: PromptedHost) -> None:
    """The benchmark learns the word beside all methods in one way; the pack's trainer learns it beside a dictionary."""
    method = replace(METHODS[OURS], settings=replace(METHODS[OURS].settings, steps=4, batch=2, warm_up=0))
    measured, shipped = trained(host, method, steps=4), DiffusersHost(host.pipeline)
    generator = torch.Generator().manual_seed(1)
    examples = [
        Example(torch.randn(12, 16, 16, generator=generator), shipped.encode_prompt(prompt), prior=prior)
        for prompt, prior in ((f"a big {WORD}", False), ("a red cat", True))
    ]
    with shipped.learning(WORD) as opened:
        (rate,) = (method.word_rate / spread for spread in opened.spread.values())
    assert rate == pytest.approx(method.settings.word_rate, rel=0.05)
    learnt = train(shipped, examples, replace(method.settings, word_rate=rate), word=WORD)
    ((width, shift),) = learnt.words[WORD].items()
    moved = measured.tensors[EMBEDDING] - host.embedding(WORD)
    assert width == len(moved) and float(moved.abs().max()) > method.word_rate
    assert far(shift[0], moved) < 1e-2
    for site, atoms in learnt.sites.items():
        for name in ("encoder", "directions"):
            assert far(getattr(atoms, name), measured.tensors[f"{site}.{name}"]) < 1e-2


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    """By how much of its size one misses the other: single values whose gradient is next to nothing go either way in Adam."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))


@needs_model
@pytest.mark.parametrize("name", [name for name in METHODS | BESIDE if name != "textual inversion"])
def test_peers_have_as_many_parameters(host: PromptedHost, name: str) -> None:
    (method,) = named([name])
    learner = new_learner(host, method, 0)
    count = sum(t.numel() for t in learner.method.parameters().values())
    assert count == pytest.approx(method.size * budget(host), rel=0.1)


@needs_model
@pytest.mark.parametrize("name", METHODS | CONTROLS | BESIDE)
def test_a_method_changes_pictures_while_at_work_and_nothing_afterwards(host: PromptedHost, name: str) -> None:
    (method,) = named([name])
    before, names = look(host), [n for n, _ in host.unet.named_modules()]
    weights = {n: t.clone() for part in (host.unet, host.pipeline.text_encoder) for n, t in part.state_dict().items()}
    taught = trained(host, method)
    assert torch.equal(look(host), before)
    with at_work(host, method, taught, Point()):
        assert not torch.equal(look(host), before)
    with at_work(host, method, taught, Point(strength=0.0)):
        torch.testing.assert_close(look(host), before, rtol=0, atol=1e-4)
    assert torch.equal(look(host), before)
    assert [n for n, _ in host.unet.named_modules()] == names
    after = {n: t for part in (host.unet, host.pipeline.text_encoder) for n, t in part.state_dict().items()}
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[n], after[n]) for n in weights)


@needs_model
@pytest.mark.parametrize("kind", ["concept", "style"])
def test_pictures_to_keep_are_for_things_and_not_for_styles(
    host: PromptedHost, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = next(task for task in ALL if task.kind == kind)
    latents = torch.randn(host.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    kept: list[str] = []

    def prior(*given) -> list[Example]:
        kept.append("asked for")
        return [Example(latents, "a red cat", prior=True)]

    monkeypatch.setattr(teaching, "prior", prior)
    monkeypatch.setattr(teaching, "lessons", lambda *given: [Example(latents, f"a big {WORD}")])
    method = replace(METHODS[OURS], settings=replace(METHODS[OURS].settings, steps=2, batch=2))
    training = teaching.teach(SimpleNamespace(host=host), None, task, method, 0)
    assert bool(kept) == (kind == "concept")
    elsewhere = [tensor for name, tensor in training.taught.tensors.items() if name.endswith("elsewhere")]
    assert elsewhere and any(bool(t.any()) for t in elsewhere) == (kind == "concept")


@needs_model
def test_what_is_taught_survives_its_file(host: PromptedHost, tmp_path: Path) -> None:
    method = METHODS[OURS]
    taught = trained(host, method)
    size = taught.save(tmp_path / "taught.safetensors")
    again = Taught.load(tmp_path / "taught.safetensors")
    assert size > 4 * taught.parameters()
    assert again.parameters() == taught.parameters()
    pictures = []
    for one in (taught, again):
        with at_work(host, method, one, Point(0.75, 0.5)):
            pictures.append(look(host))
    assert torch.equal(*pictures)


@needs_model
def test_cutting_a_lora_by_svd_starts_at_the_lora(host: PromptedHost) -> None:
    method = METHODS["LoRA"]
    taught = trained(host, method)
    pictures = []
    for density in (1.0, 0.999, 0.1):
        with at_work(host, method, taught, Point(1.0, density)):
            pictures.append(look(host))
    torch.testing.assert_close(pictures[1], pictures[0], rtol=0, atol=1e-3)
    assert (pictures[2] - pictures[0]).abs().max() > (pictures[1] - pictures[0]).abs().max()


def test_removal_by_importance_is_compared_with_chance() -> None:
    ours = points(METHODS[OURS], (0.5, 1.0))
    removed = {(p.density, p.by) for p in ours if p.density < 1 and p.strength == 1}
    assert removed == set(itertools.product(DENSITIES, ("importance", "random")))
    assert len(set(ours)) == len(ours)


def test_a_lora_is_looked_at_in_as_many_places_as_ours() -> None:
    reached = [p for p in points(METHODS[OURS], (0.5, 1.0)) if p.by == "importance"]
    assert list(points(METHODS["LoRA"], (0.5, 1.0))) == reached
    assert points(METHODS["Adapter"], (0.5, 1.0)) == (Point(0.5), Point(1.0))


@needs_model
@pytest.mark.parametrize("name", ON_ONE_PROMPT)
def test_on_the_positive_prompt_only_the_negative_one_is_the_plain_models(host: PromptedHost, name: str) -> None:
    taught, both, prompt = trained(host, METHODS[name]), Point(1.0, 0.9), f"a {WORD}"
    with torch.no_grad():
        latents, text = torch.randn(2, 12, 16, 16), host.stack_conditions(["", prompt]).text

        def call() -> torch.Tensor:
            with host.spoken(WORD, taught.tensors["word"]):
                return host.unet(latents, 500, text).sample

        plain = call()
        guided = {}
        host.pipeline._guidance_scale = 3.0  # as in a sampler's call: negative row first
        for point in (both, both._replace(prompt=POSITIVE)):
            with at_work(host, METHODS[name], taught, point):
                guided[point.prompt] = call()
    assert torch.equal(guided[POSITIVE][0], plain[0]) and not torch.equal(guided["both"][0], plain[0])
    torch.testing.assert_close(guided[POSITIVE][1], guided["both"][1])


def test_what_acts_on_one_prompt_is_a_row_of_its_own() -> None:
    work = units(choose_tasks(QUICK, None), QUICK, named(list(MAIN)), [])
    titles = dict.fromkeys(unit.title for unit in work)
    assert list(titles)[:3] == list(MAIN)
    assert list(titles)[3:] == [f"{name}, on the positive prompt only" for name in ON_ONE_PROMPT]
    alone = {points_on_one_prompt(METHODS[name], (0.5, 1.0)) for name in ON_ONE_PROMPT}
    assert len(alone) == 1  # all are looked at in the same places
    (alone,) = alone
    assert {point._replace(prompt="both") for point in alone} <= set(points(METHODS[OURS], (0.5, 1.0)))


# ------------------------------------------------------------------------------------------------------- the figures


def _looks(likenesses: dict[str, dict[str, float]]) -> list[Look]:
    """Looks at made-up trainings: {method: {concept: likeness at full strength}}, text always 3 of 4."""
    reference = {
        "base": {"hits": [3] * 8, "asked": [4] * 8, "recognised": [0.0] * 8, "closeness": [0.0] * 8},
        "overfitted": {"hits": [1] * 8, "asked": [4] * 8, "recognised": [1.0] * 8, "closeness": [1.0] * 8},
    }
    reference |= {"right": reference["base"], "drawable": reference["base"], "wrong": reference["base"]}
    training = {"parameters": 10, "bytes": 40, "seconds": 1.0, "active_share": 0.1}
    found = []
    for method, concepts in likenesses.items():
        for concept, likeness in concepts.items():
            scores = {**reference["base"], "recognised": [likeness] * 8, "closeness": [likeness] * 8}
            scores |= {"drift": [1.0], "unchanged": [False]}
            task = choose_tasks(QUICK, None)[0]
            unit = Unit(replace(task, name=concept, half="held_out"), 0, named([method])[0], (Point(),))
            found.append(Look(unit, training, {Point(): scores}, reference, 1.0))
    return found


def test_the_lead_over_a_peer_is_compared_concept_by_concept() -> None:
    """Concepts differ tenfold and the methods by a fifth: each method's interval is wide, that of the ratio is not."""
    figures = summary(_looks({OURS: {"easy": 0.6, "hard": 0.06}, "LoRA": {"easy": 0.5, "hard": 0.05}}), "held_out")
    low, middle, high = figures["hypervolume_over"]["LoRA"]
    assert low == pytest.approx(1.2) and middle == pytest.approx(1.2) and high == pytest.approx(1.2)
    low, _, high = figures["methods"]["LoRA"]["hypervolume"]
    assert high > 2 * low
    assert figures["hypervolume_over_best_peer"] == pytest.approx(1.2)


def test_where_the_word_stays_as_it_was_ours_is_compared_under_the_same_terms() -> None:
    shares = {OURS: 0.9, OURS + WORD_LEFT: 0.6, "LoRA": 0.6, "LoRA" + WORD_LEFT: 0.3}
    over = summary(_looks({name: {"fox": share} for name, share in shares.items()}), "held_out")["hypervolume_over"]
    assert {name: ratio[1] for name, ratio in over.items()} == {
        "LoRA": pytest.approx(1.5),
        "LoRA" + WORD_LEFT: pytest.approx(2),
    }
    assert has_density(BESIDE["LoRA" + WORD_LEFT]) and BESIDE[OURS + WORD_LEFT].word_rate == 0


def test_each_thing_taught_has_a_figure_of_its_own() -> None:
    """A mean over all hides what a method is good at."""
    figures = summary(_looks({OURS: {"easy": 0.6, "hard": 0.06}}), "held_out")
    one = figures["by_subject"][OURS]
    assert one["easy"] == pytest.approx(10 * one["hard"])
    assert np.mean(list(one.values())) == pytest.approx(figures["methods"][OURS]["hypervolume"][1])
    page = as_markdown({"held_out": figures, **NOTES})
    assert "| sparse dictionary | 0.300 | 0.030 |" in page
    assert "5 of 6 trainings" in page


def test_a_lead_over_nobody_is_not_made_up() -> None:
    figures = summary(_looks({OURS: {"easy": 0.6}}), "held_out")
    assert figures["hypervolume_over_best_peer"] is None and figures["hypervolume_over"] == {}


def test_drift_at_equal_likeness_counts_what_fewer_atoms_save() -> None:
    both = _looks({OURS: {"fox": 0.6}, "LoRA": {"fox": 0.6}})
    ours = both[0]
    cut = Point(1.0, 0.25)
    less = {**ours.points[Point()], "drift": [0.5]}
    ours = ours._replace(unit=ours.unit._replace(points=(Point(), cut)), points={**ours.points, cut: less})
    figures = summary([ours, both[1]], "held_out")["methods"]
    assert figures[OURS]["drift_at_equal_likeness"] == 0.5
    assert figures[OURS]["hypervolume_by_strength"] == pytest.approx(figures["LoRA"]["hypervolume"][1])
    assert figures["LoRA"]["drift_at_equal_likeness"] == pytest.approx(0.9)  # nine tenths of the way to full strength
