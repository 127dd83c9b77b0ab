"""Models that a dictionary can act on. Nothing outside this package knows how a model is built."""
