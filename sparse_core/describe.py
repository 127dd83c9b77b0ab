"""What a dictionary and its controls amount to, in words a person can read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .controls import SparseAdapter


class AtomRow(NamedTuple):
    """One atom with everything that is set on it."""

    address: str
    label: str
    importance: float
    """Share of the dictionary's whole importance, 0..1."""
    weight: float
    masks: tuple[int, ...]
    """Numbers of the masks of the chain that confine it, from 1."""
    schedules: tuple[int, ...]
    prompt: str
    """``both``, ``positive``, ``negative`` or ``none``; ``named`` in place of ``both`` where it waits for a word."""
    kept: bool
    """False where a density has dropped it: no weight brings it back."""


def atom_rows(adapter: SparseAdapter) -> list[AtomRow]:
    """Every atom, the most important first."""
    labels = adapter.dictionary.labels
    total = sum(float(atoms.importance.sum()) for atoms in adapter.dictionary.sites.values()) or 1.0
    rows = []
    for site, atoms in adapter.dictionary.sites.items():
        state = adapter.state.sites[site]
        # As lists: of thousands of atoms, a tensor operation for each would be slow.
        columns = zip(
            atoms.importance.tolist(),
            (state.weight * state.kept).tolist(),
            _numbers(state.masks),
            _numbers(state.schedules),
            state.triggers.any(dim=0).tolist(),
            state.positive.tolist(),
            state.negative.tolist(),
            state.kept.tolist(),
            strict=True,
        )
        for j, (importance, weight, masks, schedules, waits, positive, negative, kept) in enumerate(columns):
            address = f"{site}[{j}]"
            both = "named" if waits else "both"
            prompt = {(True, True): both, (True, False): "positive", (False, True): "negative"}.get(
                (positive, negative), "none"
            )
            rows.append(
                AtomRow(address, labels.get(address, ""), importance / total, weight, masks, schedules, prompt, kept)
            )
    return sorted(rows, key=lambda row: -row.importance)


def _numbers(flags: Tensor) -> list[tuple[int, ...]]:
    """(controls, m): for each atom the numbers of the controls that concern it, from 1."""
    return [tuple(i for i, concerns in enumerate(atom, 1) if concerns) for atom in flags.T.tolist()]


def describe(adapter: SparseAdapter, top: int = 20) -> str:
    """A summary and a Markdown table of the ``top`` most important atoms."""
    dictionary, state = adapter.dictionary, adapter.state
    rows = atom_rows(adapter)
    acting = [row for row in rows if row.weight != 0 and row.prompt != "none"]
    title = dictionary.metadata.get("modelspec.title", "untitled")
    lines = [
        f"{title}: {len(dictionary)} atoms in {len(dictionary.sites)} sites, for {dictionary.family}",
        f"acting: {len(acting)} atoms with {sum(row.importance for row in acting):.0%} of the importance",
        f"controls: {len(adapter.controls)}, masks: {len(state.masks)}, schedules: {len(state.curves)}, "
        f"replays: {len(state.replays)}",
    ]
    if dictionary.rest:
        lines.append(f"outside the attentions: {len(dictionary.rest)} modules of a LoRA, under controls of all atoms")
    lines += [
        f"taught word: {word!r}, where Apply Sparse Dictionary has the CLIP, at {state.words:.0%}"
        for word in dictionary.words
    ]
    lines += [f"trigger: waits for a prompt that names {' or '.join(words)}" for words in state.triggers]
    lines += [f"mask {i + 1}: covers {float(mask.mean()):.0%} of the picture" for i, mask in enumerate(state.masks)]
    lines += ["", "| atom | label | importance | weight | mask | schedule | prompt |", "|---|---|---|---|---|---|---|"]
    for row in rows[:top]:
        masks, schedules = (", ".join(map(str, numbers)) or "-" for numbers in (row.masks, row.schedules))
        lines.append(
            f"| {row.address} | {row.label or '-'} | {row.importance:.2%} | {row.weight:g} | {masks} | {schedules} | {row.prompt} |"
        )
    if len(rows) > top:
        lines.append(
            f"and {len(rows) - top} more with {sum(row.importance for row in rows[top:]):.0%} of the importance"
        )
    return "\n".join(lines)
