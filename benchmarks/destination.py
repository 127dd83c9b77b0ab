"""Where a benchmark writes. `RESULTS` holds reports of whole runs; what is measured with less, or with other settings, goes to a
folder of its own in ``out``, so that trying something never costs a report that took hours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PARTS = HERE.parent / "out"


def parse(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    benchmark: str,
    restricting: Sequence[str],
    searching: Sequence[str] = (),
) -> argparse.Namespace:
    """A command line with an ``out``: the folder that was given or, without one, where this run's report belongs.

    :param restricting: names of the options with which something else than the whole is measured.
    :param searching: of those with which a log in `RESULTS` grows and no report is written, whatever else is given.
    """
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in restricting)
    where = f"(default: benchmarks/results, but out/{benchmark} with\n{flags})"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=where)
    options = parser.parse_args(arguments)
    if options.out is None:
        given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
        whole = given.isdisjoint(restricting) or not given.isdisjoint(searching)
        options.out = RESULTS if whole else PARTS / benchmark
    return options
