"""Training: one loop for every host and every method."""

from ..examples import Example
from .distilling import distil, questioned
from .loop import Progress, TrainingStopped, train
from .presets import PRESETS
from .preview import Preview
from .prior import prior_examples, shared_out
from .settings import TrainingSettings

__all__ = [
    "PRESETS",
    "Example",
    "Preview",
    "Progress",
    "TrainingSettings",
    "TrainingStopped",
    "distil",
    "prior_examples",
    "questioned",
    "shared_out",
    "train",
]
