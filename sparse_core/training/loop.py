"""The training loop: one for every host and every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..analysis.importance import Measurement, measure, with_importance
from ..dictionary import SparseDictionary
from ..examples import Batch, Example, draw_batch
from ..hosts.base import Host
from ..memory import is_out_of_memory
from ..words import OpenWord
from .learners import DictionaryLearner, Learner, WordLearner, rates
from .objective import loss_weight, squared_error
from .preview import Preview
from .processes import ALONE, Processes
from .scaling import LossScale
from .settings import TrainingSettings
from .state import TrainingState

LOWEST_RATE = 0.1
"""Share of the peak learning rate that is left at the end."""
CHECK_BATCHES = 4
"""Batches in one look at the held-out loss."""


class TrainingStopped(Exception):
    """Raised by a progress callback to stop: what was learnt so far is kept."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every step."""

    step: int
    """Steps done, from 1."""
    steps: int
    losses: list[float]
    """Diffusion loss of every step so far."""
    held_out: list[float]
    """Loss on the held-out pictures at every check so far."""
    estimate: Tensor
    """The model's estimate of this step's clean latents, (rows, channels, height, width)."""

    @property
    def loss(self) -> float:
        """Diffusion loss of this step."""
        return self.losses[-1]


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Linear warm-up, then a cosine: steps counted from 0."""
    warm_up = max(1, round(settings.warm_up * settings.steps))
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, settings.steps - warm_up)
    return LOWEST_RATE + (1 - LOWEST_RATE) * (1 + math.cos(math.pi * min(done, 1))) / 2


class Trainer:
    """One training, step by step. Everything that the next step depends on is in `state`."""

    def __init__(
        self,
        host: Host,
        learner: Learner,
        examples: Sequence[Example],
        settings: TrainingSettings,
        held_out: Sequence[Example] = (),
        processes: Processes = ALONE,
    ) -> None:
        """
        :param processes: those that train with this one, each with a batch of its own; ``learner`` must know of them too.
        :raises ValueError: there are no examples.
        """
        if not examples:
            raise ValueError("There is nothing to learn from; expected at least one picture with its caption.")
        self.host, self.learner, self.settings = host, learner, settings
        self.examples, self.held_out_examples, self.processes = examples, held_out, processes
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parameters = learner.parameters()
        self.optimiser = torch.optim.Adam(rates(learner), betas=(0.9, 0.99), foreach=True)
        self.peaks = [group["lr"] for group in self.optimiser.param_groups]
        self.scale = LossScale(host.dtype)
        self.mean = {name: torch.zeros_like(t) for name, t in self.parameters.items()} if settings.ema else {}
        self.best: dict[str, Tensor] = {}
        """The weights that fared best on the held-out pictures; empty where nobody waits for that to turn."""
        self.step = 0
        self.losses: list[float] = []
        self.held_out: list[float] = []

    def advance(self) -> Tensor:
        """One optimiser step; returns the estimate of the last batch's clean latents.

        Hosts are interrupted within model calls: a step that is not taken leaves the state as it was.

        :raises ValueError: the loss is no longer a number.
        """
        before = self.step, self.generator.get_state(), {n: t.clone() for n, t in self.learner.buffers().items()}
        try:
            return self._advance()
        finally:
            step, random, buffers = before
            if self.step == step:
                self.optimiser.zero_grad()
                self.generator.set_state(random)
                for name, tensor in self.learner.buffers().items():
                    tensor.copy_(buffers[name])

    def _advance(self) -> Tensor:
        settings = self.settings
        for group, peak in zip(self.optimiser.param_groups, self.peaks, strict=True):
            group["lr"] = peak * learning_rate_factor(self.step, settings)
        total = 0.0
        for _ in range(settings.accumulate):
            batch = self.draw(self.examples, self.generator)
            with self.learner.at_work(batch.prior):
                error, estimate = self.errors(batch)
                loss = (error * torch.where(batch.prior, settings.prior, 1.0)).mean()
                self.scale.scaled((loss + self.learner.penalty()) / settings.accumulate).backward()
            total += float(loss.detach()) / settings.accumulate
        total = self._agreed(total)
        if not math.isfinite(total):
            raise ValueError(
                f"The loss is {total} at step {self.step + 1}. Lower the learning rate (now {settings.learning_rate:g})."
            )
        gradients = [t.grad for t in self.parameters.values() if t.grad is not None]
        self.processes.average(gradients)
        if self.scale.unscale(gradients):
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        self.losses.append(total)
        for name, mean in self.mean.items():
            mean.lerp_(self.parameters[name].detach(), 1 - settings.ema)
        if settings.reseed_every and self.step % settings.reseed_every == 0 and self.step <= settings.steps // 2:
            places = (estimate.detach() - batch.target).square().mean(dim=1, keepdim=True) * batch.mask
            self._forget(self.learner.maintain(places))
        self._watch()
        return estimate.detach()

    def _watch(self) -> None:
        """Looks at the held-out pictures where that is due."""
        checks, more = divmod(self.step, self.settings.check_every)
        if self.held_out_examples and not more and len(self.held_out) < checks:
            self.held_out.append(self.check())
            if self.settings.patience and self.held_out[-1] == min(self.held_out):
                self.best = {name: tensor.clone() for name, tensor in self.smoothed().items()}

    def draw(self, examples: Sequence[Example], generator: torch.Generator) -> Batch:
        """This process's rows of the next batch."""
        rows = self.settings.batch * self.processes.count
        return draw_batch(self.host, examples, rows, generator, self.processes.own)

    def precision(self) -> AbstractContextManager[None]:
        """What the model computes in, while the context lasts."""
        return torch.autocast(self.host.device.type, torch.bfloat16, enabled=self.settings.autocast)

    def errors(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(rows,) weighted squared errors and the estimate of the clean latents, by the host as it is."""
        with self.precision():
            noisy = self.host.add_noise(batch.latents, batch.noise, batch.progress)
            estimate = self.host.denoise(noisy, batch.progress, batch.condition)
        weight = loss_weight(self.host.prediction, self.host.snr(batch.progress).to(batch.latents.device))
        return weight * squared_error(estimate, batch.target, batch.mask), estimate

    @torch.no_grad()
    def check(self) -> float:
        """The loss on the held-out pictures, always with the same noise."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        total = 0.0
        for _ in range(CHECK_BATCHES):
            batch = self.draw(self.held_out_examples, generator)
            with self.learner.at_work(batch.prior):
                total += float(self.errors(batch)[0].mean()) / CHECK_BATCHES
        return self._agreed(total)

    def _agreed(self, loss: float) -> float:
        return float(self.processes.mean(torch.tensor(loss, dtype=torch.float64)))

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the held-out loss has turned."""
        return self.step >= self.settings.steps or self.turned

    @property
    def turned(self) -> bool:
        """Whether the held-out loss has not fallen for as many checks as there is patience for."""
        patience = self.settings.patience
        return len(self.held_out) > patience > 0 and min(self.held_out[-patience:]) >= min(self.held_out[:-patience])

    def smoothed(self) -> dict[str, Tensor]:
        """The weights as they count: where they are averaged, their running mean, corrected for its start."""
        correction = 1 - self.settings.ema**self.step
        means = {name: mean / correction for name, mean in self.mean.items()} if self.step else {}
        return {name: tensor.detach() for name, tensor in self.parameters.items()} | means

    @torch.no_grad()
    def conclude(self) -> None:
        """Puts those weights in place that are to be kept: where the held-out loss has turned, those from before."""
        for name, tensor in (self.best if self.turned else self.smoothed()).items():
            self.parameters[name].copy_(tensor)

    def _forget(self, rows: list[tuple[str, int]]) -> None:
        for name, row in rows:
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimiser.state[self.parameters[name]][moment][row] = 0
            if name in self.mean:
                self.mean[name][row] = self.parameters[name].detach()[row] * (1 - self.settings.ema**self.step)

    def kept(self) -> dict[str, Tensor]:
        """Every tensor of the learner that the next step depends on."""
        return {**self.parameters, **self.learner.buffers(), "loss_scale": self.scale.state}

    def state(self) -> TrainingState:
        """Everything that the next step depends on."""
        moments = {
            name: {k: v.detach().clone() for k, v in self.optimiser.state[tensor].items()}
            for name, tensor in self.parameters.items()
            if tensor in self.optimiser.state
        }
        tensors = {name: tensor.detach().clone() for name, tensor in self.kept().items()}
        return TrainingState(
            self.step,
            tensors,
            moments,
            dict(self.mean),
            dict(self.best),
            self.generator.get_state(),
            self.losses[:],
            self.held_out[:],
            self.settings.record(),
        )

    @torch.no_grad()
    def restore(self, state: TrainingState) -> None:
        """Goes on from a saved state, as if never interrupted.

        :raises ValueError: the state is of another training.
        """
        state.check_fits(self.kept(), self.settings.record())
        self.step, self.losses, self.held_out = state.step, list(state.losses), list(state.held_out)
        self.generator.set_state(state.random)
        for name, tensor in self.kept().items():
            tensor.copy_(state.tensors[name])
            if name in state.moments:
                self.optimiser.state[tensor] = {
                    key: value.clone() if key == "step" else value.to(tensor.device).clone()
                    for key, value in state.moments[name].items()
                }
        self.mean, self.best = (
            {name: tensor.to(self.parameters[name].device) for name, tensor in some.items()}
            for some in (state.mean, state.best)
        )
        self._watch()  # an interruption may have come between a step and its check


def _measured(host: Host, dictionary: SparseDictionary, examples: Sequence[Example], seed: int) -> Measurement:
    """What has been learnt is not lost for want of memory to measure it: where that does not suffice, it goes picture by
    picture."""
    try:
        return measure(host, dictionary, examples, seed=seed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return measure(host, dictionary, examples, rows=1, seed=seed)


def _with_word(dictionary: DictionaryLearner, word: str, opened: OpenWord, rate: float) -> WordLearner:
    """The dictionary with a word beside it, each of its embeddings at a rate in the scale of all words'."""
    return WordLearner(
        dictionary,
        {f"word.{word}.{width}": shift for width, shift in opened.shifts.items()},
        {f"word.{word}.{width}": rate * spread for width, spread in opened.spread.items()},
    )


def train(
    host: Host,
    examples: Sequence[Example],
    settings: TrainingSettings,
    on_step: Callable[[Progress], None] = lambda progress: None,
    metadata: dict[str, Any] | None = None,
    *,
    word: str | None = None,
    held_out: Sequence[Example] = (),
    preview: Preview | None = None,
    autosave: Path | None = None,
    autosave_every: int = 50,
    processes: Processes = ALONE,
    trainer_of: type[Trainer] = Trainer,
) -> SparseDictionary:
    """Fits a dictionary to examples.

    :param on_step: called after every step; may raise `TrainingStopped`, or what the host raises when a person cancels.
    :param metadata: kept in the dictionary, beside the training record.
    :param word: what the new thing is called in the captions: its meaning is learnt too, and comes with the dictionary.
    :param held_out: pictures to watch for overfitting.
    :param preview: a picture to draw along the way, before ``on_step`` is called; it changes nothing that is learnt.
    :param autosave: a file for the training's state: written every ``autosave_every`` steps, at a stop and at the end, gone
        on from where it exists. Whoever has put the dictionary away removes it, if ``finished`` says so in the record.
    :param processes: those that call this at the same time with the same arguments; each step takes a batch of every one.
        All give the same dictionary, and the first alone writes ``autosave``.
    :param trainer_of: with which errors to learn from the examples.
    :returns: the dictionary, directions of unit norm, importance measured on the examples, and on prior examples what it
        is elsewhere.
    :raises ValueError: there are no examples, there is patience with nothing held out, the loss stops being a number, or
        ``autosave`` is of another training.
    :raises MemoryError: the device's memory does not suffice.
    """
    if settings.patience and not held_out:
        raise ValueError(
            f"patience is {settings.patience}, but no pictures are held out to watch. Give some that are not learnt from, or "
            "set patience to 0."
        )
    opening = host.learning(word) if word and settings.word_rate else nullcontext()
    with opening as opened:
        with host.trainable(settings.checkpointing):
            dictionary = DictionaryLearner(host, settings, processes)
            learner = dictionary if opened is None else _with_word(dictionary, word, opened, settings.word_rate)
            trainer = trainer_of(host, learner, examples, settings, held_out, processes)
            if autosave is not None and autosave.exists():
                trainer.restore(TrainingState.load(autosave))
            writes = autosave is not None and processes.leads
            try:
                while not trainer.finished:
                    estimate = trainer.advance()
                    if writes and trainer.step % autosave_every == 0:
                        trainer.state().save(autosave)
                    if preview is not None and trainer.step % preview.every == 0:
                        preview.show(trainer.step, preview.draw(host, dictionary.adapter))
                    on_step(Progress(trainer.step, settings.steps, trainer.losses, trainer.held_out, estimate))
            except (TrainingStopped, *host.interruptions):
                pass
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                kept = (
                    f" At most {autosave_every} steps of work are lost: train with resume to go on." if autosave else ""
                )
                raise MemoryError(
                    f"Training ran out of memory with pictures of {tuple(examples[0].latents.shape[-2:])} latent pixels, batch "
                    f"{settings.batch}. Lower the batch (accumulate makes up for it), turn checkpointing and autocast on, or use "
                    f"smaller pictures.{kept}"
                ) from error
            if writes:
                trainer.state().save(autosave)
            trainer.conclude()
            finished = dictionary.snapshot()
        kept = [example for example in examples if example.prior]
        subjects = [example for example in examples if not example.prior] or examples
        with trainer.precision():
            measured, elsewhere = (
                _measured(host, finished, some, settings.seed) if some else None for some in (subjects, kept)
            )
    record = {
        **settings.record(),
        "steps_done": trainer.step,
        "finished": trainer.finished,
        "final_loss": sum(trainer.losses[-20:]) / max(1, len(trainer.losses[-20:])),
        "atoms_reseeded": int(dictionary.reseeded),
        "active_share": measured.active_share(),
        "held_out": trainer.held_out,
    }
    # As those of files, which it may be combined with.
    learnt = with_importance(finished, measured, elsewhere).map(lambda atoms: atoms.map(Tensor.cpu))
    words = {} if opened is None else {word: {width: shift.detach().cpu() for width, shift in opened.shifts.items()}}
    return replace(learnt, metadata={**(metadata or {}), "training": record}, words=words)
