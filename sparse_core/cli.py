"""The command line: train, generate, info, report, extract, distil and demo, on diffusers pipelines and the demo model.

Exit codes: 0 done, 1 an error told in a sentence, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from tqdm import tqdm

from .analysis.ranking import importance_curve, ranking
from .arguments import seed, some_of, width_and_height
from .compose import cli as compose
from .controls import SparseAdapter
from .demo import cli as demo
from .dictionary import SparseDictionary
from .files import SUFFIX, check_output, load_dictionary, save_dictionary, with_suffix
from .interrupting import INTERRUPTED, stop_on_interrupt
from .layers import PROJECTIONS
from .memory import is_out_of_memory
from .plan import MaskPlacementError
from .training import (
    PRESETS,
    Example,
    Preview,
    Progress,
    TrainingSettings,
    TrainingStopped,
    prior_examples,
    shared_out,
    train,
)
from .training.metadata import file_metadata
from .training.processes import Processes, launched
from .training.state import TrainingState

if TYPE_CHECKING:
    from .hosts.diffusers import DiffusersHost
    from .pictures import CaptionedPicture

PROGRAM = "sparse-atoms"
ATTENTIONS = ("attn1", "attn2")
STATE_SUFFIX = ".training"
"""Of the file beside the dictionary that holds a training which has not ended."""
DENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Where `info` reads the importance curve."""
COUNTED = ("effects", "labels", "origins", "thumbnails")
"""Metadata of single atoms of which `info` tells how many there are; ``--json`` tells them all."""
BAR = "\N{FULL BLOCK}"  # sources stay within what every system reads


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; wrong usage leaves through `SystemExit`, as argparse does it."""
    if hasattr(sys.stdout, "reconfigure"):
        # Windows writes into files in its code page, which has neither the bars of `info` nor every letter of a label.
        sys.stdout.reconfigure(errors="replace")
    options = build_parser().parse_args(arguments)
    # Set before transformers is imported: it warns of torchvision, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = options.run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads the output, such as head, has seen enough. Python would complain of what is left of it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError, MaskPlacementError) as error:
        return fail(str(error))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail("Out of memory. Use a smaller --size or --batch where the command has it, or close other programs.")


def fail(message: str) -> int:
    """Tells what went wrong."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)
    return 1


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(PROGRAM, description="Sparse dictionary adapters for Stable Diffusion.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_train(commands)
    add_generate(commands)
    add_info(commands)
    add_report(commands)
    add_compose(commands)
    add_demo(commands)
    return parser


def add_command(commands: argparse._SubParsersAction, name: str, purpose: str, example: str) -> argparse.ArgumentParser:
    """A command whose help ends with an example."""
    return commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  {PROGRAM} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that choose the model."""
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="a diffusers folder or a .safetensors checkpoint of SD1.x, SD2.x or SDXL (default: the demo model)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="for a checkpoint: a diffusers folder of the same family; only its configurations and tokenizers are read",
    )


def add_train(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train",
        "Learn a dictionary from a folder of pictures. Ctrl-C ends the training and saves what was learnt.",
        "train photos/robot --word robot --out robot.safetensors",
    )
    parser.add_argument(
        "images",
        type=Path,
        metavar="FOLDER",
        help="pictures; beside NAME.png, NAME.txt is its caption and NAME.mask.png, if there, is white where it counts",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument(
        "--word",
        help="what the captions call it: its meaning is learnt too; the caption of pictures without a .txt; the file's trigger",
    )
    parser.add_argument("--title", help="the file's title (default: the name of the file)")
    parser.add_argument("--author", default="", help="named in the file")
    parser.add_argument("--description", default="", help="what a LoRA manager shows beside the title")
    parser.add_argument("--keep-captions", action="store_true", help="store the captions, not only their hashes")
    add_model(parser)
    add_settings(parser)
    more = parser.add_argument_group("more pictures")
    more.add_argument(
        "--prior",
        dest="prior_prompts",
        action="append",
        default=[],
        metavar="PROMPT",
        help="a prompt without the new word: the model draws it first and is held to that; may be repeated",
    )
    more.add_argument(
        "--prior-folder", type=Path, metavar="FOLDER", help="likewise, with captioned pictures in place of drawn ones"
    )
    more.add_argument(
        "--held-out", type=Path, metavar="FOLDER", help="pictures to check on, not to learn; see --patience"
    )
    preview = parser.add_argument_group("pictures along the way")
    preview.add_argument(
        "--preview-prompt", metavar="PROMPT", help="drawn again and again, into the folder NAME_previews beside --out"
    )
    preview.add_argument("--preview-every", type=int, default=50, metavar="N", help="steps between two (default: 50)")
    unfinished = parser.add_mutually_exclusive_group()
    unfinished.add_argument(
        "--resume", action="store_true", help="go on where an interrupted training into the same --out stopped"
    )
    unfinished.add_argument("--anew", action="store_true", help="drop what such a training has kept, and start over")
    parser.set_defaults(run=run_train)


SETTINGS = {
    "steps": "optimiser steps",
    "batch": "pictures in a batch",
    "accumulate": "batches in a step: a larger batch in the memory of a small one",
    "learning_rate": "peak of the learning rate",
    "encoder_rate": "learning rate of what atoms look for, relative to that of what they draw",
    "word_rate": "learning rate of the --word's meaning, in the scale of the model's words; 0 leaves the word as it is",
    "warm_up": "share of the steps over which the learning rate rises, 0 to 1",
    "ema": "decay of the running mean of the weights that is kept in their place, 0 (none) to 1",
    "atoms": "atoms at each projection",
    "projections": "which projections get atoms",
    "attentions": "which attentions get atoms",
    "threshold": "how rarely an atom fires, in standard deviations of its coefficient",
    "sparsity": "how strongly unneeded atoms are emptied",
    "prior": "how much prior pictures count beside those to learn",
    "selective": "how strongly atoms are kept silent on the prior prompts",
    "reseed_every": "steps between two searches for atoms that never fired, which start anew; 0 for never",
    "patience": "stop when the held-out pictures fared no better for this many checks; 0 for never",
    "check_every": "steps between two checks",
    "checkpointing": "less memory, about a third slower",
    "autocast": "run the model in bfloat16: less memory, and faster on most cards",
    "seed": "of the start and of all noise",
}
"""Every field of `TrainingSettings`, and what it does."""
FLAGS = {"projections": "sites", "prior": "prior-weight"}
"""Fields whose option has another name."""
CHOICES = {"projections": PROJECTIONS, "attentions": ATTENTIONS}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for each field of `TrainingSettings`; what is not given stays out of the namespace, so that a preset can
    take its place."""
    group = parser.add_argument_group("the training")
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="what is taught: its own values where no option below is given (default: the defaults below)",
    )
    defaults = TrainingSettings()
    for name, purpose in SETTINGS.items():
        default = getattr(defaults, name)
        flag = f"--{FLAGS.get(name, name).replace('_', '-')}"
        if isinstance(default, bool):
            how = {"action": "store_true"}
        elif isinstance(default, tuple):
            choices = CHOICES[name]
            how = {"type": some_of(choices), "metavar": ",".join(choices)}
            purpose = f"{purpose} (default: {','.join(default)})"
        else:
            kind = seed if name == "seed" else type(default)
            how = {"type": kind, "metavar": "N" if isinstance(default, int) else "X"}
            purpose = f"{purpose} (default: {default})"
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=purpose, **how)


