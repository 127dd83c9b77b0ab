"""The dictionary: what one fine-tune learnt, as plain tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .layers import Layer, Site, family, fingerprint
from .modules import LowRank
from .words import Words

ACTING = ("encoder", "bias", "threshold", "directions")
"""What of atoms acts on a picture: importance and labels can be measured and written anew without making it another."""


@dataclass(frozen=True)
class Atoms:
    """The atoms of one site: ``y' = y + sum_j z_j d_j`` with ``z = soft_threshold(encoder x + bias, threshold)``."""

    encoder: Tensor
    """(m, d_in) rows e_j."""
    bias: Tensor
    """(m,) c_j."""
    threshold: Tensor
    """(m,) theta_j >= 0; 0 makes the atom dense, as a LoRA's direction is."""
    directions: Tensor
    """(m, d_out) rows d_j; unit norm (or zero) once normalised."""
    importance: Tensor
    """(m,) mean |z_j| |d_j| over the rms of y, as measured in training; 0 where never measured."""
    normalise: bool = True
    """Whether the encoder reads x / rms(x) (a dictionary) or x itself (an imported LoRA)."""
    elsewhere: Tensor = None  # type: ignore[assignment]
    """(m,) importance at prompts that don't name what was learnt; 0 where never measured, as by default."""

    def __post_init__(self) -> None:
        if self.elsewhere is None:
            object.__setattr__(self, "elsewhere", torch.zeros_like(self.importance))

    def __len__(self) -> int:
        return len(self.directions)

    def __getitem__(self, index: Tensor | slice) -> Atoms:
        """The selected atoms, in the order given."""
        return replace(self, **{name: tensor[index] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Field name to tensor, without the flag."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "normalise"}

    def map(self, function) -> Atoms:
        """The same atoms with ``function`` applied to every tensor."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

    def unit_norm(self) -> Atoms:
        """The same update with |d_j| = 1: soft thresholding is positively homogeneous, so the encoder takes the norm."""
        norm = self.directions.norm(dim=1)  # (m,)
        return replace(
            self,
            encoder=self.encoder * norm[:, None],
            bias=self.bias * norm,
            threshold=self.threshold * norm,
            directions=self.directions / norm.clamp(min=torch.finfo(norm.dtype).tiny)[:, None],
        )


@dataclass(frozen=True)
class SparseDictionary:
    """One trained adapter. Never changed after it is made: controls and edits give new values."""

    layers: tuple[Layer, ...]
    """Every attention layer of the model it belongs to, in execution order: ``L17`` is ``layers[17]``."""
    sites: Mapping[Site, Atoms]
    """Atoms per site, sorted by site. A site may have any number of atoms, and need not be there."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What a person wants to know of it: title, trigger, training record, labels. JSON values."""
    rest: Mapping[str, LowRank] = field(default_factory=dict)
    """What an imported LoRA does outside the attentions: updates by module name. They belong to no atom; controls of all
    atoms (``*``) govern them too."""
    words: Words = field(default_factory=dict)
    """What training added to the meaning of the taught word. It belongs to no atom; strength governs it and masks don't, as it
    is what atoms read, whichever of them act."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", {site: self.sites[site] for site in sorted(self.sites, key=_site_order)})
        for site, atoms in self.sites.items():
            if not 0 <= site.layer < len(self.layers):
                raise ValueError(f"{site} does not exist: the model has layers L0 to L{len(self.layers) - 1}.")
            d_in, d_out = self.layers[site.layer].shape(site.projection)
            if atoms.directions.ndim != 2:
                raise ValueError(
                    f"{site} directions has shape {tuple(atoms.directions.shape)}; expected (number of atoms, {d_out})."
                )
            expected = {"encoder": (len(atoms), d_in), "directions": (len(atoms), d_out)}
            for name, tensor in atoms.tensors().items():
                shape = expected.get(name, (len(atoms),))
                if tuple(tensor.shape) != shape:
                    raise ValueError(f"{site} {name} has shape {tuple(tensor.shape)}; expected {shape}.")
        for word, shifts in self.words.items():
            for width, shift in shifts.items():
                if not word or shift.ndim != 2 or not len(shift) or shift.shape[1] != width:
                    raise ValueError(
                        f"The word {word!r} has a shift of shape {tuple(shift.shape)}; expected (number of tokens, {width})."
                    )

    def __len__(self) -> int:
        """Number of atoms over all sites."""
        return sum(len(atoms) for atoms in self.sites.values())

    @cached_property
    def fingerprint(self) -> str:
        """Equal to the fingerprint of every model that this dictionary fits."""
        return fingerprint(self.layers)

    @cached_property
    def atoms_hash(self) -> str:
        """16 hex digits of what the atoms draw, which is what their numbers stand for: a LoRA's rest, which has no number, does
        not count, as it does in `content_hash`. Values count as a file stores them, so saving and loading change neither."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for site, atoms in self.sites.items():
            for name in ACTING:
                tensor = getattr(atoms, name)
                digest.update(f"{site} {name} {tuple(tensor.shape)}".encode())
                digest.update(_stored(tensor))
        return digest.hexdigest()[:16]

    @cached_property
    def content_hash(self) -> str:
        """16 hex digits of the SHA-256 of everything that acts on a picture, a LoRA's rest and a taught word too."""
        digest = hashlib.sha256(self.fingerprint.encode())
        for site, atoms in self.sites.items():
            digest.update(f"{site} {atoms.normalise}".encode())
            for name in ACTING:
                digest.update(_stored(getattr(atoms, name)))
        for name, update in self.rest.items():
            digest.update(name.encode())
            for tensor in (update.down, update.up):
                digest.update(_stored(tensor))
        for word, shifts in sorted(self.words.items()):
            digest.update(word.encode())
            for width in sorted(shifts):
                digest.update(_stored(shifts[width]))
        return digest.hexdigest()[:16]

    @property
    def family(self) -> str:
        """The model family in a user's words."""
        return family(self.layers)

    @property
    def labels(self) -> dict[str, str]:
        """Atom address (``L17.v[137]``) to a plain-language label."""
        return dict(self.metadata.get("labels", {}))

    def check_fits(self, layers: Sequence[Layer]) -> None:
        """
        :raises ValueError: the dictionary belongs to a model with other layers.
        """
        if fingerprint(layers) != self.fingerprint:
            raise ValueError(
                f"This dictionary was made for another model: it fits {self.family}, the model is {family(layers)}. "
                "Load the checkpoint it was trained on, or one of the same family."
            )

    def parameters(self) -> int:
        """Number of stored values of atoms that act on a picture (what was measured of them does not)."""
        return sum(getattr(atoms, name).numel() for atoms in self.sites.values() for name in ACTING)

    def map(self, function) -> SparseDictionary:
        """The same dictionary with ``function(atoms)`` in place of every site's atoms."""
        return replace(self, sites={site: function(atoms) for site, atoms in self.sites.items()})


def _stored(tensor: Tensor) -> bytes:
    """A tensor as a file holds it."""
    return tensor.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()


def _site_order(site: Site) -> tuple[int, int]:
    return site.layer, "qkvo".index(site.projection)
