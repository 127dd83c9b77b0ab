"""One HTML page that shows a `Showcase`: everything is inside the file, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined
from PIL import Image

from .analysis.ranking import importance_curve, ranking
from .files import write_atomically

if TYPE_CHECKING:
    from .showcase import Showcase

TEMPLATE = Path(__file__).with_name("report.html.jinja")
DENSITIES = tuple(percent / 100 for percent in range(0, 101, 2))
MOST_IMPORTANT = 8
"""Atoms listed by name."""


def write_report(showcase: Showcase, file_size: int, path: Path) -> None:
    """
    :param file_size: bytes of the dictionary on disk.
    """
    ranked = ranking(showcase.dictionary)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["uri"] = data_uri
    environment.globals["zip"] = zip
    quarter, half = importance_curve(ranked, (0.25, 0.5))
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        showcase=showcase,
        dictionary=showcase.dictionary,
        training=showcase.dictionary.metadata["training"],
        file_size=file_size,
        top=ranked[:MOST_IMPORTANT],
        points=chart_points(importance_curve(ranked, DENSITIES)),
        quarter=quarter,
        half=half,
    )
    write_atomically(path, page.encode())


def data_uri(picture: Image.Image) -> str:
    """The picture as an ``src`` that needs no file."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def chart_points(shares: Sequence[float]) -> str:
    """An SVG polyline through ``shares`` in a box of 100 x 100, y upwards."""
    last = len(shares) - 1
    return " ".join(f"{100 * index / last:g},{100 - 100 * share:.1f}" for index, share in enumerate(shares))