def settings_of(options: argparse.Namespace) -> TrainingSettings:
    """The settings of a command line: what is given, then the preset, then the defaults.

    :raises ValueError: a value is out of its range.
    """
    given = {name: getattr(options, name) for name in SETTINGS if hasattr(options, name)}
    return TrainingSettings(**{**PRESETS.get(options.preset, {}), **given})


def run_train(options: argparse.Namespace) -> int:
    """Trains and saves, in as many processes as were launched."""
    with launched() as processes:
        return train_among(processes, options)


def train_among(processes: Processes, options: argparse.Namespace) -> int:
    """Trains with the others; the first alone says and writes anything."""
    from .hosts.diffusers import DiffusersHost
    from .pipelines import load_pipeline, native_side

    settings = settings_of(options)
    if settings.patience and not options.held_out:
        raise ValueError(
            f"patience is {settings.patience}, but no pictures are held out to watch. Give some that are not learnt from with "
            "--held-out FOLDER, or leave out --patience."
        )
    if settings.selective and not (options.prior_prompts or options.prior_folder):
        raise ValueError(
            f"selective is {settings.selective:g}, but there are no prior pictures for atoms to be silent on. Give some with "
            "--prior or --prior-folder, or leave out --selective."
        )
    if hasattr(options, "word_rate") and not options.word:
        raise ValueError("--word-rate needs --word: it is the meaning of that word which is learnt.")
    out = with_suffix(options.out)
    check_output(out, SUFFIX, options.model)
    state = out.with_suffix(STATE_SUFFIX)
    if state.exists() and not (options.resume or options.anew):
        steps = TrainingState.load(state).step
        raise ValueError(f"{state} holds {steps} steps; give --resume to go on, or --anew to start over.")
    if options.resume and not state.exists():
        # A training that has ended leaves no state, and starting over would replace what it gave.
        if out.exists():
            raise ValueError(
                f"There is nothing to resume: {out} is there, but no unfinished training into it. Leave out --resume to train "
                "anew and replace it, or choose another file with --out."
            )
        if processes.leads:
            print(f"There is nothing to resume: {state} does not exist. The training starts at its first step.")
    pipeline = load_pipeline(options.model, options.config)
    host = DiffusersHost(pipeline)
    side = native_side(pipeline)
    quiet = not processes.leads
    pictures = read_pictures(options.images, options.word, side, quiet)
    if options.word and settings.word_rate:
        host.check_named(options.word, [picture.caption for picture in pictures])
    examples = read_examples(host, pictures, quiet)
    to_keep = read_prior(host, options, examples, quiet)
    held_out = []
    if options.held_out:
        held_out = read_examples(host, read_pictures(options.held_out, options.word, side, quiet), quiet)
    metadata = file_metadata(
        options.title or out.stem,
        options.word,
        [picture.caption for picture in pictures],
        options.author,
        options.description,
        pictures[0].picture,
        keep_captions=options.keep_captions,
    )
    preview = preview_of(host, options, out) if options.preview_prompt else None
    if options.anew:  # last of all: until here a mistyped option costs nothing
        state.unlink(missing_ok=True)
    with stop_on_interrupt() as stopped, tqdm(total=settings.steps, desc="training", unit="step", disable=quiet) as bar:

        def on_step(progress: Progress) -> None:
            losses = {"loss": [progress.loss], "held out": progress.held_out}
            bar.set_postfix({name: f"{some[-1]:.4f}" for name, some in losses.items() if some}, refresh=False)
            bar.update(progress.step - bar.n)
            if processes.any(bool(stopped)):
                stopped.append(signal.SIGINT)  # where it reached another process only
                raise TrainingStopped

        dictionary = train(
            host,
            examples + to_keep,
            settings,
            on_step,
            metadata,
            word=options.word,
            held_out=held_out,
            preview=None if quiet else preview,
            autosave=state,
            processes=processes,
        )
    if quiet:
        return 0
    save_dictionary(dictionary, out)
    record = dictionary.metadata["training"]
    if record["finished"]:
        state.unlink(missing_ok=True)
    print(f"{out}: {len(dictionary)} atoms, {out.stat().st_size / 1000:.0f} kB")
    if checks := record["held_out"]:
        print(f"Held-out loss, every {settings.check_every} steps: {', '.join(f'{loss:.4f}' for loss in checks)}")
    if stopped:
        further = "The training is finished." if record["finished"] else "--resume goes on."
        learnt = f"what was learnt in {record['steps_done']} steps is saved"
        print(f"{PROGRAM}: interrupted; {learnt}. {further}", file=sys.stderr)
        return INTERRUPTED
    return 0


