"""The plan: a stack of controlled dictionaries, compiled into the least work a model call has to do.

Atoms that can't act are sliced away, weights are folded into the directions, and everything that reads one tensor is
encoded by one matmul, whichever dictionary it comes from. A plan is made once for a stack and kept; a `Run` lives for
one model call; a `LayerRun` for one attention. Hosts feed a `LayerRun` and know nothing of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, groupby
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .coding import decode, decode_, encode
from .controls import Curve, Player, SiteState, Stack, State
from .dictionary import Atoms
from .layers import PROJECTIONS, Layer, Projection, Site
from .modules import LowRank

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(rows, tokens, d), (rows, context tokens, d) twice -> (rows, tokens, d). The host's own attention kernel."""


class MaskPlacementError(RuntimeError):
    """A mask can't be placed on the tokens that arrived, because something changed their layout."""


class Observer(Protocol):
    """Sees the coefficients of one adapter without changing them."""

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        """``atoms`` are indices into the site; ``x`` (rows, tokens, d_in) what they read; ``z`` (rows, tokens, m) theirs,
        before weights, masks and schedules; ``y`` (rows, tokens, d_out) the projection before the update."""


class Moment(NamedTuple):
    """Where and when an observer or a player meets coefficients."""

    rows: Rows | None
    """What the rows are; None where the host can't know it."""
    progress: float
    """How far sampling has come, 0..1."""
    grid: tuple[int, int]
    """Height and width of the layer's picture tokens."""


class AtomRef(NamedTuple):
    """Where an atom of a plan came from."""

    adapter: int
    """Index into the stack."""
    atom: int
    """Index into its site."""


class Gate(NamedTuple):
    """What decides, step by step and prompt by prompt, how far an atom acts."""

    curves: tuple[Curve, ...] = ()
    positive: bool = True
    negative: bool = True
    pictures: tuple[tuple[bool, ...], ...] = ()
    """Choices of pictures, all of which must allow one; each goes to the pictures of a batch in turn."""
    triggers: tuple[tuple[str, ...], ...] = ()
    """Words; the prompt must name one of each trigger's."""

    def allows(self, picture: int, positive: bool, heard: Heard) -> bool:
        """Whether the atom acts on a row of that picture and prompt.

        :raises RuntimeError: nobody has looked for the words in the prompt.
        """
        if not (self.positive if positive else self.negative) or not all(c[picture % len(c)] for c in self.pictures):
            return False
        for words in self.triggers:
            if not heard.sought.issuperset(words):
                raise RuntimeError(
                    f"Atoms wait for {' or '.join(words)}, but a prompt was encoded without looking for it. Encode every "
                    "prompt, the negative one too, with the CLIP that comes out of Atom Trigger."
                )
        return all(not heard.named.isdisjoint(words) for words in self.triggers)

    def factor(self, progress: float) -> float:
        """The product of the schedules at ``progress``."""
        return math.prod(curve(progress) for curve in self.curves)


OPEN = Gate()


@dataclass(frozen=True)
class Coder:
    """All atoms that read one tensor: one matmul encodes them."""

    encoder: Tensor
    """(m, d_in) in the model's type."""
    bias: Tensor
    """(m,) float32, as are the next two."""
    threshold: Tensor
    normalise: Tensor | None
    """None where no atom reads normalised features, as none of a LoRA does."""
    gates: Tensor | None
    """(m,) index into the plan's gates, or None where every gate is open."""
    slices: Mapping[Projection, slice]
    """Which of the m atoms update which projection."""

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, tokens, d_in) -> (rows, tokens, m)."""
        return encode(x, self.encoder, self.bias, self.threshold, self.normalise)


class Played(NamedTuple):
    """Atoms of one projection that follow a player."""

    player: Player
    columns: tuple[int, ...]
    """Where they stand among the decoder's atoms."""
    atoms: tuple[int, ...]
    """Their indices into the site of their dictionary."""


