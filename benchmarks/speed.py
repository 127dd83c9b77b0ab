"""What sparse dictionaries cost: sampling, changing a control, training; peers in the same run.

    python -m benchmarks.speed            everything, about two hours on two CPU cores
    python -m benchmarks.speed --quick    fewer repeats and loads
    python -m benchmarks.speed --only 'sampling/comfyui/sd15/*' --only 'weight_change/*'

Every figure is kept as soon as it is measured: an interrupted run goes on where it was. Figures of the report that are not measured
anew stay, such as ComfyUI's where there is none; those of other code, settings or versions are named as such. The report of a quick
run, or of other repeats, sizes or seeds, goes to ``out/speed``.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import destination
from . import sampling_speed as sampling
from . import training_speed as training
from .cells import Cells, source_digest
from .machine import best_device, describe, versions
from .models import KINDS, Kind, Variant, use_comfyui
from .tables import table

HERE = Path(__file__).parent
CORE = HERE.parent / "sparse_core"
_SAMPLING = [CORE / f"{name}.py" for name in ("coding", "controls", "dictionary", "layers", "modules", "plan")]
_SAMPLING += [CORE / "hosts"]
_SAMPLING += [HERE / f"{name}.py" for name in ("machine", "models", "sampling_speed", "timing")]
SOURCES = {
    "sampling": _SAMPLING,
    "training": [*_SAMPLING, CORE / "training", CORE / "examples.py", HERE / "training_speed.py"],
}
"""What the figures of each part of the report come from."""

ATOMS = (16, 32, 128)
VARIANTS = tuple(
    Variant(atoms, **load)
    for atoms in ATOMS
    for load in ({}, {"density": 0.5}, {"density": 0.25}, {"masks": 1}, {"masks": 3})
)
QUICK_VARIANTS = (Variant(16), Variant(32), Variant(128), Variant(32, density=0.25), Variant(32, masks=3))
LIMITS = {"16": 1.03, "32": 1.05, "32_density_25": 1.02, "32_masks_3": 1.35}
"""What a step may take, relative to the plain model's."""
REGIONS = 3
PEFT_RANKS = (16, 32)
TRAINED_ATOMS = 16


@dataclass(frozen=True)
class Settings:
    """Everything that figures depend on, beside code and versions."""

    repeats: int
    seed: int
    sides: Mapping[Kind, int]
    """Latent pixels along a side."""
    dtypes: Mapping[Kind, str]
    training_side: int
    attention: str
    """ComfyUI's attention on this device: its own choice or pytorch's."""

    def dtype(self, kind: Kind) -> torch.dtype:
        """The number type of a model."""
        return getattr(torch, self.dtypes[kind])


@dataclass
class Group:
    """Measurements that share a model, which is built when the first of them is due."""

    build: Callable[[], Any]
    cells: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    part: str = "sampling"
    """Of the report, and which code the figures come from: under other code they are measured anew."""

    def key(self, name: str) -> str:
        """Of a figure among those of all code."""
        return f"{source_digest(SOURCES[self.part])}/{name}"


def groups(settings: Settings, device: torch.device, comfyui: bool, quick: bool) -> list[Group]:
    """All measurements."""
    repeats, seed = settings.repeats, settings.seed
    variants = QUICK_VARIANTS if quick else VARIANTS
    made = []

    def loads(host: str, kind: Kind) -> dict[str, Callable[[Any], Any]]:
        return {
            f"sampling/{host}/{kind}/{variant.name}": (
                lambda subject, variant=variant: sampling.overhead(subject, variant, repeats, seed)
            )
            for variant in variants
        }

    for kind in KINDS:
        side, dtype = settings.sides[kind], settings.dtype(kind)
        diffusers = Group(lambda k=kind, s=side, d=dtype: sampling.DiffusersSubject(k, s, device, d, seed))
        diffusers.cells |= loads("diffusers", kind)
        diffusers.cells[f"active_share/{kind}"] = lambda subject: subject.active_share(32, seed)
        diffusers.cells |= {
            f"peers/peft_lora_{rank}/{kind}": lambda s, rank=rank: sampling.peft_overhead(s, rank, repeats)
            for rank in PEFT_RANKS
        }
        made.append(diffusers)
        if comfyui:
            comfy = Group(lambda k=kind, s=side, d=dtype: sampling.ComfySubject(k, s, d, seed))
            comfy.cells |= loads("comfyui", kind)
            if kind == "sd15":
                comfy.cells[f"peers/lora_hooks_{REGIONS}_regions/{kind}"] = lambda s: sampling.hooks_overhead(
                    s, REGIONS, 32, repeats, seed
                )
            comfy.cells[f"weight_change/{kind}"] = lambda s: sampling.weight_change(s, 16, repeats, seed)
            made.append(comfy)

    side, dtype = settings.training_side, settings.dtype("sd15")
    made.append(
        Group(
            lambda: None,
            {"training/demo": lambda _: training.demo_training(TRAINED_ATOMS, 5 * repeats, seed)},
            "training",
        )
    )
    made.append(
        Group(
            lambda: sampling.DiffusersSubject("sd15", side, device, dtype, seed),
            {"training/sd15": lambda subject: training.unet_training(subject, TRAINED_ATOMS, repeats, seed)},
            "training",
        )
    )
    if comfyui:
        made.append(
            Group(
                lambda: sampling.ComfySubject("sd15", side, dtype, seed),
                {"training/core_trainlora": lambda s: training.against_core(s, TRAINED_ATOMS, repeats, seed)},
                "training",
            )
        )
    return made


