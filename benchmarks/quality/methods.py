"""The methods that are compared: how each is set up, trained, kept and put to work again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from sparse_core.analysis.importance import measure, with_importance
from sparse_core.controls import Conditioning, Keep, SparseAdapter
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.files import write_atomically
from sparse_core.layers import Site
from sparse_core.lora.algorithms import orthogonal_atoms
from sparse_core.modules import LowRank, projection_sites
from sparse_core.training import Example, TrainingSettings
from sparse_core.training.learners import DictionaryLearner, Learner, WordLearner, initial_dictionary

from .concepts import WORD
from .peers import StandInLearner, bottlenecks, peft_layers
from .words import EMBEDDING, NoLearner, PromptedHost


@dataclass(frozen=True)
class Method:
    """One way of teaching, with its tuned settings."""

    name: str
    family: str
    """A key of `LEARNERS`, or ``dictionary``."""
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    word_rate: float = 1e-2
    """Learning rate of the word's embedding."""
    size: float = 1.0
    """Number of parameters, relative to the dictionary's."""


BOTH, POSITIVE = "both", "positive"


class Point(NamedTuple):
    """Where the sliders stand."""

    strength: float = 1.0
    density: float = 1.0
    by: str = "importance"
    """What the density slider keeps: the most important atoms, or random ones."""
    prompt: str = BOTH
    """Where it acts: on both prompts of a guided model call, or on the positive one only."""


class Taught(NamedTuple):
    """What a training leaves."""

    tensors: dict[str, Tensor]
    """By name; ``word`` is the embedding."""
    active_share: float | None = None
    """Share of coefficients that are not zero, of a dictionary."""

    def parameters(self) -> int:
        """Values that act on a picture; the word's, the same for all methods, aside."""
        return sum(t.numel() for name, t in self.tensors.items() if name != EMBEDDING and _acts(name))

    def save(self, path: Path) -> int:
        """Writes a file, whole or not at all, and returns its bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({name: tensor.contiguous() for name, tensor in self.tensors.items()}))
        return os.stat(path).st_size

    @classmethod
    def load(cls, path: Path) -> Taught:
        """The other way round; the share is not in the file."""
        return cls(load_file(path))


def _acts(name: str) -> bool:
    return not name.endswith((".importance", ".elsewhere"))


# ---------------------------------------------------------------------------------------------------------- setting up


def _lora(host: PromptedHost, method: Method, rank: int) -> Learner:
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=rank, use_dora=method.family == "dora")
    return StandInLearner(host, peft_layers(host, config), method.settings.learning_rate)


def _loha(host: PromptedHost, method: Method, rank: int) -> Learner:
    from peft import LoHaConfig

    return StandInLearner(host, peft_layers(host, LoHaConfig(r=rank, alpha=rank)), method.settings.learning_rate)


def _adapter(host: PromptedHost, method: Method, rank: int) -> Learner:
    return StandInLearner(host, bottlenecks(host, rank), method.settings.learning_rate)


LEARNERS: dict[str, Callable[[PromptedHost, Method, int], Learner]] = {
    "lora": _lora,
    "dora": _lora,
    "loha": _loha,
    "adapter": _adapter,
}
"""Peers by family; each has a rank that its number of parameters follows in a straight line."""


def budget(host: PromptedHost) -> int:
    """Parameters of a dictionary of the default size, which peers get too."""
    return initial_dictionary(host.layers, TrainingSettings()).parameters()


@lru_cache
def rank_within(host: PromptedHost, method: Method, parameters: int) -> int:
    """The rank at which a peer comes closest to a number of parameters."""
    one, two = (_count(LEARNERS[method.family](host, method, rank)) for rank in (1, 2))
    return max(1, round(1 + (parameters - one) / (two - one)))


def _count(learner: Learner) -> int:
    return sum(tensor.numel() for tensor in learner.parameters().values())


def new_learner(host: PromptedHost, method: Method, seed: int) -> WordLearner:
    """The method at its start, which changes nothing, with the word's embedding."""
    torch.manual_seed(seed)  # peft draws from torch's own generator
    settings = replace(method.settings, seed=seed)
    if method.family == "dictionary":
        learner: Learner = DictionaryLearner(host, settings)
    elif method.family == "word":
        learner = NoLearner()
    else:
        rank = rank_within(host, method, round(method.size * budget(host)))
        torch.manual_seed(seed)
        learner = LEARNERS[method.family](host, method, rank)
    return WordLearner(learner, {EMBEDDING: host.embedding(WORD)}, {EMBEDDING: method.word_rate})


