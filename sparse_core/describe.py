"""What a dictionary and its controls amount to, in words a person can read."""

from __future__ import annotations

from typing import NamedTuple

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
        for j in range(len(atoms)):
            address = f"{site}[{j}]"
            both = "named" if state.triggers[:, j].any() else "both"
            prompts = {(True, True): both, (True, False): "positive", (False, True): "negative"}
            rows.append(
                AtomRow(
                    address,
                    labels.get(address, ""),
                    float(atoms.importance[j]) / total,
                    float(state.weight[j] * state.kept[j]),
                    tuple(i + 1 for i in state.masks[:, j].nonzero()[:, 0].tolist()),
                    tuple(i + 1 for i in state.schedules[:, j].nonzero()[:, 0].tolist()),
                    prompts.get((bool(state.positive[j]), bool(state.negative[j])), "none"),
                    bool(state.kept[j]),
                )
            )
    return sorted(rows, key=lambda row: -row.importance)


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
