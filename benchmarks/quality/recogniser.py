"""Small classifiers trained on renders: of the taught things among all others, and of the taught styles."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_core.demo.scenery import SCENES, STYLES
from sparse_core.demo.vae import to_tensor
from sparse_core.demo.world import CORE, FURTHER, PLACES, SIZES, Scene, Thing, random_scene
from sparse_core.files import write_atomically

from .concepts import TAUGHT_STYLES, WORD, Studio, Task

SIDE = 48
"""Pixels along a side of what a recogniser of things looks at."""
MARGIN = 5
OTHER = "other"
BATCH, RATE = 64, 3e-3


class Sample(NamedTuple):
    """A picture with the mask of what is to be named."""

    picture: np.ndarray
    """uint8 (h, w, 3)."""
    mask: np.ndarray
    """float32 (h, w)."""
    label: str


class Recogniser(nn.Module):
    """Names what it sees: float (n, 3, h, w) in -1..1, any size, to logits (n, labels)."""

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
            layers += [nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten())
        self.head = nn.Linear(9 * widths[-1], len(self.labels))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    @torch.no_grad()
    def certainty(self, patches: np.ndarray, label: str) -> list[float]:
        """Probability of one label for every patch, uint8 (n, h, w, 3)."""
        self.eval()
        return self(to_tensor(patches)).softmax(dim=1)[:, self.labels.index(label)].tolist()

    def save(self, path: Path) -> None:
        """Writes the weights, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save(self.state_dict()))

    @classmethod
    def load(cls, path: Path, labels: Sequence[str]) -> Recogniser:
        """The other way round."""
        made = cls(labels)
        made.load_state_dict(load_file(path))
        return made.eval()


def patch(picture: np.ndarray, mask: np.ndarray, shift: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The square around a mask, uint8 (SIDE, SIDE, 3): (h, w, 3), (h, w)."""
    rows, columns = np.nonzero(mask > 0.5)
    if len(rows) == 0:
        rows, columns = (np.arange(length) for length in mask.shape)
    side = max(np.ptp(rows), np.ptp(columns)) + 1 + 2 * MARGIN
    top = (rows.min() + rows.max() + 1 - side) // 2 + shift[0]
    left = (columns.min() + columns.max() + 1 - side) // 2 + shift[1]
    box = (int(left), int(top), int(left + side), int(top + side))
    # Beyond the picture's edge the border goes on, so that a black rim never gives a place away.
    wide = np.pad(picture, ((side, side), (side, side), (0, 0)), mode="edge")
    return np.array(Image.fromarray(wide).resize((SIDE, SIDE), Image.Resampling.BILINEAR, [v + side for v in box]))


def thing_samples(studio: Studio, tasks: Sequence[Task], seed: int) -> Iterator[Sample]:
    """Endless renders in varied scenes, half of them of taught things, half of the world's own."""
    rng = random.Random(seed)
    taught = [task for task in tasks if task.kind == "concept"]
    while True:
        task = rng.choice(taught)
        word = WORD if rng.random() < 0.5 else rng.choice((*CORE, *FURTHER))
        thing = Thing(word, rng.choice(PLACES), rng.choice(tuple(SIZES)))
        things: tuple[Thing, ...] = (thing,)
        if thing.place != "middle" and rng.random() < 0.5:
            side = "right" if thing.place == "left" else "left"
            things = (thing, Thing(rng.choice((*CORE, *FURTHER)), side, rng.choice(tuple(SIZES))))
        scene = Scene(things, rng.choice(SCENES), rng.choice(STYLES), rng.randrange(2**31))
        rendering = studio.render(scene, task)
        yield Sample(rendering.picture, rendering.masks[0], task.name if word == WORD else OTHER)


def style_samples(studio: Studio, task: Task, seed: int) -> Iterator[Sample]:
    """Endless renders in all styles, those of the world and those to be taught."""
    rng = random.Random(seed)
    while True:
        scene = random_scene(rng)
        picture = studio.world(task).render(scene).picture
        label = rng.choice((scene.style, *TAUGHT_STYLES))
        picture = TAUGHT_STYLES[label](picture) if label in TAUGHT_STYLES else picture
        yield Sample(picture, np.ones(picture.shape[:2], np.float32), label)


def thing_labels(tasks: Sequence[Task]) -> list[str]:
    """What a recogniser of things tells apart."""
    return [OTHER, *(task.name for task in tasks if task.kind == "concept")]


def style_labels() -> list[str]:
    """What a recogniser of styles tells apart."""
    return [*STYLES, *TAUGHT_STYLES]


def train_recogniser(samples: Iterator[Sample], labels: Sequence[str], crop: bool, steps: int, seed: int) -> Recogniser:
    """Fits a recogniser to renders.

    :param crop: look at the square around the mask instead of the whole picture.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    made = Recogniser(labels).train()
    optimiser = torch.optim.AdamW(made.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(steps):
        batch = [next(samples) for _ in range(BATCH)]
        views = [patch(s.picture, s.mask, tuple(rng.integers(-4, 5, 2))) if crop else s.picture for s in batch]
        truth = torch.tensor([labels.index(s.label) for s in batch])
        loss = F.cross_entropy(made(spoilt(to_tensor(np.stack(views)), rng)), truth)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    return made.eval()


def spoilt(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur, noise and brightness, which a small model's pictures suffer from: (n, 3, h, w) -> the same."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    rows = (len(pictures), 1, 1, 1)
    pictures = torch.lerp(pictures, blurred, torch.from_numpy(rng.uniform(0, 1, rows)).float())
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32) * rng.uniform(0, 0.1, rows)).float()
    return pictures * torch.from_numpy(rng.uniform(0.92, 1.08, rows)).float() + noise
