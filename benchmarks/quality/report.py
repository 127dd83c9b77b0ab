"""The figures as files: ``quality.json``, ``quality.md`` and pictures of the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tables import table
from .concepts import HALVES
from .presets import OURS

TITLES = {"dev": "Development half", "held_out": "Held-out half"}


def write(report: Mapping[str, Any], out: Path) -> None:
    """Writes all files."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "quality.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "quality.md").write_text(as_markdown(report))
    for half in HALVES:
        if report.get(half, {}).get("methods"):
            draw_curves(report[half], out / f"quality-{half}.png")


def as_markdown(report: Mapping[str, Any]) -> str:
    """Everything a reader compares, in tables."""
    known = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    parts = [
        "# Quality",
        "Each method learns a thing from a few pictures that share one scene and one companion, or a style from pictures of "
        "several scenes, then answers prompts that ask for other scenes, places, sizes, styles and companions. The embedding of "
        "the taught word is learnt beside every method, but where its name says otherwise. *Text*: share of the asked "
        "attributes that the demo model's judge sees. *Likeness*: mean of a recogniser's certainty and of how close the pixels "
        "come to the right answer. *Drift*: grey levels by which pictures move whose prompts don't name what was taught. "
        "*Hypervolume*: the area under a method's curve of text against likeness over its sliders, between the positions that "
        "were measured on straight lines, beyond the text of lessons learnt by heart and the likeness of the untaught base; 95 % "
        "bootstrap interval over subjects, trainings and prompts. *Training, s*: under whatever load each ran; [speeds](speed.md) "
        "are compared elsewhere. *Sampling*: drawn in turns with the plain model, a LoRA beside its weights; loaders such as "
        "ComfyUI's merge it into them, and then it costs nothing per step. Made by `make bench-quality`.",
        f"{report['tier']} {report['trainings']['done']} of {report['trainings']['planned']} trainings. Seeds "
        f"{', '.join(map(str, report['seeds']))}. {known}.",
    ]
    for half in HALVES:
        if report.get(half, {}).get("methods"):
            parts += [f"## {TITLES[half]}", *_half(report[half], f"quality-{half}.png")]
    if "second_base" in report:
        parts += ["## A second base model", *_second_base(report["second_base"])]
    return "\n\n".join(parts) + "\n"


def _second_base(second: Mapping[str, Any]) -> list[str]:
    kept = second["gain_kept"]
    said = "not known" if kept is None else f"{kept:.0%}"
    parts = [
        "Another width and depth, trained with another seed; the same presets, on the held-out creatures, one seed. Share of the "
        f"lead over the best peer that is kept: {said}. The intervals of the ratios below say how sure that is.",
        _methods(second),
    ]
    if over := _of_both(second, "hypervolume_over"):
        parts += ["### The second base: hypervolume of the sparse dictionary over that of others", _leads(over)]
    if subjects := _of_both(second, "by_subject"):
        parts += ["### The second base: hypervolume by what is taught", _subject_table(subjects)]
    return parts


def _of_both(second: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Figures of the second base by name and, where they were written down too, those of the first on the same tasks."""
    first = second.get("first", {}).get(key, {})
    return {**second.get(key, {}), **{f"{name}, first base": value for name, value in first.items()}}


def _leads(over: Mapping[str, Sequence[float] | None]) -> str:
    rows = [[name, ratio[1], f"{ratio[0]:.3f} to {ratio[2]:.3f}"] for name, ratio in over.items() if ratio]
    return table(["over", "ratio", "interval"], rows)


def _methods(figures: Mapping[str, Any]) -> str:
    header = [
        "method",
        "trainings",
        "parameters",
        "hypervolume",
        "interval",
        "by strength alone",
        "likeness gain at text ≥ .95",
        "the same at .95 of the base's",
    ]
    header += ["drift at equal likeness", "unchanged", "training, s", "sampling, x base, LoRA unmerged"]
    rows = [
        [
            name,
            f["trainings"],
            f["params"],
            f["hypervolume"][1],
            f"{f['hypervolume'][0]:.3f} to {f['hypervolume'][2]:.3f}",
            f.get("hypervolume_by_strength"),
            f["likeness_at_text_95"],
            f["likeness_at_text_95_of_base"],
            f["drift_at_equal_likeness"],
            f["unchanged"],
            f["training_seconds"],
            f["sampling_overhead"],
        ]
        for name, f in figures["methods"].items()
    ]
    return table(header, rows)


def _half(figures: Mapping[str, Any], picture: str) -> list[str]:
    parts = [_methods(figures), f"![Text alignment against likeness]({picture})", "### The ends of the scales"]
    parts.append(
        "*Drawable*: the right answers, encoded and decoded by the base's VAE, which no method can do better than."
    )
    parts.append(
        table(
            ["pictures", "text", "likeness"], [[n, f["text"], f["likeness"]] for n, f in figures["reference"].items()]
        )
    )
    if over := figures.get("hypervolume_over"):
        parts.append("### Hypervolume of the sparse dictionary over that of others")
        parts.append(
            "Both resampled together, so an interval above 1 says that one is better whatever the concept. What acts on the "
            "positive prompt only is compared with its like, and so is what leaves the taught word as it was."
        )
        parts.append(_leads(over))
    if subjects := figures["by_subject"]:
        parts += ["### Hypervolume by what is taught", _subject_table(subjects)]
    if "density" in figures:
        parts += ["### Atoms removed", _density_table(figures)]
        parts.append(f"{figures['active_share']:.1%} of the coefficients are not zero.")
    return parts


def _subject_table(by_subject: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for of_method in by_subject.values() for name in of_method))
    return table(["method", *names], [[m, *(of.get(name) for name in names)] for m, of in by_subject.items()])


def _density_table(figures: Mapping[str, Any]) -> str:
    kinds = {"by importance": "density", "at random": "random_removal", "LoRA cut by SVD": "svd_cut"}
    kinds = {title: key for title, key in kinds.items() if figures.get(key)}
    densities = dict.fromkeys(density for key in kinds.values() for density in figures[key])
    rows = []
    for density in densities:
        cells = [figures[key].get(density, {}) for key in kinds.values()]
        rows.append([f"{float(density):.0%}", *(cell.get(score) for cell in cells for score in ("text", "likeness"))])
    return table(["kept", *(f"{title}: {score}" for title in kinds for score in ("text", "likeness"))], rows)


def _places(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [p["likeness"] for p in points], [p["text"] for p in points]


def draw_curves(figures: Mapping[str, Any], path: Path) -> None:
    """Text alignment against likeness, curves for each method over its strength and, where it has one, its density."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 8), layout="constrained")
    axes.set_prop_cycle(color=[c for name in ("tab10", "Dark2") for c in pyplot.colormaps[name].colors])  # no two alike
    for name, values in figures["methods"].items():
        style = {"linewidth": 3, "zorder": 3} if name == OURS else {"linewidth": 1.2}
        whole = [p for p in values["points"] if p["density"] == 1]
        line = axes.plot(*_places(whole), marker="o", label=f"{name}, by strength", **style)[0]
        fewer = [p for p in values["points"] if p["strength"] == 1 and p["by"] == "importance"]
        if len(fewer) > 1:
            style |= {"color": line.get_color(), "linestyle": "--"}
            axes.plot(*_places(fewer), marker="s", label=f"{name}, by density", **style)
    base = figures["reference"]["base"]
    axes.plot(base["likeness"], base["text"], "k*", markersize=12, label="base")
    axes.set_xlabel("likeness")
    axes.set_ylabel("text alignment")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