@dataclass(frozen=True)
class Decoder:
    """The atoms of one projection, over the whole stack."""

    directions: Tensor
    """(m, d_out), times each atom's weight, in the model's type."""
    refs: tuple[AtomRef, ...]
    regions: Mapping[int | None, slice]
    """Region (index into the plan's, None for the whole picture) to its atoms; the whole picture comes first."""
    played: tuple[Played, ...] = ()
    """In the order in which they are played."""


@dataclass(frozen=True)
class LayerPlan:
    """One attention. ``query`` reads the picture tokens (and serves k and v in self-attention), ``context`` the text."""

    query: Coder | None
    context: Coder | None
    output: Coder | None
    decoders: Mapping[Projection, Decoder]

    @property
    def inner_regions(self) -> list[int]:
        """Regions whose k or v differ, so that each needs an attention of its own."""
        found = {r for p in ("k", "v") if p in self.decoders for r in self.decoders[p].regions if r is not None}
        return sorted(found)

    @property
    def needs_grid(self) -> bool:
        """Whether any atom is confined to a region."""
        return any(region is not None for decoder in self.decoders.values() for region in decoder.regions)


@dataclass(frozen=True)
class ModulePlan:
    """What acts on one module outside the attentions, over the whole stack: ``y' = y + down(x) up``."""

    down: Tensor
    """(m, d_in), or (m, channels, height, width) of a convolution."""
    up: Tensor
    """(m, d_out), times each adapter's weight."""
    gates: Tensor | None
    """(m,) index into the plan's gates, or None where every gate is open."""
    regions: Mapping[int | None, slice]
    """As a decoder's."""


class Crop(NamedTuple):
    """The part of the picture a model call sees, in latent pixels."""

    picture: tuple[int, int]
    """Height and width of the whole."""
    top: int
    left: int
    height: int
    width: int


class Heard(NamedTuple):
    """What triggers know of a prompt."""

    sought: frozenset[str] = frozenset()
    """Words that were looked for."""
    named: frozenset[str] = frozenset()
    """Those that it names."""


class Rows(NamedTuple):
    """What each row of a model call's batch is."""

    pictures: tuple[int, ...]
    """Index of the picture in the latent batch."""
    positive: tuple[bool, ...]
    """Whether the row runs the positive prompt."""
    crops: tuple[Crop, ...]
    """One for each row; all of one size."""
    heard: tuple[Heard, ...] = ()
    """One for each row, or none where nothing was looked for."""


class Region(NamedTuple):
    """A region on the token grid of one layer."""

    weight: Tensor
    """(rows or 1, tokens) float32, in 0..1 but for a remainder's."""
    tokens: Tensor
    """(n,) indices of the tokens that any row has inside."""


