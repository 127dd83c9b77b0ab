"""Recorded coefficients, played again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import LAYERS, random_condition, random_dictionary, tiny_host
from torch import Generator, Tensor

from sparse_core.addresses import ALL, parse_selection
from sparse_core.analysis.recording import Recorder, Recording, Side, addresses_of
from sparse_core.compose.baking import bake
from sparse_core.controls import Curve, Mask, Schedule, Solo, SparseAdapter, Weight
from sparse_core.describe import describe
from sparse_core.dictionary import SparseDictionary
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Site
from sparse_core.plan import Crop, Moment, Rows, Run, compile_plan
from sparse_core.replaying import RecordingPlayer, Replay

STEPS = (0.0, 0.3, 0.7)


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    return tiny_host()


@pytest.fixture(scope="module")
def learnt(host: DiffusersHost) -> SparseDictionary:
    return random_dictionary(host.layers)


def calls(
    host: DiffusersHost, adapter: SparseAdapter, recorder: Recorder | None = None, *, seed: int = 0, size: int = 8
) -> Tensor:
    """Model calls along sampling on two pictures, each picture and prompt chosen by ``seed``."""
    found = []
    with torch.no_grad(), host.patched([adapter], recorder):
        for step, progress in enumerate(STEPS):
            noisy = torch.randn(2, 4, size, size, generator=Generator().manual_seed(100 * seed + step))
            condition = random_condition(1, seed=seed)
            condition = replace(condition, text=condition.text.repeat(2, 1, 1))
            found.append(host.denoise(noisy, torch.full((2,), progress), condition))
    return torch.stack(found)


@pytest.fixture(scope="module")
def recording(host: DiffusersHost, learnt: SparseDictionary) -> Recording:
    """Of all atoms, at seed 0."""
    recorder = Recorder(learnt, addresses_of(learnt, ALL))
    calls(host, SparseAdapter(learnt), recorder)
    return recorder.recording()


def test_the_same_noise_and_prompt_give_the_recorded_picture_but_for_half_precision(
    host: DiffusersHost, learnt: SparseDictionary, recording: Recording
) -> None:
    plain = calls(host, SparseAdapter(learnt))
    again = calls(host, SparseAdapter(learnt).with_controls(Replay(recording)))
    assert not torch.equal(plain, again)
    torch.testing.assert_close(again, plain, rtol=0, atol=2e-3 * float(plain.abs().max()))


def test_amount_0_is_no_replay_to_the_bit(host: DiffusersHost, learnt: SparseDictionary, recording: Recording) -> None:
    untouched = SparseAdapter(learnt).with_controls(Replay(recording, 0.0))
    assert torch.equal(calls(host, untouched, seed=1), calls(host, SparseAdapter(learnt), seed=1))
    assert not compile_plan([untouched], host.layers).replayed


def test_another_noise_and_prompt_take_the_recorded_coefficients(
    host: DiffusersHost, learnt: SparseDictionary, recording: Recording
) -> None:
    recorder = Recorder(learnt, addresses_of(learnt, ALL))
    calls(host, SparseAdapter(learnt).with_controls(Replay(recording)), recorder, seed=1)
    played = recorder.recording()
    assert played.positive.places.keys() == recording.positive.places.keys() and len(played.positive.words) > 0
    for name, places in recording.positive.places.items():
        assert torch.equal(played.positive.places[name], places), name
    for name, words in recording.positive.words.items():
        assert torch.equal(played.positive.words[name], words), name


def test_an_amount_lies_between_what_is_computed_and_what_was_recorded(learnt: SparseDictionary) -> None:
    places = torch.tensor([[[[4.0, -4.0]]]]).half()  # (moments, pictures, height, width)
    recording = Recording("", ("L0.q[1]",), {}, (0.5,), Side({"L0.q[1]": places}, {}), Side({}, {}))
    rows = Rows((0,), (True,), (Crop((1, 2), 0, 0, 1, 2),))
    z = torch.ones(1, 2, 1)
    for amount in (0.25, 1.0):
        found = RecordingPlayer(recording, amount, frozenset())(Site(0, "q"), (1,), z, Moment(rows, 0.4, (1, 2)))
        expected = [1 + amount * (4 - 1), 1 + amount * (-4 - 1)]
        assert found.flatten().tolist() == pytest.approx(expected)


def test_only_chosen_atoms_are_played(host: DiffusersHost, learnt: SparseDictionary, recording: Recording) -> None:
    chosen = parse_selection("L0.q[1]")
    recorder = Recorder(learnt, ["L0.q[1]", "L0.q[2]"])
    calls(host, SparseAdapter(learnt).with_controls(Replay(recording, 1.0, chosen)), recorder, seed=1)
    computed = Recorder(learnt, ["L0.q[1]", "L0.q[2]"])
    calls(host, SparseAdapter(learnt), computed, seed=1)
    played, plain = recorder.recording().positive.places, computed.recording().positive.places
    assert torch.equal(played["L0.q[1]"], recording.positive.places["L0.q[1]"])
    assert torch.equal(played["L0.q[2]"], plain["L0.q[2]"])
    assert not torch.equal(plain["L0.q[1]"], recording.positive.places["L0.q[1]"])


@pytest.mark.parametrize("control", [Weight(ALL, 0.0), Schedule(Curve(0.9, 1)), Mask(torch.zeros(4, 4))])
def test_weights_schedules_and_masks_still_hold(
    host: DiffusersHost, learnt: SparseDictionary, recording: Recording, control: object
) -> None:
    silenced = SparseAdapter(learnt).with_controls(Replay(recording), control)
    nothing = SparseAdapter(learnt).at_strength(0)
    assert torch.equal(calls(host, silenced, seed=1), calls(host, nothing, seed=1))


def test_a_mask_keeps_what_is_played_to_its_half() -> None:
    dictionary = random_dictionary(sites=[Site(0, "q")])
    places = torch.full((1, 1, 2, 2), 5.0).half()
    side = Side({"L0.q[1]": places}, {})
    recording = Recording(dictionary.atoms_hash, ("L0.q[1]",), {}, (0.5,), side, Side({}, {}))
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    adapter = SparseAdapter(dictionary).with_controls(
        Replay(recording), Solo(parse_selection("L0.q[1]")), Mask(left), Weight(ALL, 0.5, "scale")
    )
    rows = Rows((0,), (True,), (Crop((2, 2), 0, 0, 2, 2),))
    x, nothing = torch.randn(1, 4, 8), torch.zeros(1, 4, 12)
    layer = Run(compile_plan([adapter], LAYERS), rows, 0.5, []).layer(0, x, x, x, (2, 2))
    updated = layer.attend(nothing.clone(), nothing, nothing, lambda q, k, v: q)[0]
    direction = dictionary.sites[Site(0, "q")].directions[1]
    torch.testing.assert_close(updated[[0, 2]], (0.5 * 5 * direction).expand(2, -1))
    assert not updated[[1, 3]].any()


def test_the_nearest_moment_and_the_picture_of_the_same_number_are_played() -> None:
    places = torch.arange(4.0).view(2, 2, 1, 1).half()  # moment 0: pictures 0, 1; moment 1: 2, 3
    recording = Recording("", ("L0.q[0]",), {}, (0.2, 0.8), Side({"L0.q[0]": places}, {}), Side({}, {}))
    player = RecordingPlayer(recording, 1.0, frozenset())
    one = Crop((1, 1), 0, 0, 1, 1)
    rows = Rows((0, 1, 2), (True,) * 3, (one,) * 3)
    for progress, expected in ((0.0, [0, 1, 0]), (0.45, [0, 1, 0]), (0.55, [2, 3, 2]), (1.0, [2, 3, 2])):
        found = player(Site(0, "q"), (0,), torch.full((3, 1, 1), 9.0), Moment(rows, progress, (1, 1)))
        assert found.flatten().tolist() == expected


def test_prompts_play_their_own_side_and_what_was_not_recorded_is_computed() -> None:
    side = Side({}, {"L1.v[0]": torch.tensor([[5.0, 6.0]])})  # two words
    recording = Recording("", ("L1.v[0]",), {}, (), side, Side({}, {}))
    player = RecordingPlayer(recording, 1.0, frozenset({Site(1, "v")}))
    rows = Rows((0, 0), (False, True), (Crop((1, 1), 0, 0, 1, 1),) * 2)
    z = torch.arange(6.0).view(2, 3, 1)
    found = player(Site(1, "v"), (0,), z, Moment(rows, 0.5, (1, 1)))[..., 0]
    assert found.tolist() == [[0, 1, 2], [5, 6, 5]]


def test_places_are_fitted_and_cropped() -> None:
    ramp = torch.arange(4.0).repeat(4, 1)[None, None].half()  # each column its number
    recording = Recording("", ("L0.q[0]",), {}, (0.5,), Side({"L0.q[0]": ramp}, {}), Side({}, {}))
    player = RecordingPlayer(recording, 1.0, frozenset())

    def played(crop: Crop, grid: tuple[int, int]) -> list[float]:
        z = torch.zeros(1, grid[0] * grid[1], 1)
        found = player(Site(0, "q"), (0,), z, Moment(Rows((0,), (True,), (crop,)), 0.5, grid))
        return found.view(grid)[0].tolist()

    assert played(Crop((4, 4), 0, 0, 4, 4), (4, 4)) == [0, 1, 2, 3]
    assert played(Crop((4, 4), 0, 0, 4, 4), (2, 2)) == [0.5, 2.5]
    assert played(Crop((4, 4), 0, 2, 4, 2), (4, 2)) == [2, 3]
    larger = played(Crop((8, 8), 0, 0, 8, 8), (8, 8))
    assert larger == sorted(larger) and (larger[0], larger[-1]) == (0, 3)


def test_each_axis_of_a_map_is_fitted_by_its_own_rule() -> None:
    def played(recorded: Tensor, grid: tuple[int, int]) -> Tensor:
        recording = Recording(
            "", ("L0.q[0]",), {}, (0.5,), Side({"L0.q[0]": recorded[None, None].half()}, {}), Side({}, {})
        )
        rows = Rows((0,), (True,), (Crop(grid, 0, 0, *grid),))
        z = torch.zeros(1, grid[0] * grid[1], 1)
        return RecordingPlayer(recording, 1.0, frozenset())(Site(0, "q"), (0,), z, Moment(rows, 0.5, grid)).view(grid)

    stripes = (torch.arange(64) % 4 == 0).expand(32, 64)
    assert torch.equal(played(stripes, (48, 16)), torch.full((48, 16), 0.25))
    ramp = torch.arange(4.0).expand(64, 4)
    assert torch.equal(played(ramp, (16, 8)), torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]).expand(16, 8))


def test_what_can_not_be_replayed_is_refused_by_name(learnt: SparseDictionary, recording: Recording) -> None:
    adapter = SparseAdapter(learnt)
    side = Side({"L0.q[1]": torch.zeros(1, 1, 1, 1)}, {})
    part = Recording(recording.made_on, ("L0.q[1]",), {}, (0.5,), side, Side({}, {}))
    with pytest.raises(ValueError, match=r"holds none of the atoms L0\.v.*such as L0\.q\[1\]"):
        adapter.with_controls(Replay(part, 1.0, parse_selection("L0.v")))
    with pytest.raises(ValueError, match=r"expected 0 \(as computed\) to 1"):
        Replay(part, 1.5)
    retrained = SparseAdapter(random_dictionary(learnt.layers, seed=1))
    with pytest.raises(ValueError, match=r"is of another dictionary .* Replay it on the dictionary that was recorded"):
        retrained.with_controls(Replay(part))
    player = RecordingPlayer(part, 1.0, frozenset())
    rows = Rows((0,), (True,), (Crop((1, 1), 0, 0, 1, 1),))
    with pytest.raises(RuntimeError, match=r"L0\.q can't be replayed: 5 tokens arrived where the picture has 3 x 4"):
        player(Site(0, "q"), (1,), torch.ones(1, 5, 1), Moment(rows, 0.5, (3, 4)))
    with pytest.raises(ValueError, match="carries a replay, which can't be stored"):
        bake(adapter.with_controls(Replay(recording)))
    assert "replays: 1" in describe(adapter.with_controls(Replay(recording)))


def test_two_dictionaries_on_one_model_keep_their_recordings_apart(
    host: DiffusersHost, learnt: SparseDictionary, recording: Recording
) -> None:
    other = SparseAdapter(random_dictionary(host.layers, seed=5, atoms=3))
    plan = compile_plan([other, SparseAdapter(learnt).with_controls(Replay(recording))], host.layers)
    for layer in plan.layers.values():
        for decoder in layer.decoders.values():
            (played,) = decoder.played
            assert [decoder.refs[column] for column in played.columns] == [(1, atom) for atom in range(4)]
            assert played.atoms == (0, 1, 2, 3)