def read_pictures(folder: Path, word: str | None, side: int, quiet: bool) -> list[CaptionedPicture]:
    """The pictures of a folder; says what of it is taken."""
    from .pictures import contents, read_folder

    pictures = read_folder(folder, word, side)
    if not quiet:
        print(f"{folder}: {contents(folder)}")
    return pictures


def read_examples(host: DiffusersHost, pictures: Sequence[CaptionedPicture], quiet: bool) -> list[Example]:
    """Captioned pictures as the model sees them."""
    from .pictures import encode_pictures

    bar = tqdm(encode_pictures(host, pictures), "reading pictures", len(pictures), leave=False, disable=quiet)
    return list(bar)


def read_prior(
    host: DiffusersHost, options: argparse.Namespace, to_learn: Sequence[Example], quiet: bool
) -> list[Example]:
    """The prior pictures asked for, those of a folder and those that the model draws: in every size that there is to learn
    from, since a batch is of one size."""
    from .pictures import trimmed
    from .pipelines import native_side

    examples, factor = [], host.pipeline.vae_scale_factor
    shapes = dict.fromkeys(tuple(example.latents.shape) for example in to_learn)
    sides = {shape: (shape[-2] * factor, shape[-1] * factor) for shape in shapes}
    if options.prior_folder:
        pictures = read_pictures(options.prior_folder, None, native_side(host.pipeline), quiet)
        fitting = [trimmed(picture, *size) for size in sides.values() for picture in pictures]
        examples += [replace(example, prior=True) for example in read_examples(host, fitting, quiet)]
    if options.prior_prompts:
        shares = shared_out(options.prior_prompts, len(shapes))
        with tqdm(desc="drawing prior pictures", unit="step", leave=False, disable=quiet) as bar:
            for (shape, size), prompts in zip(sides.items(), shares, strict=True):
                conditions = [host.encode_prompt(prompt, size) for prompt in prompts]
                examples += prior_examples(
                    host,
                    conditions,
                    host.encode_prompt("", size),
                    shape,
                    count=len(prompts),
                    on_step=bar.update,
                )
    return examples


