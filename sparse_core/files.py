"""Dictionaries on disk: one safetensors file, described in ``docs/file-format.md``."""

from __future__ import annotations

import json
import os
import secrets
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .dictionary import Atoms, SparseDictionary
from .layers import PROJECTIONS, Layer, Site
from .modules import LowRank

FORMAT = "sparse-atoms"
VERSION = 2
"""The newest that is read."""
WITHOUT_WORDS = 1
"""What files without a taught word are written in, so that older programs read them."""
SUFFIX = ".safetensors"
REST = "rest."
"""Before the module's name in the keys of what lies outside the attentions: ``rest.<module>.down`` and ``.up``."""
WORD = "word."
"""Before a taught word in the keys of what was added to its meaning: ``word.<word>.<width>``."""
BY_ADDRESS = {"labels": str, "notes": str, "thumbnails": str, "effects": (int, float)}
"""Metadata of single atoms: what each holds for an address."""
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What taking apart JSON of the wrong form can raise."""


class DictionaryFileError(ValueError):
    """A file is no dictionary that can be used; the message says what it is and what to do."""


def save_dictionary(dictionary: SparseDictionary, path: str | os.PathLike, dtype: torch.dtype = torch.float16) -> Path:
    """Writes a dictionary; the same content gives the same bytes. The file appears whole or not at all.

    :raises DictionaryFileError: a value is NaN or infinite, or too large for ``dtype``.
    """
    tensors = {
        _key(dictionary.layers[site.layer], site, name): tensor.detach().to("cpu", dtype).contiguous()
        for site, atoms in dictionary.sites.items()
        for name, tensor in atoms.tensors().items()
    }
    for module, update in dictionary.rest.items():
        for name, tensor in (("down", update.down), ("up", update.up)):
            tensors[f"{REST}{module}.{name}"] = tensor.detach().to("cpu", dtype).contiguous()
    for word, shifts in dictionary.words.items():
        for width, shift in shifts.items():
            tensors[f"{WORD}{word}.{width}"] = shift.detach().to("cpu", dtype).contiguous()
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DictionaryFileError(
                f"{name} holds NaN or infinite values, so nothing was saved. Train again with a lower learning rate."
            )
    header = {
        "format": FORMAT,
        "format_version": str(VERSION if dictionary.words else WITHOUT_WORDS),
        "family": dictionary.family,
        "fingerprint": dictionary.fingerprint,
        "layers": _dump([list(layer) for layer in dictionary.layers]),
        "dense_input": _dump([str(site) for site, atoms in dictionary.sites.items() if not atoms.normalise]),
        "metadata": _dump({k: v for k, v in dictionary.metadata.items() if not k.startswith("modelspec.")}),
        **{key: str(value) for key, value in dictionary.metadata.items() if key.startswith("modelspec.")},
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _canonical(save(tensors, metadata=header)))
    return path


def load_dictionary(path: str | os.PathLike) -> SparseDictionary:
    """Reads a dictionary as float32 on the CPU, every name, shape and value checked.

    :raises DictionaryFileError: the file is missing, broken, of another kind or made by a newer version.
    """
    path = Path(path)
    header = read_header(path)
    if header.get("format") != FORMAT:
        raise DictionaryFileError(f"{path.name} is {_what_is(header)}, not a sparse dictionary. {_what_to_do(header)}")
    version = header.get("format_version", "")
    if version not in map(str, range(1, VERSION + 1)):
        raise DictionaryFileError(
            f"{path.name} is in format version {version[:20] or '(none)'}; this program reads up to {VERSION}. "
            "Update Sparse Atoms."
        )
    try:
        layers = tuple(Layer(str(name), *map(int, shape)) for name, *shape in json.loads(header["layers"]))
        dense_input = set(json.loads(header["dense_input"]))
        metadata = dict(json.loads(header["metadata"]))
        tensors = load_file(path)
    except (*_MALFORMED, SafetensorError) as error:
        raise DictionaryFileError(f"{path.name} is damaged: {error}. Get the file anew.") from error
    words = _read_words(path.name, tensors)
    rest = _read_rest(path.name, tensors)
    sites = _read_sites(path.name, layers, dense_input, tensors)
    if not sites and not rest:
        raise DictionaryFileError(f"{path.name} holds no atoms.")
    metadata = {
        key: value for key, value in metadata.items() if not key.startswith("modelspec.")
    }  # those are the header's
    metadata |= {key: _by_address(metadata[key], kind) for key, kind in BY_ADDRESS.items() if key in metadata}
    metadata |= {key: value for key, value in header.items() if key.startswith("modelspec.")}
    try:
        return SparseDictionary(layers, sites, metadata, rest, words)
    except ValueError as error:
        raise DictionaryFileError(f"{path.name} is damaged: {error} Get the file anew.") from error


def _by_address(stored: object, kind: type | tuple[type, ...]) -> dict[str, Any]:
    """What is of another kind is left out: files come from strangers, and none of it changes a picture."""
    entries = stored.items() if isinstance(stored, dict) else ()
    return {address: value for address, value in entries if isinstance(value, kind)}


def read_header(path: Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file, without reading its tensors. Tensor names of foreign files are kept
    under ``""`` so that an error can say what the file is.

    :raises DictionaryFileError: the file is missing, empty, truncated or no safetensors file.
    """
    if path.is_dir():
        raise DictionaryFileError(f"{path} is a folder; expected a dictionary. Name the {SUFFIX} file in it.")
    if not path.is_file():
        raise DictionaryFileError(f"There is no file {path}. Check the path.")
    size = path.stat().st_size
    if size == 0:
        raise DictionaryFileError(f"{path.name} is empty: it was not written or copied to the end. Get the file anew.")
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise DictionaryFileError(
                f"{path.name} is not a safetensors file. A dictionary ends in {SUFFIX} and is made by Train or Save Sparse "
                "Dictionary; pickle files (.pt, .ckpt, .bin) are never read."
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        metadata = entries.pop("__metadata__", None) or {}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata other than text")
    except _MALFORMED as error:
        if len(raw) < length:
            raise DictionaryFileError(f"{path.name} is cut off in its header. Get the file anew.") from error
        raise DictionaryFileError(f"{path.name} is not a safetensors file: its header can't be read.") from error
    if size < 8 + length + end:
        raise DictionaryFileError(f"{path.name} is cut off: {size} bytes of {8 + length + end}. Get the file anew.")
    return {**metadata, "": " ".join(entries)[:100_000]}


def with_suffix(path: Path) -> Path:
    """The path with the suffix of a dictionary, which Load Sparse Dictionary looks for.

    :raises ValueError: it names no file.
    """
    if path.name in ("", ".."):
        raise ValueError(f"{str(path)!r} names no file to write. Name one, such as {path / 'robot'}{SUFFIX}.")
    return path if path.suffix == SUFFIX else path.with_name(path.name + SUFFIX)


def check_output(path: Path, suffix: str, *inputs: Path | None) -> None:
    """Makes the folder of a file that is to be written and tries to write there, so that what stands in the way is told before
    hours of work and not after.

    :param inputs: files that are read meanwhile, or None; none of them may be replaced.
    :raises ValueError: it is a folder, one of ``inputs`` or without the suffix, or its folder can't be made or written to.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected the {suffix} file to write. Name one, in it or elsewhere.")
    if path.suffix.lower() != suffix:
        raise ValueError(f"{path} does not end in {suffix}; expected the {suffix} file to write. Choose such a name.")
    if path.exists() and any(given and given.exists() and path.samefile(given) for given in inputs):
        raise ValueError(f"{path} is what is read here, and would be replaced. Choose another name to write to.")
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise ValueError(
            f"{path.name} can't be written into {path.parent}: {error.strerror}. Choose another folder or name."
        ) from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes to a temporary name beside ``path``, then renames: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _key(layer: Layer, site: Site, name: str) -> str:
    return f"{layer.name}.{site.projection}.{name}"


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def _canonical(data: bytes) -> bytes:
    """The same file with its header in one order: the library writes metadata in the order of a hash map."""
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    entries["__metadata__"] = dict(sorted(entries["__metadata__"].items()))
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _read_sites(
    file: str, layers: tuple[Layer, ...], dense_input: set[str], tensors: Mapping[str, Tensor]
) -> dict[Site, Atoms]:
    names = [f.name for f in fields(Atoms) if f.name != "normalise"]
    optional = {"elsewhere"}  # came later: files of before are as good
    remaining = {key: tensor.float() for key, tensor in tensors.items()}
    sites = {}
    for number, layer in enumerate(layers):
        for projection in PROJECTIONS:
            site = Site(number, projection)
            found = {name: remaining.pop(key) for name in names if (key := _key(layer, site, name)) in remaining}
            if not found:
                continue
            if missing := [name for name in names if name not in found and name not in optional]:
                raise DictionaryFileError(f"{file} is damaged: {site} has no {', '.join(missing)}. Get the file anew.")
            for name, tensor in found.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise DictionaryFileError(f"{file} is damaged: {site} {name} holds NaN or infinite values.")
            if bool((found["threshold"] < 0).any()):
                raise DictionaryFileError(f"{file} is damaged: {site} has a negative threshold.")
            sites[site] = Atoms(**found, normalise=str(site) not in dense_input)
    if remaining:
        raise DictionaryFileError(f"{file} holds tensors that belong to no layer, such as {next(iter(remaining))}.")
    return sites


def _read_rest(file: str, tensors: dict[str, Tensor]) -> dict[str, LowRank]:
    """Takes what lies outside the attentions out of ``tensors``."""
    found = {key: tensors.pop(key).float() for key in sorted(tensors) if key.startswith(REST)}
    rest = {}
    for module in {key.removeprefix(REST).rpartition(".")[0]: None for key in found}:
        down, up = (found.pop(f"{REST}{module}.{name}", None) for name in ("down", "up"))
        if down is None or up is None or up.ndim != 2 or down.ndim not in (2, 4) or len(down) != len(up):
            raise DictionaryFileError(f"{file} is damaged: the update of {module} is not whole. Get the file anew.")
        if not bool(torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise DictionaryFileError(f"{file} is damaged: the update of {module} holds NaN or infinite values.")
        rest[module] = LowRank(down, up)
    if found:
        raise DictionaryFileError(f"{file} holds tensors that belong to no module, such as {next(iter(found))}.")
    return rest


def _read_words(file: str, tensors: dict[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """Takes what was added to the meaning of words out of ``tensors``."""
    words: dict[str, dict[int, Tensor]] = {}
    for key in sorted(key for key in tensors if key.startswith(WORD)):
        shift = tensors.pop(key).float()
        word, _, width = key.removeprefix(WORD).rpartition(".")
        if not width.isdecimal():
            raise DictionaryFileError(f"{file} is damaged: {key} names no width. Get the file anew.")
        if not bool(torch.isfinite(shift).all()):
            raise DictionaryFileError(f"{file} is damaged: the word {word!r} holds NaN or infinite values.")
        words.setdefault(word, {})[int(width)] = shift
    return words


def _what_is(header: Mapping[str, str]) -> str:
    names = header[""]
    if "lora" in names.lower():
        return "a LoRA"
    if "diffusion_model" in names or "unet" in names or "down_blocks" in names:
        return "a checkpoint"
    return "another kind of safetensors file"


def _what_to_do(header: Mapping[str, str]) -> str:
    if "lora" in header[""].lower():
        return "Use Load LoRA as Dictionary for it."
    return "Pick a file made by Train or Save Sparse Dictionary."
