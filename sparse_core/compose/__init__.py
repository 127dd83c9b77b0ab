"""New dictionaries from old ones: joined, cut down, or in between."""

from .combining import combine
from .extracting import extract
from .interpolating import interpolate

__all__ = ["combine", "extract", "interpolate"]
