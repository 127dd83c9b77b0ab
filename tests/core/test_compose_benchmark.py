"""The composing benchmark: what it asks, that its scores tell right from wrong, and that ways of joining are what they say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from factories import needs_model

from benchmarks.compose import __main__ as command
from benchmarks.compose import report, table
from benchmarks.compose.composing import METHODS, Cut, Merged, composed
from benchmarks.compose.pairs import SECOND, Pair, pairs, questions, render, swapped
from benchmarks.compose.scores import Answers, PairScorer
from benchmarks.compose.table import Bench, Look, looks
from benchmarks.quality import presets
from benchmarks.quality.concepts import CONCEPTS, HALVES, STYLES_OF_HALF, WORD, Asked, Studio, pixels, tasks
from benchmarks.quality.methods import Taught, as_dictionary, as_tensors, new_learner, svd
from benchmarks.quality.table import Setup
from benchmarks.quality.words import EMBEDDING, PromptedHost
from sparse_core.controls import SparseAdapter
from sparse_core.demo.judge import answers as true_readings
from sparse_core.demo.model import load_pipeline
from sparse_core.demo.world import Scene
from sparse_core.training import TrainingSettings
from sparse_core.training.learners import initial_dictionary

ALL = tasks({half: CONCEPTS[half][:4] for half in HALVES}, STYLES_OF_HALF)
TWO, STYLED = pairs(ALL, 2)[:2]
DICTIONARIES, LORAS = "dictionaries combined, all atoms", "LoRAs added"


# ------------------------------------------------------------------------------------------------------------ questions


def test_each_half_joins_concepts_with_concepts_and_with_styles() -> None:
    for count in (2, 10):
        chosen = pairs(ALL, count)
        assert len(set(chosen)) == 2 * count
        for half in HALVES:
            mine = [pair for pair in chosen if pair.half == half]
            assert {pair.kind for pair in mine} == {"concept", "style"}
            assert all(task.half == half for pair in mine for task in pair.tasks)


@pytest.mark.parametrize("pair", pairs(ALL, 10), ids=lambda pair: pair.name)
def test_prompts_name_both_in_scenes_that_neither_was_taught_in(pair: Pair) -> None:
    asked = questions(pair, 12)
    assert len({one.prompt for one in asked}) == len(asked) >= 8
    for one in asked:
        assert {WORD, SECOND} <= set(one.prompt.replace(",", "").split())
        assert one.scene.scene not in (pair.first.scene, pair.second.scene)


# --------------------------------------------------------------------------------------------------------------- scores


class Colours:
    """Recognises a red concept, a blue one, and coarse pixels."""

    def certainty(self, views: np.ndarray, label: str) -> list[float]:
        if label == STYLED.second.name:
            return [float((view[::4, ::4] == view[3::4, 3::4]).all()) for view in views]
        channel = {TWO.first.name: 0, TWO.second.name: 2}[label]
        centres = [view[20:28, 20:28].reshape(-1, 3).mean(axis=0) for view in views]
        return [float(centre.argmax() == channel and centre.max() > 2 * centre[1]) for centre in centres]


class Oracle:
    """A judge that was told what each picture shows."""

    def __init__(self, known: dict[bytes, Scene]) -> None:
        self.known = known

    def read(self, pictures: np.ndarray) -> list[dict[str, str]]:
        return [true_readings(self.known[picture.tobytes()]) for picture in pictures]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A red and a blue disc for concepts."""
    folder, sprites = tmp_path_factory.mktemp("sprites"), {}
    for task, colour in zip(TWO.tasks, ((220, 20, 20, 255), (20, 20, 220, 255)), strict=True):
        image = Image.new("RGBA", (72, 72))
        ImageDraw.Draw(image).ellipse((0, 0, 71, 71), colour)
        image.save(folder / f"{task.name}.png")
        sprites[task.name] = folder / f"{task.name}.png"
    return Studio(None, sprites)  # type: ignore[arg-type]


def scored(studio: Studio, pair: Pair, pictures: Sequence[np.ndarray], shown: Sequence[Scene]) -> Answers:
    """Answers to the pair's prompts, by judges that know what the pictures show."""
    known = {picture.tobytes(): scene for picture, scene in zip(pictures, shown, strict=True)}
    scorer = PairScorer(Oracle(known), studio, lambda kind: Colours())  # type: ignore[arg-type,return-value]
    return scorer.answers(pair, questions(pair, len(pictures)), np.stack(pictures))


