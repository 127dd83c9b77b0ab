"""What is shown of a dictionary: recordings, heat maps, words, effects, likeness, labels."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from random import Random

import pytest
import torch
from factories import LAYERS, random_condition, random_dictionary, tiny_host
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Generator, Tensor

from sparse_core.addresses import ALL, parse_selection
from sparse_core.analysis import comparison, effects, heatmaps, importance_chart, labels, recording, words
from sparse_core.analysis.recording import (
    LARGEST_SIDE,
    MOST_ATOMS,
    MOST_MOMENTS,
    MOST_PICTURES,
    Recorder,
    Recording,
    Side,
    chosen_atoms,
)
from sparse_core.coding import encode
from sparse_core.controls import Curve, Mask, Schedule, Solo, SparseAdapter, Weight
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Site
from sparse_core.modules import LowRank
from sparse_core.plan import Crop, Moment, Rows

SIZE = (8, 8)


def whole(rows: int, positive: tuple[bool, ...] = ()) -> Rows:
    pictures = tuple(range(rows // 2)) * 2 if positive else tuple(range(rows))
    return Rows(pictures, positive or (True,) * rows, (Crop(SIZE, 0, 0, *SIZE),) * rows)


def denoised(host: DiffusersHost, adapter: SparseAdapter, observer: Recorder | None = None, rows: int = 2) -> Tensor:
    """One model call on the same noise for every row."""
    noisy = torch.randn(1, 4, *SIZE, generator=Generator().manual_seed(1)).repeat(rows, 1, 1, 1)
    condition = random_condition(1)
    condition = replace(condition, text=condition.text.repeat(rows, 1, 1))
    with torch.no_grad(), host.patched([adapter], observer):
        return host.denoise(noisy, torch.full((rows,), 0.5), condition)


# ---------------------------------------------------------------------------------------------------------- recording


def test_a_recording_changes_no_bit_of_the_picture() -> None:
    host = tiny_host()
    dictionary = random_dictionary(host.layers)
    controls = Mask(torch.eye(8)), Schedule(Curve(0, 1, (1, 2))), Weight(ALL, 0.5)
    adapter = SparseAdapter(dictionary).with_controls(*controls)
    recorder = Recorder(dictionary, chosen_atoms(dictionary, parse_selection("top:24")))
    assert torch.equal(denoised(host, adapter), denoised(host, adapter, recorder))
    assert recorder.recording().positive.places and not recorder.recording().negative.places


def test_a_recording_holds_coefficients_before_controls_by_place_and_by_word() -> None:
    dictionary = random_dictionary()
    recorder = Recorder(dictionary, ["L0.q[1]", "L1.v[2]"])
    rows = whole(4, (False, False, True, True))
    x, text = torch.randn(4, 12, 8), torch.randn(4, 5, 6)
    for site, read in ((Site(0, "q"), x), (Site(1, "v"), text)):
        atoms = dictionary.sites[site]
        z = encode(read, atoms.encoder, atoms.bias, atoms.threshold, torch.ones(4))
        recorder(site, [3, 2, 1], read, z[..., [3, 2, 1]], read, Moment(rows, 0.5, (3, 4)))
    recording = recorder.recording()
    assert recording.progress == (0.5,)
    for side, chosen in ((recording.positive, slice(2, 4)), (recording.negative, slice(0, 2))):
        atoms = dictionary.sites[Site(0, "q")]
        z = encode(x[chosen], atoms.encoder, atoms.bias, atoms.threshold, torch.ones(4))[..., 1]
        torch.testing.assert_close(side.places["L0.q[1]"][0], z.view(2, 3, 4).half())
        assert side.words["L1.v[2]"].shape == (2, 5) and "L1.v[2]" not in side.places


def test_a_recording_is_bounded_however_many_steps_pictures_and_places_there_are() -> None:
    dictionary = random_dictionary()
    recorder = Recorder(dictionary, ["L0.q[0]"])
    rows = whole(MOST_PICTURES + 3)
    for step in range(2 * MOST_MOMENTS):
        z = torch.full((len(rows.pictures), 100 * 80, 4), float(step))
        recorder(Site(0, "q"), range(4), z, z, z, Moment(rows, step / (2 * MOST_MOMENTS), (100, 80)))
    places = recorder.recording().positive.places["L0.q[0]"]
    assert places.shape == (MOST_MOMENTS, MOST_PICTURES, LARGEST_SIDE, LARGEST_SIDE)
    assert places[0].unique().tolist() == [0.5]  # two steps share a moment


def test_a_recording_that_grows_too_large_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MOST_MEGABYTES", 1)
    recorder = Recorder(random_dictionary(), ["L0.q[0]", "L0.q[1]"])
    z = torch.ones(4, 64 * 64, 4)  # 64 kB a moment
    with pytest.raises(RuntimeError, match=r"2 atoms would take more than 1 MB.*top:256"):
        for step in range(MOST_MOMENTS):
            recorder(Site(0, "q"), range(4), z, z, z, Moment(whole(4), step / MOST_MOMENTS, (64, 64)))
    assert step == 16


def test_a_heat_map_counts_coefficients_of_either_sign_and_no_more_than_can_be_looked_at() -> None:
    places = {f"L0.q[{j}]": torch.full((1, 1, 4, 4), -float(j)).half() for j in range(MOST_ATOMS + 5)}
    maps = heatmaps.heat_maps(Recording("", tuple(places), {}, (0.5,), Side(places, {}), Side({}, {})), (4, 4))
    assert list(maps) == [f"L0.q[{j}]" for j in range(1, MOST_ATOMS + 1)]
    assert maps["L0.q[3]"].unique().tolist() == [3]


def test_tokens_in_an_unknown_layout_are_refused_by_name() -> None:
    recorder = Recorder(random_dictionary(), ["L0.q[0]"])
    z = torch.ones(1, 5, 4)
    with pytest.raises(RuntimeError, match=r"L0\.q can't be recorded: 5 tokens arrived where the picture has 3 x 4"):
        recorder(Site(0, "q"), range(4), z, z, z, Moment(whole(1), 0.5, (3, 4)))
    with pytest.raises(RuntimeError, match="nothing says which picture"):
        recorder(Site(0, "q"), range(4), z, z, z, Moment(None, 0.5, (1, 5)))


@pytest.mark.parametrize(
    "rows",
    [
        Rows((0, 0), (True, True), (Crop(SIZE, 0, 0, *SIZE),) * 2),
        Rows((0, 0), (True, False), (Crop((8, 16), 0, 8, *SIZE),) * 2),
    ],
    ids=["two prompts", "a half"],
)
@pytest.mark.parametrize(("site", "tokens"), [(Site(0, "q"), 64), (Site(1, "v"), 5)])
def test_coefficients_of_several_prompts_or_of_a_part_are_refused(rows: Rows, site: Site, tokens: int) -> None:
    recorder = Recorder(random_dictionary(), ["L0.q[0]", "L1.v[0]"])
    z = torch.ones(2, tokens, 4)
    with pytest.raises(RuntimeError, match=f"{site} can't be recorded: several prompts act, or one on a part"):
        recorder(site, range(4), z, z, z, Moment(rows, 0.5, SIZE))


def test_a_picture_that_changes_its_size_inside_the_model_is_refused() -> None:
    recorder = Recorder(random_dictionary(), ["L0.q[0]"])
    with pytest.raises(RuntimeError, match=r"arrives in several sizes.*Kohya Deep Shrink"):
        for grid in ((4, 4), SIZE):
            z = torch.ones(1, grid[0] * grid[1], 4)
            recorder(Site(0, "q"), range(4), z, z, z, Moment(whole(1), 0.5, grid))


def test_too_many_atoms_are_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=rf"\* picks 128 atoms; at most {MOST_ATOMS}.*top:24"):
        chosen_atoms(random_dictionary(atoms=8), ALL)


# ---------------------------------------------------------------------------------------------------------- heat maps


def recorded() -> Recording:
    early, late = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    early[0, 0, :2], late[1, 0, 2:] = 1, 3
    silent = torch.zeros(2, 1, 4, 4)
    places = {"L0.q[0]": early.half(), "L0.q[1]": late.half(), "L0.q[2]": silent.half(), "L0.q[3]": early.half()}
    return Recording("", tuple(places), {"L0.q[0]": "sky $"}, (0.1, 0.9), Side(places, {}), Side({}, {}))


def test_masks_are_white_where_an_atom_fires_most_and_fit_the_picture() -> None:
    maps = heatmaps.heat_maps(recorded(), (32, 32))
    assert list(maps) == ["L0.q[0]", "L0.q[1]", "L0.q[3]"]
    masks = heatmaps.to_masks(maps)
    assert masks.shape == (3, 32, 32) and masks.min() == 0 and masks.amax(dim=(1, 2)).tolist() == [1, 1, 1]
    assert masks[0, :12].mean() > 0.9 and masks[0, 20:].mean() < 0.1
    assert "L0.q[0] and L0.q[3] (100%)" in heatmaps.heat_text(maps)
    sheet = heatmaps.heat_sheet(recorded(), maps, torch.rand(32, 32, 3))
    assert sheet.ndim == 3 and sheet.min() >= 0 and sheet.max() <= 1 and sheet.std() > 0.05


def test_a_part_of_sampling_shows_what_fires_then() -> None:
    assert list(heatmaps.heat_maps(recorded(), SIZE, start=0.5)) == ["L0.q[1]"]
    with pytest.raises(ValueError, match=r"No step was recorded between 0\.2 and 0\.3.*0\.10, 0\.90"):
        heatmaps.heat_maps(recorded(), SIZE, start=0.2, end=0.3)
    with pytest.raises(ValueError, match="Picture 1 was not recorded; expected 0 to 0"):
        heatmaps.heat_maps(recorded(), SIZE, picture=1)
    with pytest.raises(ValueError, match="no atom that reads the picture on the negative prompt"):
        heatmaps.heat_maps(recorded(), SIZE, prompt="negative")


def test_atoms_none_of_which_fires_are_refused_with_advice() -> None:
    silent = replace(recorded(), positive=Side({"L0.q[2]": torch.zeros(2, 1, 4, 4).half()}, {}))
    with pytest.raises(ValueError, match=r"None of the 1 recorded atoms fires on picture 0 between 0\.5 and 1.*top:24"):
        heatmaps.heat_maps(silent, SIZE, start=0.5)


# -------------------------------------------------------------------------------------------------------------- words


def test_words_are_those_that_the_model_itself_encodes() -> None:
    host = tiny_host()
    dictionary = random_dictionary(host.layers)
    site = next(s for s in dictionary.sites if s.projection == "v" and host.layers[s.layer].attention == "attn2")
    recorder = Recorder(dictionary, [f"{site}[{j}]" for j in range(4)])
    denoised(host, SparseAdapter(dictionary), recorder, rows=1)
    text = random_condition(1).text[0]
    table = words.word_table(dictionary, text, ["a", "red", "house", "on", "fire"], parse_selection(str(site)), 4)
    for address, codes in zip(table.addresses, table.coefficients, strict=True):
        torch.testing.assert_close(codes, recorder.recording().positive.words[address][0])


def test_only_a_clear_word_is_named() -> None:
    codes = torch.tensor([[0.0, -2.0, -1.0, 3.0], [0.4, 1.0, 0.9, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]])
    names = ("L1.v[0]", "L1.v[1]", "L1.v[2]", "L1.v[3]")
    table = words.WordTable(names, ("", "x", "", ""), ("<|startoftext|>", "house", "red", "roof"), codes)
    assert [table.answers_to(i) for i in range(4)] == ["house", "", "", ""]
    said = words.word_text(table)
    assert "roof (+3.00), house (-2.00), red (-1.00)" in said and "| L1.v[2] | - | no word of this prompt |" in said
    assert words.word_chart(table).ndim == 3


def test_atoms_that_read_no_words_and_another_models_text_are_refused() -> None:
    with pytest.raises(ValueError, match="L0 holds no atom that reads words"):
        words.word_table(random_dictionary(), torch.ones(2, 6), ["a", "b"], parse_selection("L0"), 4)
    with pytest.raises(ValueError, match="gives 7 features for each word; this dictionary's model reads 6"):
        words.word_table(random_dictionary(), torch.ones(2, 7), ["a", "b"], parse_selection("attn2"), 4)


# ------------------------------------------------------------------------------------------------------------ effects


def test_one_batch_draws_each_atom_as_a_run_of_its_own_does() -> None:
    host = tiny_host()
    adapter = SparseAdapter(random_dictionary(host.layers)).with_controls(Weight(ALL, 1.5))
    groups = {name: parse_selection(name) for name in ("L0.q[1]", "L1.v[0]", "L1.k[2]", "attn1.o[0]", "L3.v[3]")}

    def draw(adapter: SparseAdapter, count: int) -> Tensor:
        return denoised(host, adapter, rows=count).movedim(1, -1)

    gallery = effects.draw_gallery(adapter, groups, [draw, draw], batch=6)
    first, second = gallery.ablations
    alone = {name: draw(adapter.with_controls(Solo(group)), 1)[0] for name, group in groups.items()}
    but = {name: draw(adapter.with_controls(Weight(group, 0.0)), 1)[0] for name, group in groups.items()}
    assert [effect.name for effect in gallery.effects] == list(groups)
    torch.testing.assert_close(gallery.whole, draw(adapter, 1)[0])
    torch.testing.assert_close(gallery.plain, draw(adapter.with_controls(Weight(ALL, 0.0)), 1)[0])
    for effect in gallery.effects:
        torch.testing.assert_close(effect.solo, alone[effect.name])
        torch.testing.assert_close(effect.without, but[effect.name])
        assert not torch.allclose(effect.without, gallery.whole)
        torch.testing.assert_close(second.without[effect.name], effect.without)
        assert torch.equal(first.without[effect.name], effect.without)
    torch.testing.assert_close(second.whole, first.whole)
    torch.testing.assert_close(second.plain, first.plain)


def test_a_group_of_all_atoms_is_the_whole_alone_and_the_plain_model_without() -> None:
    host = tiny_host()
    adapter = SparseAdapter(random_dictionary(host.layers))

    def draw(adapter: SparseAdapter, count: int) -> Tensor:
        return denoised(host, adapter, rows=count).movedim(1, -1)

    gallery = effects.draw_gallery(adapter, {"*": ALL}, [draw], batch=2)
    (effect,) = gallery.effects
    torch.testing.assert_close(effect.solo, gallery.whole)
    torch.testing.assert_close(effect.without, gallery.plain)


@pytest.mark.parametrize("atoms", ["L0.q[1]", "attn1", "attn1 | attn2"])
def test_atoms_alone_are_without_what_a_lora_does_outside_the_attentions(atoms: str) -> None:
    host, group = tiny_host(), parse_selection(atoms)
    learnt = random_dictionary(host.layers)
    with_rest = replace(learnt, rest={"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))})

    def draw(adapter: SparseAdapter, count: int) -> Tensor:
        return denoised(host, adapter, rows=count).movedim(1, -1)

    (effect,) = effects.draw_gallery(SparseAdapter(with_rest), {atoms: group}, [draw], batch=2).effects
    torch.testing.assert_close(effect.solo, draw(SparseAdapter(learnt).with_controls(Solo(group)), 1)[0])
    others = SparseAdapter(with_rest).with_controls(Weight(group, 0.0))
    torch.testing.assert_close(effect.without, draw(others, 1)[0])


def test_a_group_of_everything_keeps_what_a_lora_does_outside_the_attentions() -> None:
    host = tiny_host()
    rest = {"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))}
    for learnt in (random_dictionary(host.layers), random_dictionary(host.layers, sites=[])):
        adapter = SparseAdapter(replace(learnt, rest=rest))

        def draw(adapter: SparseAdapter, count: int) -> Tensor:
            return denoised(host, adapter, rows=count).movedim(1, -1)

        gallery = effects.draw_gallery(adapter, {"*": ALL}, [draw], batch=2)
        torch.testing.assert_close(gallery.effects[0].solo, gallery.whole)
        torch.testing.assert_close(gallery.effects[0].without, gallery.plain)
        assert not torch.allclose(gallery.whole, gallery.plain)


RED, BLUE, GREY = (torch.tensor(labels.COLOURS[name]) for name in ("red", "blue", "grey"))


def creature(top: int = 8, left: int = 8, roof: int = 8, side: int = 32) -> effects.Ablations:
    """A blue creature of 16 by 16 on grey, whose red roof, so many columns of its upper half, turns blue without one atom, and
    that hardly moves without the other."""
    plain = GREY.expand(side, side, 3).clone()
    without = plain.clone()
    without[top : top + 16, left : left + 16] = BLUE
    whole = without.clone()
    whole[top : top + 8, left : left + roof] = RED
    return effects.Ablations(whole, plain, {"L0.q[0]": without, "L0.q[1]": whole + 1e-4})


def turned(one: effects.Ablations) -> effects.Ablations:
    """The same where the atom takes away what it painted before."""
    blue = one.without["L0.q[0]"]
    return effects.Ablations(blue, one.plain, {"L0.q[0]": one.whole, "L0.q[1]": blue + 1e-4})


def test_an_effect_has_a_place_and_a_size() -> None:
    one = creature()
    gallery = effects.Gallery(
        one.whole, one.plain, tuple(effects.Effect(name, one.whole, without) for name, without in one.without.items())
    )
    first, second = gallery.effects
    assert gallery.removed(first)[16:].max() == 0 and gallery.removed(first)[8:16, 8:16].min() > 0.1
    moved = float((RED - BLUE).abs().mean())
    assert gallery.size(first) == pytest.approx(255 * moved * 64 / 32**2, rel=1e-3) and gallery.size(second) < 0.1
    sheet = effects.gallery_sheet(gallery, {"L0.q[0]": "red, upper left"})
    assert sheet.ndim == 3 and sheet.std() > 0.05
    assert effects.effects_text(gallery, {}).splitlines()[2].startswith(f"| L0.q[0] | - | {gallery.size(first):.2f}")


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_name_what_is_sure_and_nothing_else() -> None:
    pictures = [creature(roof=7), creature(), creature()]
    assert labels.automatic_labels(pictures, {}) == {"L0.q[0]": "red, upper left"}
    heard = labels.automatic_labels(pictures, {"L0.q[0]": "roof", "L0.q[1]": "house"})
    assert heard == {"L0.q[0]": "red, upper left, on 'roof'", "L0.q[1]": "on 'house'"}


def test_one_picture_names_no_colour() -> None:
    assert labels.automatic_labels([creature()], {}) == {}


def test_a_colour_that_goes_from_one_picture_and_comes_in_another_is_not_named() -> None:
    pictures = [creature(), creature(), creature(), turned(creature())]
    assert labels.automatic_labels(pictures, {}) == {}


def test_what_an_atom_takes_away_is_not_its_colour() -> None:
    """Without it there is more red and less blue: it paints blue over the roof."""
    assert labels.automatic_labels([turned(creature())] * 3, {}) == {"L0.q[0]": "blue, upper left"}


def test_too_little_to_be_seen_is_not_named() -> None:
    assert labels.automatic_labels([creature(side=32)] * 3, {}) != {}
    assert labels.automatic_labels([creature(roof=1, side=300)] * 3, {}) == {}


@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16), st.integers(6, 8)), min_size=2, max_size=5), st.randoms()
)
@settings(max_examples=25, deadline=None)
def test_a_label_tells_of_the_creature_wherever_it_stands_and_in_whatever_order(
    pictures: list[tuple[int, int, int]], random: Random
) -> None:
    drawn = [creature(*one) for one in pictures]
    expected = labels.automatic_labels(drawn, {})
    random.shuffle(drawn)
    assert labels.automatic_labels(drawn, {}) == expected == {"L0.q[0]": "red, upper left"}


@given(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=6), st.floats(-1, 1, width=32))
def test_one_is_sure_of_less_than_the_mean_and_of_all_of_what_never_differs(seen: list[float], more: float) -> None:
    values = torch.tensor(seen)
    assert labels.sure(values) <= values.mean() + 1e-6
    torch.testing.assert_close(labels.sure(values + more), labels.sure(values) + more, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(labels.sure(values[:1].expand(3)), values[0], atol=1e-6, rtol=1e-6)
    assert labels.sure(values[:1]) == -torch.inf


@pytest.mark.parametrize("colour", labels.COLOURS)
def test_a_picture_of_one_colour_has_most_of_that(colour: str) -> None:
    known = labels.amounts(torch.tensor(labels.COLOURS[colour]).expand(2, 3, 3))
    assert known.shape == (2, 3, len(labels.COLOURS))
    assert list(labels.COLOURS)[int(known[1, 2].argmax())] == colour and known.max() == pytest.approx(1)


def test_large_pictures_are_looked_at_from_afar() -> None:
    one = effects.Ablations(*(torch.rand(300, 600, 3) for _ in range(2)), {"L0.q[0]": torch.rand(300, 600, 3)})
    small = labels.at_a_glance(one)
    assert small.whole.shape == small.plain.shape == small.without["L0.q[0]"].shape == (64, 128, 3)
    torch.testing.assert_close(small.whole.mean(), one.whole.mean(), atol=1e-3, rtol=0)
    assert torch.equal(labels.at_a_glance(creature()).whole, creature().whole)


@pytest.mark.parametrize(
    ("rows", "columns", "name"),
    [
        (slice(0, 8), slice(0, 16), "upper half"),
        (slice(8, 16), slice(0, 16), "lower half"),
        (slice(0, 16), slice(0, 8), "left"),
        (slice(8, 16), slice(8, 16), "lower right"),
        (slice(0, 16), slice(0, 16), ""),
    ],
)
def test_a_place_is_named_where_most_of_a_map_lies(rows: slice, columns: slice, name: str) -> None:
    heat = torch.zeros(16, 16)
    heat[rows, columns] = 1
    assert labels.place_of([heat, heat / 2], [(8, 8), (8, 8)]) == name
    assert labels.place_of([heat, heat.flip(0, 1)], [(8, 8), (8, 8)]) == ""
    below = torch.cat([torch.zeros(8, 16), heat])
    assert labels.place_of([below, heat], [(16, 8), (8, 8)]) == name


def test_a_look_labels_what_has_no_label_yet_and_leaves_sizes_and_thumbnails() -> None:
    named = labels.with_labels(random_dictionary(), {"L0.q[0]": "my roof"})
    kept = labels.with_looks(named, [creature(), creature(roof=4)], {"L0.q[1]": "house"})
    assert kept.labels == {"L0.q[0]": "my roof", "L0.q[1]": "on 'house'"}
    moved = 255 * float((RED - BLUE).abs().mean()) * 8 * (8 + 4) / 2 / 32**2
    assert kept.metadata["effects"] == {
        "L0.q[0]": pytest.approx(moved, abs=0.01),
        "L0.q[1]": pytest.approx(0.03, abs=0.01),
    }
    head, data = kept.metadata["thumbnails"]["L0.q[0]"].split(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and picture.width == picture.height == pytest.approx(16, abs=1)


def test_lines_give_names_to_all_atoms_an_address_picks_and_take_them_away() -> None:
    dictionary = labels.with_labels(random_dictionary(), {"L0.q[0]": "old"})
    found = labels.parse_texts("# names\n\nL1.v[0-1] = a = b\nL0.q[0] =\n", dictionary, "label")
    assert found == {"L1.v[0]": "a = b", "L1.v[1]": "a = b", "L0.q[0]": ""}
    named = labels.with_labels(dictionary, found)
    assert named.labels == {"L1.v[0]": "a = b", "L1.v[1]": "a = b"}
    assert labels.parse_texts('label:"a = b" = seen', named, "note") == {"L1.v[0]": "seen", "L1.v[1]": "seen"}


def test_notes_stand_beside_labels_and_can_be_taken_away() -> None:
    noted = labels.with_notes(
        labels.with_labels(random_dictionary(), {"L0.q[0]": "roof"}), {"L0.q[0]": "a", "L0.q[1]": "b"}
    )
    assert noted.labels == {"L0.q[0]": "roof"}
    assert labels.with_notes(noted, {"L0.q[0]": ""}).metadata["notes"] == {"L0.q[1]": "b"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nL0.q[0] roof", r"Line 2 of the labels: 'L0\.q\[0\] roof' has no label"),
        ("L99 = x", "Line 1 of the labels: .*L99"),
        ("?? = x", "Line 1 of the labels: "),
    ],
)
def test_a_bad_line_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        labels.parse_texts(text, random_dictionary(), "label")


def test_a_site_without_atoms_is_not_compared() -> None:
    first, second = random_dictionary(), random_dictionary()
    empty = {**second.sites, Site(0, "q"): second.sites[Site(0, "q")][:0]}
    compared = comparison.compare(first, replace(second, sites=empty))
    assert compared.shared == len(first.sites) - 1 and compared.likeness == pytest.approx(1, abs=1e-5)


# ----------------------------------------------------------------------------------------------------------- likeness


def test_a_dictionary_is_like_itself_and_unlike_another() -> None:
    first, second = random_dictionary(seed=1), random_dictionary(seed=2)
    same, other = comparison.compare(first, first), comparison.compare(first, second)
    assert same.likeness == pytest.approx(1, abs=1e-5) and other.likeness < 0.8
    assert all(pair.first == pair.second for pair in same.matches) and same.only == (0, 0)
    assert comparison.comparison_chart(other).ndim == 3
    assert "Likeness 1.00" in comparison.comparison_text(same, first, first, 3)


def test_likeness_does_not_depend_on_the_order_or_sign_of_atoms() -> None:
    first = random_dictionary(seed=1)
    turned = first.map(lambda atoms: replace(atoms, directions=-atoms.directions)[torch.tensor([2, 0, 3, 1])])
    assert comparison.compare(first, turned).likeness == pytest.approx(1, abs=1e-5)


def test_dictionaries_of_two_models_or_without_a_common_site_are_refused() -> None:
    with pytest.raises(ValueError, match="belong to different models"):
        comparison.compare(random_dictionary(), random_dictionary(LAYERS[:2]))
    with pytest.raises(ValueError, match="no site in common"):
        comparison.compare(random_dictionary(sites=[Site(0, "q")]), random_dictionary(sites=[Site(1, "q")]))


def test_near_copies_are_found_but_not_among_atoms_that_draw_nothing() -> None:
    def copied(importance: float):
        def change(atoms):
            directions, weight = atoms.directions.clone(), atoms.importance.clone()
            directions[1], weight[1] = -directions[0], importance
            return replace(atoms, directions=directions, importance=weight)

        return random_dictionary(sites=[Site(0, "q")]).map(change)

    ((first, second, cosine),) = comparison.duplicates(copied(0.5))
    assert (first, second) == ("L0.q[0]", "L0.q[1]") and cosine == pytest.approx(1)
    assert comparison.duplicates(copied(0.0)) == []


# --------------------------------------------------------------------------------------------------------- importance


def test_shares_add_up_and_the_chart_shows_contrast_where_it_was_measured() -> None:
    dictionary = random_dictionary()
    assert sum(float(values.sum()) for values in importance_chart.shares(dictionary).values()) == pytest.approx(1)
    measured = dictionary.map(lambda atoms: replace(atoms, elsewhere=atoms.importance / 2))
    small, large = (importance_chart.importance_chart(d) for d in (dictionary, measured))
    assert large.shape[0] > small.shape[0]
    assert "not measured" in importance_chart.importance_text(dictionary, 3)
    assert "not measured" not in importance_chart.importance_text(measured, 3)


def test_importance_that_was_not_measured_on_pictures_is_said_to_be_so() -> None:
    silent = random_dictionary().map(lambda atoms: replace(atoms, importance=torch.zeros(4)))
    assert "never measured" in importance_chart.importance_text(silent, 3)
    lora = random_dictionary().map(lambda atoms: replace(atoms, normalise=False))
    assert "singular values" in importance_chart.importance_text(lora, 3)
    assert importance_chart.importance_chart(silent).ndim == 3
