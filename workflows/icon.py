"""Draws the pack's icon: ``python -m workflows.icon`` writes ``web/icon.png``."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw

from sparse_core.files import write_atomically

from .build import FOLDER

SIDE, CELLS = 400, 5
SCALE = 4
"""Drawn so many times larger and shrunk, for smooth edges."""
BACKGROUND, SILENT = "#1f2233", "#3a3f5c"
ATOMS = {(1, 1): "#ffb347", (3, 0): "#4fd1c5", (2, 3): "#f56565", (4, 3): "#9f7aea"}
"""Column and row of the few that fire."""


def draw() -> Image.Image:
    """A grid of dots, few of them alight: a sparse code."""
    side = SIDE * SCALE
    icon = Image.new("RGB", (side, side), BACKGROUND)
    pen, cell = ImageDraw.Draw(icon), side / (CELLS + 1)
    for column in range(CELLS):
        for row in range(CELLS):
            colour = ATOMS.get((column, row))
            x, y, radius = (column + 1) * cell, (row + 1) * cell, cell * (0.42 if colour else 0.16)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour or SILENT)
    return icon.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    file = io.BytesIO()
    draw().save(file, "PNG", optimize=True)
    write_atomically(FOLDER.parent / "web" / "icon.png", file.getvalue())
