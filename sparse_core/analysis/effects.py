"""What atoms do to a picture: drawn with them alone, and with all but them, from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from ..addresses import Or, Selection
from ..controls import Control, Mask, Pictures, Selected, SiteState, SparseAdapter, State
from ..dictionary import SparseDictionary
from ..replaying import Replay
from .charts import COLOURS, Tile, sheet

Draw = Callable[[SparseAdapter, int], Tensor]
"""Draws one batch with an adapter: so many pictures of the same prompt from the same noise -> (pictures, height, width, 3)
in 0..1."""


@dataclass(frozen=True)
class Effect:
    """One group of atoms, mostly one atom."""

    name: str
    solo: Tensor
    """(height, width, 3) in 0..1: only they act."""
    without: Tensor
    """(height, width, 3) in 0..1: all others act."""


@dataclass(frozen=True)
class Ablations:
    """One picture, and the same without each of several groups."""

    whole: Tensor
    """(height, width, 3) in 0..1: all atoms act."""
    plain: Tensor
    """(height, width, 3) in 0..1: none acts."""
    without: Mapping[str, Tensor]
    """(height, width, 3) in 0..1 by the groups' names: all others act."""

    def removed(self, name: str) -> Tensor:
        """How far the picture moves where the atoms are left out: (height, width), 0..1."""
        return (self.whole - self.without[name]).abs().mean(dim=-1)

    def size(self, name: str) -> float:
        """The same on average, in grey levels of 255."""
        return 255 * float(self.removed(name).mean())


@dataclass(frozen=True)
class Gallery:
    """The effects of several groups on one picture, and what leaving them out does to others."""

    whole: Tensor
    """(height, width, 3) in 0..1: all atoms act."""
    plain: Tensor
    """(height, width, 3) in 0..1: none acts."""
    effects: tuple[Effect, ...]
    others: tuple[Ablations, ...] = ()
    """Of other pictures: what holds on one alone may be chance."""

    @property
    def ablations(self) -> tuple[Ablations, ...]:
        """Of all its pictures, the one that it shows first."""
        without = {effect.name: effect.without for effect in self.effects}
        return (Ablations(self.whole, self.plain, without), *self.others)

    def removed(self, effect: Effect) -> Tensor:
        """How far the picture moves where the atoms are left out: (height, width), 0..1."""
        return self.ablations[0].removed(effect.name)

    def size(self, effect: Effect) -> float:
        """The same on average, in grey levels of 255."""
        return self.ablations[0].size(effect.name)

    def solo_size(self, effect: Effect) -> float:
        """How far the atoms alone move the plain model's picture, in grey levels of 255."""
        return 255 * float((effect.solo - self.plain).abs().mean())


