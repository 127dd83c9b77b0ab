"""Text alignment, likeness and drift of sparse dictionaries and their peers on unseen artwork.

    python -m benchmarks.quality             everything, six to nine hours on two CPU cores
    python -m benchmarks.quality --quick     few concepts and methods, half an hour
    python -m benchmarks.quality --sprites FOLDER --methods ours,lora --out DIR     your own RGBA PNGs
    python -m benchmarks.quality --tune --methods lora     learning rates and steps, on the development half
    python -m benchmarks.quality --round threshold         a hypothesis of rounds.py, on the development half
    python -m benchmarks.quality --quick --round base --model FOLDER --concepts owl,parrot     the same on another model

Every figure is kept as soon as it is measured: a run that was stopped (Ctrl-C reports what is there) goes on where it was,
on another machine too if it is given ``quality-cells.jsonl`` and the folder ``recognisers`` of the first, which lie beside the
report. A change of code, settings or model measures anew what depends on it. The report of a part of the work, or of other work,
goes to ``out/quality``; it takes the figures that ``benchmarks/results`` knows.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sparse_core.demo.model import bundled_path
from sparse_core.files import write_atomically

from .. import destination
from ..cells import Cells
from ..machine import versions
from . import report
from .concepts import CONCEPTS, HALVES, STYLES_OF_HALF, Task, sprite_files, tasks
from .methods import Method
from .presets import BESIDE, CONTROLS, MAIN, METHODS, ON_ONE_PROMPT, named, points, points_on_one_prompt, suited
from .rounds import ROUNDS
from .summary import comparable, gain_kept, looks, summary
from .table import Keys, Setup, Unit, complete, fill, names
from .tuning import grid, search

HERE = Path(__file__).parent
STRENGTHS = (0.5, 0.75, 1.0, 1.25)
RESTRICTING = ("quick", "sprites", "methods", "concepts", "seeds", "prompts", "steps", "recogniser_steps", "model")
"""Options with which something else than the whole is measured."""
TUNED_ON = 2
"""Development concepts that the tuning looks at."""


class Tier(NamedTuple):
    """How much is measured."""

    concepts: dict[str, int]
    """Per half."""
    styles: bool
    methods: tuple[str, ...]
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    prompts: int
    unrelated: int


WHOLE = Tier(
    concepts={"dev": 4, "held_out": 4},
    styles=True,
    methods=tuple(METHODS),
    controls=(*CONTROLS, *BESIDE),
    seeds=(0, 1),
    prompts=40,
    unrelated=30,
)
QUICK = Tier(
    concepts={"dev": 2, "held_out": 4},
    styles=False,
    methods=MAIN,
    controls=(),
    seeds=(0,),
    prompts=24,
    unrelated=12,
)


def choose_tasks(tier: Tier, sprites: Path | None) -> list[Task]:
    """What is taught: a person's own sprites, or both halves' concepts and styles."""
    if sprites:
        return tasks({"held_out": [path.stem for path in sprite_files(sprites)]}, {})
    concepts = {half: CONCEPTS[half][: tier.concepts[half]] for half in HALVES}
    return tasks(concepts, STYLES_OF_HALF if tier.styles else {})


def among(known: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """Tasks by their names.

    :raises ValueError: there is no such task.
    """
    by_name = {task.name: task for task in known}
    if missing := [name for name in names if name not in by_name]:
        raise ValueError(f"There is no concept {missing[0]!r}; expected some of {', '.join(by_name)}.")
    return [by_name[name] for name in names]


def units(chosen: Sequence[Task], tier: Tier, methods: Sequence[Method], controls: Sequence[Method]) -> list[Unit]:
    """All work, so ordered that what matters most is known first: the main methods, on the held-out half first, then those that
    also act on one prompt alone, then the controls, each on the half that it is for, then other methods, then further seeds of the
    main methods."""
    first, *further = tier.seeds
    main = [method for method in methods if method.name in MAIN]
    others = [method for method in methods if method.name not in MAIN]
    dev, held_out = ([task for task in chosen if task.half == half] for half in HALVES)
    everything = [*held_out, *dev]
    again = [method for method in main if method.name in ON_ONE_PROMPT]
    parts = [(first, main, everything, points), (first, again, everything, points_on_one_prompt)]
    beside = [method for method in controls if method.name in BESIDE]
    parts += [(first, [method for method in controls if method not in beside], dev, points)]
    parts += [(first, beside, held_out, points), (first, others, everything, points)]
    parts += [(seed, main, everything, points) for seed in further]
    return [
        Unit(task, seed, suited(method, task.kind), along(method, STRENGTHS))
        for seed, some, where, along in parts
        for task in where
        for method in some
    ]


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.quality", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cores = os.cpu_count() or 1
    parser.add_argument("--quick", action="store_true", help="the half-hour tier")
    parser.add_argument("--tune", action="store_true", help="search settings on the development half, keep a log")
    parser.add_argument("--round", choices=ROUNDS, action="append", help="try a hypothesis; may be repeated")
    parser.add_argument("--sprites", type=Path, metavar="FOLDER", help="teach these RGBA PNGs instead")
    parser.add_argument("--methods", metavar="NAMES", help="such as ours,lora,dora,loha,adapter,ti (default: all)")
    parser.add_argument("--concepts", metavar="NAMES", help="such as fox,rooster (default: all of the tier)")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many (default: 2, quick: 1)")
    parser.add_argument("--prompts", type=int, metavar="N", help="for each concept (default: 40, quick: 24)")
    parser.add_argument("--steps", type=int, metavar="N", help="of training, for all methods (default: each its own)")
    parser.add_argument("--recogniser-steps", type=int, default=Setup.recogniser_steps, metavar="N")
    parser.add_argument(
        "--workers", type=int, default=min(2, cores), metavar="N", help="processes (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="of each process (default: its share of the cores)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="(default: the bundled demo model)")
    parser.add_argument("--second-base", type=Path, metavar="FOLDER", help="another model: do the presets transfer?")
    parser.add_argument("--art", type=Path, metavar="ICONS_JSON", help="(default: $SPARSE_ATOMS_ART or node_modules)")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "cache" / "quality", metavar="FOLDER")
    options = destination.parse(parser, arguments, "quality", RESTRICTING, searching=("tune", "round"))
    options.threads = options.threads or max(1, cores // options.workers)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes the report of all that is there."""
    options = read_arguments(arguments)
    tier = QUICK if options.quick else WHOLE
    tier = tier._replace(
        seeds=tuple(range(options.seeds)) if options.seeds else tier.seeds, prompts=options.prompts or tier.prompts
    )
    wanted = options.concepts.split(",") if options.concepts else []
    chosen = choose_tasks(tier, options.sprites)
    methods = named(options.methods.split(",") if options.methods else list(tier.methods))
    controls = [] if options.methods or options.sprites else named(list(tier.controls))
    if options.steps:
        methods, controls = (
            [replace(m, settings=replace(m.settings, steps=options.steps)) for m in some]
            for some in (methods, controls)
        )
    setup = Setup(
        model=options.model or bundled_path(),
        cache=options.cache,
        tasks=tuple(choose_tasks(WHOLE, options.sprites)),
        art=options.art,
        sprites=options.sprites,
        prompts=tier.prompts,
        unrelated=tier.unrelated,
        recogniser_steps=options.recogniser_steps,
    )
    searches = {name: ROUNDS[name].variants for name in options.round or ()}
    if options.tune:
        searches["rates and steps"] = [variant for method in methods for variant in grid(method)]
    if searches:
        subjects = [task for task in setup.tasks if task.half == "dev"]
        subjects = among(subjects, wanted) if wanted else [t for t in subjects if t.kind == "concept"][:TUNED_ON]
        log = options.out / "quality-searches.jsonl"
        for title, variants in searches.items():
            search(setup, subjects, variants, tier.seeds[0], options.workers, options.threads, log, title)
        return
    work = units(among(chosen, wanted) if wanted else chosen, tier, methods, controls)
    found = measured(setup, work, options)
    if options.second_base:
        found["second_base"] = transferred(setup, work, options)
    elif before := second_base_before(options.out):
        found["second_base"] = before
    found |= {
        "tier": f"{'The quick tier' if options.quick else 'The whole'}: {tier.prompts} prompts for each concept, "
        f"{tier.unrelated} that name none.",
        "seeds": list(tier.seeds),
        "versions": versions("torch", "diffusers", "peft", "transformers", "numpy"),
        "sampling": setup.sampling(),
    }
    report.write(found, options.out)
    print(report.as_markdown(found))
    print(f"Written to {options.out}.")


