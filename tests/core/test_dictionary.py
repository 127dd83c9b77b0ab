"""Layers, sites, and the dictionary as a value."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from factories import LAYERS, random_atoms, random_dictionary
from hypothesis import given
from hypothesis import strategies as st

from sparse_core.dictionary import Atoms, SparseDictionary
from sparse_core.layers import PROJECTIONS, Layer, Site, family, fingerprint

layer_names = st.builds(
    lambda stage, block, attention: f"{stage}.{block}.0.{attention}",
    st.sampled_from(("down", "middle", "up")),
    st.integers(0, 3),
    st.sampled_from(("attn1", "attn2")),
)
layers = st.builds(Layer, layer_names, *(st.integers(1, 4),) * 3)
models = st.lists(layers, min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize(("projection", "shape"), [("q", (8, 12)), ("k", (6, 12)), ("v", (6, 12)), ("o", (12, 8))])
def test_a_layer_knows_what_each_projection_reads_and_gives(projection: str, shape: tuple[int, int]) -> None:
    assert Layer("down.0.0.attn2", width=8, context=6, inner=12).shape(projection) == shape


def test_an_unknown_projection_is_named() -> None:
    with pytest.raises(ValueError, match=r"no projection 'x'; expected one of q, k, v, o"):
        LAYERS[0].shape("x")


def test_layer_names_tell_stage_and_attention() -> None:
    assert (LAYERS[3].stage, LAYERS[3].attention) == ("middle", "attn2")


@given(a=models, b=models)
def test_fingerprints_are_equal_exactly_where_the_layers_are(a: tuple[Layer, ...], b: tuple[Layer, ...]) -> None:
    assert (fingerprint(a) == fingerprint(b)) == (a == b)
    assert fingerprint(a) == fingerprint(list(a))


@pytest.mark.parametrize("field", Layer._fields)
def test_every_part_of_a_layer_counts_in_the_fingerprint(field: str) -> None:
    other = "up.9.0.attn1" if field == "name" else 99
    assert fingerprint([LAYERS[0]._replace(**{field: other}), *LAYERS[1:]]) != fingerprint(LAYERS)


@pytest.mark.parametrize(("count", "width", "name"), [(32, 768, "SD1.x"), (32, 1024, "SD2.x"), (140, 2048, "SDXL")])
def test_known_families_have_their_names(count: int, width: int, name: str) -> None:
    pair = (Layer("down.0.0.attn1", 320, 320, 320), Layer("down.0.0.attn2", 320, width, 320))
    assert family(pair * (count // 2)) == name


def test_an_unknown_family_is_described() -> None:
    assert family(LAYERS) == "4 attention layers, text width 6"


def test_sites_are_sorted_in_execution_order() -> None:
    everything = random_dictionary()
    backwards = SparseDictionary(LAYERS, dict(reversed(list(everything.sites.items()))))
    assert [str(s) for s in backwards.sites][:6] == ["L0.q", "L0.k", "L0.v", "L0.o", "L1.q", "L1.k"]
    assert list(backwards.sites) == list(everything.sites)


@pytest.mark.parametrize("name", [f.name for f in fields(Atoms) if f.name != "normalise"])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_wrong_shape_is_named_with_site_tensor_and_both_shapes(name: str, projection: str) -> None:
    atoms = random_atoms(3, *LAYERS[1].shape(projection), torch.Generator())
    right = tuple(getattr(atoms, name).shape)
    wrong = (*right[:-1], right[-1] + 1)
    atoms = replace(atoms, **{name: torch.zeros(wrong)})
    with pytest.raises(ValueError) as error:
        SparseDictionary(LAYERS, {Site(1, projection): atoms})
    assert f"L1.{projection} {name} has shape {wrong}; expected {right}" in str(error.value)


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_site_of_no_layer_is_named(layer: int) -> None:
    atoms = random_atoms(2, 8, 12, torch.Generator())
    with pytest.raises(ValueError, match=rf"L{layer}\.q does not exist: the model has layers L0 to L3"):
        SparseDictionary(LAYERS, {Site(layer, "q"): atoms})


def test_nothing_can_be_assigned(dictionary: SparseDictionary) -> None:
    with pytest.raises(FrozenInstanceError):
        dictionary.layers = ()
    with pytest.raises(FrozenInstanceError):
        dictionary.sites[Site(0, "q")].encoder = torch.zeros(1)


def test_the_given_mapping_can_change_without_changing_the_dictionary(dictionary: SparseDictionary) -> None:
    sites = dict(dictionary.sites)
    other = SparseDictionary(LAYERS, sites)
    sites.clear()
    assert len(other) == len(dictionary)


def test_map_and_unit_norm_leave_the_original_as_it_was(dictionary: SparseDictionary) -> None:
    before = {site: atoms.map(torch.clone) for site, atoms in dictionary.sites.items()}
    dictionary.map(lambda atoms: atoms.map(lambda t: t * 2).unit_norm())
    for site, atoms in dictionary.sites.items():
        assert all(torch.equal(t, before[site].tensors()[name]) for name, t in atoms.tensors().items())


def test_counts(dictionary: SparseDictionary) -> None:
    assert len(dictionary) == 4 * 16
    assert dictionary.parameters() == sum(
        4 * (d_in + d_out + 2) for layer in LAYERS for d_in, d_out in map(layer.shape, PROJECTIONS)
    )


def test_selected_atoms_come_in_the_order_asked_for(dictionary: SparseDictionary) -> None:
    atoms = dictionary.sites[Site(1, "k")]
    chosen = atoms[torch.tensor([2, 0])]
    assert len(chosen) == 2 and chosen.normalise == atoms.normalise
    for name, tensor in chosen.tensors().items():
        assert torch.equal(tensor, torch.stack([atoms.tensors()[name][2], atoms.tensors()[name][0]]))


def test_a_dictionary_fits_its_own_layers_only(dictionary: SparseDictionary) -> None:
    dictionary.check_fits(list(LAYERS))
    with pytest.raises(ValueError, match=r"fits 4 attention layers, text width 6, the model is 3 attention layers"):
        dictionary.check_fits(LAYERS[:3])