def preview_of(host: DiffusersHost, options: argparse.Namespace, out: Path) -> Preview:
    """Pictures of a prompt in the folder beside ``out``, named by the steps done."""
    from .pictures import decode_latents, write_picture

    def show(step: int, latents: Tensor) -> None:
        (picture,) = decode_latents(host, latents)
        write_picture(picture, out.with_name(f"{out.stem}_previews") / f"step_{step:05}.png")

    unet = host.unet.config
    condition, negative = (host.encode_prompt(prompt) for prompt in (options.preview_prompt, ""))
    return Preview(
        condition, negative, (unet.in_channels, unet.sample_size, unet.sample_size), show, options.preview_every
    )


def add_generate(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "generate",
        "Draw pictures, with or without a dictionary.",
        'generate --prompt "a robot in the snow" --dictionary robot.safetensors --density 0.25 --out robot.png',
    )
    parser.add_argument("--prompt", required=True, help="what to draw")
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what to stay away from")
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="a .png file, or a folder")
    add_model(parser)
    control = parser.add_argument_group("the dictionary and its controls")
    control.add_argument("--dictionary", type=Path, metavar="FILE", help="a file made by train")
    control.add_argument("--strength", type=float, default=1.0, metavar="X", help="0 none, 1 as trained (default: 1)")
    control.add_argument("--density", type=float, default=1.0, metavar="X", help="share of atoms kept (default: 1)")
    control.add_argument(
        "--atoms-lines",
        action="append",
        default=[],
        metavar="LINE",
        help='weights of atoms: "L3.v[7] = 0.5", "mute top:1"; @FILE reads lines from a file; may be repeated',
    )
    control.add_argument("--mask", type=Path, metavar="PNG", help="the dictionary acts where this picture is white")
    control.add_argument(
        "--on",
        choices=("both", "positive", "negative"),
        default="both",
        help="the prompt it acts on; positive follows the prompt better, negative stays away from it (default: both)",
    )
    drawing = parser.add_argument_group("the drawing")
    drawing.add_argument("--steps", type=int, default=20, metavar="N", help="sampling steps (default: 20)")
    drawing.add_argument(
        "--guidance", type=float, metavar="X", help="classifier-free guidance (default: 3 for the demo model, else 7)"
    )
    drawing.add_argument("--seed", type=seed, default=0, metavar="N", help="of the first picture (default: 0)")
    drawing.add_argument(
        "--count", type=int, default=1, metavar="N", help="pictures, each with the next seed (default: 1)"
    )
    drawing.add_argument("--size", type=width_and_height, metavar="WxH", help="in pixels (default: the model's own)")
    parser.set_defaults(run=run_generate)


