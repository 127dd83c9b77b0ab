"""Atom addresses: one grammar for text nodes, the command line, files and messages.

``parse_selection("L3-L9.qk[0-7] & !top:25%")`` gives a :class:`Selection`; ``selection.resolve(dictionary)`` says which
atoms it picks; ``str(selection)`` is canonical text that parses to the same selection. ``parse_lines`` reads a text of
``selection = weight`` lines. docs/addresses.md is the page for users.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import torch
from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken, v_args
from torch import Tensor

from .dictionary import SparseDictionary
from .layers import PROJECTIONS, Layer, Projection, Site

Operation = Literal["set", "scale", "mute", "solo"]

LARGEST = 999_999_999
"""The largest layer number, atom number and count that an address can hold."""
DEEPEST = 50
"""How many parentheses and negations may be nested."""

GRAMMAR = r"""
line: selection "=" weight     -> set
    | selection _TIMES weight  -> scale
    | _MUTE selection          -> mute
    | _SOLO selection          -> solo

?selection: either
?either: both ("|" both)*
?both: single ("&" single)*
?single: "*"                      -> everything
       | where ["." SITES] ["[" atoms "]"]  -> region
       | _TOP ":" COUNT           -> top
       | _TOP ":" PERCENT         -> top_share
       | _LABEL ":" QUOTED        -> label
       | ("!" | _NOT) single      -> negation
       | "(" selection ")"

?where: LAYER ["-" LAYER]  -> layers
      | PART               -> part
?atoms: "*"                -> all_atoms
      | range ("," range)* -> some_atoms
range: NUMBER ["-" NUMBER]
weight: FACTOR | PERCENT

