"""What is written into the shipped dictionaries of their atoms."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparse_core.addresses import parse_selection
from sparse_core.analysis.effects import Ablations
from sparse_core.analysis.labels import COLOURS
from sparse_core.demo import looking
from sparse_core.demo.lessons import creatures
from sparse_core.demo.shipped import DICTIONARIES
from sparse_core.files import load_dictionary, read_header, save_dictionary

CONTENT = {"robot": "d6b361439f1c5935", "owl": "fbf61716116e1fbe", "penguin": "896b04a94a356a4f"}
"""Of what they were trained to be: looking at them changes nothing."""
ATOMS = {"robot": "b3c6ed15420e3caa", "owl": "0b7bf1cc8a710b26", "penguin": "2b3aae9382667fdc"}
"""As it stands in mixes that people have saved."""
LARGEST = 102_400
"""Bytes of what is said of atoms in one file."""


@pytest.mark.parametrize("creature", creatures())
def test_what_ships_says_what_its_atoms_paint(creature: str) -> None:
    file = DICTIONARIES / f"{creature}.safetensors"
    dictionary = load_dictionary(file)
    assert (dictionary.content_hash, dictionary.atoms_hash) == (CONTENT[creature], ATOMS[creature])
    for part in ("effects", "thumbnails"):
        assert len(dictionary.metadata[part]) == looking.MOST
    named = [label for label in dictionary.labels.values() if label.split(",")[0] in COLOURS]
    assert len(named) >= 3
    assert len(read_header(file)["metadata"]) < LARGEST


@pytest.mark.parametrize(("creature", "colour"), [("robot", "orange"), ("owl", "red"), ("penguin", "orange")])
def test_a_colour_is_an_address(creature: str, colour: str) -> None:
    dictionary = load_dictionary(DICTIONARIES / f"{creature}.safetensors")
    picked = parse_selection(f'label:"{colour}*"').resolve(dictionary)
    assert sum(int(flags.sum()) for flags in picked.values()) == 1


def test_looking_changes_no_weight_and_keeps_what_it_did_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(shutil.copy(DICTIONARIES / "owl.safetensors", tmp_path))
    before = load_dictionary(file)
    old = {**before.metadata, "labels": {"L0.q[0]": "old"}, "effects": {"L0.q[0]": 9.0}}
    save_dictionary(replace(before, metadata=old), file)
    asked = []

    def ablations(host: object, dictionary: object, *asked_for: object) -> Ablations:
        asked.append(asked_for[1:3])
        whole = torch.full((16, 16, 3), 0.5)
        return Ablations(whole, torch.zeros(16, 16, 3), {"L15.o[14]": whole * 0.9})

    monkeypatch.setattr(looking, "DICTIONARIES", tmp_path)
    monkeypatch.setattr(looking, "load_pipeline", lambda: None)
    monkeypatch.setattr(looking, "DiffusersHost", lambda pipeline: None)
    monkeypatch.setattr(looking, "hear", lambda *what: ({}, {"L15.o[14]": "owl"}))
    monkeypatch.setattr(looking, "ablations", ablations)
    looking.look_at_shipped("owl")
    after = load_dictionary(file)
    assert asked == list(looking.PICTURES)
    assert after.metadata["effects"] == {"L15.o[14]": pytest.approx(12.75)}
    assert "on 'owl'" in after.labels["L15.o[14]"] and after.labels.keys() == {"L15.o[14]"}
    assert after.metadata["modelspec.title"] == before.metadata["modelspec.title"]
    assert after.atoms_hash == before.atoms_hash
    for site, atoms in before.sites.items():
        assert all(torch.equal(tensor, after.sites[site].tensors()[name]) for name, tensor in atoms.tensors().items())
