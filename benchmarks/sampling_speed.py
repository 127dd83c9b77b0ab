"""One denoising step, negative and positive prompt together, plain and with a load on it, in both hosts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import median
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from diffusers.utils import logging as diffusers_logging
from torch import Generator, Tensor

from sparse_core.addresses import parse_selection
from sparse_core.analysis.importance import Measurement
from sparse_core.controls import SparseAdapter, Stack, Weight
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.layers import Layer

from .machine import now
from .models import (
    POOLED,
    TARGETS,
    TEXT_TOKENS,
    Kind,
    Variant,
    comfy_model,
    diffusers_unet,
    lora_weights,
    projections,
    random_dictionary,
    scheduler,
    strips,
)
from .timing import interleaved, quartiles

SIGMA_AT = 0.5
"""Where in sampling the timed step lies; its cost is the same everywhere."""


class Subject(Protocol):
    """A model under measurement."""

    layers: tuple[Layer, ...]
    size: tuple[int, int]
    device: torch.device

    def step(self, stack: Stack = ()) -> float:
        """Seconds of one step."""


def overhead(subject: Subject, variant: Variant, repeats: int, seed: int) -> dict[str, Any]:
    """A load against the plain model."""
    stack = variant.stack(subject.layers, subject.size, seed)
    parameters = sum(adapter.dictionary.parameters() for adapter in stack)
    return {
        **interleaved(subject.step, lambda: subject.step(stack), repeats, subject.device),
        "parameters": parameters,
    }


# ------------------------------------------------------------------------------------------------------------ diffusers


class DiffusersSubject:
    """diffusers' UNet, called as its pipelines call it."""

    def __init__(self, kind: Kind, side: int, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        self.size, self.device = (side, side), device
        self.unet = diffusers_unet(kind, device, dtype, seed)
        pipeline = SimpleNamespace(unet=self.unet, scheduler=scheduler(), do_classifier_free_guidance=True)
        self.host = DiffusersHost(pipeline)
        self.layers = self.host.layers
        generator = Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        self.latents = random(2, 4, side, side)
        self.text = random(2, TEXT_TOKENS, self.unet.config.cross_attention_dim)
        pixels = 8.0 * side
        ids = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2).to(device, dtype)
        self.added = {"text_embeds": random(2, POOLED), "time_ids": ids} if kind == "sdxl" else None

    @torch.inference_mode()
    def step(self, stack: Stack = (), observer: Any = None) -> float:
        """See `Subject.step`. What is done once for a picture is not counted."""
        with self.host.patched(stack, observer):
            began = now(self.device)
            self.unet(self.latents, 500, self.text, added_cond_kwargs=self.added)
            return now(self.device) - began

    def active_share(self, atoms: int, seed: int) -> float:
        """Share of coefficients of a random dictionary that are not zero."""
        dictionary = random_dictionary(self.layers, atoms, seed)
        measurement = Measurement(dictionary)
        self.step([SparseAdapter(dictionary)], measurement)
        return measurement.active_share()


def peft_overhead(subject: DiffusersSubject, rank: int, repeats: int) -> dict[str, Any]:
    """An ordinary LoRA of peft, unfused, so that its strength can be changed as freely as an atom's weight."""
    from peft import LoraConfig

    subject.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), "peer")

    def plain() -> float:
        subject.unet.disable_adapters()
        return subject.step()

    def patched() -> float:
        subject.unet.enable_adapters()
        return subject.step()

    try:
        return interleaved(plain, patched, repeats, subject.device)
    finally:
        subject.unet.delete_adapters("peer")


# -------------------------------------------------------------------------------------------------------------- ComfyUI