LAYER: /L[0-9]+(?!\w)/i
PART: /(attn1|attn2|down|middle|up)(?!\w)/i
SITES: /[qkvo]+(?!\w)/i
NUMBER: /[0-9]+(?![\w.])/
COUNT: /[0-9]+(?![\w.])/
PERCENT.1: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?\s*%/i
FACTOR: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?(?![\w.])/i
QUOTED: /"([^"\\]|\\["\\\/bfnrt]|\\u[0-9a-fA-F]{4})*"/
_TIMES: "*="
_TOP: /top(?!\w)/i
_LABEL: /label(?!\w)/i
_NOT: /not(?!\w)/i
_MUTE: /mute(?!\w)/i
_SOLO: /solo(?!\w)/i

%ignore /\s+/
%ignore /#[^\r\n]*/
"""

_SELECTION_STARTS = {"LAYER", "PART", "_TOP", "_LABEL", "STAR", "BANG", "_NOT", "LPAR"}
_IN_WORDS = {
    "EQUAL": '"=" and a weight',
    "_TIMES": '"*=" and a weight',
    "_MUTE": '"mute"',
    "_SOLO": '"solo"',
    "LAYER": "a layer such as L17",
    "SITES": "one or more of the sites q, k, v and o",
    "NUMBER": "an atom number such as 137",
    "COUNT": "a count such as 32",
    "FACTOR": "a number such as 0.5",
    "PERCENT": "a percentage such as 50%",
    "QUOTED": r'a label in double quotes such as "red roof" (with \" for a quote and \\ for a backslash in it)',
    "STAR": '"*"',
    "COLON": '":"',
    "DOT": "a site such as .v",
    "LSQB": "atoms such as [0-7]",
    "MINUS": '"-"',
    "COMMA": '","',
    "RSQB": '"]"',
    "RPAR": '")"',
    "AMPERSAND": '"&"',
    "VBAR": '"|"',
    "$END": "nothing more",
}


class AddressError(ValueError):
    """An address that can't be read, or that picks no atom. The message is meant for the person who wrote it."""


class Selection(ABC):
    """Which atoms of a dictionary: an immutable value, equal to another when both print the same text."""

    depth: int = 0
    """How many combinations are nested inside, at most ``DEEPEST``."""

    def resolve(self, dictionary: SparseDictionary) -> dict[Site, Tensor]:
        """The atoms it picks, as one boolean CPU tensor (m,) for every site of the dictionary.

        Raises AddressError if it picks none; the message says what the dictionary has instead.
        """
        if not len(dictionary):
            raise AddressError(f"{_excerpt(str(self))} picks no atom: the dictionary is empty.")
        picked = self._pick(dictionary)
        if not picked.any():
            raise AddressError(f"{_excerpt(str(self))} picks no atom: {self._why_none(dictionary)}.")
        return _by_site(dictionary, picked)

    @abstractmethod
    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        """Boolean (all atoms of the dictionary,), site after site in stored order."""

    def _why_none(self, dictionary: SparseDictionary) -> str:
        """The reason, as a clause, why it picks no atom of a dictionary that is not empty."""
        raise AssertionError(f"{self} picks at least one atom of a dictionary that is not empty")


@dataclass(frozen=True)
class Everything(Selection):
    """``*``: every atom."""

    def __str__(self) -> str:
        return "*"

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        return torch.ones(len(dictionary), dtype=torch.bool)


@dataclass(frozen=True)
class Layers:
    """``L17`` or ``L3-L9``: layers first to last, both included, 0 <= first <= last <= LARGEST."""

    first: int
    last: int

    def __post_init__(self) -> None:
        _check_range(self.first, self.last, "L")

    def __str__(self) -> str:
        return _range_text(self.first, self.last, "L")

    def numbers(self, layers: Sequence[Layer]) -> Sequence[int]:
        """Those of a model's layers that are among them."""
        return range(self.first, min(self.last + 1, len(layers)))

    def why_none(self, layers: Sequence[Layer]) -> str:
        """The reason why none of a model's layers is among them."""
        verb = "does" if self.first == self.last else "do"
        return f"{self} {verb} not exist: layers L0 to L{len(layers) - 1}"


@dataclass(frozen=True)
class Part:
    """``attn1``, ``attn2``, ``down``, ``middle`` or ``up``: the layers of that kind or stage."""

    name: Literal["attn1", "attn2", "down", "middle", "up"]

    def __str__(self) -> str:
        return self.name

    def numbers(self, layers: Sequence[Layer]) -> Sequence[int]:
        """Those of a model's layers that are of that kind or stage."""
        return [number for number, layer in enumerate(layers) if self.name in (layer.attention, layer.stage)]

    def why_none(self, layers: Sequence[Layer]) -> str:
        """The reason why none of a model's layers is among them."""
        present = {name: None for layer in layers for name in (layer.stage, layer.attention)}
        return f"there is no {self} layer: layers are {_listing(present)}"


@dataclass(frozen=True)
class Region(Selection):
    """``L3-L9.qk[0-7,12]``: atoms by layer, site and number in stored order.

    Kept in canonical form: ``sites`` in the order of PROJECTIONS, ``atoms`` as ascending (first, last) ranges, both
    included, that neither overlap nor touch; None for every atom.
    """

    where: Layers | Part
    sites: tuple[Projection, ...] = PROJECTIONS
    atoms: tuple[tuple[int, int], ...] | None = None

    def __post_init__(self) -> None:
        if not self.sites or not set(self.sites) <= set(PROJECTIONS):
            raise AddressError(f"sites are {_listing(PROJECTIONS)}, not {self.sites!r}")
        object.__setattr__(self, "sites", tuple(name for name in PROJECTIONS if name in self.sites))
        if self.atoms is not None:
            object.__setattr__(self, "atoms", _merged(self.atoms))

    def __str__(self) -> str:
        sites = "" if self.sites == PROJECTIONS else "." + "".join(self.sites)
        atoms = "" if self.atoms is None else f"[{self._numbers()}]"
        return f"{self.where}{sites}{atoms}"

    def _numbers(self) -> str:
        return ",".join(_range_text(*each) for each in self.atoms or ())

    def _held(self, dictionary: SparseDictionary) -> list[Site]:
        layers = self.where.numbers(dictionary.layers)
        return [site for n in layers for p in self.sites if (site := Site(n, p)) in dictionary.sites]

    def places(self, dictionary: SparseDictionary) -> Iterator[tuple[Site, slice]]:
        """The atoms it picks, as ranges of sites; a range may go beyond its site."""
        for site in self._held(dictionary):
            for first, last in self.atoms or ((0, LARGEST),):
                yield site, slice(first, last + 1)

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        return _at(self.places(dictionary), dictionary)

    def _why_none(self, dictionary: SparseDictionary) -> str:
        if not self.where.numbers(dictionary.layers):
            return self.where.why_none(dictionary.layers)
        place = replace(self, atoms=None)
        largest = max((len(dictionary.sites[site]) for site in self._held(dictionary)), default=0)
        if largest:
            numbers = "only atom 0" if largest == 1 else f"atoms 0 to {largest - 1}"
            return f"{place} has {numbers}, not {self._numbers()}"
        return f"{place} has no atoms: they are in {_listing(s for s, atoms in dictionary.sites.items() if len(atoms))}"


@dataclass(frozen=True)
class _Top(Selection):
    """The most important atoms of the whole dictionary; of equals, those stored first."""

    @abstractmethod
    def _count(self, total: int) -> int:
        """How many of ``total`` atoms."""

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        importance = torch.cat([atoms.importance.detach().double().cpu() for atoms in dictionary.sites.values()])
        order = importance.argsort(descending=True, stable=True)
        picked = torch.zeros(len(dictionary), dtype=torch.bool)
        picked[order[: self._count(len(dictionary))]] = True
        return picked


@dataclass(frozen=True)
class Top(_Top):
    """``top:32``: that many, 1 to LARGEST; every atom where the dictionary has fewer."""

    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= LARGEST:
            raise AddressError(f"{self} is not possible: the count goes from 1 to {LARGEST}")

    def __str__(self) -> str:
        return f"top:{self.count}"

    def _count(self, total: int) -> int:
        return self.count


@dataclass(frozen=True)
class TopShare(_Top):
    """``top:25%``: that share of all atoms, rounded up; 0 < percent <= 100."""

    percent: float

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise AddressError(f"{self} is not possible: the share is more than 0% and at most 100%")

    def __str__(self) -> str:
        return f"top:{_number_text(self.percent)}%"

    def _count(self, total: int) -> int:
        # Exact on the decimal as written: in floats, 28% of 25 is a little more than 7 and would round up to 8.
        return math.ceil(Fraction(repr(self.percent)) * total / 100)


@dataclass(frozen=True)
class Label(Selection):
    """``label:"red roof"``: atoms with that label, in any case; ``*`` stands for any text, ``?`` for one character."""

    pattern: str

    def __post_init__(self) -> None:
        if any("\ud800" <= c <= "\udfff" for c in self.pattern):
            raise AddressError("this label has half a character in it (a lone surrogate)")

    def __str__(self) -> str:
        letters = (json.dumps(c, ensure_ascii=not c.isprintable())[1:-1] for c in self.pattern)
        return f'label:"{"".join(letters)}"'

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        # A bracket is a bracket: labels hold them, and a class of characters is of no use here.
        pattern = self.pattern.casefold().replace("[", "[[]")
        named = [(a, label) for a, label in dictionary.labels.items() if fnmatchcase(label.casefold(), pattern)]
        return _at((place for one in named for place in _labelled(*one).places(dictionary)), dictionary)

    def _why_none(self, dictionary: SparseDictionary) -> str:
        labels = sorted(set(dictionary.labels.values()))
        present = f"labels: {_listing(map(repr, labels))}" if labels else "the dictionary has no labels"
        # A label can outlive its atom: files are edited by other tools too.
        if any(label.casefold() == self.pattern.casefold() for label in labels):
            return f"label {self.pattern!r} is on atoms that the dictionary does not have"
        return f"no label {self.pattern!r}; {present}"


@dataclass(frozen=True)
class Not(Selection):
    """``!a``: every atom that the operand does not pick."""

    operand: Selection
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _nest(self, (self.operand,))

    def __str__(self) -> str:
        return f"!{_bracketed(self.operand, (And, Or))}"

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        return ~self.operand._pick(dictionary)

    def _why_none(self, dictionary: SparseDictionary) -> str:
        return f"{_excerpt(str(self.operand))} is all that the dictionary has"


@dataclass(frozen=True)
class _Combination(Selection):
    """Two or more selections joined by one operator; joined again by the same one they stay one flat list."""

    parts: tuple[Selection, ...]
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flat = [inner for part in self.parts for inner in (part.parts if type(part) is type(self) else (part,))]
        object.__setattr__(self, "parts", tuple(flat))
        if len(flat) < 2:
            raise AddressError("a combination has at least two parts")
        _nest(self, flat)


@dataclass(frozen=True)
class And(_Combination):
    """``a & b``: the atoms that every part picks."""

    def __str__(self) -> str:
        return " & ".join(_bracketed(part, (Or,)) for part in self.parts)

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        return torch.stack([part._pick(dictionary) for part in self.parts]).all(dim=0)

    def _why_none(self, dictionary: SparseDictionary) -> str:
        empty = next((part for part in self.parts if not part._pick(dictionary).any()), None)
        return empty._why_none(dictionary) if empty else "its parts have no atom in common"


@dataclass(frozen=True)
class Or(_Combination):
    """``a | b``: the atoms that any part picks."""

    def __str__(self) -> str:
        return " | ".join(map(str, self.parts))

    def _pick(self, dictionary: SparseDictionary) -> Tensor:
        return torch.stack([part._pick(dictionary) for part in self.parts]).any(dim=0)

    def _why_none(self, dictionary: SparseDictionary) -> str:
        reasons = {part._why_none(dictionary): None for part in self.parts}
        return _listing(reasons, "; ")


@dataclass(frozen=True)
class Line:
    """One line of a text of weights. Its number does not count when lines are compared."""

    number: int = field(compare=False)
    """Counted from 1 in the text that it came from."""
    selection: Selection
    operation: Operation
    """``set`` and ``scale`` to or by ``value``; ``mute`` these atoms; ``solo`` them, which mutes all others."""
    value: float | None = None
    """A finite number for ``set`` and ``scale``, None for ``mute`` and ``solo``."""

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise AddressError(f"operations are {_listing(get_args(Operation))}, not {self.operation!r}")
        if (self.value is not None) != (self.operation in ("set", "scale")):
            raise AddressError(f"{self.operation} with the value {self.value}")
        if self.value is not None and not math.isfinite(self.value):
            raise AddressError("this number is too large: a weight has to be a finite number")

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.operation} {self.selection}"
        return f"{self.selection} {'=' if self.operation == 'set' else '*='} {_number_text(self.value)}"


