"""Replaying: atoms take the coefficients of a recording in place of those they compute, at another seed or prompt too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .addresses import ALL, Selection
from .analysis.recording import Recording, check_places, check_rows
from .controls import Selected, SiteState, State
from .dictionary import SparseDictionary
from .layers import Site, reads_words
from .plan import Crop, Moment


@dataclass(frozen=True, eq=False)
class Replay:
    """A control: the selected atoms, as far as they were recorded, act with their recorded coefficients.

    Each takes those of the nearest recorded moment of sampling, of the same prompt (positive or negative), of the picture with
    its number, and there of its place or its word. A recording of fewer pictures goes to those of a batch in turn; a picture of
    another size is fitted.
    """

    recording: Recording
    amount: float = 1.0
    """From 0, what the atoms compute, to 1, what was recorded."""
    selection: Selection = ALL

    def __post_init__(self) -> None:
        if not 0 <= self.amount <= 1:
            raise ValueError(f"The amount of a replay is {self.amount}; expected 0 (as computed) to 1 (as recorded).")

    def apply(self, state: State, dictionary: SparseDictionary) -> State:
        """
        :raises ValueError: none of the selected atoms was recorded, or another dictionary's were.
        """
        if (made_on := self.recording.made_on) != (found := dictionary.atoms_hash):
            raise ValueError(
                f"The recording is of another dictionary ({made_on}) than the one that comes in ({found}), whose atoms draw "
                "something else. Replay it on the dictionary that was recorded."
            )
        recorded = self.recording.positive.places.keys() | self.recording.positive.words.keys()
        atoms = {
            site: flags & torch.tensor([f"{site}[{j}]" in recorded for j in range(len(flags))], dtype=torch.bool)
            for site, flags in self.selection.resolve(dictionary).items()
        }
        if not any(flags.any() for flags in atoms.values()):
            raise ValueError(
                f"The recording holds none of the atoms {self.selection}. Record them, or choose among its "
                f"{len(recorded)} atoms, such as {next(iter(recorded), 'none')}."
            )
        if self.amount == 0:
            return state

        def change(site: SiteState, selected: Tensor) -> SiteState:
            return replace(site, replays=torch.cat([site.replays, selected[None]]))

        layers = dictionary.layers
        words = frozenset(site for site in dictionary.sites if reads_words(site, layers))
        player = RecordingPlayer(self.recording, self.amount, words)
        return replace(state.update(Selected(atoms, False), change), replays=(*state.replays, player))


@dataclass(frozen=True, eq=False)
class RecordingPlayer:
    """Plays a recording. Implements `Player`."""

    recording: Recording
    amount: float
    words: frozenset[Site]
    """Sites whose atoms read words."""

    def __call__(self, site: Site, atoms: Sequence[int], z: Tensor, moment: Moment) -> Tensor:
        """See `Player`.

        :raises RuntimeError: the rows or the places of the model call are not known.
        """
        check_rows(site, z, moment, "replayed")
        if site not in self.words:
            check_places(site, z, moment, "replayed")
        names = [f"{site}[{j}]" for j in atoms]
        played = []
        rows = moment.rows
        for row, (picture, positive, crop) in enumerate(zip(rows.pictures, rows.positive, rows.crops, strict=True)):
            side = self.recording.positive if positive else self.recording.negative
            held = side.words if site in self.words else side.places
            # What a recording lacks, such as a negative prompt that did not run, stays as computed.
            found = [column for column, name in enumerate(names) if name in held]
            tracks = [held[names[column]] for column in found]
            played.append(self._mixed(z[row], found, self._of_row(tracks, picture, crop, moment)) if found else z[row])
        return torch.stack(played)

    def _of_row(self, tracks: Sequence[Tensor], picture: int, crop: Crop, moment: Moment) -> Tensor:
        """(tokens, tracks): what was recorded for one row."""
        if tracks[0].ndim == 2:  # (pictures, tokens)
            return torch.stack([track[picture % len(track)] for track in tracks], dim=-1)
        progress = self.recording.progress
        step = min(range(len(progress)), key=lambda i: abs(progress[i] - moment.progress))
        maps = torch.stack([track[step, picture % track.shape[1]] for track in tracks])
        return _fitted(maps.float(), crop, moment.grid)

    def _mixed(self, z: Tensor, columns: list[int], recorded: Tensor) -> Tensor:
        """(tokens, m) -> the same. A prompt's tokens beyond the recorded ones stay as computed."""
        tokens = min(len(z), len(recorded))
        mixed = z.clone()
        mixed[:tokens, columns] = z[:tokens, columns].lerp(recorded[:tokens].to(z), self.amount)
        return mixed


def _fitted(maps: Tensor, crop: Crop, grid: tuple[int, int]) -> Tensor:
    """(m, height, width) of the whole picture -> (tokens, m) of the cropped grid."""
    if crop.picture != (crop.height, crop.width):
        whole = _resized(maps, crop.picture)
        maps = whole[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return _resized(maps, grid).flatten(1).T


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(m, height, width) -> (m, *size): each axis averaged where it shrinks and interpolated where it grows."""
    height, width = map(min, maps.shape[-2:], size)
    if (height, width) != tuple(maps.shape[-2:]):
        maps = F.interpolate(maps[None], size=(height, width), mode="area")[0]
    if (height, width) != size:
        maps = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]
    return maps
