"""Parts of prompts that many tests share."""

from __future__ import annotations

from typing import Any

from client import Graph, Node

STEPS = 3


def demo(graph: Graph) -> Node:
    """The bundled model: outputs 0 MODEL, 1 CLIP, 2 VAE."""
    return graph.add("SparseAtoms_DemoModel")


def sample(graph: Graph, model: list, demo: Node, latent: list | None = None, **settings: Any) -> Node:
    """KSampler on the demo model's size, with prompts. ``settings`` replace the sampler's inputs."""
    positive = graph.add("CLIPTextEncode", text="a red cat on the left in the snow", clip=demo[1])
    negative = graph.add("CLIPTextEncode", text="", clip=demo[1])
    if latent is None:
        latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)[0]
    inputs = dict(
        model=model,
        seed=1,
        steps=STEPS,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive[0],
        negative=negative[0],
        latent_image=latent,
        denoise=1.0,
    )
    return graph.add("KSampler", **{**inputs, **settings})


def keep(graph: Graph, sampler: Node) -> Node:
    """Saves latents, so that a test can compare them to the bit."""
    return graph.add("SaveLatent", samples=sampler[0], filename_prefix="latents/test")


def training(graph: Graph, demo: Node, **settings: Any) -> Node:
    """Train Sparse Dictionary on two plain pictures. ``settings`` replace its inputs."""
    pictures = graph.add("EmptyImage", width=128, height=128, batch_size=2, color=0xFF2020)
    latents = graph.add("VAEEncode", pixels=pictures[0], vae=demo[2])
    captions = graph.add("CLIPTextEncode", text="a zib in the snow", clip=demo[1])
    inputs = dict(
        model=demo[0],
        latents=latents[0],
        captions=captions[0],
        name="zib",
        preset="custom",
        steps=4,
        learning_rate=0.01,
        batch=2,
        atoms=4,
        attention="both",
        projections="qkvo",
        threshold=1.5,
        sparsity=1e-4,
        seed=0,
    )
    return graph.add("SparseAtoms_Train", **{**inputs, **settings})