def parse_selection(text: str) -> Selection:
    """The selection that a text describes. Raises AddressError, which shows the place and says what was expected."""
    try:
        return _parse(text, "selection")
    except _Misread as misread:
        raise AddressError(f"Not a selection of atoms: {misread.report(text)}") from None


def parse_lines(text: str) -> list[Line]:
    """The lines of a text: ``selection = 0.5``, ``selection *= 50%``, ``mute selection``, ``solo selection``.

    Blank lines and comments from ``#`` on are left out. Raises one AddressError that reports every line it can't read.
    """
    lines, reports = [], []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if not line.split("#", 1)[0].strip():
            continue
        try:
            lines.append(replace(_parse(line, "line"), number=number))
        except _Misread as misread:
            reports.append(f"Line {number}: {misread.report(line)}")
    if reports:
        raise AddressError("\n".join(reports))
    return lines


class _Misread(Exception):
    """What is wrong at one position of a text; callers add which text it was."""

    def __init__(self, position: int, problem: str) -> None:
        self.position = position
        self.problem = problem

    def report(self, text: str) -> str:
        start = max(0, self.position - 60)
        shown = "".join(c if c.isprintable() else " " for c in text[start : self.position + 40])
        return f"{self.problem}.\n    {shown}\n    {' ' * (self.position - start)}^"


