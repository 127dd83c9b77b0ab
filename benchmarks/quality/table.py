"""The table of cells: what is measured, what each cell depends on, and the workers that fill it."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from tqdm import tqdm

from sparse_core.demo.judge import Judge
from sparse_core.demo.model import load_pipeline

from ..cells import Cells, digest, source_digest
from ..models import TARGETS
from . import recogniser as recognisers
from .concepts import Asked, Half, Kind, Studio, Task, open_studio, questions, unrelated
from .methods import POSITIVE, Method, Point, Taught, at_work
from .sampling import Sampler
from .scores import Scorer, check, drift
from .teaching import teach
from .words import PromptedHost

HERE = Path(__file__).parent
CORE = HERE.parent.parent / "sparse_core"
WORLD_SOURCES = [CORE / "demo" / f"{name}.py" for name in ("world", "scenery", "sprites")] + [HERE / "concepts.py"]
METHOD_SOURCES = [CORE / f"{name}.py" for name in ("coding", "controls", "dictionary", "examples", "layers", "modules")]
METHOD_SOURCES += [CORE / f"{name}.py" for name in ("pictures", "plan", "words")]
METHOD_SOURCES += [
    CORE / "training" / f"{name}.py" for name in ("learners", "loop", "objective", "processes", "scaling")
]
METHOD_SOURCES += [CORE / "lora", CORE / "analysis" / "importance.py"]
METHOD_SOURCES += [CORE / "hosts" / name for name in ("diffusers.py", "updating.py")]
METHOD_SOURCES += [HERE / f"{name}.py" for name in ("methods", "peers", "words", "sampling", "teaching")]
SCORE_SOURCES = [CORE / "demo" / "judge.py", HERE / "scores.py", HERE / "recogniser.py"]

ALONE = ", on the positive prompt only"
"""After the names of methods that leave the negative prompt to the plain model."""
TIMED_PICTURES, TIMED_TURNS = 8, 5
"""What is drawn in turns with and without an adapter to see how long it takes."""
NOISE = {"asked": 10_000, "unrelated": 20_000}
"""First noise of each kind of picture: none is shared, nor is that of the prior pictures, which counts from 0."""


@dataclass(frozen=True)
class Setup:
    """What a run is made of, beside methods: small enough to hand to every worker."""

    model: Path
    cache: Path
    tasks: tuple[Task, ...]
    """All that the recognisers tell apart, whether it is measured or not."""
    art: Path | None = None
    sprites: Path | None = None
    prompts: int = 40
    unrelated: int = 30
    sampling_steps: int = 10
    guidance: float = 3.0
    recogniser_steps: int = 700

    @property
    def recognisers(self) -> Path:
        """The folder that they are kept in."""
        return self.cache / "recognisers"

    def sampling(self) -> dict[str, Any]:
        """What all pictures depend on."""
        return {
            "prompts": self.prompts,
            "unrelated": self.unrelated,
            "steps": self.sampling_steps,
            "cfg": self.guidance,
        }


class Unit(NamedTuple):
    """One training and the points at which it is looked at: a piece of work for one worker."""

    task: Task
    seed: int
    method: Method
    points: tuple[Point, ...]

    @property
    def title(self) -> str:
        """The method and, where it is not as usual, the prompt it acts on."""
        return self.method.name + (ALONE if self.prompt == POSITIVE else "")

    @property
    def prompt(self) -> str:
        """Where it acts at all its points."""
        return self.points[0].prompt


@dataclass(frozen=True)
class Keys:
    """Names of cells: a digest of everything that a figure depends on, so that a change anywhere measures anew just what
    it touches."""

    setup: Setup

    @cached_property
    def _world(self) -> list[Any]:
        sprites = sorted(self.setup.sprites.glob("*.png")) if self.setup.sprites else []
        return [source_digest(WORLD_SOURCES), [(path.stem, file_digest(path)) for path in sprites]]

    @cached_property
    def _model(self) -> list[str]:
        parts = ("unet", "vae", "text_encoder")
        return [file_digest(path) for part in parts for path in sorted((self.setup.model / part).glob("*.safetensors"))]

    @cached_property
    def _method(self) -> str:
        return digest([source_digest(METHOD_SOURCES), TARGETS])

    @cached_property
    def _scores(self) -> list[Any]:
        judge = [file_digest(path) for path in sorted((self.setup.model / "judge").glob("*.safetensors"))]
        return [source_digest(SCORE_SOURCES), judge, self.recogniser()]

    def recogniser(self) -> str:
        """Of both recognisers: they know all tasks of a run."""
        tasks = [asdict(task) for task in self.setup.tasks]
        return digest([self._world, source_digest(SCORE_SOURCES[2:]), tasks, self.setup.recogniser_steps])

    def recogniser_files(self) -> dict[Kind, str]:
        """Their names, by what they recognise."""
        return {kind: f"{self.recogniser()}-{kind}.safetensors" for kind in get_args(Kind)}

    def training(self, unit: Unit) -> str:
        """Of one training."""
        sampling = [self.setup.sampling_steps, self.setup.guidance]  # prior pictures are drawn so
        what = [asdict(unit.task), unit.seed, asdict(unit.method)]
        return "train/" + digest([self._world, self._model, self._method, what, sampling])

    def point(self, unit: Unit, point: Point) -> str:
        """Of one look at a training."""
        return "point/" + digest([self.training(unit), list(point), self.setup.sampling(), self._scores])

    def base(self, half: Half) -> str:
        """Of the base model's pictures for unrelated prompts."""
        return digest([self._world, self._model, source_digest([HERE / "sampling.py"]), half, self.setup.sampling()])

    def reference(self, task: Task) -> str:
        """Of what the base and known pictures score."""
        what = [self._world, self._model, self._scores, asdict(task), self.setup.sampling()]
        return "reference/" + digest(what)

    def overhead(self, unit: Unit) -> str:
        """Of the time that a method takes to draw, whatever it has learnt."""
        method, settings = unit.method, unit.method.settings
        what = [method.family, method.size, settings.atoms, settings.projections, settings.attentions, unit.prompt]
        return "overhead/" + digest([self._model, self._method, what, self.setup.sampling_steps, self.setup.guidance])


