"""Dictionary files: the round trip, and what every kind of bad file says."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from factories import LAYERS, random_atoms, random_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Generator, Tensor

from sparse_core import files
from sparse_core.dictionary import SparseDictionary
from sparse_core.files import (
    SUFFIX,
    DictionaryFileError,
    check_output,
    load_dictionary,
    read_header,
    save_dictionary,
    with_suffix,
    write_atomically,
)
from sparse_core.layers import PROJECTIONS, Layer, Site

METADATA = {
    "title": "Räuber 🦊",
    "labels": {"L0.q[1]": 'red "roof"'},
    "training": {"steps": 3, "loss": 0.25, "captions": None},
    "modelspec.title": "Räuber",
    "modelspec.trigger_phrase": "a fox",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a dictionary is saved."""
    return tmp_path / "fox.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    """A valid file."""
    return save_dictionary(replace(random_dictionary(), metadata=METADATA), path)


def same(one: SparseDictionary, other: SparseDictionary, dtype: torch.dtype = torch.float32) -> bool:
    return (
        one.layers == other.layers
        and list(one.sites) == list(other.sites)
        and one.metadata == other.metadata
        and all(
            atoms.normalise == other.sites[site].normalise
            and all(
                torch.equal(t.to(dtype).float(), other.sites[site].tensors()[n]) for n, t in atoms.tensors().items()
            )
            for site, atoms in one.sites.items()
        )
    )


def header_of(path: Path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])


def with_header(path: Path, header: object) -> Path:
    """The file with another header before the same data."""
    data = path.read_bytes()
    body = data[8 + struct.unpack("<Q", data[:8])[0] :]
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def with_metadata(path: Path, **changes: object) -> Path:
    """The file with some of its metadata changed, or removed where None."""
    header = header_of(path)
    changed = {**header["__metadata__"], **changes}
    return with_header(path, {**header, "__metadata__": {k: v for k, v in changed.items() if v is not None}})


def with_tensors(path: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A file with other tensors under the same metadata."""
    from safetensors.torch import load_file

    metadata, tensors = header_of(path)["__metadata__"], load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def complaint(path: Path) -> str:
    """What loading says, after checking that it says it in the right way."""
    with pytest.raises(DictionaryFileError) as error:
        load_dictionary(path)
    message = str(error.value)
    assert path.name in message
    return message


# ----------------------------------------------------------------------------------------------------------- round trip


@st.composite
def dictionaries(draw: st.DrawFn) -> SparseDictionary:
    """Models and dictionaries of any small shape, sites missing, some of them dense."""
    sizes = st.integers(1, 9)
    layers = tuple(
        Layer(f"down.{n // 2}.0.attn{n % 2 + 1}", draw(sizes), draw(sizes), draw(sizes))
        for n in range(draw(st.integers(1, 4)))
    )
    every = [Site(n, p) for n in range(len(layers)) for p in PROJECTIONS]
    generator = Generator().manual_seed(draw(st.integers(0, 1000)))
    sites = {
        site: random_atoms(
            draw(st.integers(0, 4)),
            *layers[site.layer].shape(site.projection),
            generator,
            normalise=draw(st.booleans()),
        )
        for site in draw(st.lists(st.sampled_from(every), min_size=1, unique=True))
    }
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    metadata = draw(st.dictionaries(text.filter(lambda key: not key.startswith("modelspec.")), text | st.integers()))
    return SparseDictionary(layers, sites, metadata)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@settings(max_examples=50)
@given(dictionary=dictionaries())
def test_a_dictionary_comes_back_as_it_was_saved(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, dictionary: SparseDictionary
) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    loaded = load_dictionary(save_dictionary(dictionary, path, dtype))
    assert same(dictionary, loaded, dtype)
    assert loaded.fingerprint == dictionary.fingerprint
    first = path.read_bytes()
    assert save_dictionary(loaded, path, dtype).read_bytes() == first


def test_metadata_comes_back(saved: Path) -> None:
    assert load_dictionary(saved).metadata == METADATA


