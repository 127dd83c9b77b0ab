"""The formulas of one site."""

from __future__ import annotations

import math

import pytest
import torch
from factories import random_atoms
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from sparse_core.coding import decode, encode, group_norm, importance, inverse_rms, soft_threshold
from sparse_core.dictionary import Atoms

seeds = st.integers(0, 2**32 - 1)


def coefficients(atoms: Atoms, x: Tensor) -> Tensor:
    normalise = torch.full((len(atoms),), float(atoms.normalise))
    return encode(x, atoms.encoder.to(x), atoms.bias, atoms.threshold, normalise)


def update(atoms: Atoms, x: Tensor) -> Tensor:
    y = torch.zeros(*x.shape[:-1], atoms.directions.shape[1])
    return decode(y, coefficients(atoms, x), atoms.directions)


def by_hand(atoms: Atoms, token: list[float]) -> list[float]:
    """The coefficients of one token, one atom at a time, in Python's own floats."""
    rms = math.sqrt(sum(v * v for v in token) / len(token)) if atoms.normalise else 1.0
    result = []
    for row, bias, threshold in zip(atoms.encoder.tolist(), atoms.bias.tolist(), atoms.threshold.tolist(), strict=True):
        a = sum(e * v for e, v in zip(row, token, strict=True)) / rms + bias
        result.append(math.copysign(max(abs(a) - threshold, 0.0), a))
    return result


# ------------------------------------------------------------------------------------------------------ soft threshold


@given(a=st.floats(-50, 50, width=32), theta=st.floats(0, 10, width=32))
def test_soft_threshold_is_zero_inside_and_shrinks_outside(a: float, theta: float) -> None:
    z = float(soft_threshold(torch.tensor(a), torch.tensor(theta)))
    if abs(a) <= theta:
        assert z == 0
    else:
        assert z == pytest.approx(math.copysign(abs(a) - theta, a), rel=1e-5, abs=1e-5)
        assert abs(z) <= abs(a) and z * a >= 0


@given(seed=seeds)
def test_soft_threshold_is_odd(seed: int) -> None:
    generator = Generator().manual_seed(seed)
    a, theta = torch.randn(20, 3, generator=generator), torch.rand(3, generator=generator)
    assert torch.equal(soft_threshold(-a, theta), -soft_threshold(a, theta))


@given(seed=seeds, factor=st.floats(0, 100))
def test_soft_threshold_is_positively_homogeneous(seed: int, factor: float) -> None:
    generator = Generator().manual_seed(seed)
    a, theta = torch.randn(20, 3, generator=generator).double(), torch.rand(3, generator=generator).double()
    torch.testing.assert_close(soft_threshold(factor * a, factor * theta), factor * soft_threshold(a, theta))


def test_threshold_zero_changes_nothing() -> None:
    a = torch.randn(5, 7)
    assert torch.equal(soft_threshold(a, torch.zeros(7)), a)


# -------------------------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("shape", [(9,), (2, 9), (2, 3, 9)])
def test_encode_equals_a_loop_over_tokens_and_atoms(normalise: bool, shape: tuple[int, ...]) -> None:
    generator = Generator().manual_seed(1)
    atoms = random_atoms(6, 5, 4, generator, normalise=normalise)
    x = 3 * torch.randn(*shape, 5, generator=generator)
    expected = torch.tensor([by_hand(atoms, token) for token in x.reshape(-1, 5).tolist()]).view(*shape, 6)
    z = coefficients(atoms, x)
    torch.testing.assert_close(z, expected, rtol=1e-5, atol=1e-5)
    assert 0 < (z == 0).float().mean() < 1


def test_encode_mixes_atoms_that_normalise_with_atoms_that_do_not() -> None:
    generator = Generator().manual_seed(2)
    atoms = random_atoms(4, 5, 4, generator)
    x = 3 * torch.randn(7, 5, generator=generator)
    mixed = encode(x, atoms.encoder, atoms.bias, atoms.threshold, torch.tensor([1.0, 0, 1, 0]))
    raw = encode(x, atoms.encoder, atoms.bias, atoms.threshold, torch.zeros(4))
    assert torch.equal(mixed[:, ::2], coefficients(atoms, x)[:, ::2])
    assert torch.equal(mixed[:, 1::2], raw[:, 1::2])


@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_normalised_coefficients_do_not_depend_on_the_scale_of_the_features(seed: int, scale: float) -> None:
    generator = Generator().manual_seed(seed)
    atoms, x = random_atoms(6, 5, 4, generator), torch.randn(7, 5, generator=generator)
    torch.testing.assert_close(coefficients(atoms, scale * x), coefficients(atoms, x), rtol=1e-4, atol=1e-4)


def test_a_random_encoder_gives_coefficients_of_unit_deviation_before_the_threshold() -> None:
    generator = Generator().manual_seed(3)
    atoms = random_atoms(64, 40, 4, generator)
    x = 17 * torch.randn(2000, 40, generator=generator)
    a = encode(x, atoms.encoder, torch.zeros(64), torch.zeros(64), torch.ones(64))
    assert float(a.std()) == pytest.approx(1, abs=0.05)


