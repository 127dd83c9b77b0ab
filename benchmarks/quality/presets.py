"""The methods with their settings, as they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sparse_core.training import PRESETS, TrainingSettings

from .concepts import Kind
from .methods import POSITIVE, Method, Point

OURS = "sparse dictionary"
DENSITIES = (0.5, 0.25, 0.1)
STRONG = 1.25
"""What few atoms are left can be turned up."""


def settings(**changes: Any) -> TrainingSettings:
    """What people get who choose the preset, but for some changes; a batch is four lessons and four prior pictures."""
    return TrainingSettings(**{**PRESETS["character"], **changes})


def peer(name: str, family: str, rate: float, size: float = 1.0) -> Method:
    """A method that is no dictionary, at its learning rate."""
    return Method(name, family, settings(learning_rate=rate), size=size)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(OURS, "dictionary", settings()),
        peer("LoRA", "lora", 2e-3),
        peer("Adapter", "adapter", 8e-3),
        peer("DoRA", "dora", 2e-3),
        peer("LoHa", "loha", 2e-3),
        Method("textual inversion", "word", settings()),
    )
}
"""What is compared on both halves."""
MAIN = (OURS, "LoRA", "Adapter")
"""What is compared first, and again with further seeds."""
ON_ONE_PROMPT = (OURS, "LoRA")
"""What is also compared where it acts on the positive prompt only; both hosts can do that with a dictionary, and so with a
LoRA that is loaded as one."""
CONTROLS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "dictionary", settings(learning_rate=4e-3, threshold=0.0)),
        Method("no group term", "dictionary", settings(sparsity=0.0)),
        Method("selective", "dictionary", settings(selective=1e-3)),
    )
}
"""What shows which part of the method does what, on the development half."""
FOR_STYLES: Mapping[str, Mapping[str, Any]] = {
    OURS: PRESETS["style"],
    "LoRA": {"learning_rate": 1e-3},
    "dense": {**PRESETS["style"], "threshold": 0.0},
    "no group term": {**PRESETS["style"], "sparsity": 0.0},
    "selective": PRESETS["style"],
}
"""What suits a method better where it learns a style, as fields of its settings."""
WORD_LEFT = ", word not learnt"
"""After the names of methods beside which the taught word's embedding stays as it was, as a training without Teach Word or
``--word`` leaves it."""


def word_left(method: Method) -> Method:
    """The method where the taught word's embedding stays as it was."""
    return replace(method, name=f"{method.name}{WORD_LEFT}", word_rate=0.0)


BESIDE: dict[str, Method] = {
    method.name: method
    for method in (
        word_left(METHODS[OURS]),
        word_left(peer("LoRA", "lora", 4e-3)),
        word_left(METHODS["Adapter"]),
        peer("LoRA, half the rank", "lora", 2e-3, 0.5),
    )
}
"""What shows how much hangs on the word's embedding and on the number of parameters, on the held-out half: nothing is chosen by
it."""
SHORT_NAMES = {
    "ours": OURS,
    "lora": "LoRA",
    "dora": "DoRA",
    "loha": "LoHa",
    "adapter": "Adapter",
    "ti": "textual inversion",
}
"""Names for the command line, beside the full ones."""
PEERS_OF_EQUAL_SIZE = ("LoRA", "DoRA", "LoHa", "Adapter")


def suited(method: Method, kind: Kind) -> Method:
    """The method with the settings that it teaches things or styles with."""
    changes = FOR_STYLES.get(method.name.removesuffix(WORD_LEFT), {}) if kind == "style" else {}
    return replace(method, settings=replace(method.settings, **changes))


def named(names: list[str]) -> list[Method]:
    """
    :raises ValueError: there is no such method.
    """
    known = METHODS | CONTROLS | BESIDE
    full = [SHORT_NAMES.get(name, name) for name in names]
    if missing := [name for name in full if name not in known]:
        raise ValueError(f"There is no method {missing[0]!r}; expected some of {', '.join([*SHORT_NAMES, *known])}.")
    return [known[name] for name in full]


def has_density(method: Method) -> bool:
    """Whether it is looked at with few atoms, too: dictionaries are, and a LoRA, as it can be cut by its singular values."""
    return method.family == "dictionary" or method.name.removesuffix(WORD_LEFT) == "LoRA"


def points(method: Method, strengths: Sequence[float], random: bool = True) -> tuple[Point, ...]:
    """Where a method is looked at: along its strength slider, and along the density slider where it has one, at full
    strength and a little beyond.

    :param random: whether removal at random is tried too, for comparison.
    """
    along = [Point(strength) for strength in strengths]
    if has_density(method):
        along += [Point(1.0, density) for density in DENSITIES]
        along += [Point(STRONG, density) for density in DENSITIES[1:]]
    if method.name == OURS and random:
        along += [Point(1.0, density, "random") for density in DENSITIES]
    return tuple(along)


def points_on_one_prompt(method: Method, strengths: Sequence[float]) -> tuple[Point, ...]:
    """The same with the negative prompt left to the plain model, as a choice of its own: along the strength slider, and with
    few atoms."""
    along = [Point(strength, prompt=POSITIVE) for strength in strengths]
    if has_density(method):
        along += [Point(strength, DENSITIES[-1], prompt=POSITIVE) for strength in (1.0, STRONG)]
    return tuple(along)