def file_digest(path: Path) -> str:
    """12 hex digits of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


class Lab:
    """All that a worker holds: model, judge, artwork and the cells."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.keys = setup, Keys(setup)
        self.cells = Cells(setup.cache, {"table": "quality"})
        self.studio: Studio = open_studio(setup.art, setup.sprites)
        self.sampler = Sampler(PromptedHost(load_pipeline(setup.model)), setup.sampling_steps, setup.guidance)

    @cached_property
    def scorer(self) -> Scorer:
        """Judge and recognisers."""
        return Scorer(Judge.load(self.setup.model / "judge"), self.studio, self.recogniser)

    @cache  # noqa: B019 - a lab lives as long as its process
    def recogniser(self, kind: Kind) -> recognisers.Recogniser:
        """Of things or of styles; trained if it is not there yet."""
        tasks, steps = self.setup.tasks, self.setup.recogniser_steps
        crop = kind == "concept"
        labels = recognisers.thing_labels(tasks) if crop else recognisers.style_labels()
        path = self.setup.recognisers / self.keys.recogniser_files()[kind]
        if path.is_file():
            return recognisers.Recogniser.load(path, labels)
        samples = (
            recognisers.thing_samples(self.studio, tasks, seed=1)
            if crop
            else recognisers.style_samples(self.studio, tasks[0], seed=1)
        )
        with tqdm(samples, f"recogniser ({kind})", total=steps * recognisers.BATCH, unit="picture", leave=False) as bar:
            made = recognisers.train_recogniser(iter(bar), labels, crop, steps, seed=1)
        made.save(path)
        return made

    def reference(self, task: Task) -> dict[str, Any]:
        """What the base, right answers, the best of them that the VAE can draw, wrong answers and lessons learnt by heart score:
        the ends of the scales."""
        key = self.keys.reference(task)
        if key not in self.cells:
            asked = questions(task, self.setup.prompts)
            right = self.scorer.right(task, asked)
            pictures = {
                "base": self.draw(asked, "asked"),
                "right": right,
                "drawable": self.sampler.drawable(right),
                "wrong": self.scorer.wrong(task, asked),
                "overfitted": self.scorer.overfitted(task, asked),
            }
            answers = {name: self.scorer.answers(task, asked, made) for name, made in pictures.items()}
            check(answers["right"], answers["wrong"])
            self.cells[key] = {name: asdict(one) for name, one in answers.items()}
        return self.cells[key]

    def draw(self, asked: Sequence[Asked], kind: str) -> np.ndarray:
        """Pictures by the host as it is now."""
        return self.sampler.pictures([a.prompt for a in asked], [a.negative for a in asked], NOISE[kind])

    def base_pictures(self, half: Half) -> np.ndarray:
        """The base model's pictures for unrelated prompts, uint8 (n, h, w, 3), drawn once."""
        path = self.cells.folder / "base" / f"{self.keys.base(half)}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{multiprocessing.current_process().pid}.npy")
            np.save(partial, self.draw(unrelated(half, self.setup.unrelated), "unrelated"))
            partial.replace(path)
        return np.load(path)

    def fill(self, unit: Unit) -> int:
        """Measures what is missing of a unit; the number of its cells."""
        self.reference(unit.task)
        taught = self.taught(unit)
        self.overhead(unit, taught)
        for point in unit.points:
            key = self.keys.point(unit, point)
            if key not in self.cells:
                self.cells[key] = self._look(unit, taught, point)
        return 1 + len(unit.points)

    def taught(self, unit: Unit) -> Taught:
        """A training; trained if it is not there yet."""
        key = self.keys.training(unit)
        path = self.cells.folder / f"{key}.safetensors"
        if key not in self.cells or not path.is_file():  # figures come along in files, weights do not
            training = teach(self.sampler, self.studio, unit.task, unit.method, unit.seed)
            size = training.taught.save(path)
            self.cells[key] = {
                "seconds": training.seconds,
                "final_loss": training.final_loss,
                "parameters": training.taught.parameters(),
                "bytes": size,
                "active_share": training.taught.active_share,
            }
        return Taught.load(path)

    def overhead(self, unit: Unit, taught: Taught) -> dict[str, float]:
        """How much longer a picture takes than without an adapter: the two in turns, since machines and their loads differ."""
        key = self.keys.overhead(unit)
        if key not in self.cells:
            asked, ratios = unrelated(unit.task.half, TIMED_PICTURES), []
            for _ in range(TIMED_TURNS):
                alone = self._seconds(asked)
                with at_work(self.sampler.host, unit.method, taught, Point(prompt=unit.prompt)):
                    ratios.append(self._seconds(asked) / alone)
            self.cells[key] = {"ratio": float(np.median(ratios))}
        return self.cells[key]

    def _seconds(self, asked: Sequence[Asked]) -> float:
        began = time.perf_counter()
        self.draw(asked, "unrelated")
        return time.perf_counter() - began

    def _look(self, unit: Unit, taught: Taught, point: Point) -> dict[str, Any]:
        asked = questions(unit.task, self.setup.prompts)
        base = self.base_pictures(unit.task.half)
        with at_work(self.sampler.host, unit.method, taught, point):
            made = self.draw(asked, "asked")
            elsewhere = None
            if point.by == "importance":  # nobody would remove at random: how far that drifts is of no interest
                elsewhere = self.draw(unrelated(unit.task.half, self.setup.unrelated), "unrelated")
        answers = asdict(self.scorer.answers(unit.task, asked, made))
        moved = {} if elsewhere is None else drift(elsewhere, base)
        return {**answers, **moved}


