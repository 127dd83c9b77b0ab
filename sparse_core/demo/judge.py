"""A small classifier that says what a picture of the world shows, for scoring pictures against prompts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from .denoiser import latent_shards
from .pictures import evaluation_scenes, render_all
from .scenery import SCENES, STYLES
from .sprites import COLOURS, Artwork
from .training import load_checkpoint, rate, reduced_precision, save_checkpoint
from .vae import new_vae, to_pictures, to_tensor
from .world import CORE, FURTHER, PLACES, SIZES, Scene, World

NOTHING = "nothing"


def heads() -> dict[str, tuple[str, ...]]:
    """What is asked of a picture and the possible answers, "nothing" first where a place can be empty."""
    questions: dict[str, tuple[str, ...]] = {"scene": SCENES, "style": STYLES}
    for place in PLACES:
        questions[f"thing {place}"] = (NOTHING, *CORE, *FURTHER)
        questions[f"colour {place}"] = (NOTHING, *COLOURS)
        questions[f"size {place}"] = (NOTHING, *SIZES)
    return questions


def answers(scene: Scene) -> dict[str, str]:
    """The right answer to every head; things without a named colour have colour "nothing"."""
    truth = {question: options[0] for question, options in heads().items()}
    truth |= {"scene": scene.scene, "style": scene.style}
    for thing in scene.things:
        truth[f"thing {thing.place}"] = thing.word
        truth[f"size {thing.place}"] = thing.size
        truth[f"colour {thing.place}"] = thing.colour or NOTHING
    return truth


class _Block(nn.Module):
    """Halves the picture, then refines it once."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(inner, outer, 3, 2, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        self.refine = nn.Sequential(
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        return F.relu(x + self.refine(x))


class Judge(nn.Module):
    """Reads uint8 pictures (n, 128, 128, 3). `features` gives a vector a picture, for likeness measures."""

    def __init__(self, questions: dict[str, Sequence[str]]):
        super().__init__()
        self.questions = {name: tuple(options) for name, options in questions.items()}
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), _Block(32, 48), _Block(48, 96), _Block(96, 160),
            nn.Conv2d(160, 48, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
            nn.Linear(48 * 64, 256), nn.ReLU(),
        )  # fmt: skip
        self.heads = nn.Linear(256, sum(len(options) for options in self.questions.values()))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """float (n, 3, 128, 128) in -1..1 to logits (n, answers) for every question."""
        parts = self.heads(self.body(x)).split([len(options) for options in self.questions.values()], dim=1)
        return dict(zip(self.questions, parts, strict=True))

    @torch.no_grad()
    def read(self, pictures: np.ndarray) -> list[dict[str, str]]:
        """The likeliest answer to every question, one dictionary a picture."""
        self.eval()
        found: list[dict[str, str]] = []
        for i in range(0, len(pictures), 64):
            logits = self(to_tensor(pictures[i : i + 64]))
            best = {question: values.argmax(1).tolist() for question, values in logits.items()}
            count = len(next(iter(best.values())))
            found += [{q: self.questions[q][picks[n]] for q, picks in best.items()} for n in range(count)]
        return found

    @torch.no_grad()
    def features(self, pictures: np.ndarray) -> torch.Tensor:
        """float32 (n, 256), the layer below the heads."""
        self.eval()
        return torch.cat([self.body(to_tensor(pictures[i : i + 64])) for i in range(0, len(pictures), 64)])

    def save(self, folder: Path) -> None:
        """Write judge.json (questions and answers) and judge.safetensors (fp16)."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "judge.json").write_text(json.dumps(self.questions, indent=1) + "\n", encoding="utf-8")
        weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / "judge.partial")
        os.replace(folder / "judge.partial", folder / "judge.safetensors")

    @classmethod
    def load(cls, folder: Path | None = None) -> Judge:
        """From a model's `judge` folder; the bundled one by default."""
        from safetensors.torch import load_file

        from .model import bundled_path

        folder = folder or bundled_path() / "judge"
        judge = cls(json.loads((folder / "judge.json").read_text(encoding="utf-8")))
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in
                               load_file(folder / "judge.safetensors").items()})  # fmt: skip
        return judge.eval()


@dataclasses.dataclass
class Score:
    """Shares of asked attributes that were seen; each list entry is one attribute of one picture."""

    hits: dict[str, list[bool]] = dataclasses.field(default_factory=dict)

    def add(self, scene: Scene, seen: dict[str, str]) -> None:
        """Compare one picture's reading with what was asked."""
        occupied = {place for place in PLACES if seen[f"thing {place}"] != NOTHING}
        self._note("scene", seen["scene"] == scene.scene)
        self._note("style", seen["style"] == scene.style)
        self._note("place", occupied == {thing.place for thing in scene.things})
        for number, thing in enumerate(scene.things):
            self._note("second thing" if number else "thing", seen[f"thing {thing.place}"] == thing.word)
            self._note("size", seen[f"size {thing.place}"] == thing.size)
            if thing.colour:
                self._note("colour", seen[f"colour {thing.place}"] == thing.colour)

    def _note(self, attribute: str, hit: bool) -> None:
        self.hits.setdefault(attribute, []).append(hit)

    def shares(self) -> dict[str, float]:
        """Share of hits by attribute, and over all single attributes under "all"."""
        every = [hit for hits in self.hits.values() for hit in hits]
        return {"all": float(np.mean(every)), **{name: float(np.mean(hits)) for name, hits in self.hits.items()}}


