"""What the atoms of the shipped dictionaries do, written into their files: labels, effects and thumbnails, not a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..addresses import parse_selection
from ..analysis.effects import Ablations, draw_ablations
from ..analysis.labels import with_looks
from ..analysis.recording import chosen_atoms
from ..controls import SparseAdapter
from ..dictionary import SparseDictionary
from ..dictionary_report import drawer, hear
from ..files import load_dictionary, save_dictionary
from ..generate import Sampling
from ..hosts.diffusers import DiffusersHost
from .model import load_pipeline
from .shipped import DICTIONARIES

MOST = 48
"""Atoms, the most important ones."""
PICTURES = (
    ("a big {} in the middle in the meadow", 1),
    ("a big {} in the middle in the night", 3),
    ("a big {} on the left in the snow", 4),
    ("a big {} on the right in the desert", 5),
)
"""Prompts and seeds. Scenes and places differ, so that what is said of an atom holds for the creature and not for one picture
of it: of labels made without a warm scene, one in nine did not hold on others."""
SAMPLING = Sampling(steps=10, guidance=3.0)
BATCH = 50
STEPS = (2 + MOST) * len(PICTURES) * SAMPLING.steps
"""Of all pictures of one dictionary."""
SEEN = ("labels", "effects", "thumbnails")
"""Metadata that is measured here."""


def ablations(
    host: DiffusersHost,
    dictionary: SparseDictionary,
    creature: str,
    prompt: str,
    seed: int,
    on_step: Callable[[int], None] = lambda pictures: None,
) -> Ablations:
    """One picture, and the same without each of the strongest atoms."""
    groups = {address: parse_selection(address) for address in chosen_atoms(dictionary, parse_selection(f"top:{MOST}"))}
    draw = drawer(host, prompt.format(creature), seed, SAMPLING, on_step)
    return draw_ablations(SparseAdapter(dictionary), groups, draw, BATCH)


def look_at_shipped(creature: str, on_step: Callable[[int], None] = lambda pictures: None) -> None:
    """Draws, and writes what was seen into the creature's dictionary."""
    host, file = DiffusersHost(load_pipeline()), DICTIONARIES / f"{creature}.safetensors"
    shipped = load_dictionary(file)
    bare = replace(shipped, metadata={key: value for key, value in shipped.metadata.items() if key not in SEEN})
    seen = [ablations(host, bare, creature, prompt, seed, on_step) for prompt, seed in PICTURES]
    _, words = hear(host, bare, PICTURES[0][0].format(creature))
    save_dictionary(with_looks(bare, seen, words), file)