# -------------------------------------------------------------------------------------------------------------- workers

_lab: Lab


def _start(setup: Setup, threads: int) -> None:
    """What every worker process does first."""
    global _lab
    torch.set_num_threads(threads)
    _lab = Lab(setup)


def _filled_unit(unit: Unit) -> tuple[Unit, int]:
    return unit, _lab.fill(unit)


def fill(setup: Setup, units: Sequence[Unit], workers: int, threads: int) -> None:
    """Fills the table with what it lacks. May be stopped at any time: what is measured is kept."""
    keys, cells = Keys(setup), Cells(setup.cache, {"table": "quality"})
    total = sum(1 + len(unit.points) for unit in units)
    missing = [unit for unit in units if not complete(keys, cells, unit)]
    done = total - sum(1 + len(unit.points) for unit in missing)
    if not missing:
        return
    print(f"{total} cells, {done} of them known. Preparing the recognisers.", flush=True)
    torch.set_num_threads(workers * threads)
    lab = Lab(setup)
    for kind in {unit.task.kind for unit in missing}:
        lab.recogniser(kind)  # trained once, before the workers look for it
    for half in {unit.task.half for unit in missing}:
        lab.base_pictures(half)
    torch.set_num_threads(threads)
    with tqdm(total=total, initial=done, unit="cell", smoothing=0) as bar:
        for unit, count in _filled(lab, setup, missing, workers, threads):
            bar.set_postfix_str(f"{unit.title}, {unit.task.name}", refresh=False)
            bar.update(count)


def _filled(lab: Lab, setup: Setup, units: Sequence[Unit], workers: int, threads: int) -> Iterator[tuple[Unit, int]]:
    """Units as they get ready, with their number of cells."""
    if workers == 1:
        yield from ((unit, lab.fill(unit)) for unit in units)
        return
    del lab
    with multiprocessing.get_context("spawn").Pool(workers, _start, (setup, threads)) as pool:
        yield from pool.imap_unordered(_filled_unit, units)


def complete(keys: Keys, cells: Cells, unit: Unit) -> bool:
    """Whether nothing of a unit is missing."""
    return all(name in cells for name in names(keys, unit))


def names(keys: Keys, unit: Unit) -> list[str]:
    """Of all cells of a unit."""
    known = [keys.training(unit), keys.reference(unit.task), keys.overhead(unit)]
    return [*known, *(keys.point(unit, point) for point in unit.points)]