@dataclass(frozen=True)
class Plan:
    """See the module. Immutable but for a cache of region grids."""

    layers: Mapping[int, LayerPlan]
    masks: tuple[Tensor, ...]
    """Regions over the whole picture: (pictures, height, width) float32 in 0..1."""
    gates: tuple[Gate, ...]
    modules: Mapping[str, ModulePlan] = field(default_factory=dict)
    """Updates outside the attentions, by module name."""
    _grids: dict[tuple, Region] = field(default_factory=dict, repr=False, compare=False)

    def map(self, matrices: Callable[[Tensor], Tensor], others: Callable[[Tensor], Tensor]) -> Plan:
        """The plan with other tensors: those of matmuls, and those that stay in float32."""

        def of_coder(coder: Coder | None) -> Coder | None:
            if coder is None:
                return None
            return replace(
                coder,
                encoder=matrices(coder.encoder),
                bias=others(coder.bias),
                threshold=others(coder.threshold),
                normalise=None if coder.normalise is None else others(coder.normalise),
                gates=None if coder.gates is None else others(coder.gates),
            )

        def of_layer(layer: LayerPlan) -> LayerPlan:
            decoders = {p: replace(d, directions=matrices(d.directions)) for p, d in layer.decoders.items()}
            return LayerPlan(*map(of_coder, (layer.query, layer.context, layer.output)), decoders)

        layers = {index: of_layer(layer) for index, layer in self.layers.items()}
        modules = {
            name: replace(
                module,
                down=matrices(module.down),
                up=matrices(module.up),
                gates=None if module.gates is None else others(module.gates),
            )
            for name, module in self.modules.items()
        }
        return Plan(layers, tuple(map(others, self.masks)), self.gates, modules)

    def to(self, device: torch.device, dtype: torch.dtype) -> Plan:
        """The plan on the model's device, matmuls in its type."""
        return self.map(lambda matrix: _usable(matrix.to(device, dtype)), lambda other: _usable(other.to(device)))

    @property
    def device(self) -> torch.device | None:
        """Where its tensors are; None where it has none."""
        found = (d.directions.device for layer in self.layers.values() for d in layer.decoders.values())
        return next(found, None) or next((module.up.device for module in self.modules.values()), None)

    @property
    def acts(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.layers or self.modules)

    @property
    def scheduled(self) -> bool:
        """Whether the progress of sampling matters."""
        return self.replayed or any(gate.curves for gate in self.gates)

    @property
    def replayed(self) -> bool:
        """Whether any atom follows a player."""
        return any(decoder.played for layer in self.layers.values() for decoder in layer.decoders.values())

    @property
    def by_row(self) -> bool:
        """Whether it matters which prompt and picture a row runs."""
        return any(gate.pictures or gate.triggers or not (gate.positive and gate.negative) for gate in self.gates)

    def region(self, index: int, grid: tuple[int, int], rows: Rows) -> Region:
        """One region on a layer's tokens.

        The mask is averaged down to the latent's size, cropped as the call is, and averaged down to the layer's grid, so
        a token's weight is the share of it that the region covers.
        """

        def weight() -> Tensor:
            mask = self.masks[index]
            same = len(set(rows.crops)) == 1 and len(mask) == 1
            parts = [_place(mask[p % len(mask)], crop, grid) for p, crop in zip(rows.pictures, rows.crops, strict=True)]
            return parts[0][None] if same else torch.stack(parts)

        return self._kept((index, grid, rows, self.masks[index].device), weight)

    def remainder(self, indices: tuple[int, ...], grid: tuple[int, int], rows: Rows) -> Region:
        """What some regions leave of the picture: ``1 - sum of their weights``, less than nothing where they overlap."""

        def weight() -> Tensor:
            left = 1 - sum(self.region(index, grid, rows).weight for index in indices)
            return left.masked_fill(left.abs() < 1e-6, 0.0)  # soft edges that meet add up to 1 but for rounding

        return self._kept((indices, grid, rows, self.masks[indices[0]].device), weight)

    def _kept(self, key: tuple, weight: Callable[[], Tensor]) -> Region:
        if key not in self._grids:
            if len(self._grids) >= 256:
                self._grids.clear()
            made = weight()
            self._grids[key] = Region(made, made.ne(0).any(dim=0).nonzero()[:, 0])
        return self._grids[key]


def _usable(tensor: Tensor) -> Tensor:
    """What was made in inference mode, as files are read in ComfyUI, can't be part of a training."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def _place(mask: Tensor, crop: Crop, grid: tuple[int, int]) -> Tensor:
    """(height, width) of the whole picture -> (tokens,) of the cropped grid."""
    whole = F.interpolate(mask[None, None], size=crop.picture, mode="area")
    seen = whole[..., crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return F.interpolate(seen, size=grid, mode="area").flatten()


# ----------------------------------------------------------------------------------------------------------- compiling

NOWHERE = -1
"""The region of an atom that can't act, or whose masks leave it no place."""


