"""Edits of one picture, with the right answers from the renderer: ``python -m benchmarks.editing``."""