@pytest.mark.parametrize("pair", [TWO, STYLED], ids=lambda pair: pair.kind)
def test_right_answers_are_right(studio: Studio, pair: Pair) -> None:
    scenes = [one.scene for one in questions(pair, 6)]
    found = scored(studio, pair, [render(studio, pair, scene).picture for scene in scenes], scenes)
    assert found.both_present_and_obeyed() == [True] * 6
    assert not any(any(places) for places in found.crossed)


def test_swapped_concepts_are_cross_talk(studio: Studio) -> None:
    scenes = [one.scene for one in questions(TWO, 6)]
    found = scored(studio, TWO, [render(studio, TWO, swapped(scene)).picture for scene in scenes], scenes)
    assert found.present == [False] * 6
    assert found.obeyed == [True] * 6
    assert found.crossed == [[True, True]] * 6


def test_a_concept_drawn_twice_is_cross_talk_at_one_place(studio: Studio) -> None:
    scenes = [one.scene for one in questions(TWO, 6)]
    twice = [replace(scene, things=tuple(replace(thing, word=WORD) for thing in scene.things)) for scene in scenes]
    found = scored(studio, TWO, [render(studio, TWO, scene).picture for scene in twice], scenes)
    assert found.present == [False] * 6
    assert [sorted(places) for places in found.crossed] == [[False, True]] * 6


def test_another_scene_or_size_is_disobeyed(studio: Studio) -> None:
    scenes = [one.scene for one in questions(TWO, 2)]
    elsewhere = [replace(scene, scene=TWO.first.scene) for scene in scenes]
    resized = [
        replace(scene, things=tuple(replace(t, size={"big": "small", "small": "big"}[t.size]) for t in scene.things))
        for scene in scenes
    ]
    for shown in (elsewhere, resized):
        found = scored(studio, TWO, [render(studio, TWO, scene).picture for scene in scenes], shown)
        assert found.present == [True, True]
        assert found.both_present_and_obeyed() == [False, False]


def test_a_style_left_out_is_missed(studio: Studio) -> None:
    scenes = [one.scene for one in questions(STYLED, 4)]
    plain = [studio.render(scene, STYLED.first).picture for scene in scenes]
    assert scored(studio, STYLED, plain, scenes).present == [False] * 4
    assert scored(studio, STYLED, [pixels(picture) for picture in plain], scenes).present == [True] * 4


def test_scale_is_the_best_and_of_equals_the_one_with_less_cross_talk() -> None:
    good, torn = Answers([True], [True], [[False, False]]), Answers([True], [True], [[True, False]])
    bad = Answers([True], [False], [[False, False]])
    assert report.best_scale({0.6: [bad], 0.8: [torn], 1.0: [good], 1.2: [torn]}) == 1.0
    assert report.figures([torn, bad, Answers([True], [True], [[]])])["cross_talk"] == 0.25


# ---------------------------------------------------------------------------------------------------------------- table


def references(right: int, wrong: int = 0) -> Callable[..., dict[str, Answers]]:
    """So many of four right renders, and of four wrong ones, pass."""

    def answers(passing: int) -> Answers:
        return Answers([number < passing for number in range(4)], [True] * 4, [[]] * 4)

    return lambda self, pair: {"right": answers(right), "wrong": answers(wrong)}