def compile_plan(stack: Stack, layers: Sequence[Layer]) -> Plan:
    """Compiles a stack for a model with these layers. Differentiable with respect to the atoms.

    :raises ValueError: a dictionary belongs to another architecture.
    """
    masks: list[Tensor] = []
    gates: dict[Gate, int] = {OPEN: 0}
    pieces: dict[Site, list[_Piece]] = {}
    beside: dict[str, list[_ModulePiece]] = {}
    for number, adapter in enumerate(stack):
        adapter.dictionary.check_fits(layers)
        known: dict[tuple[int, ...], int] = {}
        for site, atoms in adapter.dictionary.sites.items():
            state = adapter.state.sites[site]
            region = _regions(state, adapter.state, masks, known)
            able = region.ne(NOWHERE)
            if able.any():
                gate = _gates(state, adapter.state, able, gates)
                followed = [(p, f) for p, f in zip(adapter.state.replays, state.replays, strict=True) if f.any()]
                pieces.setdefault(site, []).append(_Piece(number, atoms, state.weight, region, gate, able, followed))
        if adapter.dictionary.rest and (part := _rest(adapter.state, masks, known, gates)) is not None:
            for name, update in adapter.dictionary.rest.items():
                beside.setdefault(name, []).append(_ModulePiece(update, *part))

    sites = {site: _join(parts) for site, parts in pieces.items()}
    plans = {}
    for index in sorted({site.layer for site in sites}):
        joined = {p: sites[Site(index, p)] for p in PROJECTIONS if Site(index, p) in sites}
        from_picture, from_text = ("qkv", "") if layers[index].attention == "attn1" else ("q", "kv")
        plans[index] = LayerPlan(
            query=_coder(joined, from_picture),
            context=_coder(joined, from_text),
            output=_coder(joined, "o"),
            decoders={projection: site.decoder for projection, site in joined.items()},
        )
    return Plan(plans, tuple(masks), tuple(gates), {name: _module(parts) for name, parts in beside.items()})


class _Piece(NamedTuple):
    """One dictionary's part of a site: (m,) each."""

    adapter: int
    atoms: Atoms
    weight: Tensor
    region: Tensor
    gate: Tensor
    able: Tensor
    followed: list[tuple[Player, Tensor]]
    """Players, each with (m,) bool: which atoms follow it."""


class _Joined(NamedTuple):
    """All atoms of a site, ordered by region."""

    atoms: Atoms
    normalise: Tensor
    gate: Tensor
    decoder: Decoder


WHOLE = -2
"""The region of an atom that acts on the whole picture; sorts before all others."""


def _regions(state: SiteState, whole: State, masks: list[Tensor], known: dict[tuple[int, ...], int]) -> Tensor:
    """(m,) region of each atom: an index into ``masks`` (extended as needed), `WHOLE` or `NOWHERE`.

    :param known: regions by the numbers of the masks that meet in them, extended as needed: sites share them, and pictures of
        masks are large.
    """
    region = torch.where(state.able, WHOLE, NOWHERE)
    chosen = state.masks[:, state.able]
    if chosen.any():
        combinations, of_atom = chosen.unique(dim=1, return_inverse=True)
        meeting = [tuple(combination.nonzero()[:, 0].tolist()) for combination in combinations.T]
        for numbers in meeting:
            if numbers not in known:
                known[numbers] = _intern(_product([whole.masks[i] for i in numbers]), masks)
        region[state.able] = torch.tensor([known[numbers] for numbers in meeting])[of_atom]
    return region


