"""The report's page: what it says of where a dictionary came from, also where a stranger's file holds something else."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import random_dictionary

from sparse_core.addresses import parse_selection
from sparse_core.analysis.effects import Effect, Gallery
from sparse_core.analysis.recording import Recorder
from sparse_core.compose import combine, extract, interpolate
from sparse_core.controls import SparseAdapter
from sparse_core.dictionary import SparseDictionary
from sparse_core.dictionary_report import Look, write_dictionary_report
from sparse_core.files import save_dictionary

ATOM = "L0.q[0]"


def page(dictionary: SparseDictionary, folder: Path) -> str:
    """The words on the page of a dictionary of which one atom was looked at."""
    pictures = list(torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0)))
    gallery = Gallery(pictures[0], pictures[1], (Effect(ATOM, pictures[2], pictures[3]),))
    seen = Look("a roof", gallery, Recorder(dictionary, [ATOM]).recording(), {}, {})
    file, out = save_dictionary(dictionary, folder / "any.safetensors"), folder / "page.html"
    write_dictionary_report(dictionary, seen, file, out)
    body = out.read_text(encoding="utf-8").partition("<body>")[2].partition("<script>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def signed(seed: int, title: str, author: str = "") -> SparseAdapter:
    metadata = {"modelspec.title": title, **({"modelspec.author": author} if author else {})}
    return SparseAdapter(replace(random_dictionary(seed=seed), metadata=metadata))


def test_a_dictionary_made_of_others_says_of_which_and_not_of_every_atom(tmp_path: Path) -> None:
    combined = combine([signed(1, "roof", "Ada"), signed(2, "door")], [0.5, 1.0])
    said = page(combined, tmp_path)
    assert "made of roof, weight 0.5, by Ada made of door, weight 1" in said
    assert "combined merge above" in said
    assert "origins" not in said and "{" not in said
    assert "made of roof, share 0.75" in page(interpolate(signed(1, "roof"), signed(1, "roof"), 0.25), tmp_path)
    assert "made of roof, selection L0" in page(extract(signed(1, "roof"), parse_selection("L0")), tmp_path)


@pytest.mark.parametrize("stored", ["a text", ["a list"], 7, None])
def test_metadata_that_is_no_table_is_none(stored: Any, tmp_path: Path) -> None:
    names = ("training", "sources", "origins")
    said = page(replace(random_dictionary(), metadata=dict.fromkeys(names, stored)), tmp_path)
    assert "training:" not in said and "made of" not in said


def test_what_the_importance_is_depends_on_where_it_came_from(tmp_path: Path) -> None:
    trained = random_dictionary()
    assert "Measured on the training pictures" in page(trained, tmp_path)
    lora = page(trained.map(lambda atoms: replace(atoms, normalise=False)), tmp_path)
    assert "singular values" in lora and "A quarter of the atoms holds" in lora and "Measured" not in lora
    silent = page(trained.map(lambda atoms: replace(atoms, importance=torch.zeros(len(atoms)))), tmp_path)
    assert "never measured" in silent and "A quarter" not in silent
