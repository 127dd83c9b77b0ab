"""``extract`` and ``distil``: dictionaries made of other files."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from ..addresses import parse_selection
from ..arguments import seed
from ..controls import SparseAdapter
from ..files import SUFFIX, check_output, load_dictionary, save_dictionary, with_suffix
from ..interrupting import INTERRUPTED, stop_on_interrupt
from ..training import Progress, TrainingStopped, distil, questioned
from ..training.distilling import DEFAULTS
from ..training.metadata import file_metadata
from .extracting import extract


def add_extract(parser: argparse.ArgumentParser) -> None:
    """The options of ``extract``."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a dictionary")
    parser.add_argument("--atoms", required=True, metavar="SELECTION", help='which atoms: "top:32", "L3.v[7] | attn2"')
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--title", default="", help="the new file's title (default: the old one and the selection)")
    parser.set_defaults(run=run_extract)


def run_extract(options: argparse.Namespace) -> None:
    """Extracts and saves."""
    out = with_suffix(options.out)
    check_output(out, SUFFIX, options.file)
    whole = SparseAdapter(load_dictionary(options.file))
    part = extract(whole, parse_selection(options.atoms), options.title)
    saved = save_dictionary(part, out)
    print(f"{saved}: {len(part)} of {len(whole.dictionary)} atoms, {saved.stat().st_size / 1000:.0f} kB")


def add_distil(parser: argparse.ArgumentParser) -> None:
    """The options of ``distil``, but for those that choose the model."""
    parser.add_argument("lora", type=Path, metavar="LORA", help="a LoRA for the model, as .safetensors")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="what the LoRA is shown at; @FILE reads one prompt from each line of a file; may be repeated",
    )
    parser.add_argument("--title", help="the file's title (default: the name of the file)")
    for name, kind, default, purpose in (
        ("steps", int, DEFAULTS.steps, "optimiser steps"),
        ("atoms", int, DEFAULTS.atoms, "atoms at each projection"),
        ("threshold", float, DEFAULTS.threshold, "how rarely an atom fires, in standard deviations of its coefficient"),
        ("sparsity", float, DEFAULTS.sparsity, "how strongly unneeded atoms are emptied"),
        ("pictures", int, 24, "pictures that the LoRA draws to learn from"),
        ("seed", seed, DEFAULTS.seed, "of the start and of all noise"),
    ):
        metavar = "X" if kind is float else "N"
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar=metavar, help=f"{purpose} (default: {default})"
        )
    parser.set_defaults(run=run_distil)


def run_distil(options: argparse.Namespace) -> int:
    """Distils and saves; what was learnt until an interrupt, too."""
    from ..hosts.diffusers import DiffusersHost
    from ..pipelines import load_pipeline

    out = with_suffix(options.out)
    check_output(out, SUFFIX, options.lora, options.model)
    settings = replace(
        DEFAULTS,
        steps=options.steps,
        atoms=options.atoms,
        threshold=options.threshold,
        sparsity=options.sparsity,
        seed=options.seed,
    )
    prompts = list(dict.fromkeys(prompt for given in options.prompt for prompt in read_prompts(given)))
    host = DiffusersHost(load_pipeline(options.model, options.config))
    lora = host.import_lora(options.lora)
    print(lora.report())
    if lora.text:
        # Prompts encoded as the LoRA does it would be the pupil's too, and teach it what it never meets when it draws.
        print(
            f"Warning: the teacher lacks what {lora.name} does to the text encoder; for the whole LoRA, use Distil into "
            "Dictionary in ComfyUI with prompts from the CLIP output of Load LoRA as Dictionary, and draw with that CLIP.",
            file=sys.stderr,
        )
    side = host.unet.config.sample_size
    with tqdm(desc="asking the LoRA") as bar:
        asked = questioned(
            host,
            [host.encode_prompt(prompt) for prompt in prompts],
            host.encode_prompt(""),
            (host.unet.config.in_channels, side, side),
            stack=[SparseAdapter(lora.dictionary)],
            pictures=options.pictures,
            seed=options.seed,
            on_step=bar.update,
        )
    with stop_on_interrupt() as stopped, tqdm(total=settings.steps, desc="learning", unit="step") as bar:

        def on_step(progress: Progress) -> None:
            bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
            bar.update()
            if stopped:
                raise TrainingStopped

        dictionary = distil(host, asked, settings, on_step, file_metadata(options.title or out.stem))
    saved = save_dictionary(dictionary, out)
    print(f"{saved}: {len(dictionary)} atoms, {saved.stat().st_size / 1000:.0f} kB")
    if stopped:
        print(f"Interrupted; what was learnt in {bar.n} steps is saved.", file=sys.stderr)
        return INTERRUPTED
    return 0


def read_prompts(given: str) -> list[str]:
    """One prompt, or those of ``@FILE``, one in each line."""
    from ..pictures import read_text

    if not given.startswith("@"):
        return [given]
    return [line.strip() for line in read_text(Path(given[1:])).splitlines() if line.strip()]