def test_a_token_of_zeros_gives_finite_coefficients() -> None:
    atoms = random_atoms(6, 5, 4, Generator().manual_seed(4))
    z = coefficients(atoms, torch.zeros(1, 5))
    torch.testing.assert_close(z[0], soft_threshold(atoms.bias, atoms.threshold))


def test_inverse_rms_of_half_precision_does_not_overflow() -> None:
    x = torch.full((1, 4000), 300.0, dtype=torch.float16)  # its sum of squares is beyond half precision
    assert float(inverse_rms(x)) == pytest.approx(1 / 300, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coefficients_are_float32_whatever_the_model_is(dtype: torch.dtype) -> None:
    generator = Generator().manual_seed(5)
    atoms, x = random_atoms(6, 5, 4, generator), torch.randn(7, 5, generator=generator)
    z = coefficients(atoms, x.to(dtype))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, coefficients(atoms, x), rtol=0, atol=0.05)


# -------------------------------------------------------------------------------------------------------------- decode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_adds_the_atoms_by_their_coefficients(dtype: torch.dtype) -> None:
    generator = Generator().manual_seed(6)
    y, z, d = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 5), (2, 3, 4), (4, 5)))
    result = decode(y.to(dtype), z, d.to(dtype))
    assert result.dtype == dtype
    expected = y + sum(z[..., j, None] * d[j] for j in range(4))
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_without_coefficients_or_without_directions_is_the_identity(dtype: torch.dtype) -> None:
    y, z, d = torch.randn(2, 3, 5).to(dtype), torch.randn(2, 3, 4), torch.randn(4, 5).to(dtype)
    assert torch.equal(decode(y, torch.zeros_like(z), d), y)
    assert torch.equal(decode(y, z, torch.zeros_like(d)), y)


@pytest.mark.parametrize("normalise", [True, False])
@given(seed=seeds)
def test_unit_norm_gives_the_same_update(normalise: bool, seed: int) -> None:
    generator = Generator().manual_seed(seed)
    atoms = random_atoms(6, 5, 4, generator, normalise=normalise)
    lengths = torch.tensor([0.01, 0.3, 1, 2, 40, 0])
    scaled = Atoms(**{**atoms.tensors(), "directions": atoms.directions * lengths[:, None]}, normalise=atoms.normalise)
    x = torch.randn(7, 5, generator=generator)
    torch.testing.assert_close(update(scaled.unit_norm(), x), update(scaled, x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        scaled.unit_norm().directions.norm(dim=1), torch.tensor([1.0, 1, 1, 1, 1, 0]), rtol=1e-5, atol=1e-5
    )


def test_a_lora_is_a_dictionary_without_threshold_bias_and_normalisation() -> None:
    generator = Generator().manual_seed(7)
    rank, alpha = 4, 2.5
    a, b = torch.randn(rank, 9, generator=generator), torch.randn(11, rank, generator=generator)
    x = torch.randn(3, 6, 9, generator=generator)
    zeros = torch.zeros(rank)
    atoms = Atoms(a, zeros, zeros, (alpha / rank) * b.T, zeros, normalise=False)
    torch.testing.assert_close(update(atoms, x), (alpha / rank) * x @ a.T @ b.T, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ measures


def test_group_norm_is_the_sum_over_atoms_of_rms_coefficient_times_length() -> None:
    generator = Generator().manual_seed(8)
    z, d = torch.randn(2, 3, 4, generator=generator), torch.randn(4, 5, generator=generator)
    tokens = z.reshape(-1, 4).tolist()
    expected = sum(
        math.sqrt(sum(token[j] ** 2 for token in tokens) / len(tokens)) * math.hypot(*d[j].tolist()) for j in range(4)
    )
    assert float(group_norm(z.flatten(0, 1).square().mean(dim=0), d)) == pytest.approx(expected, rel=1e-5)


def test_group_norm_has_a_gradient_where_an_atom_never_fires_or_has_no_direction() -> None:
    z, d = torch.zeros(6, 2, requires_grad=True), torch.zeros(2, 5, requires_grad=True)
    group_norm(z.square().mean(dim=0), d).backward()
    assert torch.equal(z.grad, torch.zeros_like(z)) and torch.equal(d.grad, torch.zeros_like(d))


def test_importance_is_the_mean_absolute_coefficient_times_length_over_the_rms_of_the_feature() -> None:
    generator = Generator().manual_seed(9)
    z, d, y = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 4), (4, 5), (2, 3, 5)))
    rms = math.sqrt(sum(v * v for v in y.flatten().tolist()) / y.numel())
    for j, value in enumerate(importance(z, d, y).tolist()):
        mean = sum(abs(v) for v in z[..., j].flatten().tolist()) / 6
        assert value == pytest.approx(mean * math.hypot(*d[j].tolist()) / rms, rel=1e-5)


def test_importance_does_not_depend_on_where_the_norm_is_kept() -> None:
    generator = Generator().manual_seed(10)
    atoms = random_atoms(6, 5, 4, generator)
    scaled = Atoms(**{**atoms.tensors(), "directions": atoms.directions * 3})
    x, y = torch.randn(7, 5, generator=generator), torch.randn(7, 4, generator=generator)
    unit = scaled.unit_norm()
    torch.testing.assert_close(
        importance(coefficients(scaled, x), scaled.directions, y),
        importance(coefficients(unit, x), unit.directions, y),
    )
