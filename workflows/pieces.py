"""What workflows are made of: nodes that go together, and the list of those who build one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .graph import Node, Slot, Workflow

SIDE = 128
"""Pixels of a side of the demo model's pictures."""

WORKFLOWS: dict[str, tuple[str, Callable[[Workflow], Node]]] = {}
"""Name to note and builder, in learning order."""


def workflow(name: str, note: str) -> Callable[[Callable[[Workflow], Node]], Callable[[Workflow], Node]]:
    """Registers a builder; it returns the node whose pictures stand for the workflow."""

    def register(build: Callable[[Workflow], Node]) -> Callable[[Workflow], Node]:
        WORKFLOWS[name] = (note, build)
        return build

    return register


def sampled(
    w: Workflow,
    model: Slot,
    demo: Node,
    prompt: str,
    seed: int = 1,
    batch: int = 4,
    clip: Slot | None = None,
    **options: Any,
) -> Node:
    """Prompt to decoded pictures, the stock way."""
    positive = w("CLIPTextEncode", clip=clip or demo[1], text=prompt, title="Prompt")
    negative = w("CLIPTextEncode", clip=clip or demo[1], text="", title="Negative prompt")
    if "latent_image" not in options:
        options["latent_image"] = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=batch)[0]
    settings = {"seed": seed, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler = w(
        "KSampler",
        model=model,
        positive=positive[0],
        negative=negative[0],
        **settings | options,
    )
    return w("VAEDecode", samples=sampler[0], vae=demo[2])


def saved(w: Workflow, images: Slot) -> Node:
    """The end of a workflow."""
    return w("SaveImage", images=images, filename_prefix=f"sparse_atoms/{w.name}")


def column_mask(w: Workflow, x: int, width: int) -> Node:
    """White from ``x`` on, ``width`` pixels wide, over the whole height."""
    black = w("SolidMask", value=0.0, width=SIDE, height=SIDE)
    white = w("SolidMask", value=1.0, width=width, height=SIDE)
    return w(
        "MaskComposite", destination=black[0], source=white[0], x=x, y=0, operation="add", title=f"Mask {x}-{x + width}"
    )


def stacked(w: Workflow, images: list[Slot]) -> Slot:
    """Several batches in one."""
    whole = images[0]
    for one in images[1:]:
        whole = w("ImageBatch", image1=whole, image2=one)[0]
    return whole


def look_at(w: Workflow, demo: Node, prompt: str) -> dict[str, Any]:
    """What nodes that draw for themselves need."""
    return {
        "model": demo[0],
        "positive": w("CLIPTextEncode", clip=demo[1], text=prompt, title="Prompt")[0],
        "negative": w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")[0],
        "latent_image": w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)[0],
    }
