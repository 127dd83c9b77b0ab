"""Where two dictionaries meet, as a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..layers import PROJECTIONS
from .charts import drawn, new_figure, plain
from .collisions import Collisions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ATOMS = 12
"""Atoms of each dictionary in a chart of pairs."""
BAR = 0.27
"""Width of a bar; three stand side by side at each layer."""
COLOURS = ("#2a7fba", "#e08a1e", "#c0392b")
"""The first dictionary's, the second's, both."""


def collision_chart(found: Collisions) -> Tensor:
    """Left, the share of tokens that each dictionary and both act on, layer by layer; right, how far the atoms that meet most
    fire on the same tokens: (height, width, 3) in 0..1.

    :raises ModuleNotFoundError: matplotlib is not installed.
    """
    figure = new_figure(11, 5)
    layers, pairs = figure.subplots(1, 2)
    _draw_layers(layers, found)
    _draw_pairs(figure, pairs, found)
    return drawn(figure)


def _draw_layers(axes: Axes, found: Collisions) -> None:
    numbers = sorted({site.layer for site in found.sites})
    series = zip(("first", "second", "both"), (*map(plain, found.titles), "both"), COLOURS, strict=True)
    for place, (name, title, colour) in enumerate(series):
        shares = [
            100 * np.mean([getattr(found.sites[site], name) for site in found.sites if site.layer == number])
            for number in numbers
        ]
        axes.bar(np.array(numbers) + BAR * (place - 1), shares, BAR, label=title, color=colour)
    axes.set(title="Tokens that atoms act on", xlabel="layer", ylabel="per cent of tokens")
    axes.set_xticks(numbers[:: max(1, len(numbers) // 20)])
    axes.legend(frameon=False)


def _draw_pairs(figure: Figure, axes: Axes, found: Collisions) -> None:
    firsts = list(dict.fromkeys(pair.first for pair in found.pairs))[:ATOMS]
    seconds = list(dict.fromkeys(pair.second for pair in found.pairs if pair.first in firsts))[:ATOMS]
    firsts.sort(key=_order)
    seconds.sort(key=_order)
    overlaps = np.zeros((len(firsts), len(seconds)))
    for pair in found.pairs:
        if pair.first in firsts and pair.second in seconds:
            overlaps[firsts.index(pair.first), seconds.index(pair.second)] = 100 * pair.overlap
    image = axes.imshow(overlaps, cmap="magma_r", vmin=0, vmax=100, aspect="auto")
    axes.set(title="Atoms that fire on the same tokens", ylabel=plain(found.titles[0]), xlabel=plain(found.titles[1]))
    axes.set_xticks(range(len(seconds)), seconds, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(firsts)), firsts, fontsize=8)
    figure.colorbar(image, ax=axes, label="overlap, per cent")


def _order(address: str) -> tuple[int, int, int]:
    """``L17.v[3]`` after ``L3.v[17]``: a site's atoms stand together."""
    site, _, atom = address[1:-1].partition("[")
    layer, _, projection = site.partition(".")
    return int(layer), PROJECTIONS.index(projection), int(atom)  # type: ignore[arg-type]