def _product(factors: list[Tensor]) -> Tensor | None:
    """The intersection of masks of possibly different sizes and picture counts."""
    if not factors:
        return None
    pictures = math.lcm(*(len(f) for f in factors))
    height, width = (max(f.shape[axis] for f in factors) for axis in (1, 2))
    same = [F.interpolate(f[None], size=(height, width), mode="area")[0] for f in factors]
    return torch.stack([f.repeat(pictures // len(f), 1, 1) for f in same]).prod(dim=0)


def _intern(mask: Tensor | None, masks: list[Tensor]) -> int:
    if mask is None or bool((mask == 1).all()):
        return WHOLE
    if not mask.any():
        return NOWHERE
    for index, known in enumerate(masks):
        if known.shape == mask.shape and torch.equal(known, mask):
            return index
    masks.append(mask)
    return len(masks) - 1


def _gates(state: SiteState, whole: State, able: Tensor, gates: dict[Gate, int]) -> Tensor:
    """(m,) index into ``gates``, extended as needed. Those of atoms that are not ``able`` (m,) stay out: whoever waits for a
    word or a prompt asks every model call for it."""
    gate = torch.zeros_like(state.weight, dtype=torch.long)
    prompts = torch.stack([state.positive, state.negative])
    traits = [part[:, able] for part in (prompts, state.schedules, state.pictures, state.triggers)]
    if bool(traits[0].all()) and not any(part.any() for part in traits[1:]):
        return gate
    combinations, of_atom = torch.cat(traits).unique(dim=1, return_inverse=True)
    found = []
    for combination in combinations.T:
        (positive, negative), *chosen = (part.tolist() for part in combination.split([len(part) for part in traits]))
        curves, pictures, triggers = map(tuple, map(compress, (whole.curves, whole.pictures, whole.triggers), chosen))
        found.append(gates.setdefault(Gate(curves, positive, negative, pictures, triggers), len(gates)))
    gate[able] = torch.tensor(found)[of_atom]
    return gate


class _ModulePiece(NamedTuple):
    """One dictionary's part of a module."""

    update: LowRank
    weight: float
    region: int
    gate: int


def _rest(
    state: State, masks: list[Tensor], known: dict[tuple[int, ...], int], gates: dict[Gate, int]
) -> tuple[float, int, int] | None:
    """Weight, region and gate of a dictionary's rest, or None where it can't act."""
    rest = state.rest
    region = _regions(rest, state, masks, known)
    able = region.ne(NOWHERE)
    return (float(rest.weight), int(region), int(_gates(rest, state, able, gates))) if able.any() else None


def _module(parts: list[_ModulePiece]) -> ModulePlan:
    parts = sorted(parts, key=lambda part: part.region)
    gates = torch.tensor([part.gate for part in parts for _ in part.update.up])
    regions, start = {}, 0
    for region, group in groupby(parts, key=lambda part: part.region):
        end = start + sum(len(part.update.up) for part in group)
        regions[None if region == WHOLE else region] = slice(start, end)
        start = end
    return ModulePlan(
        down=torch.cat([part.update.down for part in parts]),
        up=torch.cat([part.update.up * part.weight for part in parts]),
        gates=gates if gates.any() else None,
        regions=regions,
    )


def _join(parts: list[_Piece]) -> _Joined:
    able = torch.cat([part.able for part in parts])
    region = torch.cat([part.region for part in parts])
    order = torch.arange(len(able))[able]
    order = order[region[order].sort(stable=True).indices]
    refs = [AtomRef(part.adapter, j) for part in parts for j in range(len(part.atoms))]
    as_stored = torch.equal(order, torch.arange(len(able)))

    def gather(tensors: list[Tensor]) -> Tensor:
        joined = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        return joined if as_stored else joined[order.to(joined.device)]

    fields = {name: gather([part.atoms.tensors()[name] for part in parts]) for name in parts[0].atoms.tensors()}
    weight = gather([part.weight for part in parts])
    neutral = bool((weight == 1).all())
    directions = fields["directions"] if neutral else fields["directions"] * weight[:, None].to(fields["directions"])
    regions, start = {}, 0
    for place, atoms in groupby(region[order].tolist()):
        regions[None if place == WHOLE else place] = slice(start, start := start + len(list(atoms)))
    ordered = tuple(refs[i] for i in order.tolist())
    return _Joined(
        atoms=Atoms(**fields),
        normalise=gather([torch.full_like(part.weight, float(part.atoms.normalise)) for part in parts]),
        gate=gather([part.gate for part in parts]),
        decoder=Decoder(directions, ordered, regions, _played(parts, ordered)),
    )


def _played(parts: list[_Piece], refs: Sequence[AtomRef]) -> tuple[Played, ...]:
    """Who plays which of the atoms."""
    found = []
    for part in parts:
        mine = [(column, ref.atom) for column, ref in enumerate(refs) if ref.adapter == part.adapter]
        for player, follows in part.followed:
            if chosen := [(column, atom) for column, atom in mine if follows[atom]]:
                found.append(Played(player, *map(tuple, zip(*chosen, strict=True))))
    return tuple(found)


def _coder(joined: Mapping[Projection, _Joined], projections: str) -> Coder | None:
    """One coder for those of the projections that have atoms."""
    parts = {projection: site for projection, site in joined.items() if projection in projections}
    if not parts:
        return None
    slices, start = {}, 0
    for projection, site in parts.items():
        slices[projection] = slice(start, start := start + len(site.atoms))

    def gather(read: Callable[[_Joined], Tensor]) -> Tensor:
        return torch.cat([read(site) for site in parts.values()])

    gates, normalise = gather(lambda site: site.gate), gather(lambda site: site.normalise)
    device = next(iter(parts.values())).atoms.bias.device
    return Coder(
        encoder=gather(lambda site: site.atoms.encoder),
        bias=gather(lambda site: site.atoms.bias).float(),
        threshold=gather(lambda site: site.atoms.threshold).float(),
        normalise=_shared(normalise).to(device) if normalise.any() else None,
        gates=gates.to(device) if gates.any() else None,
        slices=slices,
    )


def _shared(values: Tensor) -> Tensor:
    """One value for all where all are equal: (m,) -> (m,) or (1,)."""
    return values[:1] if bool((values == values[0]).all()) else values


# ------------------------------------------------------------------------------------------------------------- running


class Run:
    """One model call."""

    def __init__(self, plan: Plan, rows: Rows | None, progress: float, observers: Sequence[Observer | None]) -> None:
        """
        :param plan: on the model's device and in its type.
        :param rows: what the rows of the batch are; None where the host can't know it.
        :param progress: how far sampling has come, 0..1.
        :param observers: one for each adapter of the stack.
        :raises RuntimeError: something that a control depends on is not known of the rows.
        """
        self.plan, self.rows, self.progress = plan, rows, progress
        self.observers = {number: observer for number, observer in enumerate(observers) if observer is not None}
        factors = torch.tensor([gate.factor(progress) for gate in plan.gates])[:, None]  # (gates, 1)
        if plan.by_row:
            if rows is None:
                raise RuntimeError(
                    "Atoms are set to act on some prompts only, but this model call does not say which it runs."
                )
            heard = rows.heard or (Heard(),) * len(rows.pictures)
            kinds = list(zip(rows.pictures, rows.positive, heard, strict=True))
            allowed = [[gate.allows(*kind) for kind in kinds] for gate in plan.gates]
            factors = factors * torch.tensor(allowed)  # (gates, rows)
        self.factors = factors.to(device=plan.device)

    def layer(self, index: int, x: Tensor, context: Tensor, value: Tensor, grid: tuple[int, int]) -> LayerRun | None:
        """One attention with its inputs, or None where the plan has no atoms there.

        :param x: (rows, tokens, width), what to_q reads.
        :param context, value: (rows, context tokens, context width), what to_k and to_v read.
        :param grid: height and width of the picture's tokens.
        :raises MaskPlacementError: a mask is set, but the tokens are not the picture's grid.
        """
        layer = self.plan.layers.get(index)
        return None if layer is None else LayerRun(self, index, layer, x, context, value, grid)

    def gated(self, coder: Coder, z: Tensor) -> Tensor:
        """Coefficients with schedules and prompt choice applied: (rows, tokens, m) -> the same."""
        if coder.gates is None:
            return z
        return z * self._factors(coder.gates, z)[:, None]

    def _factors(self, gates: Tensor, z: Tensor) -> Tensor:
        """(rows or 1, m): schedules and prompt choice of the m atoms whose gates are given."""
        factors = self.factors.to(z.device)[gates].T
        if factors.shape[0] not in (1, z.shape[0]):
            raise MaskPlacementError(
                f"Atoms act on some prompts only, but {z.shape[0]} rows of tokens arrived for {factors.shape[0]} rows of "
                "pictures: another patch cuts or enlarges the batch (HyperTile, attention couple). Remove one of the two."
            )
        return factors

    def module(self, name: str, y: Tensor, project: Callable[[Tensor], Tensor], grid: tuple[int, int] | None) -> Tensor:
        """What a module outside the attentions gives, updated.

        :param y: (rows, tokens, d_out), (rows, d_out), or (rows, d_out, height, width) of a convolution.
        :param project: the module with another weight, ``(m, ...) -> y`` with m features.
        :param grid: height and width of the tokens, or of the picture; None where the features belong to no place. A
            masked update has no share in those.
        :raises MaskPlacementError: a mask is set, but the tokens are not the picture's grid.
        """
        module = self.plan.modules[name]
        here = [s for region, s in module.regions.items() if region is None or grid is not None]
        if not here:
            return y
        acting = slice(here[0].start, here[-1].stop)
        z = project(module.down[acting])
        picture = z.ndim == 4
        if picture:
            z = z.flatten(2).mT  # (rows, places, m)
        if module.gates is not None:
            factors = self._factors(module.gates[acting], z)
            z = z * (factors if z.ndim == 2 else factors[:, None])
        if grid is not None and any(region is not None for region in module.regions):
            z = z * self._coverage(name, module.regions, z, grid)
        if not picture:
            return decode(y, z, module.up[acting])
        up = module.up[acting].mT.expand(len(z), -1, -1)  # (rows, d_out, m)
        return torch.baddbmm(y.flatten(2), up, z.mT.to(y.dtype)).view_as(y)

    def _coverage(self, name: str, regions: Mapping[int | None, slice], z: Tensor, grid: tuple[int, int]) -> Tensor:
        """(rows or 1, places, m): how far each of a module's updates acts at each place."""
        if self.rows is None or z.shape[:2] != (len(self.rows.pictures), grid[0] * grid[1]):
            raise MaskPlacementError(
                f"A mask is set on the part of a LoRA that acts on {name}, but {tuple(z.shape[:2])} (rows, places) arrived "
                f"where the picture has {0 if self.rows is None else len(self.rows.pictures)} rows of {grid[0]} x {grid[1]}: "
                "another patch re-tiles, merges or enlarges the tokens (HyperTile, token merging). Remove that patch or "
                "the mask."
            )
        weights = {
            region: z.new_ones(1, z.shape[1]) if region is None else self.plan.region(region, grid, self.rows).weight
            for region in regions
        }
        rows = max(len(weight) for weight in weights.values())
        parts = [
            weights[region].to(z.dtype).expand(rows, -1)[..., None].expand(-1, -1, s.stop - s.start)
            for region, s in regions.items()
        ]
        return torch.cat(parts, dim=-1)


class LayerRun:
    """One attention of one model call: feed `attend` with the projections, then `output` with what to_out gives."""

    def __init__(
        self, run: Run, index: int, layer: LayerPlan, x: Tensor, context: Tensor, value: Tensor, grid: tuple[int, int]
    ) -> None:
        self.run, self.index, self.layer, self.grid = run, index, layer, grid
        self.attended = False
        """Whether `attend` has run: without it another patch has bypassed the attention."""
        if layer.needs_grid:
            rows = run.rows
            if rows is None or x.shape[:2] != (len(rows.pictures), grid[0] * grid[1]):
                raise MaskPlacementError(
                    f"A mask is set on atoms of layer L{index}, but {tuple(x.shape[:2])} (rows, tokens) arrived where the "
                    f"picture has {0 if rows is None else len(rows.pictures)} rows of {grid[0]} x {grid[1]} tokens: another "
                    "patch re-tiles, merges or enlarges the tokens (HyperTile, token merging, attention couple). Remove "
                    "that patch or the mask."
                )
        self.codes: dict[Projection, tuple[Tensor, Tensor]] = {}
        """What was read (rows, tokens, d_in) and its coefficients as encoded (rows, tokens, m)."""
        self.z: dict[Projection, Tensor] = {}
        """The same after schedules and prompt choice."""
        # Three names of one tensor in self-attention, unless patches part them.
        read: dict[Projection, Tensor] = {"q": x, "k": context, "v": value}
        for coder in filter(None, (layer.query, layer.context)):
            for source in {id(read[p]): read[p] for p in coder.slices}.values():
                self._encode(coder, source, [p for p in coder.slices if read[p] is source])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention, *, any_queries: bool = True) -> Tensor:
        """The attention over updated projections: (rows, tokens, inner).

        Where atoms of k or v are confined to regions, each region's tokens attend with its atoms, what the regions leave
        of the picture attends without, and all are blended by the regions' weights: one attention's work in all, and once
        more where regions overlap or are soft. Tokens outside of all keep what they had: to the bit, if ``attention``
        works query by query.

        :param any_queries: whether ``attention`` may be called with some of the queries only.
        """
        self.attended = True
        for projection, y in (("q", q), ("k", k), ("v", v)):
            self._observe(projection, y)
        q = self._masked("q", q)
        k, v = self._partial("k", k, None), self._partial("v", v, None)
        regional = self.layer.inner_regions
        result = self._blended(q, k, v, attention, any_queries) if regional else attention(q, k, v)
        if self.layer.output is not None:
            self._encode(self.layer.output, result, ("o",))
        return result

    def _blended(self, q: Tensor, k: Tensor, v: Tensor, attention: Attention, any_queries: bool) -> Tensor:
        result = torch.zeros_like(q)

        def add(share: Region, k: Tensor, v: Tensor) -> None:
            if len(share.tokens):
                inside = share.tokens if any_queries else torch.arange(q.shape[1], device=q.device)
                part = attention(q[:, inside], k, v)
                result.index_add_(1, inside, part * share.weight[:, inside, None].to(part.dtype))

        regions = self.layer.inner_regions
        add(self.run.plan.remainder(tuple(regions), self.grid, self.run.rows), k, v)
        for region in regions:
            add(self._region(region), self._partial("k", k, region), self._partial("v", v, region))
        return result

    def output(self, y: Tensor) -> Tensor:
        """What to_out gives, updated: (rows, tokens, width) -> the same."""
        self._observe("o", y)
        return self._masked("o", y)

    def _encode(self, coder: Coder, x: Tensor, projections: Sequence[Projection]) -> None:
        codes = coder(x)
        for projection in projections:
            self._play(projection, codes[..., coder.slices[projection]])
        z = self.run.gated(coder, codes)
        for projection in projections:
            self.codes[projection] = x, codes[..., coder.slices[projection]]
            self.z[projection] = z[..., coder.slices[projection]]

    def _play(self, projection: Projection, codes: Tensor) -> None:
        """Puts what players give into ``codes`` (rows, tokens, m)."""
        for player, columns, atoms in self.layer.decoders[projection].played:
            site = Site(self.index, projection)
            codes[..., columns] = player(site, atoms, codes[..., columns], self._moment())

    def _moment(self) -> Moment:
        return Moment(self.run.rows, self.run.progress, self.grid)

    def _observe(self, projection: Projection, y: Tensor) -> None:
        if not self.run.observers or projection not in self.codes:
            return
        refs, (x, codes) = self.layer.decoders[projection].refs, self.codes[projection]
        for adapter, observer in self.run.observers.items():
            mine = [i for i, ref in enumerate(refs) if ref.adapter == adapter]
            if mine:
                z = codes if len(mine) == len(refs) else codes[..., mine]
                observer(Site(self.index, projection), [refs[i].atom for i in mine], x, z, y, self._moment())

    def _masked(self, projection: Projection, y: Tensor) -> Tensor:
        """The update where tokens are places: masks act on the coefficients."""
        decoder = self.layer.decoders.get(projection)
        if decoder is None:
            return y
        z = self.z[projection]
        if any(region is not None for region in decoder.regions):
            parts = [
                z[..., s] if region is None else z[..., s] * self._region(region).weight[..., None]
                for region, s in decoder.regions.items()
            ]
            z = torch.cat(parts, dim=-1)
        return decode_(y, z, decoder.directions)

    def _partial(self, projection: Projection, y: Tensor, region: int | None) -> Tensor:
        """The update by the atoms of one region. What comes from the text stays as it is, since others may keep it from
        step to step; so does what further regions start from."""
        decoder = self.layer.decoders.get(projection)
        if decoder is None or region not in decoder.regions:
            return y
        part = decoder.regions[region]
        from_picture = self.layer.query is not None and projection in self.layer.query.slices
        update = decode_ if region is None and from_picture else decode
        return update(y, self.z[projection][..., part], decoder.directions[part])

    def _region(self, index: int) -> Region:
        return self.run.plan.region(index, self.grid, self.run.rows)
