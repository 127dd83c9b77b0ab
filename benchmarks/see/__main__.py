"""Selectivity of ablations and truth of heat maps, of sparse dictionaries and of LoRAs' directions; what looking costs.

    python -m benchmarks.see             everything, a day on two CPU cores
    python -m benchmarks.see --quick     four concepts, an hour

Goes on where it was stopped. Trainings are those of ``benchmarks.quality``, found in the same cache. The report of the quick tier
goes to ``out/see``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from sparse_core.cli import main as sparse_atoms
from sparse_core.demo.judge import Judge
from sparse_core.demo.model import bundled_path
from sparse_core.demo.shipped import DICTIONARIES
from sparse_core.generate import Sampling

from .. import destination
from ..cells import Cells, digest, source_digest, weights_digest
from ..machine import versions
from ..quality.concepts import CONCEPTS, HALVES, WORD, Asked, Task, questions, tasks
from ..quality.curves import bootstrap
from ..quality.table import CORE, NOISE, Lab, Setup, Unit
from ..quality.teaching import lessons
from . import report
from .looking import TOP, look
from .regions import regions
from .scores import check, weighted
from .subjects import ALIKE, SUBJECTS, Subject, opened

HERE = Path(__file__).parent
SOURCES = [HERE / f"{name}.py" for name in ("scores", "regions", "subjects", "looking")]
SOURCES += [CORE / "analysis" / f"{name}.py" for name in ("heatmaps", "recording", "ranking", "importance")]
SOURCES += [CORE / "addresses.py", CORE / "generate.py", CORE / "modules.py"]
SOURCES += [CORE / "compose" / "baking.py", CORE / "demo" / "judge.py"]
GALLERY_THREADS = 2


class Tier(NamedTuple):
    """How much is measured."""

    name: str
    concepts: Mapping[str, int]
    """Per half."""
    seeds: tuple[int, ...]
    prompts: int


WHOLE = Tier("whole", {"dev": 4, "held_out": 4}, (0, 1), 12)
QUICK = Tier("quick", {"dev": 2, "held_out": 2}, (0,), 4)


class Cell(NamedTuple):
    """One picture of one training, looked at atom by atom."""

    subject: Subject
    task: Task
    seed: int
    number: int
    """Of the prompt."""

    @property
    def unit(self) -> Unit:
        """The training."""
        return Unit(self.task, self.seed, self.subject.method, ())


def cells_of(tier: Tier) -> list[Cell]:
    """All work; the subjects of a training together, since what they share is then at hand."""
    chosen = tasks({half: CONCEPTS[half][: tier.concepts[half]] for half in HALVES}, {})
    return [
        Cell(subject, task, seed, number)
        for seed in tier.seeds
        for task in chosen
        for subject in SUBJECTS
        for number in range(tier.prompts)
    ]


class Bench:
    """All that is needed to measure a cell."""

    def __init__(self, setup: Setup, tier: Tier) -> None:
        self.lab, self.tier = Lab(setup), tier
        self.cells = Cells(setup.cache, {"table": "see"})
        self.judge = Judge.load(setup.model / "judge")
        self._seen_with = seen_with(setup.model)

    def key(self, cell: Cell) -> str:
        """A digest of everything that a cell depends on."""
        training = self.lab.keys.training(cell.unit)
        look = [cell.subject.name, cell.number, TOP, NOISE["asked"], self.lab.setup.sampling()]
        return "look/" + digest([training, look, self._seen_with])

    def fill(self, missing: Sequence[Cell]) -> Iterator[Cell]:
        """Measures cells, and gives each once it is kept."""
        host, setup = self.lab.sampler.host, self.lab.setup
        for (subject, task, seed), some in _grouped(missing).items():
            taught = self.lab.taught(some[0].unit)
            with host.spoken(WORD, taught.tensors["word"]):
                dictionary = opened(subject, host, taught, lessons(host, self.lab.studio, task), seed)
                asked = self.asked(task)
                for cell in some:
                    one = asked[cell.number]
                    cut = regions(one.scene, self.lab.studio.render(one.scene, task))
                    check(cut)
                    how = Sampling(setup.sampling_steps, setup.guidance, negative=one.negative)
                    noise = NOISE["asked"] + cell.number
                    self.cells[self.key(cell)] = look(host, dictionary, one.prompt, noise, how, cut, self.judge)
                    yield cell

    def asked(self, task: Task) -> list[Asked]:
        """The prompts that a task is looked at on."""
        return questions(task, self.tier.prompts)


def seen_with(model: Path) -> list[str]:
    """What looks depend on, beside trainings: code, and the judge's weights."""
    return [source_digest(SOURCES), weights_digest(model / "judge")]


def _grouped(cells: Sequence[Cell]) -> dict[tuple[Subject, Task, int], list[Cell]]:
    groups: dict[tuple[Subject, Task, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.subject, cell.task, cell.seed), []).append(cell)
    return groups