def second_base_before(out: Path) -> dict[str, Any] | None:
    """What the report that is there says of a second base: hours of work that a run without one leaves as they are."""
    file = out / "quality.json"
    return json.loads(file.read_text()).get("second_base") if file.is_file() else None


def transferred(setup: Setup, work: Sequence[Unit], options: argparse.Namespace) -> dict[str, Any]:
    """The main methods on a second base, on the first one likewise, and how much of the lead is kept: on held-out concepts, with
    one seed, for both bases."""
    again = [u for u in work if u.title in MAIN and u.seed == work[0].seed]
    again = [u for u in again if u.task.half == "held_out" and u.task.kind == "concept"]
    first, second = (
        measured(replace(setup, model=model), again, options)["held_out"]
        for model in (setup.model, options.second_base)
    )
    return {**second, "gain_kept": gain_kept(first, second), "first": first}


def measured(setup: Setup, work: Sequence[Unit], options: argparse.Namespace) -> dict[str, Any]:
    """The figures of both halves, once everything missing is measured, and how many of the trainings are."""
    keys, cells = Keys(setup), Cells(setup.cache, {"table": "quality"})
    recognisers = keys.recogniser_files().values()
    for folder in (options.out, destination.RESULTS):
        cells.take_over(folder / "quality-cells.jsonl")
        copy_missing(recognisers, folder / "recognisers", setup.recognisers)
    with suppress(KeyboardInterrupt):
        fill(setup, work, options.workers, options.threads)
    copy_missing(recognisers, setup.recognisers, options.out / "recognisers")
    cells.hand_on(options.out / "quality-cells.jsonl", (name for unit in work for name in names(keys, unit)))
    found = comparable(looks(keys, cells, work), work)
    done = sum(complete(keys, cells, unit) for unit in work)
    return {
        **{half: summary(found, half) for half in reversed(HALVES)},
        "trainings": {"done": done, "planned": len(work)},
    }


def copy_missing(names: Iterable[str], source: Path, target: Path) -> None:
    """Copies those of the files that only the source folder has. Trained again elsewhere, a recogniser is another one: rounding
    alone moves single scores by some per cent."""
    for name in names:
        if (source / name).is_file() and not (target / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            write_atomically(target / name, (source / name).read_bytes())


if __name__ == "__main__":
    main()
