"""Which of some captioned pictures fire an atom most, and where on them: those that it was taught from, for instance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..controls import SparseAdapter
from ..examples import Example
from ..hosts.base import Host
from .charts import Tile, sheet
from .heatmaps import grown
from .recording import Recorder, Recording

LEVELS = (0.25, 0.5, 0.75, 0.95)
"""How far sampling has come where the model is asked: from little more than the layout to the details."""


@dataclass(frozen=True)
class Firing:
    """What atoms made of pictures."""

    addresses: tuple[str, ...]
    """The most important atom first."""
    labels: Mapping[str, str]
    strength: Tensor
    """(atoms, pictures) mean |coefficient| over all places or words, and over `LEVELS`."""
    maps: Sequence[Mapping[str, Tensor]]
    """For each picture, address to (height, width): mean |coefficient| of every place, at atoms that read the picture."""

    def ranked(self, atom: int) -> list[int]:
        """Numbers of the pictures that fire an atom, the strongest first; of equals, the earlier."""
        order = self.strength[atom].argsort(descending=True, stable=True).tolist()
        return [picture for picture in order if self.strength[atom, picture] > 0]


@torch.no_grad()
def firing(
    host: Host,
    adapter: SparseAdapter,
    addresses: Sequence[str],
    examples: Sequence[Example],
    *,
    seed: int = 0,
    on_picture: Callable[[], None] = lambda: None,
) -> Firing:
    """Runs the model with the adapter on every picture under several amounts of one noise, and watches the atoms.

    :param on_picture: called after each; may raise to stop.
    :raises ValueError: there are no pictures, or the dictionary belongs to another model.
    """
    if not examples:
        raise ValueError("There are no pictures to look at; expected at least one with its caption.")
    adapter.dictionary.check_fits(host.layers)
    seen: list[Recording] = []
    for example in examples:
        recorder = Recorder(adapter.dictionary, addresses)
        noise = torch.randn(example.latents.shape, generator=torch.Generator().manual_seed(seed))
        with host.patched([adapter], recorder):
            for level in LEVELS:
                progress = torch.tensor([level])
                latents, one_noise = (tensor[None].to(host.device) for tensor in (example.latents, noise))
                noisy = host.add_noise(latents, one_noise, progress)
                host.denoise(noisy, progress, host.stack_conditions([example.condition]))
        seen.append(recorder.recording())
        on_picture()
    maps = [
        {name: places[:, 0].float().abs().mean(dim=0) for name, places in one.positive.places.items()} for one in seen
    ]
    strength = torch.tensor(
        [[_mean(name, one, heat) for one, heat in zip(seen, maps, strict=True)] for name in addresses]
    )
    looked_at = set(addresses)
    labels = {name: label for name, label in adapter.dictionary.labels.items() if name in looked_at}
    return Firing(tuple(addresses), labels, strength, maps)


def _mean(name: str, recording: Recording, heat: Mapping[str, Tensor]) -> float:
    if name in heat:
        return float(heat[name].mean())
    words = recording.positive.words.get(name)
    return 0.0 if words is None else float(words.abs().mean())


def firing_sheet(found: Firing, pictures: Sequence[Tensor], most: int = 4) -> Tensor:
    """A row for each atom that fires: its pictures, the strongest first, with the places where it does:
    (height, width, 3) in 0..1.

    :param pictures: (height, width, 3) in 0..1 each, in the order of the examples.
    :param most: pictures in a row.
    :raises ValueError: no atom fires on any picture.
    """
    columns = min(most, found.strength.shape[1])
    tiles: list[Tile] = []
    for atom, address in enumerate(found.addresses):
        ranked = found.ranked(atom)[:columns]
        for picture in ranked:
            share = float(found.strength[atom, picture] / found.strength[atom].max())
            title = f"{address}  picture {picture}, {share:.0%}\n{found.labels.get(address, '')}"
            heat = found.maps[picture].get(address)
            over = None if heat is None else over_picture(heat, pictures[picture]) / heat.max()
            tiles.append(Tile(title, pictures[picture], over))
        if ranked:
            blank = torch.ones_like(pictures[0])
            tiles += [Tile("", blank)] * (columns - len(ranked))
    if not tiles:
        raise ValueError(
            f"None of {', '.join(found.addresses[:4])} … fires on these pictures. Choose other atoms, such as top:8, or pictures "
            "and captions like those that the dictionary was taught from."
        )
    return sheet(tiles, columns, scale="|coefficient|, in per cent of the picture's largest")


def over_picture(heat: Tensor, picture: Tensor) -> Tensor:
    """A map at a picture's size: (h, w), (height, width, 3) -> (height, width), no larger than before."""
    return grown(heat, tuple(picture.shape[:2])).clamp(max=float(heat.max()))


def firing_text(found: Firing, names: Sequence[str], most: int = 4) -> str:
    """One row for each atom: which pictures fire it, the strongest first.

    :param names: what the pictures are called.
    """
    lines = ["| atom | label | fires most on (mean \\|coefficient\\|) |", "|---|---|---|"]
    for atom, address in enumerate(found.addresses):
        ranked = found.ranked(atom)[:most]
        said = ", ".join(f"{names[picture]} ({float(found.strength[atom, picture]):.3g})" for picture in ranked)
        lines.append(f"| {address} | {found.labels.get(address) or '-'} | {said or 'none of these pictures'} |")
    return "\n".join(lines)
