"""The interpretability benchmark's scores: they tell a selective ablation from an unselective one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import destination
from benchmarks.quality.methods import Taught
from benchmarks.quality.presets import METHODS, OURS
from benchmarks.quality.words import PromptedHost
from benchmarks.see import labels, report
from benchmarks.see.__main__ import QUICK, WHOLE, cells_of, mixer_milliseconds, summary
from benchmarks.see.looking import ablated
from benchmarks.see.regions import SMALLEST, parts, regions
from benchmarks.see.scores import AREA, CHANCE, check, overlap, selectivity, weighted
from benchmarks.see.subjects import FEW, LORA, LORA_SVD, SUBJECTS, Subject, cut, opened, rank_ones
from sparse_core.analysis.effects import Ablations
from sparse_core.analysis.labels import COLOURS
from sparse_core.demo.model import bundled_path, load_pipeline
from sparse_core.demo.shipped import DICTIONARIES
from sparse_core.demo.world import Rendering, Scene, Thing
from sparse_core.examples import Example
from sparse_core.files import load_dictionary
from sparse_core.generate import Sampling, generate

SIDE = 64
needs_model = pytest.mark.skipif(
    not (bundled_path() / "model_index.json").is_file(), reason="the demo model is not in this checkout"
)


def columns(*edges: int) -> np.ndarray:
    """Regions that are stripes between the edges: bool (regions, SIDE, SIDE)."""
    bounds = [0, *edges, SIDE]
    which = np.digitize(np.arange(SIDE), bounds[1:-1])
    return np.stack([np.tile(which == n, (SIDE, 1)) for n in range(len(bounds) - 1)])


def test_a_change_of_one_part_scores_one_and_a_change_of_everything_nothing() -> None:
    cut = columns(8, 20)
    for region in cut:
        assert selectivity(region * 3.0, cut) == pytest.approx(1)
    assert selectivity(np.full((SIDE, SIDE), 5.0), cut) == pytest.approx(0)
    assert selectivity(np.zeros((SIDE, SIDE)), cut) == 0


def test_the_more_spills_over_the_lower_the_score() -> None:
    cut = columns(8, 20)
    scores = [selectivity(cut[0] + spill * ~cut[0], cut) for spill in (0, 0.05, 0.2, 0.5, 1)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[2] + 0.3


def test_moving_the_whole_thing_alike_is_not_selective() -> None:
    """The thing is two parts of one size: neither stands out, though the background keeps still."""
    cut = columns(8, 16)
    assert selectivity((cut[0] | cut[1]) + 0.0, cut) < 0.5


def test_the_score_does_not_depend_on_how_strong_a_change_is_or_in_what_order_regions_come() -> None:
    cut = columns(8, 20)
    change = np.random.default_rng(0).random((SIDE, SIDE))
    assert selectivity(7 * change, cut) == pytest.approx(selectivity(change, cut))
    assert selectivity(change, cut[::-1]) == pytest.approx(selectivity(change, cut))


def test_a_picture_that_no_score_can_tell_apart_is_refused() -> None:
    check(columns(8, 20))
    with pytest.raises(ValueError, match="of no use"):
        check(np.stack([np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)])[:, :, :])


def test_overlap_is_one_on_the_spot_nothing_elsewhere_and_chance_between_strangers() -> None:
    rows = np.tile(np.arange(SIDE, dtype=float)[:, None], (1, SIDE))
    assert overlap(rows, rows**2) == 1
    assert overlap(rows, -rows) == 0
    rng = np.random.default_rng(0)
    strangers = [overlap(rng.random((SIDE, SIDE)), rng.random((SIDE, SIDE))) for _ in range(50)]
    assert np.mean(strangers) == pytest.approx(CHANCE, abs=0.01)
    assert pytest.approx(AREA * AREA / (2 * AREA - AREA * AREA)) == CHANCE


def test_what_does_nothing_has_no_say() -> None:
    assert weighted([1.0, 0.0], [3.0, 1.0]) == pytest.approx(0.75)
    assert weighted([1.0, 0.2], [0.0, 2.0]) == pytest.approx(0.2)
    assert weighted([1.0], [0.0]) is None


def test_a_thing_is_cut_by_colour_and_crumbs_join_the_largest_part() -> None:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:, :20] = (250, 20, 20)
    picture[:, 20:40] = (20, 20, 250)
    picture[:4, 30:34] = (20, 250, 20)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:32, :40] = True
    cut = parts(picture, mask)
    assert SMALLEST > 4 * 4
    assert len(cut) == 2
    assert (np.sum(cut, axis=0) == mask).all()
    assert {bool(part[0, 0]) for part in cut} == {True, False}


def test_regions_cover_every_place_once() -> None:
    masks = [np.zeros((SIDE, SIDE), np.float32) for _ in range(2)]
    masks[0][10:40, 5:30], masks[1][10:40, 35:60] = 1, 0.8
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    scene = Scene((Thing("zib", "left"), Thing("car", "right", colour="red")), "beach")
    cut = regions(scene, Rendering(picture, tuple(masks), ""))
    assert (cut.sum(axis=0) == 1).all()
    assert any((region == (masks[1] > 0.5)).all() for region in cut)


def test_both_tiers_look_at_both_halves_and_at_all_subjects() -> None:
    for tier in (WHOLE, QUICK):
        work = cells_of(tier)
        assert {cell.task.half for cell in work} == {"dev", "held_out"}
        names = {OURS, "dense", LORA, LORA_SVD}
        assert {cell.subject.name for cell in work} == names | set(map(cut, names))
        assert len(set(work)) == len(work)


def one_look(selective: float) -> dict:
    return {"effect": [2.0, 0.0], "selectivity": [selective, 0.9], "overlap": [0.5, None], "flips": [1, 2]}


def test_the_summary_compares_with_every_other_subject(tmp_path) -> None:
    looks = {name: [[one_look(0.6 if name == OURS else 0.2)] * 3] * 2 for name in (OURS, "dense", LORA, LORA_SVD)}
    found = summary(looks)
    assert found["selectivity_over"] == pytest.approx({"dense": 3, LORA: 3, LORA_SVD: 3})
    assert found["heatmap_iou"][OURS] == pytest.approx(0.5)
    assert found["one_answer"][OURS] == pytest.approx(0.5)
    known = {
        "versions": {}, "seeds": [0], "tier": "quick", "gallery_seconds": 9.0,
        "labelled_gallery_seconds": 12.0, "gallery_threads": 2, "report_bytes": 1,
        "mixer_ms_2000": None, "looked_at": {"concepts": ["robot"], "trainings": 2, "pictures": 3, "atoms": 24},
    }  # fmt: skip
    report.write({**found, **known}, tmp_path)
    assert "is reached" in (tmp_path / "see.md").read_text()
    lower = summary({name: [[one_look(0.3)]] for name in looks})
    assert "**not** reached" in report.as_markdown({**lower, **known})


def test_the_mixers_figure_is_the_one_beside_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "results", tmp_path / "out"
    monkeypatch.setattr(destination, "RESULTS", results)
    assert mixer_milliseconds(out) is None
    for folder, milliseconds in ((results, 20.5), (out, 30.5)):
        folder.mkdir()
        (folder / "mixer.json").write_text(json.dumps({"mixer_ms_2000": milliseconds}))
        assert mixer_milliseconds(out) == milliseconds
    assert mixer_milliseconds(results) == 20.5


def test_few_atoms_are_compared_with_as_few() -> None:
    looks = {OURS: 0.6, LORA: 0.2, cut(OURS): 0.5, cut(LORA): 0.1}
    found = summary({name: [[one_look(selective)]] for name, selective in looks.items()})
    assert found["selectivity_over"] == pytest.approx({LORA: 3, cut(LORA): 5})


@needs_model
def test_each_picture_of_a_batch_lacks_its_own_atom() -> None:
    """Against a run of its own, with the atom muted."""
    from sparse_core.addresses import parse_selection
    from sparse_core.controls import SparseAdapter, Weight

    host = PromptedHost(load_pipeline())
    robot = load_dictionary(DICTIONARIES / "robot.safetensors")
    atoms = ["L15.o[14]", "L15.o[12]"]
    prompt, how = "a big robot on the left in the night", Sampling(3)
    with torch.no_grad():
        pictures, maps = ablated(host, robot, atoms, prompt, 1, how)
        for row, muted in enumerate([None, *atoms]):
            controls = [Weight(parse_selection(muted), 0.0)] if muted else []
            (alone,) = generate(host, [prompt], [1], how, [SparseAdapter(robot).with_controls(*controls)])
            assert np.abs(np.array(alone).astype(int) - pictures[row]).max() <= 1
    assert np.abs(pictures[1].astype(int) - pictures[0]).max() > 5
    assert set(maps) <= set(atoms)


@needs_model
def test_a_lora_taken_apart_is_the_lora() -> None:
    """As rank-ones and by SVD: both draw what the LoRA draws."""
    from benchmarks.quality.methods import Point, at_work, new_learner
    from sparse_core.controls import SparseAdapter

    host = PromptedHost(load_pipeline())
    method = METHODS["LoRA"]
    generator = torch.Generator().manual_seed(0)
    parameters = new_learner(host, method, 0).parameters()
    taught = Taught({name: 0.05 * torch.randn(t.shape, generator=generator) for name, t in parameters.items()})
    noisy = torch.randn(1, host.unet.config.in_channels, 16, 16, generator=generator)

    def drawn() -> torch.Tensor:
        return host.denoise(noisy, torch.tensor([0.3]), host.stack_conditions(["a big zib on the left"]))

    with torch.no_grad():
        with at_work(host, method, taught, Point()):
            expected = drawn()
        opened = {s.name: s.open(host, taught) for s in SUBJECTS if s.method is method}
        assert opened[LORA].sites.keys() == rank_ones(host, taught).sites.keys() == opened[LORA_SVD].sites.keys()
        for dictionary in opened.values():
            with host.spoken("zib", taught.tensors["word"]), host.patched([SparseAdapter(dictionary)]):
                torch.testing.assert_close(drawn(), expected, rtol=1e-3, atol=1e-3)


@needs_model
def test_a_tenth_kept_is_the_most_important_tenth() -> None:
    """Of the dictionary as it is; the rest does nothing."""
    from sparse_core.compose.baking import acting

    host = PromptedHost(load_pipeline())
    robot = load_dictionary(DICTIONARIES / "robot.safetensors")
    lesson = Example(
        torch.randn(host.unet.config.in_channels, 16, 16), host.encode_prompt("a robot on the left in the night")
    )
    whole, few = (
        opened(Subject("robot", METHODS[OURS], lambda host, taught: robot, kept), host, Taught({}), [lesson], 0)
        for kept in (1.0, FEW)
    )
    ranked = torch.cat([atoms.importance for atoms in whole.sites.values()])
    left = torch.cat([acting(atoms) for atoms in few.sites.values()])
    assert left.sum() == 128 == FEW * len(ranked)
    assert ranked[left].min() >= ranked[~left].max()


# ------------------------------------------------------------------------------------------------------------- labels


def painted(top: int, roof: str = "red", without: str = "blue") -> Ablations:
    """A blue creature whose roof has one colour with the atom and another without it."""
    colours = {name: torch.tensor(COLOURS[name]) for name in ("grey", "blue", roof, without)}
    plain = colours["grey"].expand(32, 32, 3).clone()
    whole = plain.clone()
    whole[top : top + 16, 8:24] = colours["blue"]
    left_out = whole.clone()
    whole[top : top + 4, 8:24] = colours[roof]
    left_out[top : top + 4, 8:24] = colours[without]
    return Ablations(whole, plain, {"L0.q[0]": left_out})


@pytest.mark.parametrize("top", [0, 16])
def test_a_label_holds_where_its_colour_goes_from_its_part(top: int) -> None:
    one, turned = painted(top), painted(top, "blue", "red")
    assert labels.goes(one, "L0.q[0]", labels.Claim("red", "upper half", True)) == pytest.approx(1)
    assert labels.goes(turned, "L0.q[0]", labels.Claim("red", "upper half", True)) == pytest.approx(-1)
    for claim in (labels.Claim("red", "lower half", True), labels.Claim("pink", "", True)):
        assert labels.goes(one, "L0.q[0]", claim) == 0
    of_the_picture = labels.Claim("red", "upper half", False)
    assert (labels.goes(one, "L0.q[0]", of_the_picture) > 0) == (top == 0)


def test_rules_are_judged_by_what_holds_on_other_pictures() -> None:
    seen = {"robot": [painted(4), painted(8)]}
    good = labels.summary(seen, {"robot": [painted(6), painted(12)]})
    bad = labels.summary(seen, {"robot": [painted(6, "blue", "red"), painted(12, "blue", "red")]})
    assert good["said"]["robot"]["L0.q[0]"]["label"] == "red, upper half"
    for rule in (labels.OLD, labels.NEW):
        assert (good[rule]["all"]["precision"], bad[rule]["all"]["precision"]) == (1, 0)
        assert good[rule]["all"]["coverage"] == bad[rule]["all"]["coverage"] == 1
    assert good[labels.OLD]["all"]["checked"] == 2 * good[labels.NEW]["all"]["checked"] == 4
    written = labels.as_markdown({**good, "versions": {"python": "3"}})
    assert "red, upper half" in written and written.count("100%") >= 2


def test_a_rule_that_says_nothing_has_no_precision() -> None:
    still = [painted(4, "blue", "blue")] * 2
    figures = labels.summary({"robot": still}, {"robot": still})
    assert figures[labels.NEW]["all"]["precision"] is None and figures[labels.NEW]["all"]["coverage"] == 0
    assert "–" in labels.as_markdown({**figures, "versions": {}})