def _build(build: Any, rule: str, children: list, meta: Any) -> Any:
    try:
        return build(*children)
    except AddressError as error:
        place = next((child.start_pos for child in children if isinstance(child, Token)), 0)
        raise _Misread(place, str(error)) from None


@v_args(wrapper=_build)
class _Builder(Transformer):
    """From the rules of the grammar to selections and lines, called by the parser as it goes."""

    def everything(self) -> Selection:
        return Everything()

    def region(self, where: Layers | Part, sites: Token | None, atoms: list | None) -> Selection:
        return Region(where, tuple(sites.lower()) if sites else PROJECTIONS, atoms)

    def layers(self, first: Token, last: Token | None) -> Layers:
        return Layers(_whole(first[1:]), _whole((last or first)[1:]))

    def part(self, name: Token) -> Part:
        return Part(name.lower())

    def all_atoms(self) -> None:
        return None

    def some_atoms(self, *ranges: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return ranges

    def range(self, first: Token, last: Token | None) -> tuple[int, int]:
        numbers = _whole(first), _whole(last or first)
        _check_range(*numbers)
        return numbers

    def top(self, count: Token) -> Selection:
        return Top(_whole(count))

    def top_share(self, percent: Token) -> Selection:
        return TopShare(float(percent[:-1]))

    def label(self, quoted: Token) -> Selection:
        return Label(json.loads(quoted, strict=False))

    def negation(self, operand: Selection) -> Selection:
        return Not(operand)

    def both(self, *parts: Selection) -> Selection:
        return And(parts)

    def either(self, *parts: Selection) -> Selection:
        return Or(parts)

    def weight(self, number: Token) -> Token:
        return number

    def set(self, selection: Selection, weight: Token) -> Line:
        return Line(0, selection, "set", _weight(weight))

    def scale(self, selection: Selection, weight: Token) -> Line:
        return Line(0, selection, "scale", _weight(weight))

    def mute(self, selection: Selection) -> Line:
        return Line(0, selection, "mute")

    def solo(self, selection: Selection) -> Line:
        return Line(0, selection, "solo")


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", start=["selection", "line"], transformer=_Builder())


@lru_cache(maxsize=10_000)  # a mixing desk writes thousands of lines, of which a run changes a few
def _parse(text: str, start: str) -> Any:
    """What ``_Builder`` makes of the text. Raises _Misread."""
    try:
        return _parser().parse(text, start=start)
    except UnexpectedToken as error:
        position = error.token.end_pos or 0 if error.token.type == "$END" else error.pos_in_stream
    except UnexpectedCharacters as error:
        position = error.pos_in_stream
    # What the exception itself calls expected is too much after a name and too little after a whole selection.
    understood = _parser().parse_interactive(text[:position], start=start)
    understood.exhaust_lexer()
    raise _Misread(position, f"expected {_expected(frozenset(understood.accepts()))}")


@cache
def _expected(terminals: frozenset[str]) -> str:
    words = [text for name, text in _IN_WORDS.items() if name in terminals]
    if terminals >= _SELECTION_STARTS:
        words = [text for name, text in _IN_WORDS.items() if name in terminals - _SELECTION_STARTS]
        words.insert(0, "a selection such as L17[137], attn2, top:32 or *")
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _labelled(address: str, label: str) -> Region:
    selection = parse_selection(address)
    if not isinstance(selection, Region):
        raise AddressError(f"Label {label!r} is on {_excerpt(address)}, which is not an address such as L17.v[137].")
    return selection


def _at(places: Iterable[tuple[Site, slice]], dictionary: SparseDictionary) -> Tensor:
    """Boolean (all atoms of the dictionary,): those at the places."""
    picked = torch.zeros(len(dictionary), dtype=torch.bool)
    views = _by_site(dictionary, picked)
    for site, atoms in places:
        views[site][atoms] = True
    return picked


def _by_site(dictionary: SparseDictionary, flat: Tensor) -> dict[Site, Tensor]:
    """Views (m,) of a tensor over all atoms."""
    return dict(zip(dictionary.sites, flat.split([len(atoms) for atoms in dictionary.sites.values()]), strict=True))


def _whole(digits: str) -> int:
    # Python itself refuses to read thousands of digits.
    if len(digits.lstrip("0")) > len(str(LARGEST)):
        raise AddressError(f"this number is too large: the largest is {LARGEST}")
    return int(digits.lstrip("0") or "0")


def _weight(token: Token) -> float:
    return float(token[:-1]) / 100 if token.endswith("%") else float(token)


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        _check_range(first, last)
        if merged and first <= merged[-1][1] + 1:
            first, last = merged[-1][0], max(last, merged.pop()[1])
        merged.append((first, last))
    if not merged:
        raise AddressError("a list of atoms has at least one number")
    return tuple(merged)


def _check_range(first: int, last: int, prefix: str = "") -> None:
    if first > last:
        raise AddressError(f"{prefix}{first}-{prefix}{last} runs backwards: write {prefix}{last}-{prefix}{first}")
    if first < 0 or last > LARGEST:
        raise AddressError(f"{_range_text(first, last, prefix)} is out of range: numbers go from 0 to {LARGEST}")


def _nest(selection: Selection, parts: Sequence[Selection]) -> None:
    # The bound keeps printing, comparing and resolving, which recurse, far from Python's own limit.
    depth = 1 + max(part.depth for part in parts)
    if depth > DEEPEST:
        raise AddressError(f"parentheses and negations are nested more than {DEEPEST} deep")
    object.__setattr__(selection, "depth", depth)


def _bracketed(part: Selection, weaker: tuple[type, ...]) -> str:
    return f"({part})" if isinstance(part, weaker) else str(part)


def _range_text(first: int, last: int, prefix: str = "") -> str:
    return f"{prefix}{first}" if first == last else f"{prefix}{first}-{prefix}{last}"


def _number_text(value: float) -> str:
    return repr(value).removesuffix(".0")


def _listing(items: Iterable[object], separator: str = ", ", limit: int = 8) -> str:
    names = [str(item) for item in items]
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return separator.join(names[:limit] + more)


def _excerpt(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}..."


ALL: Selection = Everything()
"""Every atom of any dictionary."""
