"""One training under the loop that users have: the same pictures, prior pictures and loss for every method."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import torch
from PIL import Image

from sparse_core.pictures import CaptionedPicture, encode_pictures
from sparse_core.training import Example
from sparse_core.training.loop import Trainer

from .concepts import WORD, Half, Studio, Task, prior_prompts
from .methods import Method, Taught, keep, new_learner
from .sampling import Sampler
from .words import EMBEDDING, PromptedHost

PRIOR_PICTURES = 48


class Training(NamedTuple):
    """A training that has run."""

    taught: Taught
    seconds: float
    final_loss: float


@torch.no_grad()
def lessons(host: PromptedHost, studio: Studio, task: Task) -> list[Example]:
    """A task's pictures as the model sees them."""
    pictures = [
        CaptionedPicture(f"{number}.png", Image.fromarray(lesson.rendering.picture), lesson.caption)
        for number, lesson in enumerate(studio.lessons(task))
    ]
    return list(encode_pictures(host, pictures))


@cache
def prior(sampler: Sampler, half: Half, seed: int) -> list[Example]:
    """Pictures that the base makes itself, to keep: the same for every method and task."""
    prompts = prior_prompts(half, PRIOR_PICTURES)
    latents = sampler.latents(prompts, seed)
    return [Example(z, prompt, prior=True) for z, prompt in zip(latents, prompts, strict=True)]


def teach(sampler: Sampler, studio: Studio, task: Task, method: Method, seed: int) -> Training:
    """Trains a method on a task; the host is afterwards as it was."""
    host = sampler.host
    to_learn = lessons(host, studio, task)
    # A style shows in everything: pictures without it, for prompts that differ by one word, would unteach it.
    to_keep = prior(sampler, task.half, seed) if task.kind == "concept" else []
    host.pipeline.text_encoder.requires_grad_(False)
    with host.trainable():
        learner = new_learner(host, method, seed)
        for tensor in learner.parameters().values():
            tensor.requires_grad_()
        trainer = Trainer(host, learner, [*to_learn, *to_keep], replace(method.settings, seed=seed))
        began = time.perf_counter()
        with host.spoken(WORD, learner.embeddings[EMBEDDING]):
            while not trainer.finished:
                trainer.advance()
            trainer.conclude()
        seconds = time.perf_counter() - began
    recent = trainer.losses[-20:]
    return Training(keep(host, learner, to_learn, to_keep, seed), seconds, sum(recent) / len(recent))
