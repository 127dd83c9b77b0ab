"""What is ablated: dictionaries, and LoRAs taken apart into directions, all as atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from sparse_core.analysis.importance import measure, with_importance
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
SUBJECTS = (
    Subject(OURS, METHODS[OURS], as_dictionary),
    Subject("dense", CONTROLS["dense"], as_dictionary),
    Subject(LORA, METHODS["LoRA"], rank_ones),
    Subject(LORA_SVD, METHODS["LoRA"], svd),
)


def opened(subject: Subject, host: PromptedHost, taught: Taught, lessons: list[Example], seed: int) -> SparseDictionary:
    """The subject's atoms, their importance measured in the same way for all. The taught word has to be spoken."""
    dictionary = subject.open(host, taught)
    return with_importance(dictionary, measure(host, dictionary, lessons, seed=seed))
