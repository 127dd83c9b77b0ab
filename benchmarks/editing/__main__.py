"""How well pictures are edited after learning one of them, against other ways of editing.

    python -m benchmarks.editing             36 held-out edits, hours on two CPU cores
    python -m benchmarks.editing --quick     30 edits, one noise each, an hour and a half
    python -m benchmarks.editing --tune      settings of the preset for one picture, on the development half

Every figure is kept as soon as it is measured: a run that was stopped goes on where it was, and writes its report of the
edits that are finished. The report of fewer edits or of other settings goes to ``out/editing``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sparse_core.demo.sprites import FluentArt
from sparse_core.demo.world import World

from .. import destination
from ..machine import versions
from .edits import edits
from .learning import single_picture
from .methods import editors
from .report import as_markdown, known, measured, summary, write
from .scores import check
from .table import Bench
from .tuning import LORA_RATE, search

HERE = Path(__file__).parent
SEED = 0
LOOKED_AT = 1
"""As many of the first held-out edits were seen while the settings were chosen: they are not measured."""


class Tier(NamedTuple):
    """How much is measured."""

    edits: int
    pictures: int
    """Random noises for every look."""
    strengths: tuple[float, ...]
    """Beside 1."""


TIERS = {
    "whole": Tier(edits=36, pictures=4, strengths=(0.5, 0.75, 1.25, 1.5)),
    "quick": Tier(edits=30, pictures=1, strengths=(0.5, 1.5)),
}


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.editing", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the quick tier")
    parser.add_argument("--tune", action="store_true", help="search settings on the development half, keep a log")
    parser.add_argument("--edits", type=int, metavar="N", help="how many (default: 36, quick: 30)")
    parser.add_argument(
        "--settings", type=json.loads, default={}, metavar="JSON", help='changes of the preset, such as {"steps": 100}'
    )
    parser.add_argument("--art", type=Path, metavar="ICONS_JSON", help="(default: $SPARSE_ATOMS_ART or node_modules)")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="keep pictures of every edit here, to look at")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "cache" / "editing", metavar="FOLDER")
    return destination.parse(parser, arguments, "editing", ("quick", "edits", "settings"), searching=("tune",))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is missing, then writes the report of all that is there."""
    options = read_arguments(arguments)
    name = "quick" if options.quick else "whole"
    tier = TIERS[name]
    tier = tier._replace(edits=options.edits or tier.edits)
    bench = Bench(World(FluentArt(options.art)), options.cache, tier.pictures, options.pictures)
    if options.tune:
        search(bench, edits("dev", tier.edits), tier.strengths, SEED, options.out / "edit-searches.jsonl")
        return
    chosen = edits("held_out", LOOKED_AT + tier.edits)[LOOKED_AT:]
    settings = replace(single_picture(), **options.settings)
    compared = editors(settings, LORA_RATE, tier.strengths)
    with suppress(KeyboardInterrupt):
        bench.fill(chosen, compared, SEED)
    found = [measured(bench, edit, compared, SEED) for edit in chosen if bench.complete(edit, compared, SEED)]
    if not found:
        print("No edit is finished yet: start again to go on.")
        return
    ends = known(found)
    check(ends["target"], ends["source"], ends["base"])
    report = summary(found, compared) | {
        "tier": f"{name}, {len(found)} of {tier.edits} edits",
        "half": "held_out",
        "pictures": tier.pictures,
        "seeds": [SEED],
        "settings": {**settings.record(), "LoRA's learning rate": LORA_RATE},
        "versions": versions("torch", "diffusers", "peft", "transformers", "numpy"),
    }
    write(report, options.out)
    print(as_markdown(report))
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
