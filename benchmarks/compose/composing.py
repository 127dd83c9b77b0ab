"""The ways of joining two trained adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from sparse_core.compose import combine
from sparse_core.controls import SparseAdapter
from sparse_core.dictionary import SparseDictionary

from ..models import TARGETS
from ..quality.concepts import WORD
from ..quality.methods import Taught, as_dictionary, svd
from ..quality.peers import StandInLearner
from ..quality.presets import OURS
from ..quality.words import EMBEDDING, PromptedHost
from .pairs import SECOND

KEPT = 0.5
"""Share of the entries that TIES and DARE keep."""


@dataclass(frozen=True)
class Combined:
    """Combine Dictionaries."""

    share: float
    """Of both dictionaries' atoms together, the most important ones stay."""
    trained: ClassVar[str] = OURS
    opened: ClassVar[Callable[[PromptedHost, Taught], SparseDictionary]] = staticmethod(as_dictionary)

    @contextmanager
    def at_work(self, host: PromptedHost, taught: Sequence[Taught], scale: float) -> Iterator[None]:
        """The host with both."""
        adapters = [SparseAdapter(self.opened(host, one)) for one in taught]
        atoms = sum(len(site) for adapter in adapters for site in adapter.dictionary.sites.values())
        joined = combine(adapters, budget=round(self.share * atoms))
        with host.patched([SparseAdapter(joined).at_strength(scale)]):
            yield


@dataclass(frozen=True)
class Cut(Combined):
    """The same with LoRAs, whose atoms are their singular directions."""

    trained: ClassVar[str] = "LoRA"
    opened: ClassVar[Callable[[PromptedHost, Taught], SparseDictionary]] = staticmethod(svd)


@dataclass(frozen=True)
class Merged:
    """peft's ``add_weighted_adapter``."""

    how: str
    """Its ``combination_type``."""
    weight: float = 1.0
    """Of both LoRAs."""
    trained: ClassVar[str] = "LoRA"

    @contextmanager
    def at_work(self, host: PromptedHost, taught: Sequence[Taught], scale: float) -> Iterator[None]:
        """The host with both."""
        with StandInLearner(host, self.layers(host, taught), rate=0.0).at_work(strength=scale):
            yield

    def layers(self, host: PromptedHost, taught: Sequence[Taught]) -> dict[str, nn.Module]:
        """peft's layers for the UNet's projections, made on a copy of it, the merged LoRA active."""
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        rank = next(len(tensor) for name, tensor in taught[0].tensors.items() if ".lora_A." in name)
        names = (WORD, SECOND)
        model = get_peft_model(
            copy.deepcopy(host.unet), LoraConfig(r=rank, lora_alpha=rank, target_modules=set(TARGETS)), names[0]
        )
        model.add_adapter(names[1], model.peft_config[names[0]])
        found = {name: m for name, m in model.base_model.model.named_modules() if isinstance(m, LoraLayer)}
        for module_name, module in found.items():
            for name, one in zip(names, taught, strict=True):
                module.lora_A[name].weight.data.copy_(one.tensors[f"{module_name}.lora_A.peer.weight"])
                module.lora_B[name].weight.data.copy_(one.tensors[f"{module_name}.lora_B.peer.weight"])
        torch.manual_seed(0)  # DARE drops at random
        model.add_weighted_adapter(
            list(names), [self.weight] * 2, "merged", self.how, density=None if self.how in ("cat", "svd") else KEPT
        )
        model.set_adapter("merged")
        return dict(found)


METHODS: dict[str, Combined | Merged] = {
    "dictionaries combined, all atoms": Combined(1.0),
    "dictionaries combined, a quarter of the atoms": Combined(0.25),
    "dictionaries combined, a tenth of the atoms": Combined(0.1),
    "LoRAs added": Merged("cat"),
    "LoRAs added, weights .7": Merged("cat", 0.7),
    "LoRAs cut by SVD to a quarter, added": Cut(0.25),
    "LoRAs cut by SVD to a tenth, added": Cut(0.1),
    "LoRAs merged by SVD": Merged("svd"),
    "LoRAs merged by TIES": Merged("ties"),
    "LoRAs merged by TIES and SVD": Merged("ties_svd"),
    "LoRAs merged by DARE": Merged("dare_linear"),
    "LoRAs merged by DARE and TIES": Merged("dare_ties"),
}
"""What is compared."""


@contextmanager
def composed(host: PromptedHost, method: str, taught: Sequence[Taught], scale: float) -> Iterator[None]:
    """The host with both things taught and both words spoken as they were learnt, whatever the scale and the method.

    :param taught: of `WORD` and of `SECOND`.
    """
    with ExitStack() as undo, torch.no_grad():
        for word, one in zip((WORD, SECOND), taught, strict=True):
            undo.enter_context(host.spoken(word, one.tensors[EMBEDDING]))
        undo.enter_context(METHODS[method].at_work(host, taught, scale))
        yield
