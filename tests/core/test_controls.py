"""Controls: what each does to a selection, and how a chain of them composes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from decimal import ROUND_CEILING, Decimal
from itertools import pairwise

import pytest
import torch
from factories import LAYERS, random_dictionary
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparse_core.addresses import ALL, AddressError, parse_lines, parse_selection
from sparse_core.controls import (
    CURVES,
    KEYFRAMED,
    Conditioning,
    Control,
    Curve,
    Keep,
    Listen,
    Mask,
    Schedule,
    Solo,
    SparseAdapter,
    State,
    Weight,
    controls_of_lines,
)
from sparse_core.describe import describe
from sparse_core.dictionary import SparseDictionary
from sparse_core.layers import Site

DICTIONARY = random_dictionary(atoms=(4, 3))
MASKS = [torch.rand(size, generator=torch.Generator().manual_seed(1)) for size in ((2, 3), (4, 4), (3, 2, 2))]

selections = st.sampled_from(
    ["*", "L0", "L1.q", "attn2.kv", "L0-L2.o[0-1]", "middle[2]", "top:7", "!L3", "!top:50%"]
).map(parse_selection)
powers_of_two = st.sampled_from([-2.0, -1.0, 0.0, 0.25, 0.5, 1.0, 4.0])  # their products are exact in any order
curves = st.sampled_from([Curve(), Curve(0.2, 0.8), Curve(0, 1, (0, 1)), Curve(0.5, 0.5, (2,), "hold")])
independent = st.one_of(
    st.builds(Weight, selections, powers_of_two, st.just("scale")),
    st.builds(Solo, selections),
    st.builds(Mask, st.sampled_from(MASKS), selections),
    st.builds(Schedule, curves, selections),
    st.builds(Conditioning, st.sampled_from(["positive", "negative"]), selections),
    st.builds(Listen, st.sampled_from([("robot",), ("my robot", "owl")]), selections),
    st.builds(
        Keep,
        st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        st.sampled_from(["dictionary", "layer", "site"]),
        st.sampled_from(["importance", "random"]),
        st.integers(0, 3),
    ),
)
controls = independent | st.builds(Weight, selections, powers_of_two, st.just("set"))
chains = st.lists(controls, max_size=5)


def effect(state: State) -> dict[tuple[Site, int], tuple]:
    """What a state means for each atom, without the order in which masks and curves are kept."""
    meaning = {}
    for site, s in state.sites.items():
        for j in range(len(s.weight)):
            masks = Counter(
                tuple(mask.flatten().tolist()) for mask, holds in zip(state.masks, s.masks, strict=True) if holds[j]
            )
            curves = Counter(c for c, holds in zip(state.curves, s.schedules, strict=True) if holds[j])
            meaning[site, j] = (float(s.weight[j] * s.kept[j]), masks, curves, bool(s.positive[j]), bool(s.negative[j]))
    return meaning


def chain(*controls: Control, dictionary: SparseDictionary = DICTIONARY) -> SparseAdapter:
    return SparseAdapter(dictionary).with_controls(*controls)


def weights(*controls: Control, dictionary: SparseDictionary = DICTIONARY) -> dict[str, list[float]]:
    return {
        str(site): (s.weight * s.kept).tolist()
        for site, s in chain(*controls, dictionary=dictionary).state.sites.items()
    }


def kept(control: Keep, dictionary: SparseDictionary = DICTIONARY) -> dict[str, list[bool]]:
    return {site: [w != 0 for w in row] for site, row in weights(control, dictionary=dictionary).items()}


def with_importance(values: Tensor) -> SparseDictionary:
    """One site of layer 0, one of layer 1, with half of the values each."""
    dictionary = random_dictionary(sites=[Site(0, "q"), Site(1, "v")], atoms=len(values) // 2)
    halves = iter(values.split(len(values) // 2))
    return dictionary.map(lambda atoms: replace(atoms, importance=next(halves)))


# ---------------------------------------------------------------------------------------------------------- composition


def test_a_control_is_applied_once_however_long_the_chain_grows() -> None:
    applied = []

    class Watched:
        def apply(self, state: State, dictionary: SparseDictionary) -> State:
            applied.append(self)
            return state

    adapter, controls = SparseAdapter(DICTIONARY), [Watched() for _ in range(3)]
    for control in controls:
        adapter = adapter.with_controls(control)
    assert adapter.state and applied == controls


def test_no_control_is_weight_one_everywhere_at_all_times() -> None:
    state = SparseAdapter(DICTIONARY).state
    assert not state.masks and not state.curves
    assert all(meaning == (1.0, Counter(), Counter(), True, True) for meaning in effect(state).values())
    assert len(effect(state)) == len(DICTIONARY)


@given(first=chains, second=chains)
def test_composing_changes_neither_the_dictionary_nor_the_chain_it_starts_from(
    first: list[Control], second: list[Control]
) -> None:
    dictionary = random_dictionary(atoms=(4, 3))
    adapter = chain(*first, dictionary=dictionary)
    before, length = effect(adapter.state), len(adapter.controls)
    branch, other = adapter.with_controls(*second), adapter.with_controls(Weight(ALL, 0.5, "scale"))
    assert effect(adapter.state) == before == effect(chain(*first).state)
    assert len(adapter.controls) == length
    assert branch.dictionary is other.dictionary is dictionary
    assert effect(branch.state) == effect(chain(*first, *second).state)
    for site, atoms in dictionary.sites.items():
        assert all(torch.equal(t, DICTIONARY.sites[site].tensors()[name]) for name, t in atoms.tensors().items())


@given(controls=st.lists(independent, max_size=6), data=st.data())
def test_the_order_of_independent_controls_is_immaterial(controls: list[Control], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(controls))
    assert effect(chain(*shuffled).state) == effect(chain(*controls).state)


@given(controls=chains, control=controls)
def test_a_control_touches_its_selection_only(controls: list[Control], control: Control) -> None:
    if isinstance(control, Solo | Keep):
        return  # these are about the rest
    picked = control.selection.resolve(DICTIONARY)
    before, after = effect(chain(*controls).state), effect(chain(*controls, control).state)
    for (site, j), meaning in after.items():
        assert picked[site][j] or meaning == before[site, j]


def test_a_selection_of_nothing_is_an_error_where_the_control_is_added() -> None:
    with pytest.raises(AddressError, match="L9"):
        SparseAdapter(DICTIONARY).with_controls(Weight(parse_selection("L9"), 0.5))


# -------------------------------------------------------------------------------------------------------------- weights


def test_set_replaces_and_scale_multiplies() -> None:
    some = parse_selection("L0.q[0-1]")
    assert weights(Weight(some, 0.5))["L0.q"] == [0.5, 0.5, 1, 1]
    assert weights(Weight(some, 0.5), Weight(ALL, 3, "scale"))["L0.q"] == [1.5, 1.5, 3, 3]
    assert weights(Weight(ALL, 3, "scale"), Weight(some, 0.5))["L0.q"] == [0.5, 0.5, 3, 3]
    assert weights(Weight(some, 0.5), Weight(some, -2, "set"))["L0.q"] == [-2, -2, 1, 1]


def test_strength_scales_all_atoms_and_keeps_their_proportions() -> None:
    adapter = chain(Weight(parse_selection("L0.q[1]"), 0.25)).at_strength(2)
    assert adapter.state.sites[Site(0, "q")].weight.tolist() == [2, 0.5, 2, 2]
    assert adapter.state.sites[Site(3, "o")].weight.tolist() == [2, 2, 2]


def test_solo_mutes_all_others_and_keeps_the_weight_of_the_selected() -> None:
    result = weights(Weight(ALL, 0.5, "scale"), Solo(parse_selection("L1.v[2]")))
    assert result.pop("L1.v") == [0, 0, 0.5, 0]
    assert all(value == 0 for row in result.values() for value in row)


def test_a_mute_after_a_solo_leaves_nothing() -> None:
    some = parse_selection("L1.v[2]")
    assert all(value == 0 for row in weights(Solo(some), Weight(some, 0)).values() for value in row)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"A weight is {value}; expected a finite number"):
        Weight(ALL, value)


def test_address_lines_become_controls_in_their_order() -> None:
    lines = parse_lines("L0 = 0.5\nL0.q *= 200%\nmute L0.q[0]  # the tail\nsolo L0 | L1")
    result = weights(*controls_of_lines(lines))
    assert result["L0.q"] == [0, 1, 1, 1] and result["L0.k"] == [0.5] * 3
    assert result["L1.q"] == [1] * 4 and result["L2.q"] == [0] * 4


# ----------------------------------------------------------------------------------------------------------------- keep


@pytest.mark.parametrize("scope", ["dictionary", "layer", "site"])
def test_of_a_few_atoms_a_small_share_is_one(scope: str) -> None:
    rows = kept(Keep(0.01, scope)).values()
    assert any(flag for row in rows for flag in row)
    assert scope != "site" or all(sum(row) == 1 for row in rows)


@pytest.mark.parametrize("scope", ["dictionary", "layer", "site"])
@pytest.mark.parametrize("by", ["importance", "random"])
def test_density_one_keeps_all_and_density_zero_none(scope: str, by: str) -> None:
    assert all(flag for row in kept(Keep(1, scope, by)).values() for flag in row)
    assert not any(flag for row in kept(Keep(0, scope, by)).values() for flag in row)


def rounded_up(share: float, whole: int) -> int:
    """As the number is written: in floats a tenth of ten may be a little more than one."""
    return int((Decimal(repr(share)) * whole).to_integral_value(ROUND_CEILING))


@given(density=st.floats(0, 1), by=st.sampled_from(["importance", "random"]))
def test_keep_counts_over_its_scope(density: float, by: str) -> None:
    sizes = {str(site): len(atoms) for site, atoms in DICTIONARY.sites.items()}
    assert sum(map(sum, kept(Keep(density, "dictionary", by)).values())) == rounded_up(density, len(DICTIONARY))
    by_site = kept(Keep(density, "site", by))
    assert {site: sum(row) for site, row in by_site.items()} == {
        site: rounded_up(density, m) for site, m in sizes.items()
    }
    by_layer = kept(Keep(density, "layer", by))
    for layer in range(len(LAYERS)):
        rows = [(sum(by_layer[s]), m) for s, m in sizes.items() if s.startswith(f"L{layer}.")]
        assert sum(n for n, _ in rows) == rounded_up(density, sum(m for _, m in rows))


def test_keep_takes_the_most_important_of_each_scope() -> None:
    dictionary = with_importance(torch.tensor([1.0, 8, 7, 6, 2, 5, 3, 4]))
    f, t = False, True
    assert kept(Keep(0.5), dictionary) == {"L0.q": [f, t, t, t], "L1.v": [f, t, f, f]}
    for scope in ("layer", "site"):
        assert kept(Keep(0.5, scope), dictionary) == {"L0.q": [f, t, t, f], "L1.v": [f, t, f, t]}


def test_of_equally_important_atoms_the_first_are_kept() -> None:
    assert kept(Keep(0.25), with_importance(torch.zeros(8))) == {
        "L0.q": [True, True, False, False],
        "L1.v": [False] * 4,
    }


def test_more_density_keeps_what_less_density_kept() -> None:
    for by in ("importance", "random"):
        rows = [[flag for row in kept(Keep(d / 10, by=by)).values() for flag in row] for d in range(11)]
        assert all(not a or b for less, more in pairwise(rows) for a, b in zip(less, more, strict=True))


def test_random_keep_is_repeatable_and_its_seed_matters() -> None:
    first, again, other = (kept(Keep(0.5, by="random", seed=seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert first != kept(Keep(0.5))


@given(count=st.integers(1, 40), scope=st.sampled_from(["dictionary", "layer", "site"]))
def test_a_count_keeps_so_many_of_each_scope(count: int, scope: str) -> None:
    rows = kept(Keep(0, scope, count=count))
    group = {"dictionary": lambda site: "", "layer": lambda site: site.partition(".")[0], "site": lambda site: site}[
        scope
    ]
    sizes, found = Counter(), Counter()
    for site, row in rows.items():
        sizes[group(site)] += len(row)
        found[group(site)] += sum(row)
    assert found == {name: min(count, size) for name, size in sizes.items()}


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number of atoms to keep is -1; expected 0"):
        Keep(0.5, count=-1)


def test_contrast_prefers_atoms_that_are_silent_elsewhere() -> None:
    measured = with_importance(torch.tensor([1.0, 8, 7, 6, 2, 5, 3, 4]))
    elsewhere = iter(torch.tensor([0.0, 7.5, 6, 0, 0, 4, 0, 0]).split(4))
    dictionary = measured.map(lambda atoms: replace(atoms, elsewhere=next(elsewhere)))
    f, t = False, True
    assert kept(Keep(0.5, by="contrast"), dictionary) == {"L0.q": [f, f, f, t], "L1.v": [t, f, t, t]}
    assert kept(Keep(0.5, by="contrast"), measured) == kept(Keep(0.5), measured)


@pytest.mark.parametrize("density", [-0.1, 1.1, math.nan])
def test_a_density_out_of_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError, match=r"Density is .*; expected a share from 0"):
        Keep(density)


# ---------------------------------------------------------------------------------------------------------------- masks


def test_a_mask_of_one_picture_gets_its_axis_and_values_are_clamped() -> None:
    mask = Mask(torch.tensor([[-1.0, 0.5], [2.0, 1.0]]))
    assert mask.mask.tolist() == [[[0.0, 0.5], [1.0, 1.0]]]


def test_a_mask_does_not_follow_later_changes_of_the_tensor_it_was_given() -> None:
    given_mask = torch.zeros(1, 2, 2)
    mask = Mask(given_mask)
    given_mask.fill_(1)
    assert not mask.mask.any()


@pytest.mark.parametrize("shape", [(), (4,), (1, 1, 2, 2), (0, 2, 2), (1, 0, 2), (1, 2, 0)])
def test_a_mask_of_another_shape_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"A mask has shape .*; expected \(pictures, height, width\)"):
        Mask(torch.zeros(shape))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mask_with_a_value_that_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        Mask(torch.tensor([[0.0, value]]))


def test_masks_on_one_atom_add_up_in_the_state_of_that_atom_only() -> None:
    state = chain(Mask(MASKS[0], parse_selection("L0.q")), Mask(MASKS[1], parse_selection("L0.q[1]"))).state
    assert state.sites[Site(0, "q")].masks.tolist() == [[True] * 4, [False, True, False, False]]
    assert state.sites[Site(0, "k")].masks.tolist() == [[False] * 3, [False] * 3]


# --------------------------------------------------------------------------------------------------------- conditioning


@pytest.mark.parametrize(("prompt", "expected"), [("positive", (True, False)), ("negative", (False, True))])
def test_a_prompt_choice_forbids_the_other_prompt(prompt: str, expected: tuple[bool, bool]) -> None:
    state = chain(Conditioning(prompt, parse_selection("L0.q[1]"))).state.sites[Site(0, "q")]
    assert (bool(state.positive[1]), bool(state.negative[1])) == expected
    assert bool(state.positive[0]) and bool(state.negative[0])


def test_triggers_add_up_in_the_state_of_the_atoms_that_wait_for_them() -> None:
    first, second = Listen(("robot",), parse_selection("L0.q[0]")), Listen(("owl", "bird"), parse_selection("L0.q"))
    state = SparseAdapter(DICTIONARY).with_controls(first, second).state
    assert state.triggers == (("robot",), ("owl", "bird"))
    found = state.sites[Site(0, "q")].triggers
    assert found[0].nonzero().tolist() == [[0]] and bool(found[1].all())
    assert not state.sites[Site(0, "k")].triggers.any()


def test_what_waits_for_a_word_says_so() -> None:
    told = describe(
        SparseAdapter(DICTIONARY).with_controls(Listen(("my robot", "owl"), parse_selection("L0.q[0]"))), top=99
    )
    assert "trigger: waits for a prompt that names my robot or owl" in told
    assert [line.split(" | ")[0] for line in told.splitlines() if line.endswith("| named |")] == ["| L0.q[0]"]


@pytest.mark.parametrize("words", [(), ("robot", " ")])
def test_waiting_for_no_word_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        Listen(words)


def test_both_prompt_choices_leave_no_prompt() -> None:
    state = chain(Conditioning("positive"), Conditioning("negative")).state.sites[Site(0, "q")]
    assert not (state.positive | state.negative).any()


# --------------------------------------------------------------------------------------------------------------- curves


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("linear", {0: 0, 0.25: 0.5, 0.5: 1, 0.75: 0.5, 1: 0}),
        ("cosine", {0: 0, 0.125: math.sin(math.pi / 8) ** 2, 0.25: 0.5, 0.5: 1, 0.75: 0.5, 1: 0}),
        ("hold", {0: 0, 0.3: 0, 0.34: 1, 0.5: 1, 0.66: 1, 0.67: 0, 1: 0}),
    ],
)
def test_keyframes_are_joined_as_asked(interpolation: str, expected: dict[float, float]) -> None:
    curve = Curve(0, 1, (0, 1, 0), interpolation)
    assert {p: curve(p) for p in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("interpolation", ["linear", "cosine", "hold"])
def test_a_curve_is_zero_outside_and_holds_at_both_ends(interpolation: str) -> None:
    curve = Curve(0.25, 0.75, (2, 3), interpolation)
    assert (curve(0.2499), curve(0.25), curve(0.75), curve(0.7501)) == (0, 2, pytest.approx(3), 0)


@given(
    bounds=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=5).map(tuple),
    interpolation=st.sampled_from(["linear", "cosine", "hold"]),
    progress=st.floats(0, 1),
)
def test_a_curve_stays_between_its_keyframes(
    bounds: list[float], values: tuple[float, ...], interpolation: str, progress: float
) -> None:
    value = Curve(*bounds, values, interpolation)(progress)
    if bounds[0] <= progress <= bounds[1]:
        assert min(values) - 1e-6 <= value <= max(values) + 1e-6
    else:
        assert value == 0


@pytest.mark.parametrize("interpolation", ["linear", "cosine", "hold"])
@given(progress=st.floats(0, 1), value=st.floats(-5, 5))
def test_one_keyframe_is_constant(interpolation: str, progress: float, value: float) -> None:
    assert Curve(values=(value,), interpolation=interpolation)(progress) == value


@given(progress=st.floats(0, 1))
def test_a_curve_over_a_single_moment_acts_at_that_moment_only(progress: float) -> None:
    assert Curve(0.5, 0.5, (3, 4))(progress) == (3 if progress == 0.5 else 0)


@pytest.mark.parametrize(("start", "end"), [(-0.1, 1), (0, 1.1), (0.6, 0.5), (math.nan, 1), (0, math.nan)])
def test_a_schedule_outside_of_sampling_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"A schedule runs from .*; expected 0 <= start <= end <= 1"):
        Curve(start, end)


def test_a_schedule_without_keyframes_is_refused() -> None:
    with pytest.raises(ValueError, match="no keyframes"):
        Curve(values=())


def test_a_keyframe_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        Curve(values=(0.0, math.nan))
    with pytest.raises(ValueError, match="finite numbers"):
        Curve.named("keyframes", 0, 1, "0, inf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", (1, 1, 1)),
        ("fade in", (0, 0.25, 1)),
        ("fade out", (1, 0.75, 0)),
        ("fade in (smooth)", (0, math.sin(math.pi / 8) ** 2, 1)),
        ("fade out (smooth)", (1, math.cos(math.pi / 8) ** 2, 0)),
        ("keyframes", (2, 3, 4)),
        ("keyframes (steps)", (2, 2, 4)),
    ],
)
def test_curves_by_name(name: str, expected: tuple[float, ...]) -> None:
    curve = Curve.named(name, 0.2, 0.6, "[2 4, 4]")
    assert [curve(p) for p in (0.2, 0.3, 0.6)] == pytest.approx(expected, abs=1e-6)
    assert curve(0.1) == curve(0.7) == 0
    assert name in {**CURVES, **KEYFRAMED}


@pytest.mark.parametrize(("name", "middle"), [("constant", 1.5), ("keyframes", 1.5), ("keyframes (steps)", 2.0)])
def test_floats_of_another_node_take_the_place_of_the_curve(name: str, middle: float) -> None:
    curve = Curve.named(name, 0.2, 0.6, "7", [1, 2])
    assert [curve(p) for p in (0.2, 0.4, 0.6)] == pytest.approx([1, middle, 2])
    assert Curve.named(name, 0, 1, floats=0.5)(0.3) == 0.5


def test_an_unknown_curve_and_words_for_keyframes_are_refused() -> None:
    with pytest.raises(ValueError, match="no curve 'wobble'; expected one of constant, "):
        Curve.named("wobble", 0, 1)
    for keyframes in ("", "a, b", "1;2"):
        with pytest.raises(ValueError, match=r"Keyframes are|no keyframes"):
            Curve.named("keyframes", 0, 1, keyframes)


def test_a_later_weight_does_not_revive_what_the_density_dropped() -> None:
    dropped, revived = (
        SparseAdapter(random_dictionary()).with_controls(*c) for c in ([Keep(0)], [Keep(0), Weight(ALL, 1)])
    )
    assert not any(state.able.any() for state in (*dropped.state.sites.values(), *revived.state.sites.values()))
