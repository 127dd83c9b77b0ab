"""Controls: what an artist turns. Each is a value that acts on a selection of atoms; a chain of them never changes the
dictionary it hangs on.

How they compose, for one atom, whatever the order unless said otherwise:

- weights: ``scale`` multiplies, ``set`` replaces what stood before it (so order matters for ``set`` alone);
- masks: multiply, so two masks on one atom leave it their intersection. Masks on different atoms are independent: where
  they overlap, both updates act and add up;
- schedules: multiply;
- conditioning: an atom acts only on the prompts that every choice allows;
- pictures: an atom acts only in the pictures of a batch that every choice allows;
- triggers: an atom acts only on the prompts that name what each trigger listens for;
- keep: an atom acts only where every choice keeps it;
- replays: recorded coefficients take the place of those computed, one replay after the other, before everything else.

What an imported LoRA does outside the attentions, its rest, belongs to no atom. It follows every control whose selection
is ``*``, is muted by a solo of anything less, and by a density of 0. The meaning of a taught word follows weights of ``*``,
the strength among them, and a density of 0, and nothing else: it is what atoms read, so it stays where some of them are
muted, dropped or masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from .addresses import ALL, Layers, Line, Region, Selection
from .dictionary import SparseDictionary
from .layers import Site
from .words import Words, times

if TYPE_CHECKING:
    from .plan import Moment


class Player(Protocol):
    """Gives atoms other coefficients than those they have computed."""

    def __call__(self, site: Site, atoms: Sequence[int], z: Tensor, moment: Moment) -> Tensor:
        """``atoms`` are indices into the site; ``z`` (rows, tokens, m) is what they have computed. Returns the same shape."""


@dataclass(frozen=True)
class SiteState:
    """What a chain of controls amounts to for the m atoms of one site. On the CPU, wherever the atoms are."""

    weight: Tensor
    """(m,) float32."""
    kept: Tensor
    """(m,) bool: whether the density leaves the atom in."""
    masks: Tensor
    """(masks, m) bool: which masks of the chain hold for an atom."""
    schedules: Tensor
    """(schedules, m) bool: likewise."""
    positive: Tensor
    """(m,) bool: whether the atom acts on the positive prompt."""
    negative: Tensor
    """(m,) bool: whether it acts on the negative prompt."""
    pictures: Tensor
    """(choices, m) bool: which choices of pictures hold for an atom."""
    triggers: Tensor
    """(triggers, m) bool: which triggers an atom listens to."""
    replays: Tensor
    """(replays, m) bool: which players an atom follows."""

    @property
    def able(self) -> Tensor:
        """(m,) bool: whether an atom can act at all, wherever and whenever."""
        return self.kept & (self.weight != 0) & (self.positive | self.negative)

    @classmethod
    def neutral(cls, m: int) -> SiteState:
        """The state without any control."""
        empty = torch.zeros(0, m, dtype=torch.bool)
        every = torch.ones(m, dtype=torch.bool)
        return cls(torch.ones(m), every, empty, empty, every, every, empty, empty, empty)


@dataclass(frozen=True)
class State:
    """What a chain of controls amounts to: per site, with the masks and curves that the sites refer to."""

    sites: Mapping[Site, SiteState]
    rest: SiteState
    """The dictionary's rest, as if it were one atom."""
    words: float = 1.0
    """The weight of what was added to the meaning of the taught words."""
    masks: tuple[Tensor, ...] = ()
    """(pictures, height, width) each, in 0..1, over the whole picture."""
    curves: tuple[Curve, ...] = ()
    pictures: tuple[tuple[bool, ...], ...] = ()
    """Choices of pictures of a batch, each going to them in turn."""
    triggers: tuple[tuple[str, ...], ...] = ()
    """Words, any of which is enough."""
    replays: tuple[Player, ...] = ()

    @classmethod
    def neutral(cls, dictionary: SparseDictionary) -> State:
        """The state without any control."""
        sites = {site: SiteState.neutral(len(atoms)) for site, atoms in dictionary.sites.items()}
        return cls(sites, SiteState.neutral(1))

    def update(self, selected: Selected, change: Callable[[SiteState, Tensor], SiteState]) -> State:
        """The state with ``change(site state, selected atoms)`` at every site and for the rest."""
        sites = {site: change(state, selected.atoms[site]) for site, state in self.sites.items()}
        return replace(self, sites=sites, rest=change(self.rest, torch.tensor([selected.rest])))


