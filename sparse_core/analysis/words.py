"""Which words of a prompt atoms answer to. Keys and values of the cross-attention read nothing but the text, so no picture
has to be drawn to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..addresses import Selection
from ..coding import encode
from ..dictionary import Atoms, SparseDictionary
from ..layers import reads_words
from .charts import table_of_colours
from .ranking import ranking

FIRES, SILENT = 0.5, 0.25
"""Shares of an atom's largest coefficient from which on a word fires it, and up to which it does not."""


LISTED = 4
"""How many words of an atom are named."""


@dataclass(frozen=True)
class WordTable:
    """What each atom makes of each token of a prompt."""

    addresses: tuple[str, ...]
    """The most important first."""
    labels: tuple[str, ...]
    words: tuple[str, ...]
    coefficients: Tensor
    """(atoms, tokens), with their sign."""

    def strongest(self, atom: int) -> str:
        """The words that fire an atom with their coefficients, the strongest first; nothing where none does."""
        codes = self.coefficients[atom]
        order = codes.abs().argsort(descending=True)[:LISTED].tolist()
        return ", ".join(f"{self.words[i]} ({float(codes[i]):+.2f})" for i in order if codes[i] != 0)

    def answers_to(self, atom: int) -> str:
        """The word that an atom clearly answers to, or nothing: the first that fires it while all before are silent. The text
        encoder reads from left to right, so what comes after carries the word too."""
        strength = self.coefficients[atom].abs()
        fires, silent = strength >= FIRES * strength.max(), strength <= SILENT * strength.max()
        first = int(fires.int().argmax())
        clear = bool(strength.any()) and bool(silent[:first].all())
        return "" if not clear or self.words[first].startswith("<|") else self.words[first]


def word_table(
    dictionary: SparseDictionary, text: Tensor, words: Sequence[str], selection: Selection, most: int
) -> WordTable:
    """The coefficients of a prompt at the selected atoms of k and v of attn2.

    :param text: (tokens, text width), the encoded prompt.
    :param words: names of its first tokens; what comes after them is padding.
    :param most: how many atoms to take, the most important first.
    :raises ValueError: the selection holds no such atom, or the text is another model's.
    """
    picked = selection.resolve(dictionary)
    reading = {site: flags for site, flags in picked.items() if reads_words(site, dictionary.layers) and flags.any()}
    if not reading:
        raise ValueError(f"{selection} holds no atom that reads words; those are in attn2.kv. Choose some of them.")
    width = dictionary.layers[next(iter(reading)).layer].context
    if text.shape[-1] != width:
        raise ValueError(
            f"The text encoder gives {text.shape[-1]} features for each word; this dictionary's model reads {width}. Connect "
            "the CLIP that belongs to the model it was trained on."
        )
    found = {
        f"{site}[{j}]": codes[:, j]
        for site, flags in reading.items()
        for codes in [_codes(dictionary.sites[site], text[: len(words)])]
        for j in flags.nonzero()[:, 0].tolist()
    }
    best = [atom for atom in ranking(dictionary) if atom.address in found][:most]
    return WordTable(
        tuple(atom.address for atom in best),
        tuple(atom.label for atom in best),
        tuple(words),
        torch.stack([found[atom.address] for atom in best]),
    )


def _codes(atoms: Atoms, text: Tensor) -> Tensor:
    """(tokens, d_in) -> (tokens, m)."""
    text = text.detach().cpu().to(atoms.encoder)
    normalise = torch.full_like(atoms.bias, float(atoms.normalise), dtype=torch.float32)
    return encode(text, atoms.encoder, atoms.bias.float(), atoms.threshold.float(), normalise)


def word_chart(table: WordTable) -> Tensor:
    """Atoms by tokens: (height, width, 3) in 0..1."""
    rows = [f"{a}  {label}".strip() for a, label in zip(table.addresses, table.labels, strict=True)]
    return table_of_colours(
        table.coefficients.abs(),
        rows,
        table.words,
        scale="|coefficient|",
        title="How strongly each atom answers to each word",
    )


def word_text(table: WordTable) -> str:
    """One row for each atom: its words, the strongest first."""
    lines = ["| atom | label | answers to |", "|---|---|---|"]
    for row, (address, label) in enumerate(zip(table.addresses, table.labels, strict=True)):
        words = table.strongest(row) or "no word of this prompt"
        lines.append(f"| {address} | {label or '-'} | {words} |")
    return "\n".join(lines)
