"""One look: a picture, the same without each of the strongest atoms, and where those fire."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sparse_core.addresses import parse_selection
from sparse_core.analysis.heatmaps import heat_maps
from sparse_core.analysis.recording import Recorder, chosen_atoms
from sparse_core.controls import Pictures, SparseAdapter
from sparse_core.demo.judge import Judge
from sparse_core.dictionary import SparseDictionary
from sparse_core.generate import Sampling, generate

from ..quality.words import PromptedHost
from .scores import overlap, selectivity

TOP = 24
"""Atoms that are left out, one by one."""


def without_each(dictionary: SparseDictionary, addresses: Sequence[str]) -> SparseAdapter:
    """Set up for one batch: first a picture with all atoms, then one without each. Exact: rows of a batch don't meet."""
    count = 1 + len(addresses)
    return SparseAdapter(dictionary).with_controls(
        *(
            Pictures(tuple(picture != number for picture in range(count)), parse_selection(address))
            for number, address in enumerate(addresses, 1)
        )
    )


def ablated(
    host: PromptedHost, dictionary: SparseDictionary, addresses: Sequence[str], prompt: str, seed: int, how: Sampling
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pictures from the same noise, and heat maps of those atoms that read the picture and fired.

    :returns: uint8 (1 + atoms, h, w, 3), the first with all atoms; address to float (h, w).
    """
    count = 1 + len(addresses)
    adapter = without_each(dictionary, addresses)
    pictures = np.stack(
        [np.array(p) for p in generate(host, [prompt] * count, [seed] * count, how, [adapter], batch=count)]
    )
    recorder = Recorder(dictionary, addresses)
    with host.patched([SparseAdapter(dictionary)], recorder):
        generate(host, [prompt], [seed], how)
    recording = recorder.recording()
    maps = heat_maps(recording, pictures.shape[1:3]) if recording.positive.places else {}
    return pictures, {address: heat.numpy() for address, heat in maps.items()}


@torch.no_grad()
def look(
    host: PromptedHost,
    dictionary: SparseDictionary,
    prompt: str,
    seed: int,
    how: Sampling,
    regions: np.ndarray,
    judge: Judge,
) -> dict[str, list]:
    """Scores of the strongest atoms' ablations, a list entry each.

    :param regions: bool (regions, h, w), of the right answer.
    :returns: ``effect``: grey levels by which the picture moves; ``selectivity``; ``overlap`` of heat map and change, None
        without a heat map; ``flips``: how many of the judge's answers change.
    """
    addresses = chosen_atoms(dictionary, parse_selection(f"top:{TOP}"))
    pictures, maps = ablated(host, dictionary, addresses, prompt, seed, how)
    changes = np.abs(pictures[1:].astype(np.float32) - pictures[0]).mean(axis=-1)  # (atoms, h, w)
    whole, *others = judge.read(pictures)
    return {
        "atoms": addresses,
        "effect": [float(change.mean()) for change in changes],
        "selectivity": [selectivity(change, regions) for change in changes],
        "overlap": [
            overlap(maps[address], change) if address in maps else None
            for address, change in zip(addresses, changes, strict=True)
        ],
        "flips": [sum(seen[question] != whole[question] for question in whole) for seen in others],
    }