class Selected(NamedTuple):
    """What a control acts on."""

    atoms: Mapping[Site, Tensor]
    """(m,) bool for every site."""
    rest: bool

    @classmethod
    def by(cls, selection: Selection, dictionary: SparseDictionary) -> Selected:
        """
        :raises AddressError: the selection picks nothing in this dictionary.
        """
        everything = selection == ALL
        if everything and dictionary.rest and not dictionary.sites:
            return cls({}, True)
        return cls(selection.resolve(dictionary), everything)


class Control(Protocol):
    """One turn of one knob."""

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        """The state after this control."""


@dataclass(frozen=True)
class Weight:
    """Multiplies the selected atoms' updates by ``value``, or sets the factor to it. 0 mutes, negative values subtract."""

    selection: Selection
    value: float
    operation: Literal["set", "scale"] = "set"

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"A weight is {self.value}; expected a finite number.")

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            value = self.value if self.operation == "set" else site.weight * self.value
            return replace(site, weight=torch.where(selected, value, site.weight))

        state = state.update(Selected.by(self.selection, dictionary), change)
        if self.selection == ALL:
            state = replace(state, words=self.value if self.operation == "set" else state.words * self.value)
        return state


@dataclass(frozen=True)
class Solo:
    """Mutes every atom but the selected."""

    selection: Selection

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, weight=torch.where(selected, site.weight, 0.0))

        return state.update(Selected.by(self.selection, dictionary), change)


@dataclass(frozen=True, eq=False)
class Mask:
    """Confines the selected atoms to a region of the picture: (height, width) or (pictures, height, width) in 0..1. A
    mask of several pictures goes to the pictures of a batch in turn."""

    mask: Tensor
    selection: Selection = ALL

    def __post_init__(self) -> None:
        mask = self.mask if self.mask.ndim == 3 else self.mask[None]
        if mask.ndim != 3 or 0 in mask.shape:
            raise ValueError(f"A mask has shape {tuple(self.mask.shape)}; expected (pictures, height, width).")
        if not bool(torch.isfinite(mask).all()):
            raise ValueError("A mask holds NaN or infinite values; expected values from 0 to 1.")
        object.__setattr__(self, "mask", mask.detach().float().cpu().clamp(0, 1))

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, masks=torch.cat([site.masks, selected[None]]))

        state = state.update(Selected.by(self.selection, dictionary), change)
        return replace(state, masks=(*state.masks, self.mask))