@pytest.mark.parametrize("nonsense", [None, 7, "x", [], {"L0.q[0]": [1]}])
def test_what_is_said_of_atoms_in_another_form_is_left_out(saved: Path, nonsense: object) -> None:
    whole = {"notes": {"L0.q[0]": "leans left", "L0.q[1]": 3}, "effects": {"L0.q[0]": 1.5, "L0.q[1]": "x"}}
    with_metadata(saved, metadata=json.dumps({**whole, "labels": nonsense, "thumbnails": nonsense}))
    loaded = load_dictionary(saved)
    assert loaded.metadata["notes"] == {"L0.q[0]": "leans left"} and loaded.metadata["effects"] == {"L0.q[0]": 1.5}
    assert loaded.labels == {} and loaded.metadata["thumbnails"] == {}


def test_lora_managers_find_modelspec_fields_and_others_find_the_architecture(saved: Path) -> None:
    metadata = header_of(saved)["__metadata__"]
    assert metadata["modelspec.title"] == "Räuber"
    assert metadata["family"] == random_dictionary().family
    assert metadata["fingerprint"] == random_dictionary().fingerprint
    assert (metadata["format"], metadata["format_version"]) == ("sparse-atoms", "1")


def test_layers_are_named_without_a_hosts_names(saved: Path) -> None:
    assert "middle.0.0.attn2.o.directions" in header_of(saved)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    dictionary = replace(random_dictionary(), metadata=METADATA)
    backwards = SparseDictionary(LAYERS, dict(reversed(dictionary.sites.items())), dict(reversed(METADATA.items())))
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for _ in range(5):
        assert save_dictionary(dictionary, one).read_bytes() == save_dictionary(backwards, other).read_bytes()


def test_half_precision_is_the_default_and_takes_half_the_space(tmp_path: Path) -> None:
    dictionary = random_dictionary(atoms=200)
    half = save_dictionary(dictionary, tmp_path / "half.safetensors").stat().st_size
    full = save_dictionary(dictionary, tmp_path / "full.safetensors", torch.float32).stat().st_size
    assert half < 0.55 * full
    assert same(dictionary, load_dictionary(tmp_path / "half.safetensors"), torch.float16)