class ComfySubject:
    """ComfyUI's model, called by its own sampling code."""

    def __init__(self, kind: Kind, side: int, dtype: torch.dtype, seed: int) -> None:
        from sparse_core.hosts.comfyui import list_layers

        self.size = (side, side)
        self.model = comfy_model(kind, dtype, seed)
        self.device = self.model.load_device
        self.unet = self.model.model.diffusion_model
        self.layers = tuple(list_layers(self.unet).values())
        width = self.model.model.model_config.unet_config["context_dim"]
        generator = Generator().manual_seed(seed)
        self.prompts = [
            [[torch.randn(1, TEXT_TOKENS, width, generator=generator), {"pooled_output": torch.randn(1, POOLED)}]]
            for _ in range(2)
        ]
        self.noise = torch.randn(1, 4, side, side, generator=generator)
        self._applied: tuple[Stack, Any] = ((), self.model)

    def step(self, stack: Stack = ()) -> float:
        """See `Subject.step`. What is done once for a picture is not counted."""
        from sparse_core.hosts.comfyui import apply_adapter

        if not stack:
            return self.sample(self.model)
        if self._applied[0] is not stack:
            patched = self.model
            for adapter in stack:
                patched = apply_adapter(patched, adapter)
            self._applied = (stack, patched)
        return self.sample(self._applied[1])

    @torch.inference_mode()
    def sample(self, model: Any, prompts: Sequence[list] | None = None, warm_up: int = 0) -> float:
        """Seconds of the last of ``warm_up + 1`` steps."""
        from comfy.samplers import CFGGuider

        guider = CFGGuider(model)
        guider.set_conds(*(prompts or self.prompts))
        guider.set_cfg(7.0)
        timer = _step_timer(warm_up)
        sigma = float(model.get_model_object("model_sampling").percent_to_sigma(SIGMA_AT))
        guider.sample(self.noise, torch.zeros_like(self.noise), timer, torch.tensor([sigma, 0.0]), disable_pbar=True)
        return timer.seconds

    def until_first_step(self, change: Callable[[], Any]) -> float:
        """Seconds from a change, which gives a MODEL, to the moment its UNet begins to work."""

        def reached(*_: Any) -> None:
            raise _Reached(now(self.device))

        handle = self.unet.time_embed.register_forward_pre_hook(reached)
        began = now(self.device)
        try:
            self.sample(change())
        except _Reached as arrival:
            return arrival.moment - began
        finally:
            handle.remove()
        raise RuntimeError("The UNet never ran.")


class _Reached(Exception):
    def __init__(self, moment: float) -> None:
        self.moment = moment


def _step_timer(warm_up: int) -> Any:
    from comfy.samplers import Sampler

    class StepTimer(Sampler):
        """A sampler that stays where it is and times the model's answers."""

        seconds: float

        def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict, callback: Any, noise: Tensor, *_: Any):
            x, sigma = noise * sigmas[0], sigmas[:1].repeat(len(noise))
            for _ in range(warm_up + 1):
                began = now(noise.device)
                model_wrap(x, sigma, **extra_args)
                self.seconds = now(noise.device) - began
            return x

    return StepTimer()


def hooks_overhead(subject: ComfySubject, regions: int, rank: int, repeats: int, seed: int) -> dict[str, Any]:
    """What the same regions cost with core's LoRA hooks on masked conditionings, one LoRA each."""
    import comfy.hooks

    modules = projections(subject.unet, "diffusion_model.")
    positive: list = []
    negative: list = []
    for number, mask in enumerate(strips(regions, subject.size)):
        lora = lora_weights(modules, rank, seed + number)
        conds = comfy.hooks.set_conds_props(
            subject.prompts,
            strength=1.0,
            set_cond_area="default",
            mask=mask,
            hooks=comfy.hooks.create_hook_lora(lora, 1.0, 0.0),
        )
        positive, negative = positive + conds[0], negative + conds[1]
    return interleaved(
        subject.step,
        # The weights of every region are patched in the first step and cached: the second is the lasting cost.
        lambda: subject.sample(subject.model, [positive, negative], warm_up=1),
        repeats,
        subject.device,
    )


def weight_change(subject: ComfySubject, atoms: int, repeats: int, seed: int) -> dict[str, Any]:
    """Milliseconds from a changed number to the first step: an atom's weight against a LoRA's strength."""
    import comfy.sd

    from sparse_core.hosts.comfyui import apply_adapter

    adapter = SparseAdapter(random_dictionary(subject.layers, atoms, seed))
    lora = lora_weights(projections(subject.unet, "diffusion_model."), atoms, seed)
    first = parse_selection("L0.q[0]")

    def ours(weight: float) -> Any:
        return apply_adapter(subject.model, adapter.with_controls(Weight(first, weight)))

    def theirs(strength: float) -> Any:
        return comfy.sd.load_lora_for_models(subject.model, None, lora, strength, 0)[0]

    def milliseconds(change: Callable[[float], Any]) -> list[float]:
        values = [1 - 0.01 * turn for turn in range(repeats + 1)]
        return [1000 * subject.until_first_step(lambda v=value: change(v)) for value in values][1:]

    taken = {"ours": milliseconds(ours), "lora": milliseconds(theirs)}
    return {name: {"ms": median(v), "quartiles": quartiles(v), "repeats": repeats} for name, v in taken.items()}


def quiet() -> None:
    """Silences what both hosts say while they load."""
    logging.getLogger().setLevel(logging.ERROR)
    diffusers_logging.set_verbosity_error()
