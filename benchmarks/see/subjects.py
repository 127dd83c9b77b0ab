"""What is ablated: dictionaries, and LoRAs taken apart into directions, all as atoms; whole, and after removal of most."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_core.analysis.importance import measure, with_importance
from sparse_core.compose.baking import bake
from sparse_core.controls import Keep, SparseAdapter
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.examples import Example
from sparse_core.modules import projection_sites

from ..quality.methods import Method, Taught, as_dictionary, svd
from ..quality.presets import CONTROLS, METHODS, OURS
from ..quality.words import PromptedHost


class Subject(NamedTuple):
    """One way of cutting a training into atoms."""

    name: str
    method: Method
    """Trained so."""
    open: Callable[[PromptedHost, Taught], SparseDictionary]
    kept: float = 1.0
    """Share of the atoms, the most important, that make the picture."""


def rank_ones(host: PromptedHost, taught: Taught) -> SparseDictionary:
    """A trained LoRA as it stands: rows of A encode, columns of B are atoms."""
    down = {key.partition(".lora_A.")[0]: key for key in taught.tensors if ".lora_A." in key}
    sites = {}
    for module, site in projection_sites(down, host.layers).items():
        encoder = taught.tensors[down[module]]  # (r, d_in)
        directions = taught.tensors[down[module].replace(".lora_A.", ".lora_B.")].T  # (r, d_out)
        none = torch.zeros(len(encoder))
        sites[site] = Atoms(encoder, none, none, directions, none, normalise=False).unit_norm()
    return SparseDictionary(host.layers, sites)


LORA, LORA_SVD = "LoRA, its rank-ones", "LoRA, by SVD"
OPENED = (
    Subject(OURS, METHODS[OURS], as_dictionary),
    Subject("dense", CONTROLS["dense"], as_dictionary),
    Subject(LORA, METHODS["LoRA"], rank_ones),
    Subject(LORA_SVD, METHODS["LoRA"], svd),
)
FEW = 0.1
"""What `benchmarks.quality` finds enough of ours."""


def cut(name: str) -> str:
    """What a subject is called of which but few atoms are kept."""
    return f"{name}, {FEW:.0%} kept"


SUBJECTS = (*OPENED, *(subject._replace(name=cut(subject.name), kept=FEW) for subject in OPENED))
ALIKE = {of(OURS): [of(subject.name) for subject in OPENED if subject.name != OURS] for of in (str, cut)}
"""Ours, and what it is compared with: as many atoms."""


def opened(subject: Subject, host: PromptedHost, taught: Taught, lessons: list[Example], seed: int) -> SparseDictionary:
    """The subject's atoms, their importance measured in the same way for all. The taught word has to be spoken."""
    dictionary = subject.open(host, taught)
    dictionary = with_importance(dictionary, measure(host, dictionary, lessons, seed=seed))
    return bake(SparseAdapter(dictionary).with_controls(Keep(subject.kept)))
