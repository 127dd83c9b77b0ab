"""Charts and sheets of pictures, by matplotlib, which is imported only when one is drawn.

They stand on their own light paper, so that they read the same on a light and on a dark page; colours are viridis's, which
colour-blind people can tell apart and which stay in order in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "viridis"
DOTS_PER_INCH = 100
PAPER, INK = "#fbfaf7", "#22211f"
TITLE = 9
"""Points."""
MARGIN = 0.08
"""Inches around each picture of a sheet and its title."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DOTS_PER_INCH, facecolor=PAPER, edgecolor=INK, layout="constrained")


def drawn(figure: Figure) -> Tensor:
    """The figure as a picture: (height, width, 3) in 0..1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].copy()).float() / 255


class Tile(NamedTuple):
    """One picture of a sheet."""

    title: str
    picture: Tensor
    """(height, width, 3) in 0..1."""
    heat: Tensor | None = None
    """(height, width) in 0..1, laid over the picture."""


def sheet(tiles: Sequence[Tile], columns: int, *, side: float = 2.2, scale: str = "") -> Tensor:
    """Pictures in rows, each under its title: (height, width, 3) in 0..1.

    :param side: inches of a picture's longer side.
    :param scale: what the colours of ``heat`` mean, from 0 to 100 %; without it there is no colour bar.
    """
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width, _ = tiles[0].picture.shape
    longer = max(height, width)
    titles = [plain(tile.title.strip("\n")) for tile in tiles]
    lines = max(title.count("\n") for title in titles) + 1
    figure = new_figure(
        columns * (side * width / longer + 2 * MARGIN),
        rows * (side * height / longer + 2 * MARGIN + 0.18 * lines) + 0.5 * bool(scale),
    )
    figure.get_layout_engine().set(h_pad=MARGIN, w_pad=MARGIN)
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, tile, title in zip(axes.flat, tiles, titles, strict=False):
        if tile.heat is None:
            axis.imshow(tile.picture.numpy())
        else:
            axis.imshow(pale(tile.picture).numpy())
            heat = tile.heat.numpy()
            shown = axis.imshow(heat, cmap=COLOURS, vmin=0, vmax=1, alpha=0.35 + 0.5 * heat)
        # A title grows upwards: lines below keep the first lines of a row level.
        axis.set_title(title + "\n" * (lines - 1 - title.count("\n")), fontsize=TITLE, color=INK)
    if shown is not None and scale:
        from matplotlib.cm import ScalarMappable
        from matplotlib.ticker import PercentFormatter

        bar = figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=axes, location="bottom", aspect=60, pad=0.01)
        bar.ax.xaxis.set_major_formatter(PercentFormatter(1))
        bar.set_label(plain(scale), fontsize=TITLE)
        bar.ax.tick_params(labelsize=TITLE - 1)
    return drawn(figure)


def pale(picture: Tensor) -> Tensor:
    """A picture whose colours can't pass for heat: (height, width, 3) in 0..1."""
    return 0.35 * picture + 0.65 * picture.mean(dim=-1, keepdim=True)


def table_of_colours(
    values: Tensor, rows: Sequence[str], columns: Sequence[str], *, scale: str, title: str = ""
) -> Tensor:
    """Numbers as colours: (rows, columns) in 0 or more -> (height, width, 3) in 0..1."""
    figure = new_figure(2.6 + 0.42 * len(columns), 1.6 + 0.24 * len(rows))
    axis = figure.subplots()
    shown = axis.imshow(values.numpy(), cmap=COLOURS, vmin=0, vmax=max(float(values.max()), 1e-9), aspect="auto")
    axis.set_xticks(range(len(columns)), [plain(c) for c in columns], rotation=55, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(rows)), [plain(r) for r in rows])
    axis.tick_params(labelsize=TITLE, colors=INK)
    axis.set_title(plain(title), fontsize=TITLE + 1, color=INK, loc="left")
    bar = figure.colorbar(shown, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label(plain(scale), fontsize=TITLE)
    bar.ax.tick_params(labelsize=TITLE - 1)
    return drawn(figure)


def whole_numbers(axis: Axes) -> None:
    """Layers are numbered, so no tick lies between two of them."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """That many colours of the scale, far apart."""
    from matplotlib import colormaps

    return [colormaps[COLOURS](0.1 + 0.8 * i / max(count - 1, 1)) for i in range(count)]


def plain(text: str) -> str:
    """Text that matplotlib draws as it stands: a dollar would start a formula."""
    return text.replace("$", r"\$")
