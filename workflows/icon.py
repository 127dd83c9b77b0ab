"""Draws the pack's icon and banner: ``python -m workflows.icon`` writes ``web/icon.png`` and ``web/banner.png``."""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image, ImageDraw

from sparse_core.files import write_atomically

from .build import FOLDER

SCALE = 4
"""Drawn so many times larger and shrunk, for smooth edges."""
BACKGROUND, SILENT = "#1f2233", "#3a3f5c"
ICON = {(1, 1): "#ffb347", (3, 0): "#4fd1c5", (2, 3): "#f56565", (4, 3): "#9f7aea"}
"""Column and row of the few that fire."""
BANNER = {(column + 1, row): colour for (column, row), colour in ICON.items()}
BANNER |= {(7, 1): "#f56565", (9, 4): "#ffb347", (10, 0): "#9f7aea", (12, 2): "#4fd1c5"}


def draw(atoms: Mapping[tuple[int, int], str], columns: int, rows: int, height: int) -> Image.Image:
    """A grid of dots, few of them alight: a sparse code. As wide as the dots need at this height in pixels."""
    cell = height * SCALE / (rows + 1)
    size = (round(cell * (columns + 1)), height * SCALE)
    picture = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(picture)
    for column in range(columns):
        for row in range(rows):
            colour = atoms.get((column, row))
            x, y, radius = (column + 1) * cell, (row + 1) * cell, cell * (0.42 if colour else 0.16)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour or SILENT)
    return picture.resize((size[0] // SCALE, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    for name, picture in (("icon", draw(ICON, 5, 5, 400)), ("banner", draw(BANNER, 13, 5, 450))):
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        write_atomically(FOLDER.parent / "web" / f"{name}.png", file.getvalue())
