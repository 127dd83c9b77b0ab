"""``demo make``: teaches the demo model a creature it has never seen, and shows what can be done with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from .addresses import parse_selection
from .analysis.ranking import ranking
from .controls import Keep, Mask, SparseAdapter, Stack, Weight
from .demo.scenery import SIDE
from .demo.sprites import OpenMojiArt
from .demo.world import Scene, Thing, World, caption
from .dictionary import SparseDictionary
from .files import SUFFIX, check_output, save_dictionary
from .generate import Sampling, generate
from .hosts.diffusers import DiffusersHost
from .pictures import CaptionedPicture, encode_pictures, read_folder, write_picture
from .pipelines import load_pipeline
from .report import write_report
from .training import Progress, TrainingSettings, TrainingStopped, train
from .training.metadata import file_metadata

CREATURE, DRAWING = "fox", "fox-face"
"""The word to teach, free in the demo model's vocabulary, and OpenMoji's name of the drawing."""
CREDIT = "The creature is drawn by the OpenMoji project (openmoji.org), licence CC BY-SA 4.0."
SETTINGS = TrainingSettings()
TIME_LIMIT = 180
"""Seconds of training at most, however slow the machine: what was learnt by then is kept."""
SAMPLING = Sampling(steps=20, guidance=3.0)
BATCH = 16
TAUGHT = tuple(
    Scene((Thing(CREATURE, place),), scene, seed=seed)
    for seed, (scene, place) in enumerate((s, p) for s in ("meadow", "snow", "beach") for p in ("left", "middle"))
)
CELL, MARGIN, LABEL = 192, 8, 40
"""Pixels of the contact sheet: a picture, the gap between two, a line of text."""


@dataclass(frozen=True)
class Column:
    """One way to use the dictionary."""

    title: str
    stack: Stack


@dataclass(frozen=True)
class Showcase:
    """All that the report shows."""

    word: str
    taught: Sequence[CaptionedPicture]
    dictionary: SparseDictionary
    seconds: float
    """How long the training took."""
    prompts: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Sequence[Image.Image]]
    """One for each prompt, with one picture for each column."""
    sampling: Sampling
    credit: str


def make_demo(out: Path, images: Path | None = None, word: str | None = None) -> list[Path]:
    """Teaches, draws and writes ``dictionary.safetensors``, ``sheet.png`` and ``report.html`` into ``out``.

    :param images: a folder of pictures to teach instead of the creature; ``word`` then says what they show.
    :returns: the files.
    :raises ValueError: there is no word for the pictures, a picture can't be used, or ``out`` can't be written to.
    """
    if images and not word:
        raise ValueError("Your pictures need a word to call them by: give one with --word (make demo: WORD=name).")
    word = word or CREATURE
    files = [out / name for name in (f"dictionary{SUFFIX}", "sheet.png", "report.html")]
    check_output(files[0], SUFFIX)
    taught = read_folder(images, word, SIDE) if images else render_taught()
    host = DiffusersHost(load_pipeline())
    dictionary, seconds = teach(host, taught, word)
    columns = columns_of(SparseAdapter(dictionary))
    prompts = prompts_with(word)
    rows = draw(host, prompts, columns)
    showcase = Showcase(word, taught, dictionary, seconds, prompts, columns, rows, SAMPLING, "" if images else CREDIT)
    save_dictionary(dictionary, files[0])
    write_picture(contact_sheet(showcase), files[1])
    write_report(showcase, files[0].stat().st_size, files[2])
    return files


def render_taught() -> list[CaptionedPicture]:
    """The creature in the scenes it is taught in."""
    art = OpenMojiArt()
    world = World(art, {CREATURE: lambda size: art.sprite(DRAWING, size)})
    rendered = [world.render(scene) for scene in TAUGHT]
    return [CaptionedPicture(r.caption, Image.fromarray(r.picture), r.caption) for r in rendered]


def prompts_with(word: str) -> list[str]:
    """Scenes, places and company in which nothing was taught."""
    scenes = (
        Scene((Thing(word, "right"),), "meadow"),
        Scene((Thing(word, "middle"),), "night"),
        Scene((Thing(word, "left"),), "desert"),
        Scene((Thing(word, "right"),), "sunset"),
        Scene((Thing(word, "left"), Thing("tree", "right", "big", "green")), "sunset"),
        Scene((Thing("house", "left", "big", "red"), Thing(word, "right")), "night"),
    )
    return [caption(scene) for scene in scenes]


def teach(host: DiffusersHost, taught: Sequence[CaptionedPicture], word: str) -> tuple[SparseDictionary, float]:
    """The dictionary, and the seconds it took.

    :raises ValueError: no caption names the word.
    """
    host.check_named(word, [picture.caption for picture in taught])
    examples = list(encode_pictures(host, taught))
    start = time.monotonic()
    with tqdm(total=SETTINGS.steps, desc=f"learning {word!r}", unit="step") as bar:

        def on_step(progress: Progress) -> None:
            bar.set_postfix(loss=f"{progress.loss:.4f}", refresh=False)
            bar.update()
            if time.monotonic() - start > TIME_LIMIT:
                raise TrainingStopped

        metadata = file_metadata(
            f"{word} (demo)", word, [picture.caption for picture in taught], thumbnail=taught[0].picture
        )
        dictionary = train(host, examples, SETTINGS, on_step, metadata, word=word)
    return dictionary, time.monotonic() - start


def columns_of(adapter: SparseAdapter) -> list[Column]:
    """The ways to use a dictionary that fit on one page."""
    most_important = ranking(adapter.dictionary)[0].address
    left_half = torch.zeros(SIDE, SIDE)
    left_half[:, : SIDE // 2] = 1
    mute = Weight(parse_selection(most_important), 0.0)
    return [
        Column("base", ()),
        Column("dictionary", (adapter,)),
        Column("strength 0.5", (adapter.at_strength(0.5),)),
        Column("half of the atoms", (adapter.with_controls(Keep(0.5)),)),
        Column("a quarter", (adapter.with_controls(Keep(0.25)),)),
        Column(f"{most_important} muted", (adapter.with_controls(mute),)),
        Column("left half only", (adapter.with_controls(Mask(left_half)),)),
    ]


def draw(host: DiffusersHost, prompts: Sequence[str], columns: Sequence[Column]) -> list[list[Image.Image]]:
    """One row for each prompt: the same noise in every column."""
    steps = SAMPLING.steps * len(prompts) * len(columns)
    seeds = range(1, len(prompts) + 1)
    with tqdm(total=steps, desc="drawing", unit="step") as bar:
        drawn = [generate(host, prompts, seeds, SAMPLING, c.stack, bar.update, BATCH) for c in columns]
    return [list(row) for row in zip(*drawn, strict=True)]


def contact_sheet(showcase: Showcase) -> Image.Image:
    """All pictures on one, the columns named, each row under its prompt."""
    font = ImageFont.load_default(18)
    width = len(showcase.columns) * (CELL + MARGIN) + MARGIN
    height = LABEL + len(showcase.rows) * (CELL + LABEL + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    lefts = range(MARGIN, width - MARGIN, CELL + MARGIN)
    for left, column in zip(lefts, showcase.columns, strict=True):
        pen.text((left + CELL / 2, LABEL / 2), column.title, "black", font, anchor="mm")
    for number, (prompt, row) in enumerate(zip(showcase.prompts, showcase.rows, strict=True)):
        top = LABEL + number * (CELL + LABEL + MARGIN)
        for left, picture in zip(lefts, row, strict=True):
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (left, top))
        pen.text((MARGIN, top + CELL + LABEL / 2), prompt, "black", font, anchor="lm")
    return sheet
