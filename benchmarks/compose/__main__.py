"""Things taught apart and drawn together: sparse dictionaries combined, and merges of LoRAs.

    python -m benchmarks.compose             ten pairs of each half, two seeds: many hours on two CPU cores
    python -m benchmarks.compose --quick     two pairs of each half, an hour

Every figure is kept as soon as it is measured: a run that was stopped goes on where it was. The report of other numbers of pairs
or seeds goes to ``out/compose``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparse_core.demo.model import bundled_path

from .. import destination
from ..machine import versions
from ..quality.concepts import CONCEPTS, HALVES, STYLES_OF_HALF, tasks
from ..quality.table import Setup
from . import report
from .composing import METHODS
from .pairs import pairs
from .table import Bench, Look, looks

HERE = Path(__file__).parent
SCALES = (0.6, 0.8, 1.0, 1.2)
"""Strengths tried on the development half."""
CONCEPTS_OF_HALF = 4
"""As many as the quality benchmark knows."""


class Tier(NamedTuple):
    """How much is measured."""

    pairs: int
    """Of each half."""
    seeds: tuple[int, ...]


WHOLE = Tier(pairs=10, seeds=(0, 1))
QUICK = Tier(pairs=2, seeds=(0,))


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.compose", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the one-hour tier")
    parser.add_argument("--pairs", type=int, metavar="N", help="of each half (default: 10, quick: 2)")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many (default: 2, quick: 1)")
    parser.add_argument("--art", type=Path, metavar="ICONS_JSON", help="(default: $SPARSE_ATOMS_ART or node_modules)")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "cache" / "quality", metavar="FOLDER")
    return destination.parse(parser, arguments, "compose", ("quick", "pairs", "seeds"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes the report."""
    options = read_arguments(arguments)
    tier = QUICK if options.quick else WHOLE
    tier = tier._replace(
        pairs=options.pairs or tier.pairs, seeds=tuple(range(options.seeds)) if options.seeds else tier.seeds
    )
    taught = tasks({half: CONCEPTS[half][:CONCEPTS_OF_HALF] for half in HALVES}, STYLES_OF_HALF)
    bench = Bench(Setup(bundled_path(), options.cache, tuple(taught), options.art, prompts=12))
    chosen_pairs = pairs(taught, tier.pairs)
    met = {half: [pair for pair in chosen_pairs if pair.half == half] for half in HALVES}
    for pair in chosen_pairs:
        bench.asked(pair)  # ends here where the score is of no use, before anything is drawn

    tried = looks(met["dev"], tier.seeds, dict.fromkeys(METHODS, SCALES))
    bench.measure(tried, "development half")
    chosen = {method: (chosen_scale(bench, tried, method),) for method in METHODS}
    held_out = looks(met["held_out"], tier.seeds, chosen)
    bench.measure(held_out, "held-out half")
    found = {
        **report.summary(bench, held_out),
        "dev": report.summary(bench, looks(met["dev"], tier.seeds, chosen)),
        "seeds": list(tier.seeds),
        "prompts": bench.setup.prompts,
        "versions": versions("torch", "diffusers", "peft", "transformers", "numpy"),
    }
    report.write(found, bench, [look for look in held_out if look.seed == tier.seeds[0]], options.out)
    print(report.as_markdown(found))
    print(f"Written to {options.out}.")


def chosen_scale(bench: Bench, tried: Sequence[Look], method: str) -> float:
    """What suits a method best on the looks that were tried."""
    mine = [look for look in tried if look.method == method]
    return report.best_scale({scale: [bench.answers(look) for look in mine if look.scale == scale] for scale in SCALES})


if __name__ == "__main__":
    main()