@pytest.fixture
def bench(tmp_path: Path, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """One that draws right answers, for which it needs no training."""
    for part in ("unet", "vae", "text_encoder", "judge"):
        (tmp_path / "model" / part).mkdir(parents=True)
        (tmp_path / "model" / part / "weights.safetensors").write_bytes(part.encode())

    def lab(self: Bench, setup: Setup) -> None:
        from benchmarks.cells import Cells
        from benchmarks.quality.table import Keys

        self.setup, self.keys, self.cells = setup, Keys(setup), Cells(setup.cache, {"table": "quality"})

    monkeypatch.setattr(Bench, "__init__", lab)
    monkeypatch.setattr(Bench, "references", references(4))
    return Bench(Setup(tmp_path / "model", tmp_path / "cache", tuple(ALL), prompts=4))


def test_a_killed_run_goes_on_where_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    work = looks([TWO, STYLED], (0,), {DICTIONARIES: (0.8, 1.0), LORAS: (1.0,)})
    made: list[Look] = []

    def look(one: Look) -> Answers:
        if len(made) == 3 and bench.limited:
            raise KeyboardInterrupt
        made.append(one)
        return Answers([True], [True], [[]])

    monkeypatch.setattr(bench, "look", look)
    bench.limited = True
    with pytest.raises(KeyboardInterrupt):
        bench.measure(work, "")
    bench.limited = False
    bench.measure(work, "")
    assert made == work
    assert len({bench.key(one) for one in work}) == len(work) == 6


def test_only_prompts_count_whose_answers_the_score_knows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.asked(TWO) == questions(TWO, 4)
    for ends, left in (((3, 0), [0, 1, 2]), ((4, 1), [1, 2, 3])):
        monkeypatch.setattr(Bench, "references", references(*ends))
        assert bench.asked(TWO) == [questions(TWO, 4)[number] for number in left]
    for ends in ((2, 0), (4, 4), (0, 0)):
        monkeypatch.setattr(Bench, "references", references(*ends))
        with pytest.raises(ValueError, match="of no use for robot"):
            bench.asked(TWO)


def test_report_holds_both_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with everything that computes taken out: half of the pictures right, more at scale .8."""

    class Quick(Bench):
        def __init__(self, setup: Setup) -> None:
            self.setup, self.found = setup, {}

        def measure(self, work: Sequence[Look], title: str) -> None:
            for one in work:
                right = [True, True, True, one.scale == 0.8] if one.scale >= 0.8 else [True, False, False, False]
                self.found[one] = Answers(
                    right, [True] * 4, [[False, True]] * 4 if one.pair.kind == "concept" else [[]] * 4
                )

        def answers(self, look: Look) -> Answers:
            return self.found[look]

        def references(self, pair: Pair) -> dict[str, Answers]:
            return {
                name: Answers([name == "right"] * 12, [True] * 12, [[False, False]] * 12) for name in ("right", "wrong")
            }

        def asked(self, pair: Pair) -> list[Asked]:
            return questions(pair, 12)

    monkeypatch.setattr(command, "Bench", Quick)
    monkeypatch.setattr(command.report, "draw_sheet", lambda *arguments: None)
    command.main(["--quick", "--out", str(tmp_path), "--cache", str(tmp_path)])
    found = json.loads((tmp_path / "compose.json").read_text())
    assert {"methods", "dev", "pairs", "seeds", "versions"} <= found.keys()
    for half in (found, found["dev"]):
        assert half["pairs"] == 2
        assert half["methods"].keys() == METHODS.keys()
        for figures in half["methods"].values():
            assert figures["both_present_and_obeyed"] == 1.0
            assert figures["cross_talk"] == 0.5
            assert figures["scale"] == 0.8
    text = (tmp_path / "compose.md").read_text()
    assert all(method in text for method in METHODS)
    assert "2 held-out pairs and 2 of the development half, 1 seed (0), 12 prompts" in text and "tier" not in text
    assert text.count("| method | two concepts, 1 of the pairs | a concept and a style, 1 of the pairs |") == 2
    for half in (found, found["dev"]):
        del half["by_kind"]  # an older report knows no kinds
    assert "of the pairs" not in report.as_markdown(found)


def test_a_look_depends_on_its_noise(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(TWO, 0, LORAS, 1.0)
    before = bench.key(look)
    monkeypatch.setattr(table, "NOISE", table.NOISE + 1)
    assert bench.key(look) != before


def test_what_meets_is_told_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "concept": Answers([True, False], [True] * 2, [[False, False]] * 2),
        "style": Answers([True], [True], [[]]),
    }
    monkeypatch.setattr(bench, "answers", lambda look: answers[look.pair.kind])
    found = report.summary(bench, looks([TWO, STYLED], (0,), {LORAS: (1.0,)}))
    assert found["methods"][LORAS]["both_present_and_obeyed"] == pytest.approx(2 / 3)
    assert found["by_kind"] == {
        "concept": {"pairs": 1, "both_present_and_obeyed": {LORAS: 0.5}},
        "style": {"pairs": 1, "both_present_and_obeyed": {LORAS: 1.0}},
    }


# ------------------------------------------------------------------------------------------------------------ composing


@pytest.fixture(scope="module")
def host() -> PromptedHost:
    return PromptedHost(load_pipeline())


@pytest.fixture(scope="module")
def taught(host: PromptedHost) -> dict[str, list[Taught]]:
    """Two random adapters of each kind."""
    made: dict[str, list[Taught]] = {"LoRA": [], presets.OURS: []}
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        word = {EMBEDDING: torch.randn(host.embedding(WORD).shape, generator=generator)}
        lora = new_learner(host, presets.METHODS["LoRA"], seed).method.parameters()
        made["LoRA"].append(
            Taught({k: 0.1 * torch.randn(t.shape, generator=generator) for k, t in lora.items()} | word)
        )
        start = initial_dictionary(host.layers, TrainingSettings(seed=seed))
        sites = {
            site: replace(
                atoms,
                directions=0.2 * torch.randn(atoms.directions.shape, generator=generator),
                importance=torch.rand(len(atoms), generator=generator),
            )
            for site, atoms in start.sites.items()
        }
        made[presets.OURS].append(Taught(as_tensors(replace(start, sites=sites)) | word))
    return made


def seen(host: PromptedHost) -> torch.Tensor:
    """What the model makes of a prompt with both words, (1, channels, height, width)."""
    noisy = torch.randn(1, host.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return host.denoise(
            noisy, torch.tensor([0.3]), host.stack_conditions([f"a {WORD} on the left and a {SECOND} on the right"])
        )


@needs_model
@pytest.mark.parametrize("scale", [0.6, 1.0])
@pytest.mark.parametrize("method", [DICTIONARIES, LORAS])
def test_joining_whole_adapters_is_stacking_them(
    host: PromptedHost, taught: dict[str, list[Taught]], method: str, scale: float
) -> None:
    mine = taught[METHODS[method].trained]
    with composed(host, method, mine, scale):
        joined = seen(host)
    dictionaries = [(as_dictionary if method == DICTIONARIES else svd)(host, one) for one in mine]
    with ExitStack() as undo:
        for word, one in zip((WORD, SECOND), mine, strict=True):
            undo.enter_context(host.spoken(word, one.tensors[EMBEDDING]))
        words_alone = seen(host)
        undo.enter_context(host.patched([SparseAdapter(d).at_strength(scale) for d in dictionaries]))
        stacked = seen(host)
    torch.testing.assert_close(joined, stacked, rtol=1e-3, atol=1e-3)
    assert (joined - words_alone).abs().max() > 0.1


@needs_model
def test_loras_cut_by_nothing_are_loras_added(
    host: PromptedHost, taught: dict[str, list[Taught]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "whole", Cut(1.0))
    drawn = []
    for method in (LORAS, "whole", "LoRAs cut by SVD to a tenth, added"):
        with composed(host, method, taught["LoRA"], 1.0):
            drawn.append(seen(host))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-3)
    assert (drawn[0] - drawn[2]).abs().max() > 0.05


@needs_model
@pytest.mark.parametrize("method", METHODS)
def test_a_method_leaves_the_host_as_it_was(host: PromptedHost, taught: dict[str, list[Taught]], method: str) -> None:
    before, names = seen(host), [name for name, _ in host.unet.named_modules()]
    mine = taught[METHODS[method].trained]
    with composed(host, method, mine, 1.0):
        first = seen(host)
    with composed(host, method, mine, 1.0):
        assert torch.equal(seen(host), first)
    assert not torch.equal(first, before)
    assert torch.equal(seen(host), before)
    assert [name for name, _ in host.unet.named_modules()] == names


@needs_model
def test_ways_of_merging_differ(host: PromptedHost, taught: dict[str, list[Taught]]) -> None:
    made = []
    for method in (name for name, how in METHODS.items() if isinstance(how, Merged)):
        with composed(host, method, taught["LoRA"], 1.0):
            made.append(seen(host))
    assert not any(torch.allclose(a, b, atol=1e-3) for n, a in enumerate(made) for b in made[:n])
