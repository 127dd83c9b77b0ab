"""The compiled plan against a slow reference, and the invariants that hold bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from factories import LAYERS, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from sparse_core import plan as plan_module
from sparse_core.addresses import ALL, parse_selection
from sparse_core.controls import (
    Conditioning,
    Control,
    Curve,
    Keep,
    Listen,
    Mask,
    Pictures,
    Schedule,
    Solo,
    SparseAdapter,
    Stack,
    Weight,
)
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.layers import PROJECTIONS, Site
from sparse_core.modules import LowRank
from sparse_core.plan import OPEN, Crop, Heard, LayerRun, MaskPlacementError, Plan, Rows, Run, compile_plan

GRID = (3, 4)
TOKENS = GRID[0] * GRID[1]
WORDS = 5
ATTENTION_LAYERS = range(len(LAYERS))


# -------------------------------------------------------------------------------------------------- one attention layer


@dataclass(frozen=True)
class Inputs:
    """What one attention gets, and the frozen weights it has."""

    index: int
    x: Tensor
    context: Tensor
    weights: dict[str, Tensor]
    rows: Rows
    progress: float = 0.3

    def take(self, *chosen: int) -> Inputs:
        """The same with some of the rows."""
        rows = Rows(*(tuple(part[i] for i in chosen) for part in self.rows if part))
        return replace(self, x=self.x[list(chosen)], context=self.context[list(chosen)], rows=rows)


def whole(rows: int, grid: tuple[int, int] = GRID, pictures: Sequence[int] = (), positive: Sequence[bool] = ()) -> Rows:
    """Rows that see the whole picture."""
    return Rows(
        tuple(pictures) or tuple(range(rows)), tuple(positive) or (True,) * rows, (Crop(grid, 0, 0, *grid),) * rows
    )


def make_inputs(index: int, rows: int = 2, seed: int = 0, grid: tuple[int, int] = GRID, **which: Sequence) -> Inputs:
    generator = Generator().manual_seed(seed)
    layer = LAYERS[index]
    x = 2 * torch.randn(rows, math.prod(grid), layer.width, generator=generator)
    context = x if layer.attention == "attn1" else 3 * torch.randn(rows, WORDS, layer.context, generator=generator)
    weights = {}
    for projection in PROJECTIONS:
        d_in, d_out = layer.shape(projection)
        weights[projection] = torch.randn(d_out, d_in, generator=generator) / d_in**0.5
    return Inputs(index, x, context, weights, whole(rows, grid, **which))


class Attend:
    """Single-head attention that counts its calls. As in the hosts' kernels, a query's result doesn't depend on which
    others are asked with it, to the bit."""

    def __init__(self) -> None:
        self.queries: list[int] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.queries.append(q.shape[1])
        scores = (q[:, :, None] * k[:, None]).sum(dim=-1) / q.shape[-1] ** 0.5  # (rows, queries, keys)
        return (scores.softmax(dim=-1)[..., None] * v[:, None]).sum(dim=2)


@dataclass
class Result:
    attended: Tensor
    output: Tensor
    attention: Attend

    def same(self, other: Result) -> bool:
        return torch.equal(self.attended, other.attended) and torch.equal(self.output, other.output)


def run(stack: Stack, inputs: Inputs, grid: tuple[int, int] = GRID, **options: bool) -> Result:
    """One attention as a host runs it."""
    w, attention = inputs.weights, Attend()
    q, k, v = inputs.x @ w["q"].T, inputs.context @ w["k"].T, inputs.context @ w["v"].T
    layer = Run(compile_plan(stack, LAYERS), inputs.rows, inputs.progress, []).layer(
        inputs.index, inputs.x, inputs.context, inputs.context, grid
    )
    if layer is None:
        attended = attention(q, k, v)
        return Result(attended, attended @ w["o"].T, attention)
    attended = layer.attend(q, k, v, attention, **options)
    return Result(attended, layer.output(attended @ w["o"].T), attention)


def base(inputs: Inputs) -> Result:
    return run([], inputs)


# ------------------------------------------------------------------------------------------------------- the reference


@dataclass(eq=False)
class Atom:
    """One atom with what its controls say, in float64."""

    projection: str
    encoder: np.ndarray
    bias: float
    threshold: float
    direction: np.ndarray
    normalise: bool
    weight: float = 1.0
    kept: bool = True
    mask: np.ndarray | None = None
    curves: tuple[Curve, ...] = ()
    prompts: frozenset[str] = frozenset({"positive", "negative"})

    def coefficient(self, token: np.ndarray) -> float:
        rms = math.sqrt(float(np.mean(token**2))) if self.normalise else 1.0
        a = float(self.encoder @ token) / rms + self.bias
        return math.copysign(max(abs(a) - self.threshold, 0), a)

    def factor(self, progress: float, positive: bool) -> float:
        allowed = ("positive" if positive else "negative") in self.prompts
        return self.weight * self.kept * allowed * math.prod(curve(progress) for curve in self.curves)


def average(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area resampling, cell by cell."""
    h, w = picture.shape
    result = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * h // height, -(-(i + 1) * h // height)
            left, right = j * w // width, -(-(j + 1) * w // width)
            result[i, j] = picture[top:bottom, left:right].mean()
    return result


def intersect(a: np.ndarray | None, b: np.ndarray) -> np.ndarray:
    """The product of two masks, at the larger of each size."""
    if a is None:
        return b
    height, width = (max(a.shape[axis], b.shape[axis]) for axis in (1, 2))
    return np.stack(
        [
            average(a[i % len(a)], height, width) * average(b[i % len(b)], height, width)
            for i in range(math.lcm(len(a), len(b)))
        ]
    )


