"""Distilling: what a model does with something on it, such as a LoRA, asked for question by question, so that a dictionary can
learn to do the same. The training itself is the one for pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..examples import Answer, Example
from ..hosts.base import Host
from .prior import prior_examples


@torch.no_grad()
def questioned(
    teacher: Host,
    conditions: Sequence[Any],
    negative: Any,
    shape: tuple[int, int, int],
    *,
    pictures: int = 24,
    questions: int = 8,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Examples to `train` on, with the teacher's answers in place of pictures.

    The teacher draws pictures for the conditions in turn, and is then shown each with several amounts of noise, evenly spread.
    All is asked beforehand: the teacher need not be in memory, nor its weights be patched in, while the pupil learns.

    :param teacher: the model with what is to be distilled; the conditions are its own, of single prompts.
    :param negative: the condition of the empty prompt.
    :param shape: (channels, height, width) of the latents.
    :param pictures, questions: how many pictures, and questions to each, >= 1. Their product is what there is to learn from.
    :param on_step: called after every model run or step of sampling; may raise to stop.
    :raises ValueError: there are no conditions, or a number is out of its range.
    """
    if not conditions:
        raise ValueError("There are no prompts to distil at; expected at least one that shows what the model can do.")
    if pictures < 1 or questions < 1:
        raise ValueError(f"There are {pictures} pictures with {questions} questions each; expected at least 1 of both.")
    generator = torch.Generator().manual_seed(seed)
    drawn = prior_examples(teacher, conditions, negative, shape, count=pictures, seed=seed, on_step=on_step)
    asked = []
    for picture in drawn:
        noise = torch.randn((questions, *shape), generator=generator).to(teacher.device)
        progress = (torch.arange(questions) + torch.rand(questions, generator=generator)) / questions
        latents = picture.latents.expand_as(noise)
        condition = teacher.stack_conditions([picture.condition] * questions)
        estimates = teacher.denoise(teacher.add_noise(latents, noise, progress), progress, condition)
        on_step()
        answers = map(Answer, noise.cpu(), progress.tolist(), estimates.float().cpu())
        asked += [replace(picture, latents=picture.latents.cpu(), prior=False, answer=answer) for answer in answers]
    return asked
