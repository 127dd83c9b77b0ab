"""LoRAs as dictionaries.

The update of a LoRA on an attention projection, ``y' = y + (alpha / r) B A x``, is a dictionary's with threshold 0, bias 0
and an input that is not normalised. Rotated by its singular value decomposition its atoms are orthogonal, and an atom's
importance is its singular value. What a LoRA does to other modules becomes the dictionary's rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..dictionary import SparseDictionary
from ..layers import Layer, family
from ..modules import LowRank, projection_sites
from .algorithms import low_rank, orthogonal_atoms
from .alphas import HEADER, MALFORMED, with_alphas
from .keys import Keys, family_of, few, sort_keys

PARTS = {
    "feed-forward": (".ff.",),
    "transformer input and output": ("proj_in", "proj_out"),
    "time and size embedding": ("time_emb", "add_embedding"),
    "convolutions": ("conv",),
}
"""What lies outside the attentions, by what the module's name contains."""


class LoraFileError(ValueError):
    """A file is no LoRA that can be taken exactly; the message says why and what to do."""


@dataclass(frozen=True)
class ImportedLora:
    """A LoRA taken apart."""

    name: str
    dictionary: SparseDictionary
    """Its attention part, with its `rest`."""
    text: Mapping[str, Tensor]
    """What it does to text encoders, as it stands in the file; with alphas, where only the file's header says them."""
    shares: Mapping[str, float]
    """The squared norm of its updates, as shares of all on the UNet: ``attention`` and the keys of `PARTS`."""

    def report(self) -> str:
        """What atoms reach of it, in words."""
        dictionary, attention = self.dictionary, self.shares["attention"]
        lines = [
            f"{self.name}: {len(dictionary)} atoms in {len(dictionary.sites)} sites, for {dictionary.family}.",
            f"{attention:.0%} of this LoRA's weight (by squared norm, text encoder aside) is in attention and under atom "
            "control.",
        ]
        beside = [f"{part} {share:.0%}" for part, share in self.shares.items() if part != "attention" and share]
        if beside:
            lines.append(
                f"The rest ({', '.join(beside)}) is applied too. Weights, masks, schedules and prompt choices on all atoms (*) "
                "govern it; those on some atoms leave it as it is."
            )
        embedding = [name for name in dictionary.rest if _part(name) == "time and size embedding"]
        if embedding:
            lines.append(
                f"Left out wherever a mask is set, because they belong to no place in the picture: {few(embedding)}."
            )
        if self.text:
            lines.append(
                "It also changes the text encoder, where no atoms are: in ComfyUI the CLIP output carries that, for the whole "
                "prompt."
            )
        return "\n".join(lines)


def load_lora(path: str | os.PathLike, layers: Sequence[Layer], modules: Mapping[str, tuple[int, ...]]) -> ImportedLora:
    """Reads a LoRA for a model.

    :param layers: the model's attentions.
    :param modules: shape of every weight of the model's linear and convolution modules, by host-neutral name.
    :raises LoraFileError: the file is broken, of another model family, or of an algorithm that is no low-rank update.
    """
    path = Path(path)
    tensors = read_tensors(path)
    keys = sort_keys(tensors, list(modules))
    _check(path.name, keys, tensors, family(layers))
    updates: dict[str, LowRank] = {}
    for name, parts in keys.modules.items():
        try:
            updates[name] = low_rank(parts, modules[name])
        except ValueError as error:
            raise LoraFileError(
                f"{path.name} can't be taken as a dictionary: {name} {error}. It was made for {family_of(tensors)}, the model "
                f"is {family(layers)}. {ELSEWHERE}"
            ) from error
    of_projection = projection_sites(modules, layers)
    shares = dict.fromkeys(("attention", *PARTS), 0.0)
    norms = {name: update.squared_norm for name, update in updates.items()}
    total = sum(norms.values())
    if not total:
        raise LoraFileError(
            f"{path.name} changes nothing in the model: all its updates are zero or for a text encoder."
        )
    sites, rest = {}, {}
    for name, norm in sorted(norms.items()):
        shares["attention" if name in of_projection else _part(name)] += norm / total
        if norm and name in of_projection:
            sites[of_projection[name]] = orthogonal_atoms(updates[name])
        elif norm:
            rest[name] = updates[name]
    dictionary = SparseDictionary(tuple(layers), sites, {"modelspec.title": path.stem}, rest)
    return ImportedLora(path.name, dictionary, keys.text, shares)


ELSEWHERE = "ComfyUI's own LoRA loader may still read it; it can stand beside Apply Sparse Dictionary."


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors, with alphas where only its header says them.

    :raises LoraFileError: the file is missing, broken, no safetensors file, or a dictionary.
    """
    if path.is_dir():
        raise LoraFileError(f"{path} is a folder; expected a LoRA. Name the .safetensors file in it.")
    if not path.is_file():
        raise LoraFileError(f"There is no file {path}. Check the path.")
    try:
        with safe_open(path, "pt") as file:
            header, names = file.metadata() or {}, list(file.keys())
            if header.get("format") == "sparse-atoms":
                raise LoraFileError(f"{path.name} is a sparse dictionary already. Use Load Sparse Dictionary for it.")
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise LoraFileError(
            f"{path.name} is not a whole safetensors file: {error}. Pickle files (.pt, .ckpt, .bin) are never read: "
            f"get the LoRA anew, as .safetensors."
        ) from error
    try:
        return with_alphas(tensors, header)
    except MALFORMED as error:
        raise LoraFileError(
            f"How strong {path.name} is can't be read from its header: {HEADER} is damaged ({error}); expected peft's settings "
            "as JSON, as diffusers saves them. Get the LoRA anew."
        ) from error


def _check(file: str, keys: Keys, tensors: Mapping[str, Tensor], model: str) -> None:
    for algorithm, names in keys.foreign.items():
        raise LoraFileError(
            f"{file} holds {algorithm} ({few(names)}), which is no low-rank update and has no atoms. {ELSEWHERE}"
        )
    if keys.unknown:
        raise LoraFileError(
            f"{file} holds {few(keys.unknown)}, which match nothing in this model. The file was made for "
            f"{family_of(tensors)}, the model is {model}. Pick a LoRA and a checkpoint of the same family."
        )


def _part(module: str) -> str:
    return next(part for part, traits in PARTS.items() if any(trait in module for trait in traits))