def run_generate(options: argparse.Namespace) -> None:
    """Draws and saves."""
    from .generate import Sampling, controlled, generate, numbered
    from .hosts.diffusers import DiffusersHost
    from .pictures import read_mask, write_picture
    from .pipelines import load_pipeline

    if options.count < 1:
        raise ValueError(f"--count is {options.count}; expected at least 1.")
    controls = {
        "--strength": options.strength != 1,
        "--density": options.density != 1,
        "--atoms-lines": options.atoms_lines,
        "--mask": options.mask,
        "--on": options.on != "both",
    }
    if unused := [option for option, given in controls.items() if given and not options.dictionary]:
        raise ValueError(f"{unused[0]} needs --dictionary: it is the atoms of one that it acts on.")
    paths = numbered(options.out, options.count)
    check_output(paths[0], ".png", options.mask)
    guidance = options.guidance if options.guidance is not None else (7.0 if options.model else 3.0)
    sampling = Sampling(options.steps, guidance, options.size, options.negative)
    stack = []
    if options.dictionary:
        adapter = controlled(
            SparseAdapter(load_dictionary(options.dictionary)),
            strength=options.strength,
            lines=read_lines(options.atoms_lines),
            density=options.density,
            mask=read_mask(options.mask) if options.mask else None,
            prompt=options.on,
        )
        stack.append(adapter)
    host = DiffusersHost(load_pipeline(options.model, options.config))
    total = sampling.steps * options.count
    with host.patched(stack), tqdm(total=total, desc="drawing", unit="step") as bar:
        for number, path in enumerate(paths, options.seed):
            (picture,) = generate(host, [options.prompt], [number], sampling, (), bar.update)
            write_picture(picture, path)
            bar.write(str(path))


def add_info(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "info",
        "Say what a dictionary file is and which atoms matter in it.",
        "info robot.safetensors --top 20",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a dictionary")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="atoms to list (default: 10)")
    parser.add_argument("--json", action="store_true", help="the same as JSON, for other programs")
    parser.set_defaults(run=run_info)


def run_info(options: argparse.Namespace) -> None:
    """Describes a file."""
    facts = facts_of(load_dictionary(options.file), max(options.top, 0))
    print(json.dumps(facts, indent=2) if options.json else readable(options.file.name, facts))


def facts_of(dictionary: SparseDictionary, top: int) -> dict:
    """What `info` tells, as JSON values."""
    ranked = ranking(dictionary)
    return {
        "family": dictionary.family,
        "fingerprint": dictionary.fingerprint,
        "layers": len(dictionary.layers),
        "sites": len(dictionary.sites),
        "atoms": len(dictionary),
        "parameters": dictionary.parameters(),
        "taught_words": list(dictionary.words),
        "importance_curve": dict(zip(map(str, DENSITIES), importance_curve(ranked, DENSITIES), strict=True)),
        "most_important": [atom._asdict() for atom in ranked[:top]],
        "metadata": dict(dictionary.metadata),
    }


def readable(name: str, facts: dict) -> str:
    """The facts for a person to read."""
    curve = [
        f"  {float(density):5.0%} of the atoms {share:5.0%} {BAR * round(40 * share)}"
        for density, share in facts["importance_curve"].items()
    ]
    atoms = [
        f"  {atom['address']:<12} {atom['importance']:.5f} {atom['label']}".rstrip() for atom in facts["most_important"]
    ]
    record = [f"  {name}: {value}" for name, value in flat(facts["metadata"])]
    text = "\n".join(
        [
            f"{name}: a sparse dictionary",
            f"  for {facts['family']} (layer fingerprint {facts['fingerprint']})",
            f"  {facts['atoms']} atoms at {facts['sites']} projections of {facts['layers']} attention layers, "
            f"{facts['parameters']} parameters",
            *[f"  the meaning of the word {word!r} comes with it" for word in facts["taught_words"]],
            "",
            "Importance held by the best atoms",
            *curve,
            "",
            "Most important atoms",
            *atoms,
            "",
            "Record",
            *record,
        ]
    )
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)  # files come from strangers


