"""One HTML page that shows what a dictionary has learnt, atom by atom: everything is inside the file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jinja2 import Environment, StrictUndefined
from torch import Tensor

from .addresses import parse_selection
from .analysis import effects, firing, heatmaps, words
from .analysis.charts import COLOURS
from .analysis.comparison import duplicates
from .analysis.importance_chart import importance_chart, importance_meaning
from .analysis.labels import as_image, with_looks
from .analysis.ranking import importance_curve, ranking
from .analysis.recording import MOST_ATOMS, Recorder, Recording, chosen_atoms
from .controls import SparseAdapter
from .dictionary import SparseDictionary
from .files import write_atomically
from .generate import Sampling, generate
from .hosts.diffusers import DiffusersHost
from .layers import reads_words
from .pictures import CaptionedPicture, encode_pictures
from .report import data_uri as png_uri
from .training.metadata import data_uri as jpeg_uri

TEMPLATE = Path(__file__).with_name("dictionary_report.html.jinja")
SHOWN_ELSEWHERE = (
    "modelspec.thumbnail",
    "thumbnails",
    "labels",
    "notes",
    "effects",
    "captions",
    "captions_sha256",
    "origins",
    "sources",
    "training",
)
"""Metadata that the page shows elsewhere, or not at all."""
USES = ("weight", "share", "selection")
"""What the record of a source says of how much of it was taken."""


@dataclass(frozen=True)
class Look:
    """What was seen of a dictionary on one prompt."""

    prompt: str
    gallery: effects.Gallery
    recording: Recording
    words: Mapping[str, str]
    """Address to what the atom makes of the prompt's words."""
    clear_words: Mapping[str, str]
    """Address to the one word it clearly answers to."""
    fired: firing.Firing | None = None
    """What the atoms make of ``taught``."""
    taught: Sequence[CaptionedPicture] = ()
    """The pictures that the dictionary was taught from, if they are at hand."""


class Card(NamedTuple):
    """One atom on the page."""

    address: str
    label: str
    note: str
    share: float
    size: float
    words: str
    pictures: list[tuple[str, str]]
    """Caption and data URI."""


def look(
    host: DiffusersHost,
    dictionary: SparseDictionary,
    prompt: str,
    seed: int,
    sampling: Sampling,
    top: int,
    batch: int,
    pictures: int,
    taught: Sequence[CaptionedPicture] = (),
    on_step: Callable[[int, int], None] = lambda pictures, total: None,
) -> Look:
    """Draws the gallery of the most important atoms, and records them at work.

    :param pictures: how many decide on labels, from the noise of this seed and the next ones.
    :param taught: what the dictionary was taught from, to tell which of it fires an atom most.
    :param on_step: told how many pictures moved on a step, and how many such there will be in all.
    :raises ValueError: the dictionary belongs to another model, or ``top``, ``batch`` or ``pictures`` is out of range.
    """
    if not 1 <= top <= MOST_ATOMS:
        raise ValueError(f"--top is {top}; expected 1 to {MOST_ATOMS} atoms.")
    if pictures < 1:
        raise ValueError(f"--pictures is {pictures}; expected at least 1.")
    if batch < 2:
        raise ValueError(f"--batch is {batch}; expected at least 2: a picture with the atom and one without.")
    dictionary.check_fits(host.layers)
    addresses = chosen_atoms(dictionary, parse_selection(f"top:{top}"))
    groups = {address: parse_selection(address) for address in addresses}
    adapter = SparseAdapter(dictionary)
    total = (effects.pictures_needed(len(groups), pictures) + 1) * sampling.steps

    def report(moved: int) -> None:
        on_step(moved, total)

    recorder = Recorder(dictionary, addresses)
    with host.patched([adapter], recorder):
        generate(host, [prompt], [seed], sampling, (), report)
    draws = [drawer(host, prompt, seed + number, sampling, report) for number in range(pictures)]
    gallery = effects.draw_gallery(adapter, groups, draws, batch)
    with host.speaking(adapter.words):
        said, clear = hear(host, dictionary, prompt)
        lessons = list(encode_pictures(host, taught))
    fired = firing.firing(host, adapter, addresses, lessons) if taught else None
    return Look(prompt, gallery, recorder.recording(), said, clear, fired, taught)


def drawer(
    host: DiffusersHost,
    prompt: str,
    seed: int,
    sampling: Sampling,
    on_step: Callable[[int], None] = lambda pictures: None,
) -> effects.Draw:
    """Draws batches of one picture."""

    def draw(adapter: SparseAdapter, count: int) -> Tensor:
        made = generate(host, [prompt] * count, [seed] * count, sampling, [adapter], on_step, count)
        return torch.stack([torch.from_numpy(np.array(picture)).float() / 255 for picture in made])

    return draw