@dataclass(frozen=True)
class Curve:
    """A factor over the course of sampling: 0 is the first, noisiest step, 1 the finished picture.

    Zero outside ``start..end``; inside, ``values`` are equally spaced keyframes, joined as ``interpolation`` says.
    """

    start: float = 0.0
    end: float = 1.0
    values: tuple[float, ...] = (1.0,)
    interpolation: Literal["linear", "cosine", "hold"] = "linear"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"A schedule runs from {self.start} to {self.end}; expected 0 <= start <= end <= 1.")
        if not self.values:
            raise ValueError("A schedule has no keyframes; expected at least one value.")
        if not all(map(math.isfinite, self.values)):
            raise ValueError(f"A schedule has the keyframes {self.values}; expected finite numbers.")

    @classmethod
    def named(
        cls, name: str, start: float, end: float, keyframes: str = "1", floats: Sequence[float] | float | None = None
    ) -> Curve:
        """A curve by the name an artist picks.

        :param keyframes: numbers separated by commas or spaces, for the curves in `KEYFRAMED`.
        :param floats: keyframes as ComfyUI's FLOATS: they replace ``keyframes``, and any other curve.
        :raises ValueError: there is no such curve, or a keyframe is no number.
        """
        values, interpolation = CURVES.get(name, ((), "linear"))
        if floats is not None:
            given = floats if isinstance(floats, Sequence) else [floats]
            values, interpolation = tuple(map(float, given)), KEYFRAMED.get(name, "linear")
        elif name in KEYFRAMED:
            interpolation = KEYFRAMED[name]
            words = keyframes.strip("[]() \n").replace(",", " ").split()
            try:
                values = tuple(float(word) for word in words)
            except ValueError:
                raise ValueError(
                    f"Keyframes are {keyframes!r}; expected numbers separated by commas, such as 0, 0.5, 1."
                ) from None
        elif not values:
            raise ValueError(f"There is no curve {name!r}; expected one of {', '.join([*CURVES, *KEYFRAMED])}.")
        return cls(start, end, values, interpolation)

    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` in 0..1."""
        if not self.start <= progress <= self.end:
            return 0.0
        intervals = len(self.values) - 1
        position = (progress - self.start) / (self.end - self.start) if self.end > self.start else 0.0
        if self.interpolation == "hold":
            return self.values[min(int(position * len(self.values)), intervals)]
        at = min(int(position * intervals), max(intervals - 1, 0))
        fraction = position * intervals - at
        if self.interpolation == "cosine":
            fraction = float(torch.sin(torch.tensor(fraction * torch.pi / 2)) ** 2)
        following = self.values[min(at + 1, intervals)]
        return self.values[at] + (following - self.values[at]) * fraction


CURVES: dict[str, tuple[tuple[float, ...], Literal["linear", "cosine"]]] = {
    "constant": ((1.0,), "linear"),
    "fade in": ((0.0, 1.0), "linear"),
    "fade out": ((1.0, 0.0), "linear"),
    "fade in (smooth)": ((0.0, 1.0), "cosine"),
    "fade out (smooth)": ((1.0, 0.0), "cosine"),
}
"""Curves by name: keyframes and how they are joined."""
KEYFRAMED: dict[str, Literal["linear", "hold"]] = {"keyframes": "linear", "keyframes (steps)": "hold"}
"""Curves whose keyframes are given, and how those are joined."""


@dataclass(frozen=True)
class Schedule:
    """Lets the selected atoms act only during a part of sampling, or with a changing factor."""

    curve: Curve
    selection: Selection = ALL

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, schedules=torch.cat([site.schedules, selected[None]]))

        state = state.update(Selected.by(self.selection, dictionary), change)
        return replace(state, curves=(*state.curves, self.curve))


@dataclass(frozen=True)
class Conditioning:
    """Lets the selected atoms act on one of the two prompts only."""

    prompt: Literal["positive", "negative"]
    selection: Selection = ALL

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            if self.prompt == "positive":
                return replace(site, negative=site.negative & ~selected)
            return replace(site, positive=site.positive & ~selected)

        return state.update(Selected.by(self.selection, dictionary), change)


@dataclass(frozen=True)
class Pictures:
    """Lets the selected atoms act in some pictures of a batch only, so that one batch shows different atoms side by side.
    ``chosen`` goes to the pictures in turn."""

    chosen: tuple[bool, ...]
    selection: Selection = ALL

    def __post_init__(self) -> None:
        if not self.chosen:
            raise ValueError("No pictures are chosen from; expected one truth value for each picture of the batch.")

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, pictures=torch.cat([site.pictures, selected[None]]))

        state = state.update(Selected.by(self.selection, dictionary), change)
        return replace(state, pictures=(*state.pictures, self.chosen))


@dataclass(frozen=True)
class Listen:
    """Lets the selected atoms act only on prompts that name one of the words: the positive or the negative one, and where
    regions have prompts of their own, in those regions."""

    words: tuple[str, ...]
    selection: Selection = ALL

    def __post_init__(self) -> None:
        if not self.words or not all(word.strip() for word in self.words):
            raise ValueError("There is no word to wait for; expected at least one, such as the one in the captions.")

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, triggers=torch.cat([site.triggers, selected[None]]))

        state = state.update(Selected.by(self.selection, dictionary), change)
        return replace(state, triggers=(*state.triggers, self.words))


@dataclass(frozen=True)
class Keep:
    """The density slider: keeps the most important atoms and drops the rest.

    ``density`` is the share kept (0..1), unless ``count`` says how many; ``scope`` says among which atoms; ``by`` ranks by
    importance, by contrast (importance where the prompt names what was learnt, less that elsewhere) or, for comparison, at
    random with ``seed``.
    """

    density: float
    scope: Literal["dictionary", "layer", "site"] = "dictionary"
    by: Literal["importance", "contrast", "random"] = "importance"
    seed: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.density <= 1:
            raise ValueError(f"Density is {self.density}; expected a share from 0 (no atom) to 1 (all atoms).")
        if self.count < 0:
            raise ValueError(f"The number of atoms to keep is {self.count}; expected 0 (go by density) or more.")

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        kept = {site: torch.zeros(len(atoms), dtype=torch.bool) for site, atoms in dictionary.sites.items()}
        scores = self._scores(dictionary)
        for sites in self._groups(dictionary).values():
            joined = torch.cat([scores[site] for site in sites])
            # Rounded up, as ``top:`` does: of a few atoms a small share is still one.
            count = self.count or math.ceil(Fraction(repr(float(self.density))) * len(joined))
            best = joined.argsort(descending=True, stable=True)[:count]
            flags = torch.zeros(len(joined), dtype=torch.bool).index_fill(0, best, True)
            kept.update(zip(sites, flags.split([len(scores[site]) for site in sites]), strict=True))

        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, kept=site.kept & selected)

        some = self.count > 0 or self.density > 0
        return replace(state.update(Selected(kept, some), change), words=state.words * some)

    def _groups(self, dictionary: SparseDictionary) -> dict[object, list[Site]]:
        groups: dict[object, list[Site]] = {}
        for site in dictionary.sites:
            groups.setdefault({"dictionary": None, "layer": site.layer, "site": site}[self.scope], []).append(site)
        return groups

    def _scores(self, dictionary: SparseDictionary) -> dict[Site, Tensor]:
        if self.by == "importance":
            return {site: atoms.importance.float().cpu() for site, atoms in dictionary.sites.items()}
        if self.by == "contrast":
            return {s: (atoms.importance - atoms.elsewhere).float().cpu() for s, atoms in dictionary.sites.items()}
        generator = torch.Generator().manual_seed(self.seed)
        return {site: torch.rand(len(atoms), generator=generator) for site, atoms in dictionary.sites.items()}


@dataclass(frozen=True)
class SparseAdapter:
    """A dictionary with its controls, in the order in which they were added: what flows through the graph."""

    dictionary: SparseDictionary
    controls: tuple[Control, ...] = ()

    def with_controls(self, *controls: Control) -> SparseAdapter:
        """The adapter with more controls after its own. Each is tried at once, so that a selection that does not exist
        is an error where it was made.

        :raises AddressError: a selection picks nothing in this dictionary.
        """
        adapter = replace(self, controls=(*self.controls, *controls))
        # From here on, not from the start: each of a hundred nodes would resolve the selections of all before it.
        vars(adapter)["state"] = self._controlled(self.state, controls)
        return adapter

    def at_strength(self, strength: float) -> SparseAdapter:
        """All atoms' weights times ``strength``."""
        return self.with_controls(Weight(ALL, strength, "scale"))

    @property
    def words(self) -> Words:
        """What is added to the meaning of words, with its weight."""
        return times(self.dictionary.words, self.state.words)

    @cached_property
    def state(self) -> State:
        """What the controls amount to."""
        return self._controlled(State.neutral(self.dictionary), self.controls)

    def _controlled(self, state: State, controls: Sequence[Control]) -> State:
        for control in controls:
            state = control.apply(state, self.dictionary)
        return state


@dataclass(frozen=True)
class SetEach:
    """Sets weights of single atoms, thousands at once: a `Weight` for each would go over the whole dictionary each time."""

    lines: tuple[Line, ...]
    """Those that `_sets_single_atoms`; the last that names an atom decides."""

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        """
        :raises AddressError: a line picks nothing in this dictionary.
        """
        weights: dict[Site, Tensor] = {}
        for line in self.lines:
            for site, picked in _places(line.selection, dictionary):
                if site not in weights:
                    weights[site] = state.sites[site].weight.clone()
                weights[site][picked] = line.value or 0.0
        changed = {site: replace(state.sites[site], weight=weight) for site, weight in weights.items()}
        return replace(state, sites={**state.sites, **changed})


def _places(region: Region, dictionary: SparseDictionary) -> list[tuple[Site, slice]]:
    found = [(site, picked) for site, picked in region.places(dictionary) if picked.start < len(dictionary.sites[site])]
    if not found:
        region.resolve(dictionary)  # raises, and says what there is instead
    return found


def controls_of_lines(lines: Sequence[Line]) -> list[Control]:
    """The controls that address lines describe, in their order."""
    found: list[Control] = []
    for single, group in groupby(lines, key=_sets_single_atoms):
        run = tuple(group)
        found += [SetEach(run)] if single else map(_control, run)
    return found


def _sets_single_atoms(line: Line) -> bool:
    match line.selection:
        case Region(where=Layers(), atoms=atoms):
            return atoms is not None and line.operation in ("set", "mute")
    return False


def _control(line: Line) -> Control:
    match line.operation:
        case "solo":
            return Solo(line.selection)
        case "mute":
            return Weight(line.selection, 0.0)
    return Weight(line.selection, line.value, line.operation)


Stack = Sequence[SparseAdapter]
"""Adapters that act on one model together; their updates add up."""