def flat(metadata: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested values with dotted names; long lists and what single atoms are given as their number, pictures as their size."""
    for name, value in sorted(metadata.items()):
        if isinstance(value, dict) and name in COUNTED:
            yield f"{prefix}{name}", f"of {len(value)} atoms"
        elif isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and len(value) > 4:
            yield f"{prefix}{name}", f"{len(value)} entries"
        elif isinstance(value, str) and value.startswith("data:"):
            yield f"{prefix}{name}", f"picture, {len(value) * 3 / 4000:.0f} kB"  # base64: three bytes in four letters
        else:
            yield f"{prefix}{name}", value


def add_report(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "report",
        "Write a page that shows what a dictionary has learnt, atom by atom: pictures, heat maps, words.",
        'report robot.safetensors --prompt "a robot in the snow" --out robot.html',
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a dictionary")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .html file to write")
    parser.add_argument("--prompt", help="the picture to look at (default: a and the file's trigger)")
    parser.add_argument("--top", type=int, default=24, metavar="N", help="atoms to draw, by importance (default: 24)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="sampling steps (default: 10)")
    parser.add_argument("--seed", type=seed, default=1, metavar="N", help="of the picture (default: 1)")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="pictures drawn at once (default: 16)")
    parser.add_argument(
        "--pictures",
        type=int,
        default=4,
        metavar="N",
        help="how many decide on labels, each from another seed (default: 4)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="what it was taught from: shows which picture fires an atom most"
    )
    parser.add_argument(
        "--word", help="the caption of pictures without a .txt beside them (default: the file's trigger)"
    )
    add_model(parser)
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> None:
    """Draws and writes."""
    from .dictionary_report import look, write_dictionary_report
    from .generate import Sampling
    from .hosts.diffusers import DiffusersHost
    from .pictures import read_folder
    from .pipelines import load_pipeline, native_side

    dictionary = load_dictionary(options.file)
    trigger = dictionary.metadata.get("modelspec.trigger_phrase", "")
    if not (options.prompt or trigger):
        raise ValueError(f"{options.file.name} names no trigger. Say what to draw with --prompt.")
    prompt = options.prompt or f"a {trigger}"
    check_output(options.out, ".html")
    pipeline = load_pipeline(options.model, options.config)
    taught = read_folder(options.images, options.word or trigger, native_side(pipeline)) if options.images else ()
    host = DiffusersHost(pipeline)
    sampling = Sampling(options.steps, 7.0 if options.model else 3.0)
    with tqdm(desc="drawing", unit="step") as bar:

        def on_step(pictures: int, total: int) -> None:
            bar.total = total
            bar.update(pictures)

        how = (options.top, options.batch, options.pictures, taught)
        seen = look(host, dictionary, prompt, options.seed, sampling, *how, on_step)
    write_dictionary_report(dictionary, seen, options.file, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


def add_compose(commands: argparse._SubParsersAction) -> None:
    part = add_command(
        commands,
        "extract",
        "Write some atoms of a dictionary into a new one, which says where they came from.",
        'extract robot.safetensors --atoms "top:32" --out hat.safetensors',
    )
    compose.add_extract(part)
    distil = add_command(
        commands,
        "distil",
        "Learn to do with sparse atoms what a LoRA does, from pictures that the LoRA draws itself.",
        'distil robot_lora.safetensors --prompt "a robot in the snow" --prompt @prompts.txt --out robot.safetensors',
    )
    add_model(distil)
    compose.add_distil(distil)


def add_demo(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "demo", "The bundled demo model: show what can be done, or train it anew.", "demo make"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = add_command(
        commands,
        "make",
        "Teach the demo model a creature, or your own pictures, and write a page that shows what can be done with it.",
        "demo make --images photos/robot --word robot",
    )
    make.add_argument(
        "--images", type=Path, metavar="FOLDER", help="your pictures (default: a creature that comes along)"
    )
    make.add_argument("--word", help="what your pictures show")
    make.add_argument("--out", type=Path, default=Path("out/demo"), metavar="FOLDER", help="(default: out/demo)")
    make.set_defaults(run=run_demo_make)
    demo.add_commands(commands)


def run_demo_make(options: argparse.Namespace) -> None:
    """Teaches and shows."""
    from .showcase import make_demo

    for path in make_demo(options.out, options.images, options.word):
        print(path)


def read_lines(given: Sequence[str]) -> str:
    """Lines of atom weights; ``@FILE`` stands for the lines of a file."""
    from .pictures import read_text

    return "\n".join(read_text(Path(text[1:])) if text.startswith("@") else text for text in given)
