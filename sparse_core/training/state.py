"""A training that can be put down and taken up: one safetensors file beside the dictionary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import write_atomically

FORMAT = "sparse-atoms-training-state"
RECORD = ("step", "losses", "held_out", "settings")
"""What is kept in the header; the rest are tensors."""
LASTING = (
    "atoms",
    "projections",
    "attentions",
    "threshold",
    "sparsity",
    "prior",
    "selective",
    "reseed_every",
    "ema",
    "patience",
    "check_every",
    "seed",
)
"""Settings that hold from the first step to the last: with other checks, say, the best weights would not be those that were kept.
Others, such as the number of steps, the learning rate or what saves memory, may change where a training goes on."""


@dataclass(frozen=True)
class TrainingState:
    """What the next step of a training depends on."""

    step: int
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    """Adam's state by tensor name."""
    mean: Mapping[str, Tensor]
    """Running mean of the weights; empty where off."""
    best: Mapping[str, Tensor]
    """The weights that fared best on held-out pictures; empty where nobody waits for that to turn."""
    random: Tensor
    """State of the generator that draws batches."""
    losses: list[float]
    held_out: list[float]
    settings: Mapping[str, Any]
    """Of the training, as its dictionary records them."""

    def check_fits(self, parameters: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
        """
        :param settings: those to go on with.
        :raises ValueError: the state is of a training with other lasting settings or tensors.
        """
        advice = "Use the same settings to go on with it, or turn resume off to start anew."
        others = [
            f"{name} {self.settings.get(name)} (now {settings[name]})"
            for name in LASTING
            if self.settings.get(name) != settings[name]
        ]
        if others:
            raise ValueError(f"The saved training was started with {', '.join(others)}. {advice}")
        mine = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        theirs = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
        if mine != theirs:
            raise ValueError(f"The saved training was started for another model or word. {advice}")

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        flat = {f"tensor/{name}": tensor for name, tensor in self.tensors.items()}
        flat |= {f"moment/{n}/{key}": value for n, moment in self.moments.items() for key, value in moment.items()}
        flat |= {f"mean/{name}": tensor for name, tensor in self.mean.items()}
        flat |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        flat["random"] = self.random
        record = {name: getattr(self, name) for name in RECORD}
        path.parent.mkdir(parents=True, exist_ok=True)
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in flat.items()}
        write_atomically(path, save(data, metadata={"format": FORMAT, "record": json.dumps(record)}))

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """
        :raises ValueError: the file is no training state.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise ValueError(f"{path.name} is no saved training. Remove it, or use another name.")
                record = json.loads(header["record"])
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                random, known = flat["random"], {name: record[name] for name in RECORD}
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name} is damaged ({error}). Remove it to start the training anew.") from error
        moments: dict[str, dict[str, Tensor]] = {}
        for name, tensor in flat.items():
            if name.startswith("moment/"):
                parameter, _, key = name.removeprefix("moment/").rpartition("/")
                moments.setdefault(parameter, {})[key] = tensor

        def part(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}

        return cls(
            tensors=part("tensor/"),
            moments=moments,
            mean=part("mean/"),
            best=part("best/"),
            random=random,
            **known,
        )
