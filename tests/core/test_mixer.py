"""A mix: which atoms its lines reach, and that they never reach those of another dictionary unnoticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import random_dictionary

from sparse_core.addresses import AddressError, parse_lines
from sparse_core.cards import picture, read_card
from sparse_core.controls import Keep, Solo, SparseAdapter, Weight
from sparse_core.dictionary import SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.mixer import LARGEST_THUMBNAILS, LONGEST_NOTE, mix, panel_data
from sparse_core.modules import LowRank
from sparse_core.training.metadata import data_uri

HOSTILE = "<img src=x onerror=alert(1)>"


def weights(adapter: SparseAdapter) -> torch.Tensor:
    return torch.cat([state.weight for state in adapter.state.sites.values()])


@pytest.mark.parametrize(
    "text",
    [
        "L0.q[1] = 0.5\nL1.v[0-2] = -1\nmute L0.q[1]\n",
        "L0-L2.qk[3] = 2\nL0.q[3] = 0.25\n",
        "attn2 *= 50%\nL0[2] = 3\ntop:4 *= 2\nL0[2] = 1\nsolo L0 | L1.v[0]\n",
        "mute L3.o[0]\nL3.o[0] = 0\nL3[2-99] = 7\n",
    ],
)
def test_a_mix_does_what_its_lines_do_one_by_one(dictionary: SparseDictionary, text: str) -> None:
    expected = SparseAdapter(dictionary)
    for line in parse_lines(text):
        one = Weight(line.selection, line.value or 0.0, "scale" if line.operation == "scale" else "set")
        expected = expected.with_controls(Solo(line.selection) if line.operation == "solo" else one)
    assert torch.equal(weights(mix(SparseAdapter(dictionary), text)), weights(expected))


def test_a_mix_comes_after_the_controls_before_it(dictionary: SparseDictionary) -> None:
    before = SparseAdapter(dictionary).with_controls(Keep(0.5))
    mixed = mix(before, "L0.q[1] = 0.5")
    assert mixed.controls[0] is before.controls[0]
    assert all(
        torch.equal(a.kept, b.kept)
        for a, b in zip(mixed.state.sites.values(), before.state.sites.values(), strict=True)
    )


def test_an_empty_mix_changes_nothing(dictionary: SparseDictionary) -> None:
    assert torch.equal(weights(mix(SparseAdapter(dictionary), "# nothing\n")), torch.ones(len(dictionary)))


def test_an_atom_that_does_not_exist_is_an_error(dictionary: SparseDictionary) -> None:
    with pytest.raises(AddressError, match="has atoms 0 to 3, not 4"):
        mix(SparseAdapter(dictionary), "L0.q[4] = 0.5")


# ------------------------------------------------------------------------------------------------- which dictionary


def test_lines_of_another_dictionary_are_refused_by_name(dictionary: SparseDictionary) -> None:
    old = random_dictionary(seed=5).atoms_hash
    text = f"# dictionary {old}\nL0.q[1] = 0.5\nmute L0.q[9]\nsolo top:25%\n"
    with pytest.raises(AddressError) as error:
        mix(SparseAdapter(dictionary), text)
    message = str(error.value)
    assert "Line 2: L0.q[1] = 0.5\n" in message
    assert "Line 3: mute L0.q[9]  (L0.q[9] picks no atom" in message
    assert "solo" not in message
    assert f"set on another dictionary ({old})" in message  # the panel reads it
    assert "Press Adopt" in message and f'"# dictionary {old}"' in message and dictionary.atoms_hash in message


def test_lines_of_two_dictionaries_are_refused(dictionary: SparseDictionary) -> None:
    own, other = dictionary.atoms_hash, "0123456789abcdef"
    text = f"# dictionary {own}\nL0.q[1] = 0.5\n# dictionary {other}\nL0.q[2] = 0.5\n"
    with pytest.raises(
        AddressError, match=rf"of several dictionaries \({own}, {other}\).*Delete the lines of the others"
    ):
        mix(SparseAdapter(dictionary), text)
    assert mix(SparseAdapter(dictionary), text.replace(other, own)).controls


def test_a_panel_of_the_same_atoms_is_told_one_and_the_same(dictionary: SparseDictionary) -> None:
    adapter = SparseAdapter(dictionary).with_controls(Keep(0.5))
    assert panel_data(adapter) is panel_data(adapter)
    assert panel_data(adapter.with_controls(Keep(0.25))) != panel_data(adapter)


def test_lines_hold_for_the_dictionary_they_were_made_on_and_for_any_without_a_hash(
    dictionary: SparseDictionary,
) -> None:
    for header in (f"# dictionary {dictionary.atoms_hash}\n", ""):
        assert weights(mix(SparseAdapter(dictionary), header + "L0.q[1] = 0.5"))[1] == 0.5


def test_lines_without_numbers_of_atoms_hold_for_any_dictionary(dictionary: SparseDictionary) -> None:
    mixed = mix(SparseAdapter(dictionary), f"# dictionary {'0' * 16}\nsolo top:25%\nattn2 *= 0.5\n")
    assert int((weights(mixed) != 0).sum()) == len(dictionary) // 4


def test_the_hash_outlives_a_file_and_what_is_measured_and_written_of_atoms(
    dictionary: SparseDictionary, tmp_path: Path
) -> None:
    expected = dictionary.atoms_hash
    assert load_dictionary(save_dictionary(dictionary, tmp_path / "a.safetensors")).atoms_hash == expected
    measured = dictionary.map(lambda atoms: replace(atoms, importance=atoms.importance * 2))
    assert replace(measured, metadata={"labels": {"L0.q[0]": "roof"}}).atoms_hash == expected


def test_any_change_of_what_atoms_draw_changes_the_hash(dictionary: SparseDictionary) -> None:
    site = next(iter(dictionary.sites))
    turned = dictionary.sites[site][torch.tensor([1, 0, 2, 3])]
    assert replace(dictionary, sites={**dictionary.sites, site: turned}).atoms_hash != dictionary.atoms_hash


def test_what_belongs_to_no_atom_leaves_their_hash_as_it_is_and_changes_that_of_the_content(
    dictionary: SparseDictionary,
) -> None:
    with_rest = replace(dictionary, rest={"time_embed.0": LowRank(torch.ones(2, 3), torch.ones(2, 3))})
    assert with_rest.atoms_hash == dictionary.atoms_hash
    assert with_rest.content_hash != dictionary.content_hash


# --------------------------------------------------------------------------------------------------------- the panel


def test_the_panel_gets_every_atom_the_most_important_first(dictionary: SparseDictionary) -> None:
    labelled = replace(dictionary, metadata={"labels": {"L0.q[1]": HOSTILE}, "modelspec.title": "roof"})
    data = json.loads(json.dumps(panel_data(SparseAdapter(labelled))))
    assert (data["hash"], data["title"]) == (dictionary.atoms_hash, "roof")
    assert len(data["atoms"]) == len(dictionary)
    shares = [share for _, share, *_ in data["atoms"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert next(label for address, _, label, *_ in data["atoms"] if address == "L0.q[1]") == HOSTILE


def test_the_panel_is_told_which_atoms_no_weight_brings_back(dictionary: SparseDictionary) -> None:
    def kept(adapter: SparseAdapter) -> list[bool]:
        return [kept for *_, kept in panel_data(adapter)["atoms"]]

    dropped = SparseAdapter(dictionary).with_controls(Keep(0.25))
    few = len(dictionary) // 4
    assert kept(dropped) == [True] * few + [False] * (len(dictionary) - few)
    assert kept(mix(dropped, "L0.q[0] = 1\nL0.q[1] = 1\n")) == kept(dropped)
    assert all(kept(mix(SparseAdapter(dictionary), "mute *")))


def test_the_panel_gets_pictures_and_nothing_else_as_thumbnails(dictionary: SparseDictionary) -> None:
    good = "data:image/png;base64,iVBORw0KGgo="
    bad = ["javascript:alert(1)", "data:image/svg+xml;base64,PHN2Zz4=", f'{good}" onerror="alert(1)', good + "\n", 7]
    stored = {"L0.q[0]": good, **{f"L0.k[{i}]": text for i, text in enumerate(bad)}}
    stored["L0.v[0]"] = "data:image/png;base64," + "A" * LARGEST_THUMBNAILS
    data = panel_data(SparseAdapter(replace(dictionary, metadata={"thumbnails": stored})))
    assert data["thumbnails"] == {"L0.q[0]": good}
    for nonsense in (None, [], "x"):
        assert panel_data(SparseAdapter(replace(dictionary, metadata={"thumbnails": nonsense})))["thumbnails"] == {}


def test_the_panel_gets_notes_of_its_atoms_and_not_all_of_a_long_one(dictionary: SparseDictionary) -> None:
    stored = {"L0.q[0]": HOSTILE, "L0.q[1]": "a" * 10_000, "L99.q[0]": "gone"}
    data = panel_data(SparseAdapter(replace(dictionary, metadata={"notes": stored})))
    assert data["notes"] == {"L0.q[0]": HOSTILE, "L0.q[1]": "a" * LONGEST_NOTE}
    for nonsense in (None, [], "x"):
        assert panel_data(SparseAdapter(replace(dictionary, metadata={"notes": nonsense})))["notes"] == {}


def test_the_panel_gets_numbers_and_nothing_else_as_effects(dictionary: SparseDictionary) -> None:
    bad = ["2", True, -1, 256, float("nan"), float("inf"), None, [1]]
    stored = {"L0.q[0]": 2.25, "L0.q[1]": 0, **{f"L0.k[{i}]": value for i, value in enumerate(bad)}}
    data = panel_data(SparseAdapter(replace(dictionary, metadata={"effects": stored})))
    assert data["effects"] == {"L0.q[0]": 2.25, "L0.q[1]": 0}
    for nonsense in (None, [], "x"):
        assert panel_data(SparseAdapter(replace(dictionary, metadata={"effects": nonsense})))["effects"] == {}


# --------------------------------------------------------------------------------------------------------- the cards


def test_a_card_shows_what_the_header_says(dictionary: SparseDictionary, tmp_path: Path) -> None:
    from PIL import Image

    spec = {"title": "roof", "trigger_phrase": "zib", "thumbnail": data_uri(Image.new("RGB", (8, 8), "red"))}
    named = replace(dictionary, metadata={f"modelspec.{name}": value for name, value in spec.items()})
    card = read_card(save_dictionary(named, tmp_path / "a.safetensors"))
    assert (card.title, card.trigger, card.description) == ("roof", "zib", "")
    kind, data = picture(card)
    assert kind == "image/jpeg" and data[:2] == b"\xff\xd8"


def test_a_card_of_a_bad_file_or_picture_is_empty(dictionary: SparseDictionary, tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    assert read_card(tmp_path / "bad.safetensors").title == ""
    script = replace(dictionary, metadata={"modelspec.thumbnail": "data:text/html;base64,PHNjcmlwdD4="})
    card = read_card(save_dictionary(script, tmp_path / "a.safetensors"))
    assert card.thumbnail == "" and picture(card) is None
