"""Distilling: what a model does with something on it, such as a LoRA, asked for question by question, so that a dictionary can
learn to do the same: to give the same answers, and to come by them over the same features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from ..controls import SparseAdapter, Stack
from ..dictionary import SparseDictionary
from ..examples import Answer, Batch, Example, Feature
from ..hosts.base import Host
from ..layers import Projection, Site
from ..plan import Moment
from .learners import initial_dictionary
from .loop import Progress, Trainer, train
from .prior import prior_examples
from .settings import TrainingSettings

DEFAULTS = TrainingSettings(sparsity=3e-4)
"""Matched features spread over many atoms, so the group term is stronger than in other trainings."""
WATCHED: tuple[Projection, ...] = ("q", "o")
"""A query reads what the layers before made of the picture, an output what the attention made of it: between them all that an
adaptation of attentions changes shows, however it is patched in."""
TOKENS = 16
"""Of a picture, of which each watched site's features are kept: two gigabytes for SDXL in the end."""
GUIDED_UNTIL = 0.7
"""Share of the training at which features count no more, so that the group term can empty what only they needed."""


@torch.no_grad()
def questioned(
    teacher: Host,
    conditions: Sequence[Any],
    negative: Any,
    shape: tuple[int, int, int],
    *,
    stack: Stack = (),
    pictures: int = 24,
    questions: int = 8,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> list[Example]:
    """Examples to `distil`, with the teacher's answers in place of pictures.

    The teacher draws pictures for the conditions in turn, and is then shown each with several amounts of noise, evenly spread.
    All is asked beforehand: the teacher need not be in memory, nor its weights be patched in, while the pupil learns.

    :param teacher: the model with what is to be distilled; the conditions are its own, of single prompts.
    :param negative: the condition of the empty prompt.
    :param shape: (channels, height, width) of the latents.
    :param stack: adapters to put on the teacher, beside what is on it already.
    :param pictures, questions: how many pictures, and questions to each, >= 1. Their product is what there is to learn from.
    :param on_step: called after every model run or step of sampling; may raise to stop.
    :raises ValueError: there are no conditions, or a number is out of its range.
    """
    if not conditions:
        raise ValueError("There are no prompts to distil at; expected at least one that shows what the model can do.")
    if pictures < 1 or questions < 1:
        raise ValueError(f"There are {pictures} pictures with {questions} questions each; expected at least 1 of both.")
    generator = torch.Generator().manual_seed(seed)
    with teacher.patched(stack):
        drawn = prior_examples(teacher, conditions, negative, shape, count=pictures, seed=seed, on_step=on_step)
    silent = initial_dictionary(teacher.layers, TrainingSettings(atoms=1, projections=WATCHED))
    reader, asked = _Reader(generator), []
    with teacher.patched([*stack, SparseAdapter(silent)], reader):
        for picture in drawn:
            noise = torch.randn((questions, *shape), generator=generator).to(teacher.device)
            progress = (torch.arange(questions) + torch.rand(questions, generator=generator)) / questions
            latents = picture.latents.to(teacher.device).expand_as(noise)
            condition = teacher.stack_conditions([picture.condition] * questions)
            estimates = teacher.denoise(teacher.add_noise(latents, noise, progress), progress, condition)
            on_step()
            answers = map(Answer, noise.cpu(), progress.tolist(), estimates.float().cpu(), reader.taken(questions))
            asked += [replace(picture, latents=picture.latents.cpu(), prior=False, answer=answer) for answer in answers]
    return asked


class _Reader:
    """An observer that keeps what the watched sites read."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.read: dict[Site, Feature] = {}

    def __call__(self, site: Site, atoms: Sequence[int], x: Tensor, z: Tensor, y: Tensor, moment: Moment) -> None:
        if site.projection in WATCHED and site not in self.read:
            tokens = torch.rand(x.shape[:2], generator=self.generator).topk(min(TOKENS, x.shape[1])).indices
            self.read[site] = Feature(tokens, at_tokens(x, tokens.to(x.device)).half().cpu())

    def taken(self, rows: int) -> list[dict[Site, Feature]]:
        """What was read since the last time, row by row."""
        read, self.read = self.read, {}
        return [{site: Feature(f.tokens[row], f.values[row]) for site, f in read.items()} for row in range(rows)]


def at_tokens(x: Tensor, tokens: Tensor) -> Tensor:
    """(rows, tokens, d), (rows, k) -> (rows, k, d)."""
    return x.gather(1, tokens[..., None].expand(-1, -1, x.shape[-1]))


def feature_error(x: Tensor, feature: Feature) -> Tensor:
    """How far features are from those of the teacher, squared and relative to theirs: (rows, tokens, d) -> (rows,)."""
    goal = feature.values.to(x.dtype)
    return (at_tokens(x, feature.tokens) - goal).square().mean(dim=(1, 2)) / goal.square().mean().clamp(min=1e-12)


class MatchingTrainer(Trainer):
    """Learns a teacher's answers and, at first, its features too."""

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Trainer.errors`."""
        error, estimate = super().errors(batch)
        weight = max(0.0, 1 - self.step / (GUIDED_UNTIL * self.settings.steps))
        read = {site: seen.x for site, seen in self.learner.seen.items() if site in batch.features}
        if not weight or not read:
            return error, estimate
        apart = torch.stack([feature_error(x, batch.features[site]) for site, x in read.items()])  # (sites, rows)
        return error + weight * apart.mean(dim=0), estimate


def distil(
    host: Host,
    asked: Sequence[Example],
    settings: TrainingSettings = DEFAULTS,
    on_step: Callable[[Progress], None] = lambda progress: None,
    metadata: dict[str, Any] | None = None,
) -> SparseDictionary:
    """Fits a dictionary to a teacher's answers.

    :param host: the plain model.
    :param asked: by `questioned`, of a model with the same layers.
    :param on_step, metadata: as in `train`, which says what is returned and raised.
    :raises ValueError: the model that was asked has other layers.
    """
    widths = {Site(n, p): layer.shape(p)[0] for n, layer in enumerate(host.layers) for p in WATCHED}
    for example in asked:
        if any(widths.get(site) != f.values.shape[-1] for site, f in example.answer.features.items()):
            raise ValueError(
                "The model that was asked has other attention layers than the one that is to learn. Connect one checkpoint to "
                "both, once plain and once with what is to be distilled."
            )
    return train(host, asked, settings, on_step, metadata, trainer_of=MatchingTrainer)
