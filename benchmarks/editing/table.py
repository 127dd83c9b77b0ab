"""The table of cells: every training and every look at it, kept as soon as it is known."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from sparse_core.demo.judge import Judge
from sparse_core.demo.model import bundled_path, load_pipeline
from sparse_core.demo.world import World
from sparse_core.pictures import CaptionedPicture, decode_latents, encode_pictures
from sparse_core.training import Example

from ..cells import Cells, digest, source_digest
from ..quality.methods import Method, Point, Taught, at_work
from ..quality.table import METHOD_SOURCES, WORLD_SOURCES, file_digest
from ..quality.words import PromptedHost
from .edits import Edit, distance, truths
from .learning import learn
from .methods import Editor, Look, edited, inverted_noise, random_noises

HERE = Path(__file__).parent
CORE = HERE.parent.parent / "sparse_core"
UNRELATED = 3
"""Pictures by the base for every edited prompt."""


class Bench:
    """Model, judge and world, and the cells that they fill."""

    def __init__(self, world: World, cache: Path, pictures: int, sheets: Path | None = None) -> None:
        """
        :param pictures: random noises for every look.
        :param sheets: a folder for pictures to look at, for every edit and method; None keeps none.
        """
        self.world, self.pictures, self.sheets = world, pictures, sheets
        self.host = PromptedHost(load_pipeline())
        self.judge = Judge.load()
        self.cells = Cells(cache, {"table": "editing"})
        parts = [file_digest(path) for path in sorted(bundled_path().rglob("*.safetensors"))]
        learnt_with = [*WORLD_SOURCES, *METHOD_SOURCES, HERE / "edits.py", HERE / "learning.py"]
        seen_with = [CORE / "demo" / "judge.py", CORE / "sampling.py"]
        seen_with += [HERE / f"{name}.py" for name in ("methods", "table")]
        self.trained = [parts, source_digest(learnt_with)]
        self.conditions = [self.trained, source_digest(seen_with), pictures]

    def fill(self, edits: Sequence[Edit], editors: Sequence[Editor], seed: int) -> None:
        """Measures what is missing. May be stopped at any time: what is measured is kept."""
        work = [(edit, editor) for edit in edits for editor in editors]
        for edit, editor in tqdm(work, unit="edit and method"):
            self.reference(edit)
            self.looks(edit, editor, seed)

    def complete(self, edit: Edit, editors: Sequence[Editor], seed: int) -> bool:
        """Whether nothing of an edit is missing."""
        keys = [self.reference_key(edit), *(self.looks_key(edit, editor, seed) for editor in editors)]
        return all(key in self.cells for key in keys)

    def reference_key(self, edit: Edit) -> str:
        """Name of the cell of what is seen in known pictures."""
        return "reference/" + digest([self.conditions, asdict(edit)])

    def training_key(self, edit: Edit, method: Method, seed: int) -> str:
        """Name of the cell of a training, and of its file."""
        return "training/" + digest([self.trained, asdict(edit), asdict(method), seed])

    def looks_key(self, edit: Edit, editor: Editor, seed: int) -> str:
        """Name of the cell of all that is measured of a method at an edit."""
        return "looks/" + digest([self.conditions, asdict(edit), asdict(editor), seed])

    @cache  # noqa: B019 - a bench lives as long as its process
    def example(self, edit: Edit) -> Example:
        """The source picture as the model sees it."""
        source, _, _ = truths(self.world, edit)
        captioned = CaptionedPicture(edit.name, Image.fromarray(source), edit.prompts[0])
        return next(encode_pictures(self.host, [captioned]))

    def reference(self, edit: Edit) -> dict[str, Any]:
        """What is seen at the ends of the scales: the right answer, the source, its way through the VAE, and the base's pictures:
        one from the methods' first noise, and unrelated ones to make the scale from."""
        key = self.reference_key(edit)
        if key not in self.cells:
            source, target, _ = truths(self.world, edit)
            latents = self.example(edit).latents
            noise = random_noises(latents, self.pictures + UNRELATED)
            base = self._decoded(edited(self.host, latents, noise, edit.prompts, Look()))
            known = {"target": target[None], "source": source[None], "vae": self._decoded(latents[None])}
            known |= {"base": base[: self.pictures], "unrelated": base[self.pictures :]}
            self.cells[key] = {name: self._seen(edit, pictures) for name, pictures in known.items()}
        return self.cells[key]

    def looks(self, edit: Edit, editor: Editor, seed: int) -> list[dict[str, Any]]:
        """What is seen at all settings of a method's sliders, in their order."""
        key = self.looks_key(edit, editor, seed)
        if key not in self.cells:
            taught = self._taught(edit, editor.method, seed) if editor.method else None
            noises: dict[Any, Tensor] = {}
            found, sheet = [], [*truths(self.world, edit)[:2]]
            for look in editor.looks:
                with self._at_work(editor.method, taught, look):
                    pictures = self._decoded(self._edited(edit, look, noises))
                found.append(self._seen(edit, pictures))
                sheet.append(pictures[0])
            self._keep_sheet(edit, editor, sheet)
            self.cells[key] = found
        return self.cells[key]

    def training(self, edit: Edit, method: Method, seed: int) -> dict[str, Any]:
        """Seconds and parameters of a training that is known."""
        return self.cells[self.training_key(edit, method, seed)]

    def _taught(self, edit: Edit, method: Method, seed: int) -> Taught:
        key = self.training_key(edit, method, seed)
        path = self.cells.folder / f"{key}.safetensors"
        if key not in self.cells:
            taught, seconds = learn(self.host, self.example(edit), method, seed)
            taught.save(path)
            self.cells[key] = {"seconds": seconds, "parameters": taught.parameters()}
        return Taught.load(path)

    def _at_work(self, method: Method | None, taught: Taught | None, look: Look) -> AbstractContextManager[None]:
        if method is None or taught is None:
            return nullcontext()
        return at_work(self.host, method, taught, Point(look.strength, look.density))

    def _edited(self, edit: Edit, look: Look, noises: dict[Any, Tensor]) -> Tensor:
        """
        :param noises: those that looks of the same adapter have found; grows.
        """
        latents = self.example(edit).latents
        key = (look.strength, look.density, look.steps) if look.inverted else None
        if key not in noises:
            noises[key] = (
                inverted_noise(self.host, latents, edit.prompts[0], look.steps)
                if key
                else random_noises(latents, self.pictures)
            )
        return edited(self.host, latents, noises[key], edit.prompts, look)

    def _decoded(self, latents: Tensor) -> np.ndarray:
        """uint8 (n, h, w, 3)"""
        return np.stack([np.asarray(picture) for picture in decode_latents(self.host, latents)])

    def _seen(self, edit: Edit, pictures: np.ndarray) -> dict[str, Any]:
        """What every picture's scores follow from."""
        source, _, kept = truths(self.world, edit)
        return {"seen": self.judge.read(pictures), "distance": [distance(one, source, kept) for one in pictures]}

    def _keep_sheet(self, edit: Edit, editor: Editor, pictures: Sequence[np.ndarray]) -> None:
        """Source, right answer, then a picture for each look, in a row."""
        if self.sheets:
            self.sheets.mkdir(parents=True, exist_ok=True)
            row = Image.fromarray(np.concatenate(pictures, axis=1))
            row.save(self.sheets / f"{edit.name} {editor.name}.png")
