"""Which pictures fire an atom most."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factories import random_condition, random_dictionary, tiny_host
from torch import Generator, Tensor

from sparse_core.addresses import parse_selection
from sparse_core.analysis.firing import LEVELS, Firing, firing, firing_sheet, firing_text, over_picture
from sparse_core.analysis.recording import chosen_atoms
from sparse_core.controls import SparseAdapter, Weight
from sparse_core.examples import Example
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Site


def examples(host: DiffusersHost, count: int = 3) -> list[Example]:
    generator = Generator().manual_seed(5)
    return [Example(torch.randn(4, 8, 8, generator=generator), random_condition(1, seed=k)) for k in range(count)]


def test_strength_is_the_mean_coefficient_of_the_picture_under_all_amounts_of_noise() -> None:
    host = tiny_host()
    adapter = SparseAdapter(random_dictionary(host.layers))
    addresses = chosen_atoms(adapter.dictionary, parse_selection("*"), 1000)
    first, second, _ = examples(host)
    found = firing(host, adapter, addresses, [first, second], seed=7)
    seen: dict[str, list[float]] = {address: [] for address in addresses}

    def observe(site: Site, atoms: list[int], x: Tensor, z: Tensor, *_: object) -> None:
        for column, atom in enumerate(atoms):
            seen[f"{site}[{atom}]"].append(float(z[..., column].abs().mean()))

    noise = torch.randn(first.latents.shape, generator=Generator().manual_seed(7))
    with torch.no_grad(), host.patched([adapter], observe):
        for level in LEVELS:
            progress = torch.tensor([level])
            noisy = host.add_noise(second.latents[None], noise[None], progress)
            host.denoise(noisy, progress, second.condition)
    expected = torch.tensor([sum(seen[address]) / len(LEVELS) for address in addresses])
    assert expected.gt(0).sum() > 20
    torch.testing.assert_close(found.strength[:, 1], expected, rtol=2e-3, atol=1e-4)


def test_a_picture_counts_for_itself_whatever_stands_beside_it() -> None:
    host = tiny_host()
    adapter = SparseAdapter(random_dictionary(host.layers))
    addresses = chosen_atoms(adapter.dictionary, parse_selection("top:24"))
    first, second, _ = examples(host)
    larger = replace(second, latents=torch.randn(4, 16, 8))
    together = firing(host, adapter, addresses, [first, larger])
    for column, one in enumerate((first, larger)):
        alone = firing(host, adapter, addresses, [one])
        assert torch.equal(together.strength[:, column], alone.strength[:, 0])


def test_atoms_that_read_words_have_no_place_and_muted_ones_fire_nowhere() -> None:
    host = tiny_host()
    adapter = SparseAdapter(random_dictionary(host.layers)).with_controls(Weight(parse_selection("L0.q[0]"), 0.0))
    found = firing(host, adapter, ["L0.q[0]", "L0.q[1]", "L1.v[1]"], examples(host))
    muted, place, word = found.strength
    assert not muted.any() and place.all() and word.all()
    assert found.ranked(0) == []
    assert all(set(heat) == {"L0.q[1]"} for heat in found.maps)
    assert "| L0.q[0] | - | none of these pictures |" in firing_text(found, "abc")
    with pytest.raises(ValueError, match=r"None of L0.q\[0\].*Choose other atoms"):
        firing_sheet(firing(host, adapter, ["L0.q[0]"], examples(host)), [torch.rand(8, 8, 3)] * 3)


class Cancelled(Exception):
    """What a host raises when a person cancels."""


def test_a_cancel_gives_nothing_rather_than_a_part_of_the_pictures() -> None:
    host = tiny_host()
    host.interruptions = (Cancelled,)
    seen = []

    def on_picture() -> None:
        seen.append(1)
        if len(seen) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        firing(host, SparseAdapter(random_dictionary(host.layers)), ["L0.q[1]"], examples(host), on_picture=on_picture)


def test_nothing_to_look_at_and_another_models_dictionary_are_refused() -> None:
    host = tiny_host()
    with pytest.raises(ValueError, match="no pictures to look at"):
        firing(host, SparseAdapter(random_dictionary(host.layers)), ["L0.q[1]"], [])
    with pytest.raises(ValueError, match="model"):
        firing(host, SparseAdapter(random_dictionary()), ["L0.q[1]"], examples(host))


def test_rows_of_the_sheet_are_atoms_and_their_strongest_pictures_come_first() -> None:
    heat = torch.zeros(2, 2)
    heat[0] = 1.0
    strength = torch.tensor([[0.1, 0.3, 0.0], [0.0, 0.0, 0.2]])
    found = Firing(("L0.q[0]", "L0.v[1]"), {"L0.v[1]": "hat"}, strength, [{"L0.q[0]": heat}] * 3)
    assert found.ranked(0) == [1, 0] and found.ranked(1) == [2]
    said = firing_text(found, ["a", "b", "c"], most=1)
    assert "| L0.q[0] | - | b (0.3) |" in said and "| L0.v[1] | hat | c (0.2) |" in said
    pictures = [torch.full((16, 16, 3), value) for value in (0.1, 0.5, 0.9)]
    wide, narrow = firing_sheet(found, pictures), firing_sheet(found, pictures, most=1)
    assert wide.shape[1] > 2 * narrow.shape[1]
    grown = over_picture(heat, pictures[0])
    assert grown.shape == (16, 16) and grown[0, 0] > 0.9 and grown[-1, 0] < 0.1 and grown.max() <= 1