def hear(host: DiffusersHost, dictionary: SparseDictionary, prompt: str) -> tuple[dict[str, str], dict[str, str]]:
    """What every atom that reads words makes of a prompt: all of it, and the one clear word; nothing where the dictionary
    has no such atoms."""
    if not any(reads_words(site, dictionary.layers) for site in dictionary.sites):
        return {}, {}
    tokenizer = host.pipeline.tokenizer
    names = [word.replace("</w>", "") for word in tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)]
    text = host.encode_prompt(prompt).text[0]
    table = words.word_table(dictionary, text, names[: len(text)], parse_selection("attn2.kv"), len(dictionary))
    rows = {address: row for row, address in enumerate(table.addresses)}
    said = {address: table.strongest(row) for address, row in rows.items()}
    clear = {address: word for address, row in rows.items() if (word := table.answers_to(row))}
    return said, clear


def write_dictionary_report(dictionary: SparseDictionary, seen: Look, file: Path, out: Path) -> None:
    """
    :param file: where the dictionary came from.
    """
    labelled = with_looks(dictionary, seen.gallery.ablations, seen.clear_words)
    ranked = ranking(labelled)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    quarter, half = importance_curve(ranked, (0.25, 0.5))
    training = labelled.metadata.get("training")  # in a stranger's file, anything
    shown = {name: value for name, value in labelled.metadata.items() if name not in SHOWN_ELSEWHERE}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=labelled.metadata.get("modelspec.title", file.stem),
        description=labelled.metadata.get("modelspec.description", ""),
        file=file.name,
        file_size=file.stat().st_size,
        dictionary=labelled,
        facts=shown,
        sources=made_of(labelled),
        training=training if isinstance(training, dict) else {},
        prompt=seen.prompt,
        whole=jpeg_uri(as_image(seen.gallery.whole)),
        plain=jpeg_uri(as_image(seen.gallery.plain)),
        chart=png_uri(as_image(importance_chart(labelled))),
        importance_meaning=importance_meaning(labelled),
        quarter=quarter,
        half=half,
        cards=cards(labelled, seen),
        rest=ranked[len(seen.gallery.effects) :],
        duplicates=duplicates(labelled)[:20],
    )
    write_atomically(out, page.encode())


def plain(value: object) -> str:
    """A value of the metadata as a person would write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(name).replace('_', ' ')} {plain(entry)}" for name, entry in value.items())
    return ", ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)


def made_of(dictionary: SparseDictionary) -> list[str]:
    """The dictionaries that this one was made of: what each is called, how much of it was taken, and whose it is."""
    stored = dictionary.metadata.get("sources")
    return [_credit(source) for source in stored if isinstance(source, Mapping)] if isinstance(stored, list) else []


def _credit(source: Mapping[str, object]) -> str:
    used = [f"{name} {plain(source[name])}" for name in USES if name in source]
    author = [f"by {source['author']}"] if source.get("author") else []
    return ", ".join([str(source.get("title", "untitled")), *used, *author])


def cards(dictionary: SparseDictionary, seen: Look) -> list[Card]:
    """One for each atom of the gallery, the most important first."""
    total = sum(atom.importance for atom in ranking(dictionary)) or 1.0
    importance = {atom.address: atom.importance / total for atom in ranking(dictionary)}
    size = tuple(seen.gallery.whole.shape[:2])
    fires = any(track.any() for track in seen.recording.positive.places.values())
    maps = heatmaps.heat_maps(seen.recording, size) if fires else {}
    found = []
    for effect in seen.gallery.effects:
        pictures = {
            "only it": effect.solo,
            "without it": effect.without,
            "difference": effects.difference_map(seen.gallery.removed(effect)),
        }
        if effect.name in maps:
            pictures["where it fires"] = over(seen.gallery.whole, maps[effect.name])
        if taught := strongest_lesson(seen, effect.name):
            pictures[f"fires most on {taught[0]}"] = taught[1]
        uris = [(caption, jpeg_uri(as_image(picture))) for caption, picture in pictures.items()]
        name = effect.name
        label, note = (dictionary.metadata.get(key, {}).get(name, "") for key in ("labels", "notes"))
        size_of, said = seen.gallery.size(effect), seen.words.get(name, "")
        found.append(Card(name, label, note, importance[name], size_of, said, uris))
    return found


def strongest_lesson(seen: Look, address: str) -> tuple[str, Tensor] | None:
    """Name and picture of what an atom was taught from that fires it most, with the places where it reads the picture."""
    if seen.fired is None:
        return None
    ranked = seen.fired.ranked(seen.fired.addresses.index(address))
    if not ranked:
        return None
    lesson, heat = seen.taught[ranked[0]], seen.fired.maps[ranked[0]].get(address)
    picture = torch.from_numpy(np.array(lesson.picture)).float() / 255
    return lesson.name, picture if heat is None else over(picture, firing.over_picture(heat, picture))


def over(picture: Tensor, heat: Tensor) -> Tensor:
    """A heat map laid over a picture: (height, width, 3), (height, width) -> (height, width, 3) in 0..1."""
    from matplotlib import colormaps

    relative = heat / heat.max()
    colours = torch.from_numpy(colormaps[COLOURS](relative.numpy())[..., :3]).float()
    return torch.lerp(picture.mean(dim=-1, keepdim=True).expand_as(colours), colours, 0.35 + 0.5 * relative[..., None])