def keep(host: PromptedHost, learner: WordLearner, lessons: list[Example], prior: list[Example], seed: int) -> Taught:
    """What is to be kept of a trained learner."""
    row = learner.embeddings[EMBEDDING]
    word = {EMBEDDING: row.detach().clone()}
    if isinstance(learner.method, DictionaryLearner):
        with host.spoken(WORD, row):
            measured, elsewhere = (
                measure(host, learner.method.snapshot(), some, seed=seed) if some else None for some in (lessons, prior)
            )
        dictionary = with_importance(learner.method.snapshot(), measured, elsewhere)
        return Taught({**as_tensors(dictionary), **word}, measured.active_share())
    return Taught({**{name: tensor.detach().clone() for name, tensor in learner.method.parameters().items()}, **word})


def as_tensors(dictionary: SparseDictionary) -> dict[str, Tensor]:
    """A dictionary's tensors by names such as ``L3.v.encoder``."""
    return {f"{site}.{name}": t for site, atoms in dictionary.sites.items() for name, t in atoms.tensors().items()}


# --------------------------------------------------------------------------------------------------------- put to work


@contextmanager
def at_work(host: PromptedHost, method: Method, taught: Taught, point: Point) -> Iterator[None]:
    """The host as it was taught, sliders as the point says. The word moves with the strength, for all methods alike."""
    base = host.embedding(WORD)
    with ExitStack() as undo, torch.no_grad():
        undo.enter_context(host.spoken(WORD, torch.lerp(base, taught.tensors[EMBEDDING], point.strength)))
        if method.family == "dictionary" or point.density < 1 or point.prompt != BOTH:
            dictionary = as_dictionary(host, taught) if method.family == "dictionary" else svd(host, taught)
            kept = Keep(point.density, by=point.by)  # type: ignore[arg-type]
            adapter = SparseAdapter(dictionary).with_controls(kept).at_strength(point.strength)
            if point.prompt == POSITIVE:
                adapter = adapter.with_controls(Conditioning("positive"))
            undo.enter_context(host.patched([adapter]))
        elif method.family != "word":
            learner = new_learner(host, method, seed=0).method
            for name, tensor in learner.parameters().items():
                tensor.copy_(taught.tensors[name])
            undo.enter_context(learner.at_work(strength=point.strength))  # type: ignore[call-arg]
        yield


def as_dictionary(host: PromptedHost, taught: Taught) -> SparseDictionary:
    """The dictionary that `as_tensors` took apart."""
    sites: dict[Site, dict[str, Tensor]] = {}
    for key, tensor in taught.tensors.items():
        if key != EMBEDDING:
            layer, projection, name = key.removeprefix("L").split(".")
            sites.setdefault(Site(int(layer), projection), {})[name] = tensor  # type: ignore[arg-type]
    return SparseDictionary(host.layers, {site: Atoms(**fields) for site, fields in sites.items()})


def svd(host: PromptedHost, taught: Taught) -> SparseDictionary:
    """A trained LoRA by its singular values, so that keeping the largest cuts it as well as any cut of its weights can."""
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in taught.tensors.items():
        if ".lora_" in key:
            module, _, part = key.partition(".lora_")
            factors.setdefault(module, {})[part[0]] = tensor
    of_projection: Mapping[str, Site] = projection_sites(factors, host.layers)
    sites = {
        of_projection[module]: orthogonal_atoms(LowRank(parts["A"], parts["B"].T)) for module, parts in factors.items()
    }
    return SparseDictionary(host.layers, sites)
