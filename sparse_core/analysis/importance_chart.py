"""Where the importance of a dictionary sits: over its atoms, layers and sites."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dictionary import SparseDictionary
from ..layers import PROJECTIONS, Projection
from .charts import INK, TITLE, drawn, new_figure, shades, whole_numbers
from .ranking import importance_curve, ranking

DENSITIES = tuple(percent / 100 for percent in range(101))
LISTED = 24


def shares(dictionary: SparseDictionary) -> dict[Projection, Tensor]:
    """(layers,) per site: the share of the whole importance."""
    table = {projection: torch.zeros(len(dictionary.layers)) for projection in PROJECTIONS}
    for site, atoms in dictionary.sites.items():
        table[site.projection][site.layer] = float(atoms.importance.sum())
    total = sum(float(values.sum()) for values in table.values()) or 1.0
    return {projection: values / total for projection, values in table.items()}


def contrasts(dictionary: SparseDictionary, count: int) -> list[tuple[str, float, float]]:
    """(address, importance, importance elsewhere) of the most important atoms; nothing where elsewhere was not
    measured."""
    elsewhere = {
        f"{site}[{j}]": value
        for site, atoms in dictionary.sites.items()
        for j, value in enumerate(atoms.elsewhere.tolist())
    }
    if not any(elsewhere.values()):
        return []
    return [(atom.address, atom.importance, elsewhere[atom.address]) for atom in ranking(dictionary)[:count]]


def importance_chart(dictionary: SparseDictionary) -> Tensor:
    """The cumulative curve, bars per layer and site, and, where it was measured, importance beside that elsewhere:
    (height, width, 3) in 0..1."""
    from matplotlib.ticker import PercentFormatter

    compared = contrasts(dictionary, LISTED)
    figure = new_figure(11, 6.6 if compared else 3.8)
    axes = figure.subplots(2 if compared else 1, 2, squeeze=False, width_ratios=(1, 1.6))
    curve, bars = axes[0]
    curve.plot(DENSITIES, importance_curve(ranking(dictionary), DENSITIES), color=shades(3)[1], linewidth=2.5)
    curve.set(xlabel="atoms kept, the most important first", ylabel="importance held", xlim=(0, 1), ylim=(0, 1.02))
    curve.xaxis.set_major_formatter(PercentFormatter(1))
    curve.grid(alpha=0.3)
    below = torch.zeros(len(dictionary.layers))
    for (projection, values), colour in zip(shares(dictionary).items(), shades(len(PROJECTIONS)), strict=True):
        bars.bar(range(len(values)), values.tolist(), bottom=below.tolist(), color=colour, label=projection, width=0.85)
        below += values
    bars.set(xlabel="layer (even: attn1, the picture; odd: attn2, the words)", ylabel="share of the importance")
    whole_numbers(bars)
    bars.legend(title="site", ncols=4, fontsize=TITLE)
    for axis in (curve, bars):
        axis.yaxis.set_major_formatter(PercentFormatter(1))
    if compared:
        grid = axes[1, 0].get_gridspec()
        for axis in axes[1]:
            axis.remove()
        below_both = figure.add_subplot(grid[1, :])
        places = range(len(compared))
        below_both.bar(
            [p - 0.2 for p in places], [c[1] for c in compared], 0.4, color=shades(3)[0], label="where it is named"
        )
        below_both.bar([p + 0.2 for p in places], [c[2] for c in compared], 0.4, color=shades(3)[2], label="elsewhere")
        below_both.set_xticks(list(places), [c[0] for c in compared], rotation=55, ha="right", rotation_mode="anchor")
        below_both.set_ylabel("importance")
        below_both.legend(fontsize=TITLE)
    for axis in figure.axes:
        axis.tick_params(labelsize=TITLE, colors=INK)
    return drawn(figure)


def importance_meaning(dictionary: SparseDictionary) -> str:
    """What the importance of these atoms is, in a sentence."""
    if not any(float(atoms.importance.sum()) for atoms in dictionary.sites.values()):
        return "The importance of these atoms was never measured: the file comes from another program."
    if not any(atoms.normalise for atoms in dictionary.sites.values()):
        return "The LoRA's own singular values: how far an atom can move a feature."
    return "Measured on the training pictures and captions: how far an atom moves the features, on average."


def importance_text(dictionary: SparseDictionary, top: int) -> str:
    """How few atoms hold most of it, and a table of the ``top`` most important."""
    ranked = ranking(dictionary)
    total = sum(atom.importance for atom in ranked)
    if not total:
        return importance_meaning(dictionary)
    kept = (0.05, 0.25, 0.5)
    held = importance_curve(ranked, kept)
    lines = [
        f"{len(ranked)} atoms. {importance_meaning(dictionary)}",
        *(
            f"{share:.0%} of the atoms hold {part:.0%} of the importance"
            for share, part in zip(kept, held, strict=True)
        ),
    ]
    compared = {address: elsewhere for address, _, elsewhere in contrasts(dictionary, top)}
    lines += ["", "| atom | label | share | elsewhere |", "|---|---|---|---|"]
    for atom in ranked[:top]:
        other = f"{compared[atom.address] / total:.2%}" if atom.address in compared else "not measured"
        lines.append(f"| {atom.address} | {atom.label or '-'} | {atom.importance / total:.2%} | {other} |")
    return "\n".join(lines)
