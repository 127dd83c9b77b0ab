"""The noise that a picture is drawn from, as ComfyUI's samplers take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...sampling import invert, sample
from .host import ComfyHost, one_entry


class KnownNoise:
    """Noise that is given instead of drawn: ComfyUI's NOISE."""

    seed = 0

    def __init__(self, noise: Tensor) -> None:
        self.noise = noise

    def generate_noise(self, latent: dict) -> Tensor:
        """
        :raises ValueError: the latent is for pictures of another number or size.
        """
        given, wanted = self.noise.shape, latent["samples"].shape
        if (given[0], *given[2:]) != (wanted[0], *wanted[2:]):
            raise ValueError(
                f"The inverted noise is for {given[0]} pictures of {given[2]} x {given[3]} latent pixels; the latent has "
                f"{wanted[0]} of {wanted[2]} x {wanted[3]}. Connect an empty latent of the picture's size."
            )
        return self.noise


class Inverted(NamedTuple):
    """A picture's noise, as samplers take it."""

    latent: dict
    """For a sampler that adds no noise."""
    noise: KnownNoise
    report: str
    """How exactly the picture comes back."""


def invert_latent(
    model: ModelPatcher,
    latent: dict,
    positive: list,
    negative: list,
    steps: int,
    guidance: float,
    refinements: int,
    on_step: Callable[[], None],
) -> Inverted:
    """The noise from which a deterministic sampler with evenly spaced steps (euler, simple) draws a LATENT.

    :param on_step: called after every step back, and after every step of drawing the picture again to compare.
    :raises ValueError: see `invert`; or a prompt holds several, or what only ComfyUI's samplers can honour.
    """
    host = ComfyHost(model).load()
    clean = host.model.model.process_latent_in(latent["samples"].float()).to(host.device)
    conditions = [
        host.stack_conditions([one_entry(prompt, which)] * len(clean))
        for which, prompt in (("positive", positive), ("negative", negative))
    ]
    settings = {"steps": steps, "guidance": guidance, "negative": conditions[1], "on_step": on_step}
    noise = invert(host, clean, conditions[0], refinements=refinements, **settings)
    again = sample(host, conditions[0], noise, **settings)
    error = float((again - clean).square().mean().sqrt() / clean.std())
    report = (
        f"Drawn again with {steps} steps and cfg {guidance:g}, the latents miss the picture's by {error:.1%} of their spread "
        f"(root mean square). The noise has mean {float(noise.mean()):+.2f} and deviation {float(noise.std()):.2f}; 0 and 1 are "
        "usual."
    )
    if host.prediction == "flow":
        report += (
            " This is a flow model, whose samplers drop the latent that they start from at full noise: draw from the noise output, "
            "with SamplerCustomAdvanced and an empty latent. The latent output is of no use here."
        )
    start = host.model.model.process_latent_out(noise * float(host.sampling.sigma_max)).cpu()
    return Inverted({"samples": start}, KnownNoise(noise.cpu()), report)