def _labels(judge: Judge, scenes: Sequence[Scene]) -> torch.Tensor:
    """int64 (n, questions)"""
    truths = [answers(scene) for scene in scenes]
    return torch.tensor([[judge.questions[q].index(truth[q]) for q in judge.questions] for truth in truths])


def _spoil(pictures: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, noise, brightness and a shift of up to two pixels: what a small model's pictures suffer from."""
    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    strength = torch.from_numpy(rng.uniform(0, 1, (len(pictures), 1, 1, 1)) * rng.integers(0, 2)).float()
    pictures = torch.lerp(pictures, blurred, strength)
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    scale = torch.from_numpy(rng.uniform(0, 0.12, (len(pictures), 1, 1, 1))).float()
    light = torch.from_numpy(rng.uniform(0.92, 1.08, (len(pictures), 1, 1, 1))).float()
    shifts = tuple(int(v) for v in rng.integers(-2, 3, 2))
    return torch.roll(pictures * light + noise * scale, shifts, (2, 3))


@torch.no_grad()
def _decoded(vae: nn.Module, latents: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Pictures from latents with some noise on them, uint8 (n, 128, 128, 3)."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for i in range(0, len(latents), 16):
        z = torch.from_numpy(latents[i : i + 16]).float()
        z = z + noise * torch.rand(len(z), 1, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
        with reduced_precision():
            out.append(to_pictures(vae.decoder(z.to(memory_format=torch.channels_last)) * 2 - 1))
    return np.concatenate(out)


def train_judge(art: Artwork, work: Path, folder: Path, steps: int, seed: int, shards: int = 4) -> None:
    """Train on renders and, half of the time, on the same renders after the autoencoder. Resumes."""
    torch.manual_seed(seed)
    world = World(art)
    judge = Judge(heads()).to(memory_format=torch.channels_last)
    store = work / "judge_pictures.npy"
    cached = list(latent_shards(work, seed))[:shards]
    scenes = [scene for shard_scenes, _ in cached for scene in shard_scenes]
    if not store.is_file():
        vae = new_vae()
        vae.load_state_dict((load_checkpoint(work / "vae.pt") or {})["average"])
        vae.to(memory_format=torch.channels_last)
        pairs = []
        for number, (shard_scenes, latents) in enumerate(cached):
            rendered = np.stack([r.picture for r in render_all(world, shard_scenes)])
            pairs.append(np.stack([rendered, _decoded(vae, latents, 0.35, seed + number)], axis=1))
        partial = store.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(pairs))
        partial.rename(store)
    pictures = np.load(store, mmap_mode="r")
    labels = _labels(judge, scenes)
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.01, fused=True)
    path = work / "judge.pt"
    start = 0
    if state := load_checkpoint(path):
        judge.load_state_dict(state["judge"])
        optimiser.load_state_dict(state["optimiser"])
        start = state["step"]
    judge.train()
    progress = trange(start, steps, initial=start, total=steps, desc="judge", mininterval=10)
    for step in progress:
        rng = np.random.default_rng((seed, step))
        chosen = np.sort(rng.integers(0, len(pictures), 64))
        batch = np.stack([pictures[i, side] for i, side in zip(chosen, rng.integers(0, 2, 64), strict=True)])
        optimiser.param_groups[0]["lr"] = 2e-3 * rate(step, steps)
        with reduced_precision():
            logits = judge(_spoil(to_tensor(batch), rng).to(memory_format=torch.channels_last))
        losses = [F.cross_entropy(values.float(), labels[chosen, q]) for q, values in enumerate(logits.values())]
        loss = torch.stack(losses).sum()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
        if (step + 1) % 200 == 0 or step + 1 == steps:
            weights = judge.state_dict()
            save_checkpoint(path, {"judge": weights, "optimiser": optimiser.state_dict(), "step": step + 1})
    judge.save(folder / "judge")


def judge_accuracy(judge: Judge, art: Artwork, count: int, seed: int) -> dict[str, float]:
    """Held-out accuracy by question on renders of combinations that no training saw."""
    scenes = evaluation_scenes(count, seed)
    pictures = np.stack([r.picture for r in render_all(World(art), scenes)])
    readings = judge.read(pictures)
    truths = [answers(scene) for scene in scenes]
    pairs = list(zip(readings, truths, strict=True))
    return {q: float(np.mean([seen[q] == truth[q] for seen, truth in pairs])) for q in judge.questions}