def atoms_of(adapter: SparseAdapter) -> dict[tuple[Site, int], Atom]:
    """Every atom of an adapter, its controls applied one by one."""
    found = {}
    for site, atoms in adapter.dictionary.sites.items():
        for j in range(len(atoms)):
            found[site, j] = Atom(
                site.projection,
                atoms.encoder[j].double().numpy(),
                float(atoms.bias[j]),
                float(atoms.threshold[j]),
                atoms.directions[j].double().numpy(),
                atoms.normalise,
            )
    importance = {key: float(adapter.dictionary.sites[key[0]].importance[key[1]]) for key in found}
    for control in adapter.controls:
        if isinstance(control, Keep):  # over the dictionary
            ranked = sorted(found, key=lambda key: -importance[key])
            for key in ranked[math.ceil(Fraction(repr(float(control.density))) * len(ranked)) :]:
                found[key].kept = False
            continue
        picked = control.selection.resolve(adapter.dictionary)
        for (site, j), atom in found.items():
            selected = bool(picked[site][j])
            match control:
                case Solo():
                    atom.weight *= selected
                case Weight() if selected:
                    atom.weight = control.value * (atom.weight if control.operation == "scale" else 1)
                case Mask() if selected:
                    atom.mask = intersect(atom.mask, control.mask.double().numpy())
                case Schedule() if selected:
                    atom.curves += (control.curve,)
                case Conditioning() if selected:
                    atom.prompts &= {control.prompt}
    return found


def reference(stack: Stack, inputs: Inputs, grid: tuple[int, int] = GRID) -> tuple[np.ndarray, np.ndarray]:
    """Attention result and output of one layer: loops over rows, tokens and atoms, nothing shared, nothing folded."""
    atoms = [atom for adapter in stack for (site, _), atom in atoms_of(adapter).items() if site.layer == inputs.index]
    weights = {p: w.double().numpy() for p, w in inputs.weights.items()}
    attended, outputs = [], []
    for row in range(len(inputs.x)):
        x, context = inputs.x[row].double().numpy(), inputs.context[row].double().numpy()
        picture, positive = inputs.rows.pictures[row], inputs.rows.positive[row]

        def placed(atom: Atom, picture: int = picture) -> np.ndarray:
            if atom.mask is None:
                return np.ones(math.prod(grid))
            return average(average(atom.mask[picture % len(atom.mask)], *GRID), *grid).flatten()

        def project(
            projection: str, tokens: np.ndarray, chosen: list[Atom], where: bool, positive: bool = positive
        ) -> np.ndarray:
            y = tokens @ weights[projection].T
            for atom in chosen:
                if atom.projection == projection:
                    share = placed(atom) if where else np.ones(len(tokens))
                    for t, token in enumerate(tokens):
                        y[t] += (
                            share[t] * atom.factor(inputs.progress, positive) * atom.coefficient(token) * atom.direction
                        )
            return y

        def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
            scores = np.exp(q @ k.T / math.sqrt(q.shape[1]))
            return scores / scores.sum(axis=1, keepdims=True) @ v

        everywhere = [a for a in atoms if a.mask is None or bool((a.mask == 1).all())]
        q = project("q", x, atoms, where=True)
        k, v = (project(p, context, everywhere, where=False) for p in "kv")
        out = plain = attend(q, k, v)
        confined = [a for a in atoms if a.projection in "kv" and a not in everywhere]
        for region in {(a.mask.shape, a.mask.tobytes()) for a in confined}:
            inside = [a for a in confined if (a.mask.shape, a.mask.tobytes()) == region]
            k_r, v_r = (project(p, context, everywhere + inside, where=False) for p in "kv")
            out = out + placed(inside[0])[:, None] * (attend(q, k_r, v_r) - plain)
        attended.append(out)
        outputs.append(project("o", out, atoms, where=True))
    return np.stack(attended), np.stack(outputs)