def test_other_readers_of_safetensors_can_open_the_file(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        assert file.metadata()["format"] == "sparse-atoms"
        assert file.get_tensor("down.0.0.attn1.q.encoder").shape == (4, 8)


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    assert save_dictionary(random_dictionary(), str(tmp_path / "a" / "b" / "c.safetensors")).is_file()


def test_tensors_that_carry_gradients_or_are_views_can_be_saved(path: Path) -> None:
    dictionary = random_dictionary().map(
        lambda atoms: atoms.map(lambda t: t.repeat_interleave(2, dim=0)[::2].requires_grad_())
    )
    assert same(random_dictionary(), load_dictionary(save_dictionary(dictionary, path, torch.float32)))


def test_the_header_can_be_read_alone(saved: Path) -> None:
    assert read_header(saved)["format"] == "sparse-atoms"
    assert "down.0.0.attn1.q.encoder" in read_header(saved)[""]


# --------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("name", ["encoder", "bias", "threshold", "directions", "importance"])
def test_values_that_no_file_should_hold_are_refused_and_the_old_file_stays(
    saved: Path, name: str, value: float
) -> None:
    before = saved.read_bytes()
    dictionary = random_dictionary().map(lambda atoms: atoms.map(torch.clone))
    dictionary.sites[Site(2, "v")].tensors()[name].flatten()[0] = value
    with pytest.raises(
        DictionaryFileError, match=rf"middle\.0\.0\.attn1\.v\.{name} holds NaN or infinite .* nothing was saved"
    ):
        save_dictionary(dictionary, saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    saved: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(OSError, match="No space"):
        save_dictionary(random_dictionary(seed=1), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_an_interrupted_write_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"half")
    assert os.listdir(path.parent) == []


def test_a_written_file_can_be_read_by_others(path: Path) -> None:
    write_atomically(path, b"x")
    (path.parent / "plain").write_bytes(b"x")
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


# -------------------------------------------------------------------------------------------------------- before the work


def test_a_folder_to_write_into_is_made_and_left_empty(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "folder" / "a.safetensors", SUFFIX, None, tmp_path / "nowhere")
    assert os.listdir(tmp_path / "new" / "folder") == []


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "afile").touch()
    with pytest.raises(ValueError, match=f"a.safetensors can't be written into {tmp_path / 'afile'}"):
        check_output(tmp_path / "afile" / "a.safetensors", SUFFIX)
    with pytest.raises(ValueError, match=r"is a folder; expected the \.safetensors file to write"):
        check_output(tmp_path, SUFFIX)
    with pytest.raises(ValueError, match=r"a\.txt does not end in \.html; expected the \.html file to write"):
        check_output(tmp_path / "a.txt", ".html")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", full)
    with pytest.raises(ValueError, match=f"into {tmp_path}: No space left on device. Choose another folder or name."):
        check_output(tmp_path / "a.safetensors", SUFFIX)


def test_what_is_read_is_not_replaced_under_any_name(saved: Path) -> None:
    alias = saved.with_name("alias.safetensors")
    alias.symlink_to(saved)
    for path in (saved, alias, saved.parent / ".." / saved.parent.name / saved.name):
        with pytest.raises(ValueError, match="is what is read here, and would be replaced"):
            check_output(path, SUFFIX, None, saved)
    check_output(saved, SUFFIX)


@pytest.mark.parametrize("name", ["", ".", "..", "/"])
def test_no_name_is_no_file_to_write(name: str) -> None:
    with pytest.raises(ValueError, match="names no file to write"):
        with_suffix(Path(name))


# ------------------------------------------------------------------------------------------------------- not dictionaries


def test_a_missing_file(path: Path) -> None:
    assert complaint(path) == f"There is no file {path}. Check the path."


def test_a_folder(path: Path) -> None:
    path.mkdir()
    assert complaint(path).startswith(f"{path} is a folder; expected a dictionary.")


def test_an_empty_file(path: Path) -> None:
    path.touch()
    assert re.search("is empty.*Get the file anew", complaint(path))


def test_a_file_cut_off_anywhere(saved: Path) -> None:
    data = saved.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    for size in range(1, len(data), max(1, len(data) // 200)):
        saved.write_bytes(data[:size])
        message = complaint(saved)
        if size >= 8:
            assert "cut off" in message and "Get the file anew" in message
        if size >= 8 + length:
            assert f"{size} bytes of {len(data)}" in message


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_a_huge_or_missing_header(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + b"{}" * 50)
    assert re.search("not a safetensors file.*made by Train or Save", complaint(path))


def test_random_bytes(path: Path) -> None:
    path.write_bytes(bytes(torch.randint(256, (5000,), generator=Generator().manual_seed(0)).tolist()))
    assert "not a safetensors file" in complaint(path)


def test_a_pickle_is_never_unpickled(path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return pytest.fail, ("a pickle was loaded",)

    path.write_bytes(pickle.dumps(Bomb()))
    assert re.search(r"not a safetensors file.*pickle files .* are never read", complaint(path))
    torch.save({"encoder": torch.zeros(3)}, path)
    assert "pickle" in complaint(path)


@pytest.mark.parametrize(
    "key",
    ["lora_unet_down_blocks_0_attentions_0_attn1_to_q.lora_down.weight", "unet.down_blocks.0.attn1.to_q.lora_A.weight"],
)
def test_a_lora(path: Path, key: str) -> None:
    save_file({key: torch.zeros(4, 8)}, path)
    assert re.search("is a LoRA, not a sparse dictionary.*Use Load LoRA as Dictionary", complaint(path))


@pytest.mark.parametrize(
    "key", ["model.diffusion_model.input_blocks.0.0.weight", "down_blocks.0.resnets.0.conv1.weight"]
)
def test_a_checkpoint(path: Path, key: str) -> None:
    save_file({key: torch.zeros(4, 8)}, path, metadata={"format": "pt"})
    assert re.search("is a checkpoint, not a sparse dictionary.*Pick a file made by Train", complaint(path))


def test_another_kind_of_safetensors_file(path: Path) -> None:
    save_file({"emb_params": torch.zeros(4, 8)}, path)
    assert re.search("another kind of safetensors file, not a sparse dictionary", complaint(path))


def test_a_dictionary_of_another_architecture_loads_and_says_so_where_it_is_applied(saved: Path) -> None:
    other = (Layer("down.0.0.attn1", 320, 320, 320), Layer("down.0.0.attn2", 320, 768, 320)) * 16
    with pytest.raises(ValueError, match=r"fits 4 attention layers, text width 6, the model is SD1\.x"):
        load_dictionary(saved).check_fits(other)


# ----------------------------------------------------------------------------------------------------------- damaged ones


@pytest.mark.parametrize("version", ["3", "10", "999"])
def test_a_newer_version_is_refused_and_named(saved: Path, version: str) -> None:
    message = complaint(with_metadata(saved, format_version=version))
    assert f"format version {version}" in message and "up to 2" in message and "Update Sparse Atoms" in message


@pytest.mark.parametrize("version", ["", "x", "-1", "1.5", "²", "9" * 5000, None])
def test_a_version_that_is_no_number_is_refused(saved: Path, version: str | None) -> None:
    assert "version" in complaint(with_metadata(saved, format_version=version))


@pytest.mark.parametrize("key", ["layers", "dense_input", "metadata"])
@pytest.mark.parametrize(
    "value",
    [None, "", "{", "null", "3", '"x"', "[[1]]", '[["a", "b", 1, 2]]', '[["a", 1e999, 1, 1]]', "[" * 100_000, "[{}]"],
    ids=["missing", "empty", "cut", "null", "number", "text", "list", "words", "infinite", "deep", "object"],
)
def test_metadata_that_is_no_json_of_the_right_kind(saved: Path, key: str, value: str | None) -> None:
    try:
        load_dictionary(with_metadata(saved, **{key: value}))
    except DictionaryFileError as error:
        assert "is damaged" in str(error) or "belong to no layer" in str(error)
    else:
        assert (key, value) == ("dense_input", '"x"')


def test_only_the_header_says_what_a_file_is_called(saved: Path) -> None:
    """Programs take its texts for texts; those of the other metadata may be anything."""
    told = with_metadata(saved, metadata='{"modelspec.title": 5, "modelspec.trigger_phrase": ["a"], "seen": 5}')
    metadata = load_dictionary(told).metadata
    assert metadata["seen"] == 5 and not any(
        key.startswith("modelspec.") and not isinstance(value, str) for key, value in metadata.items()
    )


HEADERS = {
    "a list": [],
    "a number": 3,
    "null": None,
    "text": "safetensors",
    "metadata a list": {"__metadata__": ["format"]},
    "metadata null": {"__metadata__": None},
    "metadata text": {"__metadata__": "sparse-atoms"},
    "metadata of numbers": {"__metadata__": {"format": "sparse-atoms", "format_version": 1}},
    "metadata of lists": {"__metadata__": {"format": ["sparse-atoms"]}},
    "offsets of words": {"x": {"dtype": "F16", "shape": [1], "data_offsets": ["a", "b"]}},
    "offsets of null": {"x": {"dtype": "F16", "shape": [1], "data_offsets": [None, None]}},
    "one offset": {"x": {"dtype": "F16", "shape": [1], "data_offsets": [0]}},
    "no offsets": {"x": {"dtype": "F16", "shape": [1]}},
    "an entry of text": {"x": "y"},
    "an entry of null": {"x": None},
    "negative offsets": {"x": {"dtype": "F16", "shape": [1], "data_offsets": [-5, -3]}},
    "fractions": {"x": {"dtype": "F16", "shape": [1], "data_offsets": [0.5, 2.5]}},
    "infinite offsets": {"x": {"dtype": "F16", "shape": [1], "data_offsets": [0, math.inf]}},
    "not JSON": b"\x80\x02not json",
    "not UTF-8": b'{"\xff\xfe": 1}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_of_the_wrong_form(saved: Path, header: object) -> None:
    complaint(with_header(saved, header))


def test_a_header_entry_that_lies_about_its_data(saved: Path) -> None:
    for name, value in (
        ("dtype", "F77"),
        ("shape", [10**12]),
        ("shape", [-1, 8]),
        ("data_offsets", [6, 2]),
        ("dtype", 3),
    ):
        header = header_of(saved)
        header["down.0.0.attn1.q.encoder"][name] = value
        before = saved.read_bytes()
        complaint(with_header(saved, header))
        saved.write_bytes(before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["encoder", "importance"])
def test_values_that_are_no_numbers_are_named(saved: Path, name: str, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[f"down.0.0.attn2.k.{name}"].flatten()[1] = value

    assert f"L1.k {name} holds NaN or infinite values" in complaint(with_tensors(saved, spoil))


def test_a_negative_threshold_is_named(saved: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["down.0.0.attn2.k.threshold"][1] = -0.1

    assert "L1.k has a negative threshold" in complaint(with_tensors(saved, spoil))


@pytest.mark.parametrize("name", ["encoder", "bias", "threshold", "directions", "importance"])
def test_a_missing_tensor_is_named(saved: Path, name: str) -> None:
    message = complaint(with_tensors(saved, lambda tensors: tensors.pop(f"middle.0.0.attn2.o.{name}")))
    assert f"L3.o has no {name}" in message


def test_a_file_of_before_importance_elsewhere_was_measured(saved: Path) -> None:
    def forget(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if key.endswith(".elsewhere")]:
            del tensors[key]

    loaded = load_dictionary(with_tensors(saved, forget))
    assert not any(bool(atoms.elsewhere.any()) for atoms in loaded.sites.values())


@pytest.mark.parametrize("name", ["middle.0.0.attn2.o.colour", "up.0.0.attn1.q.encoder", "x"])
def test_a_tensor_too_many_is_named(saved: Path, name: str) -> None:
    message = complaint(with_tensors(saved, lambda tensors: tensors.update({name: torch.zeros(1)})))
    assert f"belong to no layer, such as {name}" in message


@pytest.mark.parametrize("name", ["encoder", "bias", "threshold", "directions", "importance"])
@pytest.mark.parametrize("shape", [(), (3,), (4, 7), (3, 8), (2, 2, 2)])
def test_a_tensor_of_another_shape_is_named(saved: Path, name: str, shape: tuple[int, ...]) -> None:
    key = f"down.0.0.attn1.q.{name}"
    message = complaint(with_tensors(saved, lambda tensors: tensors.update({key: torch.zeros(shape)})))
    assert "L0.q" in message and "shape" in message


def test_a_file_without_atoms(saved: Path) -> None:
    assert "holds no atoms" in complaint(with_tensors(saved, dict.clear))


def test_layers_that_do_not_match_the_tensors(saved: Path) -> None:
    layers = json.dumps([["down.0.0.attn1", 9, 9, 12], *map(list, LAYERS[1:])])
    assert "L0.q encoder has shape (4, 8); expected (4, 9)" in complaint(with_metadata(saved, layers=layers))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A path to scribble on and the bytes of a small valid file."""
    path = tmp_path_factory.mktemp("fuzz") / "small.safetensors"
    save_dictionary(random_dictionary(atoms=1, sites=[Site(0, "q"), Site(1, "o")]), path)
    return path, path.read_bytes()


mutations = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "swap"]), st.floats(0, 1), st.binary(min_size=1, max_size=6)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=300)
@given(mutations=mutations, in_header=st.booleans())
def test_any_damage_either_loads_or_is_reported_as_a_bad_file(
    small: tuple[Path, bytes], mutations: list[tuple[str, float, bytes]], in_header: bool
) -> None:
    path, data = small
    length = 8 + struct.unpack("<Q", data[:8])[0]
    for kind, where, other in mutations:
        at = int(where * ((length if in_header else len(data)) - 1))
        match kind:
            case "flip":
                data = data[:at] + other + data[at + len(other) :]
            case "cut":
                data = data[:at] + data[at + len(other) :]
            case "insert":
                data = data[:at] + other + data[at:]
            case "swap":
                data = data[at:] + data[:at] if where > 0.9 else data[:at] + data[at:][::-1]
    path.write_bytes(data)
    try:
        loaded = load_dictionary(path)
    except DictionaryFileError as error:
        assert path.name in str(error)
    else:
        assert len(loaded)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(value=json_values, data=st.data())
def test_any_json_in_the_header_either_loads_or_is_reported_as_a_bad_file(
    small: tuple[Path, bytes], value: object, data: st.DataObject
) -> None:
    path, valid = small
    path.write_bytes(valid)
    header = header_of(path)
    target, key = header, data.draw(st.sampled_from(list(header)))
    while isinstance(target[key], dict) and data.draw(st.booleans()):
        target, key = target[key], data.draw(st.sampled_from(list(target[key])))
    target[key] = value if data.draw(st.booleans()) else json.dumps(value)
    try:
        load_dictionary(with_header(path, header))
    except DictionaryFileError as error:
        assert path.name in str(error)