def summary(looks: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """The figures of all subjects.

    :param looks: by subject, then by training, then by prompt.
    """
    selective = {
        name: [np.array([weighted(one["selectivity"], one["effect"]) or 0.0 for one in training]) for training in mine]
        for name, mine in looks.items()
    }
    bounds = {
        name: bootstrap(
            lambda drawn, mine=mine: float(np.mean([mine[t][prompts].mean() for t, prompts in drawn])),
            [len(training) for training in mine],
            seed=0,
        )
        for name, mine in selective.items()
    }
    middle = {name: value for name, (_, value, _) in bounds.items()}
    return {
        "selectivity": middle,
        "selectivity_interval": {name: [low, high] for name, (low, _, high) in bounds.items()},
        "selectivity_over": {
            name: middle[mine] / value
            for mine, others in ALIKE.items()
            for name in others
            if (value := middle.get(name)) and mine in middle
        },
        "heatmap_iou": {name: _mean(map(_overlap, _flat(mine))) for name, mine in looks.items()},
        "effect": {name: _mean(e for one in _flat(mine) for e in one["effect"]) for name, mine in looks.items()},
        "one_answer": {name: _one_answer(_flat(mine)) for name, mine in looks.items()},
    }


def _flat(mine: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    return [one for training in mine for one in training]


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _overlap(one: Mapping[str, Any]) -> float | None:
    pairs = [(o, e) for o, e in zip(one["overlap"], one["effect"], strict=True) if o is not None]
    return weighted([o for o, _ in pairs], [e for _, e in pairs])


def _one_answer(looks: Sequence[Mapping[str, Any]]) -> float | None:
    flips = [count for one in looks for count in one["flips"] if count]
    return flips.count(1) / len(flips) if flips else None


def what_looking_costs() -> dict[str, Any]:
    """The command that draws a gallery, heat maps and words of the strongest atoms of a shipped dictionary on one page: of one
    picture, and with as many others as its labels are decided on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(GALLERY_THREADS)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "robot.html")
        command = ["report", str(DICTIONARIES / "robot.safetensors"), "--top", str(TOP), "--out", str(page)]
        alone = _seconds([*command, "--pictures", "1"])
        labelled = _seconds(command)
        size = page.stat().st_size
    torch.set_num_threads(threads)
    return {
        "gallery_seconds": alone,
        "labelled_gallery_seconds": labelled,
        "gallery_threads": GALLERY_THREADS,
        "report_bytes": size,
    }


def _seconds(command: Sequence[str]) -> float:
    began = time.perf_counter()
    sparse_atoms(command)
    return time.perf_counter() - began


def mixer_milliseconds(out: Path) -> float | None:
    """What ``benchmarks.mixer_latency`` measured: beside the report or, without a file there, in the usual place. None before it
    ran."""
    files = [folder / "mixer.json" for folder in (out, destination.RESULTS)]
    known = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    return known[0]["mixer_ms_2000"] if known else None


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.see", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the tier of an hour")
    parser.add_argument("--art", type=Path, metavar="ICONS_JSON", help="(default: $SPARSE_ATOMS_ART or node_modules)")
    parser.add_argument(
        "--cache", type=Path, default=HERE.parent / "cache" / "quality", metavar="FOLDER",
        help="that of benchmarks.quality, whose trainings are used (default: benchmarks/cache/quality)",
    )  # fmt: skip
    return destination.parse(parser, arguments, "see", ("quick",))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes the report."""
    options = read_arguments(arguments)
    tier = QUICK if options.quick else WHOLE
    bench = Bench(Setup(bundled_path(), options.cache, (), art=options.art, prompts=tier.prompts), tier)
    work = cells_of(tier)
    keys = {cell: bench.key(cell) for cell in work}
    missing = [cell for cell in work if keys[cell] not in bench.cells]
    with tqdm(total=len(work), initial=len(work) - len(missing), unit="picture", smoothing=0) as bar:
        for cell in bench.fill(missing):
            bar.set_postfix_str(f"{cell.subject.name}, {cell.task.name}", refresh=False)
            bar.update()
    looks = {
        subject.name: [
            [bench.cells[keys[cell]] for cell in some] for (s, _, _), some in _grouped(work).items() if s == subject
        ]
        for subject in SUBJECTS
    }
    concepts = list(dict.fromkeys(cell.task.name for cell in work))
    figures = {
        **summary(looks),
        **what_looking_costs(),
        "mixer_ms_2000": mixer_milliseconds(options.out),
        "tier": tier.name,
        "looked_at": {
            "concepts": concepts,
            "trainings": len(concepts) * len(tier.seeds),
            "pictures": tier.prompts,
            "atoms": TOP,
        },
        "seeds": list(tier.seeds),
        "versions": versions("torch", "diffusers", "peft", "transformers", "numpy"),
    }
    report.write(figures, options.out)
    print(report.as_markdown(figures))
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
