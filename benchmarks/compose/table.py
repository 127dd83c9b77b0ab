"""The table of cells: what is measured, and what each cell depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sparse_core.demo.judge import Judge
from sparse_core.files import write_atomically

from ..cells import digest, source_digest
from ..quality.concepts import Asked
from ..quality.presets import METHODS as TRAINED
from ..quality.presets import suited
from ..quality.recogniser import Recogniser, thing_labels, train_recogniser
from ..quality.table import CORE, SCORE_SOURCES, Lab, Setup, Unit, file_digest
from .composing import METHODS, composed
from .pairs import Pair, questions, render, swapped
from .scores import Answers, PairScorer, styled_samples

HERE = Path(__file__).parent
SOURCES = [CORE / "compose", *(HERE / f"{name}.py" for name in ("pairs", "composing", "scores"))]
NOISE = 30_000
"""First noise of the pictures; no training and no other benchmark shares any."""
SHOWN = 2
"""Pictures of each cell that are kept to be looked at."""

TOLD_APART = 0.6
"""Least share of a pair's prompts that the score has to be of use for."""


class Look(NamedTuple):
    """One pair of trainings, joined in one way at one strength."""

    pair: Pair
    seed: int
    method: str
    scale: float

    def trainings(self) -> list[Unit]:
        """What has to be trained for it."""
        taught = TRAINED[METHODS[self.method].trained]
        return [Unit(task, self.seed, suited(taught, task.kind), ()) for task in self.pair.tasks]


class Bench:
    """Measures looks, each once. What the quality benchmark has taught in the same cache is not taught again."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.lab = Lab(setup)
        self.keys, self.cells = self.lab.keys, self.lab.cells

    def measure(self, looks: Sequence[Look], title: str) -> None:
        """Fills the table with what it lacks. May be stopped at any time: what is measured is kept."""
        for look in tqdm(looks, title, unit="cell", smoothing=0):
            if self.key(look) not in self.cells:
                self.cells[self.key(look)] = asdict(self.look(look))

    def answers(self, look: Look) -> Answers:
        """What was measured of a look."""
        return Answers(**self.cells[self.key(look)])

    def key(self, look: Look) -> str:
        """A digest of everything that a figure depends on."""
        trainings = [self.keys.training(unit) for unit in look.trainings()]
        method = [METHODS[look.method].trained, asdict(METHODS[look.method])]
        asked = [one.prompt for one in self.asked(look.pair)]
        drawn = [look.scale, asked, NOISE, self.setup.sampling()]
        return "compose/" + digest([trainings, method, drawn, self._scores])

    def asked(self, pair: Pair) -> list[Asked]:
        """The prompts that the score is of use for: it takes the right answer for right, and the wrong one for wrong. Whatever
        is not so, such as a small thing so compact that the judge calls it big, can't be asked of any method.

        :raises ValueError: too few are left.
        """
        ends = self.references(pair)
        right, wrong = (ends[name].both_present_and_obeyed() for name in ("right", "wrong"))
        every = questions(pair, self.setup.prompts)
        kept = [one for one, good, bad in zip(every, right, wrong, strict=True) if good and not bad]
        if len(kept) < TOLD_APART * len(every):
            raise ValueError(
                f"The score is of no use for {pair.name}: it tells right renders from wrong ones on {len(kept)} of {len(every)} "
                f"prompts; expected at least {TOLD_APART:.0%}. Train the recognisers for longer."
            )
        return kept

    @cached_property
    def _scores(self) -> list[Any]:
        judge = [file_digest(path) for path in sorted((self.setup.model / "judge").glob("*.safetensors"))]
        return [source_digest([*SOURCES, *SCORE_SOURCES]), judge, self.keys.recogniser()]

    @cached_property
    def scorer(self) -> PairScorer:
        """Judge and recognisers."""
        return PairScorer(Judge.load(self.setup.model / "judge"), self.lab.studio, self.recogniser)

    def recogniser(self, kind: str) -> Recogniser:
        """Of styles as the quality benchmark knows it; of things in all styles."""
        return self._things if kind == "concept" else self.lab.recogniser(kind)

    @cached_property
    def _things(self) -> Recogniser:
        tasks, steps = self.setup.tasks, self.setup.recogniser_steps
        name = digest([self.keys.recogniser(), source_digest([HERE / "scores.py"])])
        path = self.cells.folder / "recogniser" / f"{name}-styled.safetensors"
        if not path.is_file():
            samples = styled_samples(self.lab.studio, tasks, seed=1)
            train_recogniser(samples, thing_labels(tasks), True, steps, seed=1).save(path)
        return Recogniser.load(path, thing_labels(tasks))

    def look(self, look: Look) -> Answers:
        """Draws and scores; keeps some of the pictures."""
        asked = self.asked(look.pair)
        taught = [self.lab.taught(unit) for unit in look.trainings()]
        with composed(self.lab.sampler.host, look.method, taught, look.scale):
            made = self.lab.sampler.pictures([a.prompt for a in asked], [a.negative for a in asked], NOISE)
        png = BytesIO()
        Image.fromarray(np.concatenate(made[:SHOWN], axis=1)).save(png, "png")
        self.strip(look).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.strip(look), png.getvalue())
        return self.scorer.answers(look.pair, asked, made)

    def strip(self, look: Look) -> Path:
        """The picture of a look's first answers, side by side."""
        return self.cells.folder / f"{self.key(look)}.png"

    @cache  # noqa: B019 - a bench lives as long as its process
    def references(self, pair: Pair) -> dict[str, Answers]:
        """The ends of the scales: right answers, and each concept in the other's place or the style left out."""
        asked = questions(pair, self.setup.prompts)
        right = np.stack([render(self.lab.studio, pair, one.scene).picture for one in asked])
        if pair.kind == "concept":
            wrong = np.stack([render(self.lab.studio, pair, swapped(one.scene)).picture for one in asked])
        else:
            wrong = np.stack([self.lab.studio.render(one.scene, pair.first).picture for one in asked])
        return {name: self.scorer.answers(pair, asked, made) for name, made in (("right", right), ("wrong", wrong))}


def looks(pairs: Sequence[Pair], seeds: Sequence[int], scales: dict[str, Sequence[float]]) -> list[Look]:
    """All work, so ordered that every method is looked at early.

    :param scales: of each method.
    """
    return [
        Look(pair, seed, method, scale)
        for seed in seeds
        for pair in pairs
        for method, tried in scales.items()
        for scale in tried
    ]
