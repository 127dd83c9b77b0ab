"""One picture learnt under the loop that users have, the same for all methods."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import NamedTuple

from sparse_core.examples import Example
from sparse_core.training import TrainingSettings
from sparse_core.training.loop import Trainer
from sparse_core.training.presets import PRESETS

from ..quality.methods import Method, Taught, keep, new_learner
from ..quality.words import PromptedHost


def single_picture() -> TrainingSettings:
    """What the trainer's preset for one picture says."""
    return TrainingSettings(**PRESETS["single picture"])


class Learnt(NamedTuple):
    """What one picture left in a method."""

    taught: Taught
    seconds: float
    """Of processor time, which other programs on the machine do not change."""


def learn(host: PromptedHost, example: Example, method: Method, seed: int) -> Learnt:
    """Trains a method on one picture; the host is afterwards as it was."""
    host.pipeline.text_encoder.requires_grad_(False)
    began = time.process_time()
    with host.trainable():
        # The taught word comes along as it is: no prompt holds it, so that nothing is learnt for it.
        learner = new_learner(host, method, seed)
        for tensor in learner.parameters().values():
            tensor.requires_grad_()
        trainer = Trainer(host, learner, [example], replace(method.settings, seed=seed))
        while not trainer.finished:
            trainer.advance()
    taught = keep(host, learner, [example], [example], seed)
    return Learnt(taught, time.process_time() - began)