def measure(work: Iterable[Group], cells: Cells, patterns: list[str]) -> None:
    """Fills the table with what it lacks."""
    chosen = [(group, [name for name in group.cells if any(fnmatchcase(name, p) for p in patterns)]) for group in work]
    total = sum(len(names) for _, names in chosen)
    missing = [(group, [name for name in names if group.key(name) not in cells]) for group, names in chosen]
    with tqdm(total=total, initial=total - sum(len(names) for _, names in missing), unit="figure") as bar:
        for group, names in missing:
            if not names:
                continue
            bar.set_description("building a model")
            subject = group.build()
            for name in names:
                bar.set_description(name)
                cells[group.key(name)] = group.cells[name](subject)
                bar.update()
            del subject
            gc.collect()


# ------------------------------------------------------------------------------------------------------------- reporting


def merged(
    work: Iterable[Group], cells: Cells, conditions: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """The report: a figure that is not known under these conditions stays as it was. ``parts`` are the latest conditions of each
    part, ``older`` those of figures that were measured under others."""
    new = {name: cells[group.key(name)] for group in work for name in group.cells if group.key(name) in cells}
    old = {name: value for name, value in before.get("cells", {}).items() if name not in new}
    anew = {part: {**conditions, "source": source_digest(SOURCES[part])} for part in dict.fromkeys(map(part_of, new))}
    parts = {**anew, **before.get("parts", {}), **anew}  # the newest first
    known = {name: before.get("older", {}).get(name, before["parts"][part_of(name)]) for name in old}
    older = {name: under for name, under in known.items() if under != parts[part_of(name)]}
    order = dict.fromkeys([*(name for group in work for name in group.cells), *old])
    every = {**old, **new}
    found = {name: every[name] for name in order if name in every}
    return {**summary(found), "parts": parts, **({"older": older} if older else {}), "cells": found}


def part_of(name: str) -> str:
    """Which part of the report a figure belongs to."""
    return "training" if name.startswith("training/") else "sampling"


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures by what they say."""
    result: dict[str, Any] = {"sampling_overhead": {}, "sampling_memory": {}, "active_share": {}, "peers": {}}
    result |= {"weight_change_ms": {}, "train_step_ratio": {}, "train_memory_ratio": {}}
    for name, value in found.items():
        match name.split("/"):
            case ["sampling", host, kind, variant]:
                result["sampling_overhead"].setdefault(host, {}).setdefault(kind, {})[variant] = value["ratio"]
                memory = result["sampling_memory"].setdefault(host, {}).setdefault(kind, {})
                memory[variant] = value.get("memory_ratio")
            case ["active_share", kind]:
                result["active_share"][kind] = value
            case ["peers", peer, "sd15"]:
                result["peers"][peer] = value["ratio"]
            case ["peers", peer, kind]:
                result["peers"][f"{peer}_{kind}"] = value["ratio"]
            case ["weight_change", kind]:
                suffix = "" if kind == "sd15" else f"_{kind}"
                result["weight_change_ms"] |= {f"{who}{suffix}": value[who]["ms"] for who in ("ours", "lora")}
            case ["training", against]:
                result["train_step_ratio"][against] = value["ratio"]
                result["train_memory_ratio"][against] = value.get("memory_ratio")
    return {key: value for key, value in result.items() if value}


def as_markdown(reports: list[dict[str, Any]]) -> str:
    """Every machine's figures in tables."""
    parts = [
        "# Speed",
        "Step time with sparse dictionaries on every projection of every attention, divided by the plain model's, in one "
        "process, in turn; the median. A step is one guided model call (negative and positive prompt). Weights are random, "
        "shapes are the real models'. *Unmerged*: peft's layers beside the weights, as LoRAs are trained; loaders such as "
        "ComfyUI's merge a LoRA into the weights, and then it costs nothing per step. Made by `make bench-speed`.",
    ]
    for report in reports:
        machines = dict.fromkeys(part["machine"]["device"] for part in report["parts"].values())
        parts.append(f"## {', '.join(machines)}")
        for part, sections in (("sampling", (_sampling, _peers)), ("training", (_training,))):
            if part in report["parts"]:
                parts += [f"### {part.capitalize()}", _conditions(report["parts"][part])]
                parts += [section for write in sections if (section := write(report))]
                parts += _older(report, part)
    return "\n\n".join(parts) + "\n"


def _conditions(known: dict[str, Any]) -> str:
    settings = known["settings"]
    sizes = ", ".join(f"{k} {s} x {s} latents in {settings['dtypes'][k]}" for k, s in settings["sides"].items())
    versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
    return (
        f"{known['machine']['device']}, {known['machine']['threads']} threads; {sizes}; {settings['repeats']} repeats; seed "
        f"{settings['seed']}; attention in ComfyUI: {settings['attention']}. {versions}."
    )


def _older(report: dict[str, Any], part: str) -> list[str]:
    """A line for all figures that were measured under the same conditions, other than those of the part."""
    lines: dict[str, list[str]] = {}
    for name, known in report.get("older", {}).items():
        if part_of(name) == part:
            lines.setdefault(f"{_conditions(known)} Code {known['source']}", []).append(f"`{name}`")
    return [f"**From before**, under other conditions or of other code: {', '.join(n)}. {c}." for c, n in lines.items()]


def _sampling(report: dict[str, Any]) -> str:
    times, memory = report.get("sampling_overhead", {}), report.get("sampling_memory", {})
    columns = [(host, kind) for host in times for kind in times[host]]
    names = dict.fromkeys(name for host, kind in columns for name in times[host][kind])
    rows = [
        [name, LIMITS.get(name)] + [get[host][kind].get(name) for host, kind in columns for get in (times, memory)]
        for name in names
    ]
    header = ["atoms a site", "at most"]
    header += [f"{host} {kind}{what}" for host, kind in columns for what in ("", ", memory")]
    return table(header, rows) if rows else ""


def _peers(report: dict[str, Any]) -> str:
    rows: list[list[object]] = [[f"step: {_peer(name)}", v] for name, v in report.get("peers", {}).items()]
    rows += [
        [f"milliseconds from a change to the first step: {name}", value]
        for name, value in report.get("weight_change_ms", {}).items()
    ]
    return table(["", "relative to plain, or ms"], rows) if rows else ""


def _peer(name: str) -> str:
    """What a reader calls a peer."""
    return name.replace("peft_lora", "unmerged_peft_LoRA").replace("_", " ")


def _training(report: dict[str, Any]) -> str:
    memory = report.get("train_memory_ratio", {})
    rows = [[name, value, memory.get(name)] for name, value in report.get("train_step_ratio", {}).items()]
    header = ["training step, ours / peer's", "time", "peak memory"]
    return table(header, rows) if rows else ""


# ------------------------------------------------------------------------------------------------------------------ main


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "benchmarks.speed", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three repeats and fewer loads")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="these figures, beside those that are known; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="print the names of all figures and end")
    parser.add_argument("--repeats", type=int, metavar="N", help="(default: 7, quick: 3)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="(default: torch's choice)")
    parser.add_argument(
        "--side", type=int, metavar="N", help="latent side of all models (default: 64; SDXL on a GPU: 128)"
    )
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER", help="(default: $COMFYUI_PATH or ~/ComfyUI)")
    parser.add_argument("--cache", type=Path, default=HERE / "cache" / "speed", metavar="FOLDER")
    return destination.parse(parser, arguments, "speed", ("quick", "repeats", "seed", "side"))


def choose_settings(options: argparse.Namespace, device: torch.device) -> Settings:
    """What this device can do in reasonable time."""
    gpu = device.type == "cuda"
    return Settings(
        repeats=options.repeats or (3 if options.quick else 7),
        seed=options.seed,
        sides={"sd15": options.side or 64, "sdxl": options.side or (128 if gpu else 64)},
        # On a CPU SDXL in float32 takes 10 GB, and twice the time.
        dtypes={"sd15": "bfloat16" if gpu else "float32", "sdxl": "bfloat16"},
        training_side=options.side or 64,
        attention="the default of this device",
    )


def main() -> None:
    """Measures, then writes ``speed.json`` (on a GPU ``speed-gpu.json``) and ``speed.md`` of all that is there."""
    options = read_arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = best_device()
    comfyui = use_comfyui(options.comfyui)
    sampling.quiet()
    settings = choose_settings(options, device)
    work = groups(settings, device, comfyui is not None, options.quick)
    if options.list:
        print("\n".join(name for group in work for name in group.cells))
        return
    known = versions("torch", "diffusers", "peft", "transformers")
    if comfyui is not None:
        from comfyui_version import __version__

        known["comfyui"] = __version__
    conditions = {
        "machine": describe(device),
        "settings": {**vars(settings)},
        "versions": known,
    }
    cells = Cells(options.cache, conditions)
    try:
        measure(work, cells, options.only or ["*"])
    finally:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / ("speed-gpu.json" if device.type == "cuda" else "speed.json")
        report = merged(work, cells, conditions, json.loads(path.read_text()) if path.is_file() else {})
        path.write_text(json.dumps(report, indent=1) + "\n")
        reports = [json.loads(path.read_text()) for path in sorted(options.out.glob("speed*.json"))]
        (options.out / "speed.md").write_text(as_markdown(reports))
    print(as_markdown([report]))
    if comfyui is None:
        print("There is no ComfyUI here (set COMFYUI_PATH, run with its Python): its figures are not measured.")
    print(f"Written to {options.out}.")


if __name__ == "__main__":
    main()
