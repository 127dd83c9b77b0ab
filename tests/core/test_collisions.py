"""Which atoms of two dictionaries meet, against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import CHANNELS, random_condition, random_dictionary, tiny_host
from torch import Tensor

from sparse_core.addresses import parse_selection
from sparse_core.analysis import collisions as collisions_module
from sparse_core.analysis.collisions import Collisions, collisions
from sparse_core.controls import Conditioning, Curve, Listen, Mask, Schedule, SparseAdapter, Weight
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Site

SHAPE = (CHANNELS, 8, 8)


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    return tiny_host()


def adapter(host: DiffusersHost, seed: int, title: str, **labels: str) -> SparseAdapter:
    made = random_dictionary(host.layers, seed=seed, threshold=1.5)
    return SparseAdapter(replace(made, metadata={"modelspec.title": title, "labels": labels}))


def found(host: DiffusersHost, one: SparseAdapter, other: SparseAdapter) -> Collisions:
    prompts = [random_condition(1, seed=seed) for seed in (1, 2)]
    return collisions(host, one, other, prompts, random_condition(1, seed=3), SHAPE, pictures=2)


def test_a_dictionary_meets_itself_everywhere_and_pulls_the_same_way(host: DiffusersHost) -> None:
    one = adapter(host, 1, "one")
    result = found(host, one, one)
    assert result.titles == ("one (1)", "one (2)")
    for shares in result.sites.values():
        assert shares.first == shares.second == shares.both
        assert shares.agreement == pytest.approx(1, abs=1e-3) or not shares.both
    same = [pair for pair in result.pairs if pair.first == pair.second]
    assert same and all(pair.overlap == 1 and pair.direction == pytest.approx(1, abs=1e-3) for pair in same)


def test_within_one_dictionary_the_report_names_each_pair_of_atoms_once_and_none_with_itself(
    host: DiffusersHost,
) -> None:
    one = adapter(host, 1, "one")
    rows = [line.split(" | ") for line in found(host, one, one).report().splitlines() if line.startswith("| L")]
    named = [(row[0].removeprefix("| "), row[1]) for row in rows if "[" in row[0]]
    assert named and all(first < second for first, second in named)


def test_one_turned_round_fights(host: DiffusersHost) -> None:
    one = adapter(host, 1, "one")
    result = found(host, one, one.at_strength(-1.0))
    assert all(shares.agreement == pytest.approx(-1, abs=1e-3) for shares in result.sites.values() if shares.both)
    assert "against each other" in result.report()


def test_the_numbers_are_those_of_counting(host: DiffusersHost) -> None:
    one, other = adapter(host, 1, "one"), adapter(host, 2, "other")
    seen: dict[Site, list[Tensor]] = {}
    prompts = [random_condition(1, seed=1)]
    from sparse_core.analysis.importance import observe
    from sparse_core.compose import combine
    from sparse_core.training import prior_examples

    both = SparseAdapter(combine([one, other], merge_above=1))
    with host.patched([both]):
        examples = prior_examples(host, prompts, random_condition(1, seed=3), SHAPE, count=2)
    observe(
        host, both, examples, lambda site, atoms, x, z, y, moment: seen.setdefault(site, []).append(z.flatten(0, 1))
    )
    result = collisions(host, one, other, prompts, random_condition(1, seed=3), SHAPE, pictures=2)
    site = Site(0, "v")
    z = torch.cat(seen[site])
    fires = z != 0
    shares = result.sites[site]
    assert shares.first == pytest.approx(float(fires[:, :4].any(dim=1).float().mean()))
    assert shares.both == pytest.approx(float((fires[:, :4].any(dim=1) & fires[:, 4:].any(dim=1)).float().mean()))
    for pair in (p for p in result.pairs if p.first.startswith("L0.v")):
        i, j = int(pair.first[5:-1]), 4 + int(pair.second[5:-1])
        overlap = (fires[:, i] & fires[:, j]).sum() / (fires[:, i] | fires[:, j]).sum()
        assert pair.overlap == pytest.approx(float(overlap))


def test_of_very_many_pairs_a_site_names_those_that_move_most(
    host: DiffusersHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = adapter(host, 1, "one"), adapter(host, 2, "other")
    every = found(host, one, other).pairs
    monkeypatch.setattr(collisions_module, "MOST_PAIRS", 3)
    few = found(host, one, other).pairs
    sites = {pair.first.partition("[")[0] for pair in every}
    strongest = [pair for site in sites for pair in [p for p in every if p.first.startswith(f"{site}[")][:3]]
    assert len(every) > len(few) and set(few) == set(strongest)


def test_what_is_muted_meets_nothing(host: DiffusersHost) -> None:
    muted = adapter(host, 1, "one").with_controls(Weight(parse_selection("attn1"), 0.0))
    result = found(host, muted, adapter(host, 2, "other"))
    assert result.sites and all(host.layers[site.layer].attention == "attn2" for site in result.sites)


def test_what_keeps_atoms_apart_does_not_count(host: DiffusersHost) -> None:
    one, other = adapter(host, 1, "one"), adapter(host, 2, "other")
    controls = Mask(torch.zeros(8, 8)), Schedule(Curve(0.9, 1)), Conditioning("positive"), Listen(("robot",))
    muted = Weight(parse_selection("attn1"), 0.0)
    apart = found(host, one.with_controls(controls[0], muted, *controls[1:]), other)
    assert apart == found(host, one.with_controls(muted), other)


def test_the_report_names_both_and_the_chart_is_a_picture(host: DiffusersHost) -> None:
    pytest.importorskip("matplotlib")
    from sparse_core.analysis.collision_chart import collision_chart

    one, other = adapter(host, 1, "robot", **{"L0.v[1]": "hat"}), adapter(host, 2, "owl")
    result = found(host, one, other)
    report = result.report()
    assert "robot acts on" in report and "| robot | owl | overlap | direction |" in report
    chart = collision_chart(result)
    assert chart.shape == (500, 1100, 3) and 0 <= float(chart.min()) < float(chart.max()) <= 1


def test_dictionaries_that_share_no_site_are_told_so(host: DiffusersHost) -> None:
    parts = [SparseAdapter(random_dictionary(host.layers, seed=s, sites=[Site(0, p)])) for s, p in ((1, "q"), (2, "v"))]
    assert "no site in common" in found(host, *parts).report()
    with pytest.raises(ValueError, match="no prompts"):
        collisions(host, *parts, [], random_condition(1), SHAPE)


def test_a_word_that_both_have_taught_is_told(host: DiffusersHost) -> None:
    told = Collisions(("one", "two"), ({}, {}), {}, (), words=("zib",)).report()
    assert "Both have taught the word 'zib'" in told
    assert "taught the word" not in found(host, adapter(host, 1, "one"), adapter(host, 2, "two")).report()