def draw_gallery(adapter: SparseAdapter, groups: Mapping[str, Selection], draws: Sequence[Draw], batch: int) -> Gallery:
    """Draws every group alone and all but it. One batch holds different atoms in each picture, which is exact: a
    coefficient is there or not, row by row.

    :param groups: by name; no atom may be in two.
    :param draws: of the picture that the gallery shows, then of the others.
    :param batch: pictures drawn at once, at least 2.
    :raises AddressError: a group picks no atom.
    """
    draw, *others = draws
    whole, plain = draw(adapter.with_controls(Pictures((True, False))), 2)
    effects: list[Effect] = []
    waiting = iter(groups.items())
    while chunk := dict(islice(waiting, max(batch // 2, 1))):
        drawn = draw(side_by_side(adapter, list(chunk.values())), 2 * len(chunk))
        effects += map(Effect, chunk, drawn[: len(chunk)], drawn[len(chunk) :])
    left_out = tuple(draw_ablations(adapter, groups, other, batch) for other in others)
    return Gallery(whole, plain, tuple(effects), left_out)


def draw_ablations(adapter: SparseAdapter, groups: Mapping[str, Selection], draw: Draw, batch: int) -> Ablations:
    """Draws one picture with all groups, with none, and without each.

    :raises AddressError: a group picks no atom.
    """
    whole, plain = draw(adapter.with_controls(Pictures((True, False))), 2)
    without: dict[str, Tensor] = {}
    waiting = iter(groups.items())
    while chunk := dict(islice(waiting, batch)):
        count = len(chunk)
        controls = [Pictures(tuple(p != j for p in range(count)), group) for j, group in enumerate(chunk.values())]
        without |= zip(chunk, draw(adapter.with_controls(*controls), count), strict=True)
    return Ablations(whole, plain, without)


def pictures_needed(groups: int, pictures: int = 1) -> int:
    """How many pictures a gallery of so many groups on so many pictures draws."""
    return (2 + groups) * pictures + groups


@dataclass(frozen=True)
class _AllBut:
    """Lets all atoms but the selected, and what an imported LoRA does outside the attentions, act in some pictures of a batch
    only. The rest is no atom's, so that no group is alone while it acts."""

    chosen: tuple[bool, ...]
    selection: Selection

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, pictures=torch.cat([site.pictures, selected[None]]))

        atoms, rest = Selected.by(self.selection, dictionary)
        others = Selected({site: ~flags for site, flags in atoms.items()}, not rest)
        return replace(state.update(others, change), pictures=(*state.pictures, self.chosen))


def on_first_picture(adapter: SparseAdapter) -> SparseAdapter:
    """The adapter as it acts on the first picture of a batch, for copies of that one: masks and recordings of several pictures
    go to those of a batch in turn."""

    def first(control: Control) -> Control:
        match control:
            case Mask():
                return replace(control, mask=control.mask[:1])
            case Replay():
                return replace(control, recording=control.recording.of_first_picture())
        return control

    return replace(adapter, controls=tuple(map(first, adapter.controls)))


def side_by_side(adapter: SparseAdapter, groups: Sequence[Selection]) -> SparseAdapter:
    """The adapter set up for one batch: first each group alone, then all but each group."""
    count = len(groups)
    controls = [
        Pictures(tuple(p == j or (p >= count and p != count + j) for p in range(2 * count)), group)
        for j, group in enumerate(groups)
    ]
    grouped = groups[0] if count == 1 else Or(tuple(groups))
    return adapter.with_controls(*controls, _AllBut(tuple(p >= count for p in range(2 * count)), grouped))


def comparison(gallery: Gallery, effect: Effect) -> Tensor:
    """Only the atoms, all but them, and what differs from the whole, side by side: (height, 3 width, 3) in 0..1."""
    return torch.cat([effect.solo, effect.without, difference_map(gallery.removed(effect))], dim=1)


def difference_map(difference: Tensor) -> Tensor:
    """(height, width) in 0..1 -> colours, brightest at the largest: (height, width, 3)."""
    from matplotlib import colormaps

    relative = difference / difference.max().clamp(min=1e-9)
    return torch.from_numpy(colormaps[COLOURS](relative.numpy())[..., :3]).float()


def cut_out(ablations: Ablations, name: str) -> Tensor:
    """The part of the picture that the atoms change, what they paint in colour and the rest faded: (side, side, 3) in 0..1,
    half the picture or more. It stands for the atoms in a list."""
    whole = ablations.whole
    share = _relative(ablations.removed(name)).square()  # (height, width)
    faded = 0.25 * whole.mean(dim=-1, keepdim=True) + 0.7
    picture = torch.lerp(faded.expand_as(whole), whole, share[..., None])
    side, top, left = _window(share)
    return picture[top : top + side, left : left + side]


def learnt(ablations: Ablations) -> Tensor:
    """Where all atoms together move the picture, which is where the learnt thing is: (height, width), 1 where most."""
    return _relative((ablations.whole - ablations.plain).abs().mean(dim=-1))


def _relative(difference: Tensor) -> Tensor:
    """(height, width) averaged over the surroundings, relative to the largest: what atoms change lies along edges, and lines
    are lost in a small picture."""
    width = min(difference.shape) // 16 * 2 + 1
    padded = F.pad(difference[None, None], (width // 2,) * 4, mode="replicate")
    broad = F.avg_pool2d(padded, width, stride=1)[0, 0]
    return broad / broad.max().clamp(min=1e-9)


def _window(weight: Tensor) -> tuple[int, int, int]:
    """Side, top and left of the square that holds most of a map (height, width)."""
    shorter = min(weight.shape)
    middles, spreads = [], []
    for along in (weight.sum(dim=1), weight.sum(dim=0)):
        places, total = torch.arange(len(along)), along.sum().clamp(min=1e-9)
        middles.append((along * places).sum() / total)
        spreads.append(((along * (places - middles[-1]) ** 2).sum() / total).sqrt())
    side = round(min(max(4 * float(max(spreads)), shorter / 2), shorter))
    top, left = (
        round(min(max(float(middle) - side / 2, 0), length - side))
        for middle, length in zip(middles, weight.shape, strict=True)
    )
    return side, top, left


def gallery_sheet(gallery: Gallery, titles: Mapping[str, str], columns: int = 4) -> Tensor:
    """Every group's `comparison` under its name, after the whole and the plain picture: (height, width, 3) in 0..1.

    :param titles: by the groups' names, a second line such as a label.
    """
    everything = (gallery.whole - gallery.plain).abs().mean(dim=-1)  # (height, width)
    first = torch.cat([gallery.whole, gallery.plain, difference_map(everything)], dim=1)
    tiles = [Tile(f"all atoms, no atom, difference {255 * float(everything.mean()):.1f}", first)]
    for effect in gallery.effects:
        title = f"{effect.name}: only it, without it, difference {gallery.size(effect):.1f}"
        tiles.append(Tile(f"{title}\n{titles.get(effect.name, '')}", comparison(gallery, effect)))
    return sheet(tiles, columns, side=4.2)


def effects_text(gallery: Gallery, labels: Mapping[str, str]) -> str:
    """A table: how far each group moves the picture, in grey levels of 255."""
    lines = [
        "| atoms | label | left out, the picture moves by | alone, the plain picture moves by |",
        "|---|---|---|---|",
    ]
    for effect in sorted(gallery.effects, key=gallery.size, reverse=True):
        sizes = f"{gallery.size(effect):.2f} | {gallery.solo_size(effect):.2f}"
        lines.append(f"| {effect.name} | {labels.get(effect.name) or '-'} | {sizes} |")
    return "\n".join(lines)