def check(stack: Stack, inputs: Inputs) -> None:
    result = run(stack, inputs)
    attended, output = reference(stack, inputs)
    np.testing.assert_allclose(result.attended.numpy(), attended, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.output.numpy(), output, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------- against the reference

left = torch.zeros(1, *GRID)
left[..., :2] = 1
soft = torch.rand(1, *GRID, generator=Generator().manual_seed(1))
fine = (torch.rand(1, 6, 8, generator=Generator().manual_seed(2)) > 0.5).float()
two_pictures = (torch.rand(2, *GRID, generator=Generator().manual_seed(3)) > 0.6).float()
three_pictures = torch.stack([torch.zeros(GRID), torch.ones(GRID), soft[0]])
masks = st.sampled_from([left, 1 - left, soft, fine, two_pictures, three_pictures, torch.ones(2, 2), torch.zeros(5, 5)])
selections = st.sampled_from(
    [
        "*",
        "L0-L1",
        "attn2",
        "*",
        "L0-L3.q",
        "L0-L3.kv",
        "L0-L3.k[0]",
        "L0-L3.v[1]",
        "L0-L3.o[0-1]",
        "L0-L3[0]",
        "top:20",
    ]
).map(parse_selection)
curves = st.sampled_from([Curve(0, 0.2), Curve(0, 1, (0, 1)), Curve(0.1, 0.9, (1, 2), "cosine")])
numbers = st.floats(-2, 2, width=32)
controls = st.one_of(
    st.builds(Mask, masks, selections),
    st.builds(Mask, masks, selections),
    st.builds(Weight, selections, numbers, st.sampled_from(["set", "scale"])),
    st.builds(Schedule, curves, selections),
    st.builds(Conditioning, st.sampled_from(["positive", "negative"]), selections),
    st.builds(Keep, st.floats(0.3, 1)),
    st.builds(Solo, selections),
)


@st.composite
def adapters(draw: st.DrawFn) -> SparseAdapter:
    """Dictionaries that differ in seed, atom counts, sites and normalisation, under random controls."""
    dropped = draw(st.sets(st.sampled_from(PROJECTIONS), max_size=2))
    dictionary = random_dictionary(
        seed=draw(st.integers(0, 10_000)),
        atoms=draw(st.sampled_from([(2, 3), (4, 2, 5)])),
        normalise=draw(st.booleans()),
    )
    sites = {site: atoms for site, atoms in dictionary.sites.items() if site.projection not in dropped}
    adapter = SparseAdapter(replace(dictionary, sites=sites))
    for control in draw(st.lists(controls, max_size=4)):
        try:
            adapter = adapter.with_controls(control)
        except ValueError:  # it selects a projection that was dropped
            continue
    return adapter


@settings(max_examples=150)
@given(
    stack=st.lists(adapters(), min_size=1, max_size=3),
    index=st.sampled_from(ATTENTION_LAYERS),
    seed=st.integers(0, 10_000),
    batch=st.sampled_from([((0,), (True,)), ((0, 0), (False, True)), ((0, 1, 0, 1), (False, False, True, True))]),
    progress=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
)
def test_a_layer_equals_the_reference(
    stack: list[SparseAdapter], index: int, seed: int, batch: tuple[tuple, tuple], progress: float
) -> None:
    pictures, positive = batch
    inputs = make_inputs(index, len(pictures), seed, pictures=pictures, positive=positive)
    check(stack, replace(inputs, progress=progress))


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
@pytest.mark.parametrize("normalise", [True, False])
def test_plain_dictionary_equals_the_reference(index: int, normalise: bool) -> None:
    check([SparseAdapter(random_dictionary(normalise=normalise))], make_inputs(index))


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_overlapping_masks_of_two_dictionaries_equal_the_reference(index: int) -> None:
    first = SparseAdapter(random_dictionary(seed=1)).with_controls(Mask(left), Mask(soft, parse_selection("L0-L3[1]")))
    second = SparseAdapter(random_dictionary(seed=2, atoms=(3, 5))).with_controls(Mask(two_pictures))
    check([first, second], make_inputs(index, rows=4, pictures=(0, 1, 0, 1), positive=(False, False, True, True)))


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_a_plain_lora_equals_its_weights_merged(index: int) -> None:
    inputs = make_inputs(index)
    dictionary = random_dictionary(normalise=False).map(
        lambda atoms: replace(atoms, bias=0 * atoms.bias, threshold=0 * atoms.threshold)
    )
    merged = dict(inputs.weights)
    for projection in PROJECTIONS:
        atoms = dictionary.sites[Site(index, projection)]
        merged[projection] = merged[projection] + atoms.directions.T @ atoms.encoder
    result, expected = run([SparseAdapter(dictionary)], inputs), base(replace(inputs, weights=merged))
    torch.testing.assert_close(result.output, expected.output, rtol=1e-4, atol=1e-4)


def test_the_order_of_a_stack_is_immaterial() -> None:
    inputs = make_inputs(1)
    stack = [
        SparseAdapter(random_dictionary(seed=1)).with_controls(Mask(left)),
        SparseAdapter(random_dictionary(seed=2)).at_strength(0.5),
        SparseAdapter(random_dictionary(seed=3)).with_controls(Mask(soft)),
    ]
    torch.testing.assert_close(run(stack, inputs).output, run(stack[::-1], inputs).output, rtol=1e-4, atol=1e-5)


def test_a_stack_of_two_equals_one_dictionary_with_the_atoms_of_both() -> None:
    a, b = random_dictionary(seed=1, atoms=(2, 3)), random_dictionary(seed=2, atoms=(4, 1))
    joined = SparseDictionary(
        LAYERS,
        {
            site: Atoms(**{name: torch.cat([t, b.sites[site].tensors()[name]]) for name, t in atoms.tensors().items()})
            for site, atoms in a.sites.items()
        },
    )
    for index in ATTENTION_LAYERS:
        inputs = make_inputs(index)
        both, one = run([SparseAdapter(a), SparseAdapter(b)], inputs), run([SparseAdapter(joined)], inputs)
        torch.testing.assert_close(both.output, one.output)


@pytest.mark.parametrize("projection", ["v", "o"])
def test_weights_are_linear_in_the_update(projection: str) -> None:
    """Of v and o alone, where nothing nonlinear comes after the update."""
    inputs = make_inputs(1)
    adapter = SparseAdapter(random_dictionary(sites=[Site(1, projection)]))
    plain = base(inputs).output
    change = run([adapter], inputs).output - plain
    for weight in (-1.5, 0.25, 3):
        torch.testing.assert_close(
            run([adapter.at_strength(weight)], inputs).output - plain, weight * change, rtol=1e-4, atol=1e-5
        )


# ------------------------------------------------------------------------------------------------------- bit for bit


def every_layer_is(one: Stack, other: Stack) -> bool:
    """Whether two stacks give the same bits at every layer."""
    inputs = [make_inputs(index, rows=2) for index in ATTENTION_LAYERS]
    return all(run(one, i).same(run(other, i)) for i in inputs)


ADAPTER = SparseAdapter(random_dictionary(atoms=(4, 3)))


def test_a_dictionary_does_something_at_every_layer() -> None:
    for index in ATTENTION_LAYERS:
        result, plain = run([ADAPTER], make_inputs(index)), base(make_inputs(index))
        assert not torch.isclose(result.output, plain.output, atol=1e-3).all(dim=-1).any()


def test_directions_of_zero_are_the_base() -> None:
    silent = ADAPTER.dictionary.map(lambda atoms: replace(atoms, directions=0 * atoms.directions))
    assert every_layer_is([SparseAdapter(silent)], [])


@pytest.mark.parametrize(
    "control",
    [
        Weight(ALL, 0, "scale"),
        Weight(ALL, 0),
        Keep(0),
        Keep(0, "layer"),
        Keep(0, "site"),
        Mask(torch.zeros(7, 5)),
        Mask(torch.zeros(2, 3, 4)),
    ],
    ids=["strength 0", "muted", "density 0", "density 0 a layer", "density 0 a site", "zero mask", "zero masks"],
)
def test_nothing_left_is_the_base(control: Control) -> None:
    assert every_layer_is([ADAPTER.with_controls(control)], [])
    assert not compile_plan([ADAPTER.with_controls(control)], LAYERS).layers


def test_disjoint_masks_and_prompts_that_exclude_each_other_leave_the_base() -> None:
    assert not compile_plan([ADAPTER.with_controls(Mask(left), Mask(1 - left))], LAYERS).layers
    assert not compile_plan([ADAPTER.with_controls(Conditioning("positive"), Conditioning("negative"))], LAYERS).layers


@pytest.mark.parametrize(
    "control",
    [
        Keep(1),
        Keep(1, "site", "random"),
        Mask(torch.ones(7, 5)),
        Mask(torch.ones(3, 2, 2)),
        Weight(ALL, 1),
        Schedule(Curve()),
        Schedule(Curve(0, 0.5)),
    ],
    ids=["density 1", "random density 1", "mask of ones", "masks of ones", "weight 1", "always", "now"],
)
def test_a_control_that_excludes_nothing_changes_nothing(control: Control) -> None:
    assert every_layer_is([ADAPTER.with_controls(control)], [ADAPTER])


def test_a_schedule_that_is_over_is_the_base() -> None:
    assert every_layer_is([ADAPTER.with_controls(Schedule(Curve(0.5, 1)))], [])


@pytest.mark.parametrize("prompt", ["positive", "negative"])
@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_a_prompt_choice_leaves_the_rows_of_the_other_prompt_untouched(prompt: str, index: int) -> None:
    inputs = make_inputs(index, rows=4, positive=(False, True, True, False))
    chosen = [positive == (prompt == "positive") for positive in inputs.rows.positive]
    result, full, plain = (
        run([ADAPTER.with_controls(Conditioning(prompt))], inputs),
        run([ADAPTER], inputs),
        base(inputs),
    )
    for row, acts in enumerate(chosen):
        assert torch.equal(result.output[row], (full if acts else plain).output[row])


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("index", ATTENTION_LAYERS)
@pytest.mark.parametrize("any_queries", [True, False])
@pytest.mark.parametrize("mask", [left, left * soft], ids=["hard", "soft"])
def test_a_masked_update_changes_nothing_outside_its_mask(
    projection: str, index: int, any_queries: bool, mask: Tensor
) -> None:
    inputs = make_inputs(index)
    dictionary = random_dictionary(sites=[Site(index, projection)], threshold=0)  # so that every token is updated
    adapter = SparseAdapter(dictionary).with_controls(Mask(mask))
    result, plain = run([adapter], inputs, any_queries=any_queries), base(inputs)
    inside = mask.flatten() > 0
    assert torch.equal(result.output[:, ~inside], plain.output[:, ~inside])
    assert torch.equal(result.attended[:, ~inside], plain.attended[:, ~inside])
    assert not torch.isclose(result.output[:, inside], plain.output[:, inside]).all(dim=-1).any()


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_masks_on_all_projections_change_nothing_outside_of_them(index: int) -> None:
    inputs = make_inputs(index)
    stack = [
        ADAPTER.with_controls(Mask(left)),
        SparseAdapter(random_dictionary(seed=9)).with_controls(Mask(left * soft)),
    ]
    outside = left.flatten() == 0
    assert torch.equal(run(stack, inputs).output[:, outside], base(inputs).output[:, outside])


def test_inside_a_hard_mask_the_update_is_the_unmasked_one_where_only_queries_differ() -> None:
    """Keys and values are tokens that every query sees, so self-attention and outputs are no local matter but these are."""
    inside = left.flatten() > 0
    for projection in ("q", "k", "v"):
        adapter = SparseAdapter(random_dictionary(sites=[Site(1, projection)]))
        inputs = make_inputs(1)
        masked, full = run([adapter.with_controls(Mask(left))], inputs), run([adapter], inputs)
        torch.testing.assert_close(masked.attended[:, inside], full.attended[:, inside])


def test_each_picture_of_a_batch_gets_its_own_mask() -> None:
    inputs = make_inputs(1, rows=4, pictures=(0, 1, 0, 1))
    result, plain = run([ADAPTER.with_controls(Mask(two_pictures))], inputs), base(inputs)
    for row, picture in enumerate(inputs.rows.pictures):
        outside = two_pictures[picture].flatten() == 0
        changed = ~torch.isclose(result.output[row], plain.output[row]).all(dim=-1)
        assert torch.equal(changed, ~outside)
        assert torch.equal(result.output[row, outside], plain.output[row, outside])


# -------------------------------------------------------------------------------------------------- batch independence

BATCHED = [
    [ADAPTER],
    [ADAPTER.with_controls(Mask(two_pictures)), SparseAdapter(random_dictionary(seed=5)).with_controls(Mask(soft))],
    [ADAPTER.with_controls(Conditioning("positive"), Schedule(Curve(0, 1, (0, 1))))],
]


@pytest.mark.parametrize("stack", BATCHED, ids=["plain", "masks", "gates"])
@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_a_row_in_a_batch_equals_the_row_alone(stack: Stack, index: int) -> None:
    """Within tolerance: matrix kernels round differently for another number of rows."""
    inputs = make_inputs(index, rows=4, pictures=(0, 1, 0, 1), positive=(False, False, True, True))
    together = run(stack, inputs).output
    for row in range(4):
        torch.testing.assert_close(run(stack, inputs.take(row)).output[0], together[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stack", BATCHED, ids=["plain", "masks", "gates"])
@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_what_the_other_rows_hold_does_not_matter(stack: Stack, index: int) -> None:
    """Exactly: sizes stay, so kernels do."""
    inputs = make_inputs(index, rows=4, pictures=(0, 1, 0, 1), positive=(False, False, True, True))
    others = make_inputs(index, rows=4, seed=99)
    x, context = 100 * others.x, 100 * others.context
    x[2], context[2] = inputs.x[2], inputs.context[2]
    changed = replace(inputs, x=x, context=x if LAYERS[index].attention == "attn1" else context)
    assert torch.equal(run(stack, changed).output[2], run(stack, inputs).output[2])


# ------------------------------------------------------------------------------------------------------------------ cost


@pytest.mark.parametrize(
    ("controls", "regions"),
    [
        ([], 0),
        ([Mask(left, parse_selection("L1.qo"))], 0),
        ([Mask(left)], 1),
        ([Mask(left, parse_selection("L1.k")), Mask(left, parse_selection("L1.v"))], 1),
        ([Mask(left, parse_selection("L1.kv[0]")), Mask(soft, parse_selection("L1.kv[1]"))], 2),
        ([Mask(left, parse_selection("L1.kv[0-1]")), Mask(soft, parse_selection("L1.kv[1-2]"))], 3),
        ([Mask(left), Weight(parse_selection("L1.kv"), 0)], 0),
        ([Mask(torch.ones(2, 2))], 0),
    ],
    ids=["none", "q and o", "one", "one on k, one on v", "two", "overlap", "muted", "ones"],
)
def test_each_distinct_region_of_k_or_v_costs_one_attention(controls: list[Control], regions: int) -> None:
    result = run([ADAPTER.with_controls(*controls)], make_inputs(1))
    assert len(result.attention.queries) == 1 + regions


def test_equal_masks_of_two_adapters_share_one_attention() -> None:
    other = SparseAdapter(random_dictionary(seed=7)).with_controls(Mask(left.clone()))
    assert len(run([ADAPTER.with_controls(Mask(left)), other], make_inputs(1)).attention.queries) == 2


def test_each_place_attends_once_where_a_mask_is_hard() -> None:
    result = run([ADAPTER.with_controls(Mask(left))], make_inputs(1))
    assert result.attention.queries == [TOKENS - int(left.sum()), int(left.sum())]
    kept_whole = run([ADAPTER.with_controls(Mask(left))], make_inputs(1), any_queries=False)
    assert kept_whole.attention.queries == [TOKENS, TOKENS]
    torch.testing.assert_close(kept_whole.output, result.output)


def test_regions_that_share_the_whole_picture_leave_nothing_to_the_base() -> None:
    ramp = torch.linspace(0, 1, GRID[1]).expand(1, *GRID)
    stack = [SparseAdapter(random_dictionary(seed=n)).with_controls(Mask(m)) for n, m in enumerate((ramp, 1 - ramp))]
    inside = [int(m.gt(0).sum()) for m in (ramp, 1 - ramp)]
    assert run(stack, make_inputs(1)).attention.queries == inside
    check(stack, make_inputs(1))


def coder_rows(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Encoder rows of each layer's coders."""
    return {
        index: tuple(0 if coder is None else len(coder.bias) for coder in (layer.query, layer.context, layer.output))
        for index, layer in plan.layers.items()
    }


def test_everything_that_reads_one_tensor_is_encoded_together() -> None:
    plan = compile_plan([SparseAdapter(random_dictionary(atoms=4))] * 2, LAYERS)
    assert coder_rows(plan) == {0: (24, 0, 8), 1: (8, 16, 8), 2: (24, 0, 8), 3: (8, 16, 8)}


@pytest.mark.parametrize(
    "controls",
    [
        [Solo(parse_selection("L1.k[2] | L3.o"))],
        [Weight(parse_selection("!(L1.k[2] | L3.o)"), 0)],
        [Mask(torch.zeros(2, 2), parse_selection("!(L1.k[2] | L3.o)"))],
    ],
    ids=["solo", "mute", "zero mask"],
)
def test_atoms_that_cannot_act_are_sliced_away(controls: list[Control]) -> None:
    plan = compile_plan([ADAPTER.with_controls(*controls)], LAYERS)
    assert coder_rows(plan) == {1: (0, 1, 0), 3: (0, 0, 3)}
    assert torch.equal(plan.layers[1].context.encoder[0], ADAPTER.dictionary.sites[Site(1, "k")].encoder[2])
    assert plan.layers[1].decoders["k"].refs == ((0, 2),)
    assert plan.layers[1].decoders["k"].directions.shape == (1, 12)


@pytest.mark.parametrize(
    "hidden", [Weight(ALL, 0), Keep(0), Mask(torch.zeros(2, 2))], ids=["muted", "dropped", "zero mask"]
)
@pytest.mark.parametrize(
    "control",
    [Listen(("robot",)), Conditioning("positive"), Pictures((True, False)), Schedule(Curve(0, 0.5)), Mask(left)],
    ids=["trigger", "prompt", "pictures", "schedule", "mask"],
)
def test_atoms_that_cannot_act_ask_nothing_of_a_model_call(control: Control, hidden: Control) -> None:
    update = {"conv_in": LowRank(torch.ones(1, 4), torch.ones(1, 8))}
    silent = SparseAdapter(replace(ADAPTER.dictionary, rest=update)).with_controls(control, hidden)
    plan = compile_plan([silent, ADAPTER], LAYERS)
    assert plan.gates == (OPEN,) and not plan.masks and not plan.modules
    assert every_layer_is([silent, ADAPTER], [ADAPTER])


def test_one_muted_atom_of_a_site_makes_the_others_wait_for_nothing() -> None:
    some = parse_selection("L1.k[2] | L3.o")
    waiting = ADAPTER.with_controls(Listen(("robot",), some), Weight(some, 0))
    assert not compile_plan([waiting], LAYERS).by_row
    assert every_layer_is([waiting], [ADAPTER.with_controls(Weight(some, 0))])


def test_a_mask_is_multiplied_once_however_many_sites_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    product = plan_module._product
    monkeypatch.setattr(plan_module, "_product", lambda factors: made.append(1) or product(factors))
    plan = compile_plan([ADAPTER.with_controls(Mask(left), Mask(left / 2, parse_selection("L1.o")))], LAYERS)
    assert len(made) == len(plan.masks) == 2


def test_density_slices_the_share_it_drops() -> None:
    plan = compile_plan([ADAPTER.with_controls(Keep(0.25))], LAYERS)
    assert sum(map(sum, coder_rows(plan).values())) == math.ceil(0.25 * len(ADAPTER.dictionary))


def test_pruning_equals_a_dictionary_without_the_pruned_atoms() -> None:
    control = Keep(0.4)
    state = ADAPTER.with_controls(control).state
    pruned = {site: atoms[state.sites[site].able] for site, atoms in ADAPTER.dictionary.sites.items()}
    smaller = SparseAdapter(SparseDictionary(LAYERS, pruned))
    assert every_layer_is([ADAPTER.with_controls(control)], [smaller])


def test_a_run_is_wholly_on_the_device_of_its_plan() -> None:
    elsewhere = torch.device("meta")
    adapter = ADAPTER.with_controls(Schedule(Curve(0, 0.5)), Conditioning("positive"))
    plan = compile_plan([adapter], LAYERS).to(elsewhere, torch.float32)
    run_ = Run(plan, whole(2, positive=(True, False)), 0.2, [])
    assert run_.factors.device == elsewhere
    x, q = torch.zeros(2, TOKENS, 8, device=elsewhere), torch.zeros(2, TOKENS, 12, device=elsewhere)
    layer = run_.layer(0, x, x, x, GRID)
    assert layer.output(layer.attend(q, q, q, Attend())[..., :8]).device == elsewhere


def test_a_layer_without_atoms_is_left_to_the_host() -> None:
    run_ = Run(compile_plan([SparseAdapter(random_dictionary(sites=[Site(1, "q")]))], LAYERS), whole(2), 0, [])
    x = torch.zeros(2, TOKENS, 8)
    assert run_.layer(0, x, x, x, GRID) is None


# -------------------------------------------------------------------------------------------------------------- refusals


def layer_run(*controls: Control, rows: Rows | None, tokens: tuple[int, int] = (2, TOKENS), **arguments) -> LayerRun:
    x, text = torch.randn(*tokens, 8), torch.randn(tokens[0], WORDS, 6)
    plan = compile_plan([ADAPTER.with_controls(*controls)], LAYERS)
    return Run(plan, rows, 0, []).layer(1, x, text, text, **{"grid": GRID, **arguments})


@pytest.mark.parametrize("tokens", [(2, TOKENS // 2), (4, TOKENS), (1, TOKENS), (4, TOKENS // 2)])
def test_a_mask_on_tokens_of_another_layout_is_refused_by_name(tokens: tuple[int, int]) -> None:
    with pytest.raises(MaskPlacementError) as error:
        layer_run(Mask(left), rows=whole(2), tokens=tokens)
    message = str(error.value)
    assert "L1" in message and str(tokens) in message and "2 rows of 3 x 4 tokens" in message
    assert "HyperTile" in message and "Remove" in message


def test_a_mask_where_the_host_does_not_know_the_rows_is_refused() -> None:
    with pytest.raises(MaskPlacementError, match="A mask is set"):
        layer_run(Mask(left), rows=None)


def test_another_layout_without_a_mask_is_fine() -> None:
    assert layer_run(rows=whole(2), tokens=(4, TOKENS // 2)) is not None
    assert layer_run(rows=None, tokens=(4, TOKENS // 2)) is not None


def test_a_prompt_choice_where_the_host_does_not_know_the_prompts_is_refused() -> None:
    with pytest.raises(RuntimeError, match="some prompts only, but this model call does not say which"):
        layer_run(Conditioning("positive"), rows=None)


def test_a_trigger_where_nobody_looked_for_the_word_is_refused() -> None:
    heard = (Heard(frozenset({"robot"}), frozenset({"robot"})), Heard())
    with pytest.raises(RuntimeError, match="Atoms wait for robot, but a prompt was encoded without looking for it"):
        layer_run(Listen(("robot",)), rows=whole(2)._replace(heard=heard))
    with pytest.raises(RuntimeError, match="Encode every prompt"):
        layer_run(Listen(("robot",)), rows=whole(2))


def test_a_prompt_that_atoms_never_act_on_need_not_be_listened_to() -> None:
    heard = (Heard(frozenset({"robot"}), frozenset({"robot"})), Heard())
    rows = whole(2, positive=(True, False))._replace(heard=heard)
    assert layer_run(Listen(("robot",)), Conditioning("positive"), rows=rows) is not None


def test_a_prompt_choice_on_a_batch_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(MaskPlacementError, match=r"4 rows of tokens arrived for 2 rows of pictures.*HyperTile"):
        layer_run(Conditioning("positive"), rows=whole(2, positive=(True, False)), tokens=(4, TOKENS))


def test_a_dictionary_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="made for another model"):
        compile_plan([ADAPTER, SparseAdapter(random_dictionary(LAYERS[:2]))], LAYERS)


# ------------------------------------------------------------------------------------------------------------ triggers

SAID = [{"robot"}, set(), {"owl"}, {"robot", "owl"}]
"""What the prompts of four rows name, of three words that are looked for."""


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
@pytest.mark.parametrize(
    ("triggers", "acting"),
    [
        ([("robot",)], [0, 3]),
        ([("robot", "owl")], [0, 2, 3]),  # any word of one trigger
        ([("robot",), ("owl",)], [3]),  # every trigger
        ([("cat",)], []),
    ],
)
def test_atoms_act_on_rows_whose_prompts_name_their_words(
    index: int, triggers: list[tuple[str, ...]], acting: list[int]
) -> None:
    heard = tuple(Heard(frozenset({"robot", "owl", "cat"}), frozenset(words)) for words in SAID)
    inputs = make_inputs(index, len(SAID))
    inputs = replace(inputs, rows=inputs.rows._replace(heard=heard))
    waiting = run([ADAPTER.with_controls(*map(Listen, triggers))], inputs)
    always, never = run([ADAPTER], inputs), base(inputs)
    for row in range(len(SAID)):
        expected = always if row in acting else never
        assert torch.equal(waiting.attended[row], expected.attended[row])
        assert torch.equal(waiting.output[row], expected.output[row])
    assert not torch.equal(always.output, never.output)


def test_atoms_that_do_not_wait_act_on_every_prompt() -> None:
    heard = tuple(Heard(frozenset({"robot"}), frozenset(words & {"robot"})) for words in SAID)
    inputs = make_inputs(0, len(SAID))
    inputs = replace(inputs, rows=inputs.rows._replace(heard=heard))
    some = parse_selection("L0.q")
    mixed = run([ADAPTER.with_controls(Listen(("robot",), some))], inputs)
    without = run([ADAPTER.with_controls(Weight(some, 0.0))], inputs)
    always = run([ADAPTER], inputs)
    for row, words in enumerate(SAID):
        expected = always if "robot" in words else without
        torch.testing.assert_close(mixed.output[row], expected.output[row])


# ------------------------------------------------------------------------------------------------------------- regions


def region(mask: Tensor, grid: tuple[int, int], *crops: Crop, pictures: Sequence[int] = ()) -> Tensor:
    """(rows or 1, height, width) weights on a grid."""
    plan = compile_plan([ADAPTER.with_controls(Mask(mask))], LAYERS)
    rows = Rows(tuple(pictures) or (0,) * len(crops), (True,) * len(crops), crops)
    found = plan.region(0, grid, rows)
    assert found.tokens.tolist() == (found.weight > 0).any(dim=0).nonzero()[:, 0].tolist()
    return found.weight.unflatten(1, grid)


picture = torch.rand(8, 12, generator=Generator().manual_seed(4))


def test_a_region_on_a_crop_is_the_crop_of_the_region() -> None:
    full = region(picture, (8, 12), Crop((8, 12), 0, 0, 8, 12))
    assert torch.equal(full[0], picture)
    for top, left_, height, width in ((0, 0, 4, 4), (3, 5, 5, 7), (7, 11, 1, 1)):
        seen = region(picture, (height, width), Crop((8, 12), top, left_, height, width))
        assert torch.equal(seen, full[:, top : top + height, left_ : left_ + width])


def test_a_region_on_the_coarse_grid_of_a_crop_is_the_crop_of_the_coarse_region() -> None:
    coarse = region(picture, (4, 6), Crop((8, 12), 0, 0, 8, 12))
    seen = region(picture, (2, 3), Crop((8, 12), 4, 2, 4, 6))
    torch.testing.assert_close(seen, coarse[:, 2:4, 1:4])


def test_rows_can_see_different_crops() -> None:
    crops = Crop((8, 12), 0, 0, 4, 6), Crop((8, 12), 4, 6, 4, 6)
    both = region(picture, (4, 6), *crops)
    assert torch.equal(both[0], picture[:4, :6]) and torch.equal(both[1], picture[4:, 6:])


@pytest.mark.parametrize("size", [(8, 12), (64, 96), (33, 47), (2, 3), (512, 768)])
@pytest.mark.parametrize("grid", [(8, 12), (4, 6), (3, 5), (1, 1)])
def test_a_mask_of_any_size_is_averaged_onto_any_grid(size: tuple[int, int], grid: tuple[int, int]) -> None:
    mask = torch.rand(size, generator=Generator().manual_seed(5))
    expected = average(average(mask.double().numpy(), 8, 12), *grid)
    np.testing.assert_allclose(
        region(mask, grid, Crop((8, 12), 0, 0, 8, 12))[0].numpy(), expected, rtol=1e-4, atol=1e-5
    )


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 1000))
def test_weights_stay_between_zero_and_one_and_touch_what_the_mask_touches(height: int, width: int, seed: int) -> None:
    mask = (torch.rand(65, 97, generator=Generator().manual_seed(seed)) > 0.99).float()
    weight = region(mask, (height, width), Crop((65, 97), 0, 0, 65, 97))
    assert float(weight.min()) >= 0 and float(weight.max()) <= 1
    assert float(weight.mean()) > 0


def test_pictures_beyond_the_masks_start_over() -> None:
    crops = (Crop(GRID, 0, 0, *GRID),) * 5
    weight = region(two_pictures, GRID, *crops, pictures=(0, 1, 2, 3, 1))
    assert torch.equal(weight, two_pictures[[0, 1, 0, 1, 1]])


def test_a_mask_outside_of_the_crop_costs_nothing() -> None:
    inputs = make_inputs(1, rows=1)
    mask = torch.zeros(2 * GRID[0], 2 * GRID[1])
    mask[0, 0] = 1
    rows = Rows((0,), (True,), (Crop((2 * GRID[0], 2 * GRID[1]), *GRID, *GRID),))
    result = run([ADAPTER.with_controls(Mask(mask))], replace(inputs, rows=rows))
    assert result.same(base(inputs)) and result.attention.queries == [TOKENS]


# ------------------------------------------------------------------------------------------------- choices of pictures


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
def test_pictures_of_a_batch_with_other_atoms_are_those_of_runs_of_their_own(index: int) -> None:
    inputs = make_inputs(index, rows=4)
    left_out = Pictures((True, False), parse_selection(f"L{index}[0]")), Pictures((True, True, False, False), ALL)
    found = run([ADAPTER.with_controls(*left_out)], inputs)
    for row, stack in enumerate(
        [[ADAPTER], [ADAPTER.with_controls(Weight(parse_selection("attn1[0] | attn2[0]"), 0))], [], []]
    ):
        expected = run(stack, inputs.take(row))
        torch.testing.assert_close(found.output[row : row + 1], expected.output)
    assert torch.equal(found.output[2:], base(inputs).output[2:])


def test_a_choice_goes_to_the_pictures_whichever_prompt_a_row_runs() -> None:
    inputs = make_inputs(1, rows=4, pictures=(0, 1, 0, 1), positive=(False, False, True, True))
    found = run([ADAPTER.with_controls(Pictures((False, True)))], inputs)
    assert torch.equal(found.output[::2], base(inputs).output[::2])
    assert not torch.allclose(found.output[1::2], base(inputs).output[1::2])


def test_a_choice_of_no_pictures_is_refused() -> None:
    with pytest.raises(ValueError, match="one truth value for each picture"):
        Pictures(())


# ------------------------------------------------------------------------------------------------ observers, gradients


def test_observers_see_their_own_coefficients_before_controls_and_features_before_the_update() -> None:
    controls = Weight(ALL, 0.5), Mask(left), Schedule(Curve(0.9, 1)), Solo(parse_selection("L1.k[2]"))
    other = SparseAdapter(random_dictionary(seed=5))
    inputs, seen = make_inputs(1), []
    stack = [other, ADAPTER.with_controls(*controls), other]
    run_ = Run(compile_plan(stack, LAYERS), inputs.rows, 0.3, [None, lambda *what: seen.append(what), None])
    layer = run_.layer(1, inputs.x, inputs.context, inputs.context, GRID)
    q, k, v = (t @ inputs.weights[p].T for p, t in zip("qkv", (inputs.x, inputs.context, inputs.context), strict=True))
    layer.attend(q, k, v, Attend())
    layer.output(q[..., :8])
    ((site, atoms, x, z, y, moment),) = seen
    assert moment == (inputs.rows, 0.3, GRID)
    assert site == Site(1, "k") and list(atoms) == [2] and torch.equal(x, inputs.context) and torch.equal(y, k)
    atom = atoms_of(SparseAdapter(ADAPTER.dictionary))[site, 2]
    expected = [[atom.coefficient(t) for t in row] for row in inputs.context.double().numpy()]
    np.testing.assert_allclose(z[..., 0].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", ATTENTION_LAYERS)
@pytest.mark.parametrize(
    "controls", [[], [Mask(left), Schedule(Curve(0, 1, (1, 2))), Keep(0.9)]], ids=["plain", "controlled"]
)
def test_gradients_reach_every_site(index: int, controls: list[Control]) -> None:
    dictionary = random_dictionary(atoms=6).map(lambda atoms: atoms.map(lambda t: t.clone().requires_grad_()))
    run([SparseAdapter(dictionary).with_controls(*controls)], make_inputs(index)).output.square().sum().backward()
    for projection in PROJECTIONS:
        atoms = dictionary.sites[Site(index, projection)]
        for tensor in (atoms.encoder, atoms.bias, atoms.threshold, atoms.directions):
            assert tensor.grad is not None and bool(tensor.grad.any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_plan_in_the_models_type_keeps_that_type_and_the_base(dtype: torch.dtype) -> None:
    inputs = make_inputs(1)
    x, text = inputs.x.to(dtype), inputs.context.to(dtype)
    q, k, v = (torch.randn(2, n, 12).to(dtype) for n in (TOKENS, WORDS, WORDS))
    plan = compile_plan([ADAPTER.with_controls(Mask(left))], LAYERS).to(torch.device("cpu"), dtype)
    result = Run(plan, inputs.rows, 0, []).layer(1, x, text, text, GRID).attend(q, k, v, attention := Attend())
    assert result.dtype == dtype
    outside = left.flatten() == 0
    assert torch.equal(result[:, outside], attention(q, k, v)[:, outside])


def test_compiling_changes_neither_dictionary_nor_controls() -> None:
    adapter = SparseAdapter(random_dictionary()).with_controls(Mask(left), Weight(ALL, 2), Keep(0.5))
    before = {site: atoms.map(torch.clone) for site, atoms in adapter.dictionary.sites.items()}
    run([adapter, adapter], make_inputs(1))
    for site, atoms in adapter.dictionary.sites.items():
        assert all(torch.equal(t, before[site].tensors()[name]) for name, t in atoms.tensors().items())


def test_a_plan_of_what_was_made_in_inference_mode_can_be_trained_through() -> None:
    with torch.inference_mode():
        dictionary = random_dictionary()
    plan = compile_plan([SparseAdapter(dictionary)], LAYERS).to(torch.device("cpu"), torch.float32)
    decoders = [d for layer in plan.layers.values() for d in layer.decoders.values()]
    assert decoders and not any(d.directions.is_inference() for d in decoders)
