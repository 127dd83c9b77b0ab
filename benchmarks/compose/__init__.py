"""Composing: two things taught apart, drawn in one picture."""
