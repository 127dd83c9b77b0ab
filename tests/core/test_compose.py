"""Dictionaries made of others: that they draw what their sources draw, and say where they came from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import CHANNELS, random_condition, random_dictionary, tiny_host
from torch import Generator, Tensor

from sparse_core import cli
from sparse_core.addresses import ALL, AddressError, parse_lines, parse_selection
from sparse_core.compose import combine, extract, interpolate
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
    controls_of_lines,
)
from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Site
from sparse_core.modules import LowRank

BAKED: list[Control] = [*controls_of_lines(parse_lines("attn2 *= -0.5\nL1.v[0] = 2\nmute L0.q[1]")), Keep(0.7)]


@pytest.fixture(scope="module")
def host() -> DiffusersHost:
    return tiny_host()


def adapter(host: DiffusersHost, seed: int, *controls: Control, **metadata: object) -> SparseAdapter:
    """Four atoms everywhere, but none on some sites of the second."""
    sites = None if seed % 2 else [Site(n, p) for n in range(len(host.layers)) for p in "qv"]
    dictionary = random_dictionary(host.layers, seed=seed, sites=sites, atoms=(4, 3))
    said = {"modelspec.title": f"d{seed}", **metadata}
    return SparseAdapter(replace(dictionary, metadata=said)).with_controls(*controls)


@torch.no_grad()
def drawn(host: DiffusersHost, *stack: SparseAdapter) -> Tensor:
    x = torch.randn(2, CHANNELS, 8, 8, generator=Generator().manual_seed(1))
    with host.patched(stack):
        return host.denoise(x, torch.full((2,), 0.4), random_condition(2))


def assert_same_picture(host: DiffusersHost, made: SparseDictionary, stack: Stack) -> None:
    torch.testing.assert_close(drawn(host, SparseAdapter(made)), drawn(host, *stack), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- combining


@pytest.mark.parametrize("controls", [[], BAKED], ids=["plain", "controlled"])
def test_combined_without_merging_is_the_stack(host: DiffusersHost, controls: list[Control]) -> None:
    one, other = adapter(host, 1, *controls), adapter(host, 2)
    made = combine([one, other], [0.7, -1.3], merge_above=1)
    assert_same_picture(host, made, [one.at_strength(0.7), other.at_strength(-1.3)])
    assert not torch.allclose(drawn(host, SparseAdapter(made)), drawn(host), atol=1e-2)


def test_combined_directions_have_unit_norm(host: DiffusersHost) -> None:
    made = combine([adapter(host, 1), adapter(host, 2)], [0.3, 2.0])
    for atoms in made.sites.values():
        torch.testing.assert_close(atoms.directions.norm(dim=1), torch.ones(len(atoms)))


def test_what_loras_do_outside_the_attentions_adds_up() -> None:
    rest = {"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))}
    one = SparseAdapter(replace(random_dictionary(seed=1, normalise=False), rest=rest))
    made = combine([one, one], [1.0, 0.5], merge_above=1)
    update = made.rest["conv_in"]
    torch.testing.assert_close(
        torch.einsum("r...,ro->o...", update.down, update.up),
        1.5 * torch.einsum("r...,ro->o...", rest["conv_in"].down, rest["conv_in"].up),
    )


def test_a_dictionary_with_itself_merges_into_one_of_twice_the_strength(host: DiffusersHost) -> None:
    one = adapter(host, 1)
    made = combine([one, one])
    assert len(made) == len(one.dictionary)
    assert made.metadata["combined"]["atoms_merged"] == len(made)
    assert_same_picture(host, made, [one.at_strength(2.0)])


def test_an_atom_turned_round_is_a_duplicate(host: DiffusersHost) -> None:
    one = adapter(host, 1)

    def turned(atoms: Atoms) -> Atoms:
        return replace(atoms, encoder=-atoms.encoder, bias=-atoms.bias, directions=-atoms.directions)

    made = combine([one, SparseAdapter(one.dictionary.map(turned))])
    assert len(made) == len(one.dictionary)
    assert_same_picture(host, made, [one.at_strength(2.0)])


@pytest.mark.parametrize("field", ["encoder", "bias", "directions", "threshold"])
def test_atoms_that_differ_in_one_thing_are_no_duplicates(host: DiffusersHost, field: str) -> None:
    one = adapter(host, 1)
    change = torch.neg if field in ("encoder", "directions") else (lambda tensor: tensor + 1)
    other = one.dictionary.map(lambda atoms: replace(atoms, **{field: change(atoms.tensors()[field])}))
    assert len(combine([one, SparseAdapter(other)])) == 2 * len(one.dictionary)


def test_the_budget_keeps_the_most_important(host: DiffusersHost) -> None:
    one, other = adapter(host, 1), adapter(host, 2)
    whole = combine([one, other], merge_above=1)
    made = combine([one, other], budget=10, merge_above=1)
    assert len(made) == 10
    kept = torch.cat([atoms.importance for atoms in made.sites.values()])
    every = torch.cat([atoms.importance for atoms in whole.sites.values()])
    torch.testing.assert_close(kept.sort().values, every.sort().values[-10:])
    assert_same_picture(host, made, [SparseAdapter(whole).with_controls(Keep(1.0, count=10))])


@pytest.mark.parametrize("merge_above", [0.95, 1])
def test_a_budget_of_atoms_is_no_obstacle_where_there_are_none(merge_above: float, tmp_path: Path) -> None:
    rest = {"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))}
    one = SparseAdapter(replace(random_dictionary(sites=[]), rest=rest))
    made = combine([one, one], [1.0, 0.5], budget=10, merge_above=merge_above)
    assert made.content_hash == combine([one, one], [1.0, 0.5]).content_hash
    assert not made.sites and made.metadata["combined"]["atoms_over_budget"] == 0
    made = load_dictionary(save_dictionary(made, tmp_path / "made.safetensors", torch.float32))
    torch.testing.assert_close(
        torch.einsum("r...,ro->o...", made.rest["conv_in"].down, made.rest["conv_in"].up),
        1.5 * torch.einsum("r...,ro->o...", rest["conv_in"].down, rest["conv_in"].up),
    )


def test_a_rest_stands_beside_the_atoms_of_the_budget(host: DiffusersHost) -> None:
    rest = {"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))}
    alone = SparseAdapter(replace(random_dictionary(host.layers, sites=[]), rest=rest))
    made = combine([alone, adapter(host, 1)], budget=3)
    assert len(made) == 3 and made.rest.keys() == rest.keys()
    plenty = combine([alone, adapter(host, 1)], budget=1000)
    assert plenty.content_hash == combine([alone, adapter(host, 1)]).content_hash


def test_a_combination_says_what_it_is_made_of(host: DiffusersHost, tmp_path: Path) -> None:
    said = {"modelspec.trigger_phrase": "zib", "modelspec.author": "A", "modelspec.license": "CC0"}
    seen = {"thumbnails": {"L0.v[0]": "data:image/jpeg;base64,AAAA"}, "effects": {"L0.v[0]": 3.0}}
    one = adapter(host, 1, **said, labels={"L0.q[1]": "hat"}, notes={"L0.q[1]": "leans left"})
    other = adapter(host, 2, **{**said, "modelspec.trigger_phrase": "wug"}, labels={"L0.v[0]": "beak"}, **seen)
    made = combine([one, other], [1.0, 0.5], merge_above=1)
    made = load_dictionary(save_dictionary(made, tmp_path / "made.safetensors", torch.float32))
    assert made.metadata["modelspec.title"] == "d1 + d2"
    assert made.metadata["modelspec.trigger_phrase"] == "zib, wug"
    assert made.metadata["modelspec.author"] == "A" and made.metadata["modelspec.license"] == "CC0"
    first, second = made.metadata["sources"]
    assert (first["title"], second["weight"]) == ("d1", 0.5)
    assert second["content_sha256"] == other.dictionary.content_hash
    assert set(made.labels.values()) == {"hat", "beak"}
    for new, label in made.labels.items():
        ((number, old),) = made.metadata["origins"][new]
        assert (one, other)[number].dictionary.labels[old] == label
    hat, beak = (next(new for new, label in made.labels.items() if label == name) for name in ("hat", "beak"))
    assert made.metadata["notes"] == {hat: "leans left"}
    assert made.metadata["thumbnails"] == {beak: "data:image/jpeg;base64,AAAA"} and "effects" not in made.metadata
    site, j = Site(0, "v"), int(beak[5:-1])
    assert j == len(one.dictionary.sites[site])
    torch.testing.assert_close(made.sites[site].directions[j], other.dictionary.sites[site].directions[0])


@pytest.mark.parametrize(
    ("control", "named"),
    [
        (Mask(torch.eye(4)), "a mask"),
        (Schedule(Curve(0, 0.5)), "a schedule"),
        (Conditioning("negative"), "a choice of prompt"),
        (Pictures((True, False)), "a choice of pictures"),
        (Listen(("robot",)), "a trigger"),
    ],
)
def test_a_control_that_cannot_be_stored_is_refused_by_name(host: DiffusersHost, control: Control, named: str) -> None:
    for make in (
        lambda a: combine([adapter(host, 2), a]),
        lambda a: extract(a, ALL),
        lambda a: interpolate(a, a, 0.5),
    ):
        with pytest.raises(ValueError, match=f"d1 carries {named}.*stack Apply"):
            make(adapter(host, 1, control))


def test_a_mask_on_atoms_that_are_muted_is_no_obstacle(host: DiffusersHost) -> None:
    hidden = adapter(host, 1, Mask(torch.eye(4), parse_selection("attn1")), Weight(parse_selection("attn1"), 0.0))
    assert_same_picture(host, combine([hidden]), [hidden])


def test_a_lora_and_a_dictionary_at_one_site_are_refused(host: DiffusersHost) -> None:
    lora = SparseAdapter(random_dictionary(host.layers, seed=3, normalise=False))
    with pytest.raises(ValueError, match=r"L0\.q, the dictionary reads features as they are.*d1 reads them normalised"):
        combine([adapter(host, 1), lora])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weights": [1.0]}, "2 dictionaries and 1 weights"),
        ({"merge_above": 1.5}, "merge_above is 1.5"),
        ({"budget": 0}, "budget is 0"),
        ({"weights": [0.0, 0.0]}, "No atom is left"),
    ],
)
def test_numbers_out_of_range_are_refused(host: DiffusersHost, arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        combine([adapter(host, 1), adapter(host, 2)], **arguments)


def test_dictionaries_of_two_models_are_refused(host: DiffusersHost) -> None:
    with pytest.raises(ValueError, match="of one model family"):
        combine([adapter(host, 1), SparseAdapter(random_dictionary())])
    with pytest.raises(ValueError, match="nothing to combine"):
        combine([])


# ------------------------------------------------------------------------------------------------------------ extracting


@pytest.mark.parametrize("selection", ["top:5", "attn2", "L0.q[1] | L1.v", "*"])
def test_an_extract_draws_what_a_solo_draws(host: DiffusersHost, selection: str) -> None:
    whole = adapter(host, 1, *BAKED)
    made = extract(whole, parse_selection(selection))
    assert_same_picture(host, made, [whole.with_controls(Solo(parse_selection(selection)))])


def test_an_extract_says_where_each_atom_was(host: DiffusersHost) -> None:
    whole = adapter(host, 1, labels={"L0.q[2]": "hat", "L0.q[0]": "shoe"})
    made = extract(whole, parse_selection("L0.q[2] | L1.v[1]"), "just the hat")
    assert len(made) == 2
    assert made.metadata["modelspec.title"] == "just the hat"
    assert made.metadata["origins"] == {"L0.q[0]": [[0, "L0.q[2]"]], "L1.v[0]": [[0, "L1.v[1]"]]}
    assert made.labels == {"L0.q[0]": "hat"}
    (source,) = made.metadata["sources"]
    assert source == {
        "title": "d1",
        "content_sha256": whole.dictionary.content_hash,
        "selection": "L0.q[2] | L1.v[1]",
    }
    torch.testing.assert_close(
        made.sites[Site(0, "q")].encoder[0], whole.dictionary.sites[Site(0, "q")].encoder[2], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", ["hat", "hat.safetensors", "hat.v2"])
def test_an_extract_is_named_as_load_sparse_dictionary_looks_for_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    saved = save_dictionary(random_dictionary(), tmp_path / "saved.safetensors")
    assert cli.main(["extract", str(saved), "--atoms", "top:5", "--out", str(tmp_path / name)]) == 0
    expected = tmp_path / f"{name.removesuffix('.safetensors')}.safetensors"
    assert {path.name for path in tmp_path.iterdir()} == {saved.name, expected.name}
    assert len(load_dictionary(expected)) == 5
    assert str(expected) in capsys.readouterr().out


def test_only_the_whole_takes_the_rest_along() -> None:
    rest = {"conv_in": LowRank(torch.randn(2, 4, 3, 3), torch.randn(2, 8))}
    whole = SparseAdapter(replace(random_dictionary(), rest=rest))
    assert extract(whole, ALL).rest.keys() == rest.keys()
    assert not extract(whole, parse_selection("attn1")).rest


def test_an_empty_extract_is_refused(host: DiffusersHost) -> None:
    with pytest.raises(AddressError, match="L99"):
        extract(adapter(host, 1), parse_selection("L99"))
    muted = adapter(host, 1, Weight(parse_selection("attn1"), 0.0))
    with pytest.raises(ValueError, match="attn1 picks only atoms that are muted"):
        extract(muted, parse_selection("attn1"))


def test_the_content_hash_survives_a_file_and_knows_another_content(host: DiffusersHost, tmp_path: Path) -> None:
    dictionary = adapter(host, 1).dictionary
    again = load_dictionary(save_dictionary(dictionary, tmp_path / "saved.safetensors"))
    assert again.content_hash == dictionary.content_hash
    assert replace(dictionary, metadata={}).content_hash == dictionary.content_hash
    assert dictionary.map(lambda atoms: replace(atoms, bias=atoms.bias + 1)).content_hash != dictionary.content_hash


# --------------------------------------------------------------------------------------------------------- interpolating


def later(dictionary: SparseDictionary) -> SparseDictionary:
    """As if trained on: a little other, and unlike in the length of encoders."""
    generator = Generator().manual_seed(5)

    def moved(atoms: Atoms) -> Atoms:
        changed = atoms.map(lambda t: t + 0.05 * torch.rand(t.shape, generator=generator))
        return replace(changed, directions=changed.directions * 1.5).unit_norm()

    return dictionary.map(moved)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_the_ends_are_the_two_dictionaries(host: DiffusersHost, t: float) -> None:
    one = adapter(host, 1)
    ends = one, SparseAdapter(later(one.dictionary))
    assert_same_picture(host, interpolate(*ends, t), [ends[int(t)]])


def test_between_two_settings_of_one_dictionary_lie_their_weights(host: DiffusersHost) -> None:
    one = adapter(host, 1)
    other = one.with_controls(Weight(parse_selection("attn2"), 0.0), Weight(parse_selection("attn1"), 2.0))
    expected = one.with_controls(Weight(parse_selection("attn2"), 0.75), Weight(parse_selection("attn1"), 1.25))
    assert_same_picture(host, interpolate(one, other, 0.25), [expected])


@pytest.mark.parametrize("t", [-1.0, 2.0])
def test_beyond_the_ends_it_goes_on_in_the_same_direction(host: DiffusersHost, t: float) -> None:
    one = adapter(host, 1)
    other = one.with_controls(Weight(parse_selection("attn2"), 2.0))
    expected = one.with_controls(Weight(parse_selection("attn2"), 1 + t))
    assert_same_picture(host, interpolate(one, other, t), [expected])


def test_an_interpolation_names_both_ends(host: DiffusersHost) -> None:
    one = adapter(host, 1)
    made = interpolate(one, SparseAdapter(later(one.dictionary)), 0.25)
    assert [source["share"] for source in made.metadata["sources"]] == [0.75, 0.25]
    assert made.metadata["origins"]["L0.q[2]"] == [[0, "L0.q[2]"], [1, "L0.q[2]"]]


def test_dictionaries_of_two_lineages_are_refused_by_name(host: DiffusersHost) -> None:
    one, other = (SparseAdapter(random_dictionary(host.layers, seed=seed)) for seed in (1, 2))
    with pytest.raises(ValueError, match=r"not of one lineage: the atoms at L\d+\.\w look for other things"):
        interpolate(one, other, 0.5)
    with pytest.raises(ValueError, match="only one of them has atoms at"):
        interpolate(adapter(host, 1), adapter(host, 2), 0.5)
    with pytest.raises(ValueError, match="4 and 3 atoms"):
        interpolate(one, SparseAdapter(one.dictionary.map(lambda atoms: atoms[:3])), 0.5)
    with pytest.raises(ValueError, match="different models"):
        interpolate(one, SparseAdapter(random_dictionary()), 0.5)
    with pytest.raises(ValueError, match="is nan; expected a finite number"):
        interpolate(one, one, float("nan"))
