"""One training step of ours, against a LoRA of equal parameters and against ComfyUI's own trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_core.hosts.base import Host
from sparse_core.hosts.diffusers import Condition, DiffusersHost
from sparse_core.training import Example, TrainingSettings
from sparse_core.training.learners import DictionaryLearner
from sparse_core.training.loop import Trainer

from .machine import Cost, Meter
from .models import TARGETS
from .sampling_speed import ComfySubject, DiffusersSubject
from .timing import compare, interleaved

# ------------------------------------------------------------------------------------------------- against peft's LoRA


class PeftLearner:
    """A LoRA on the same projections, as many values as the dictionary. Implements `Learner`."""

    def __init__(self, host: DiffusersHost, settings: TrainingSettings) -> None:
        from peft import LoraConfig

        self.unet, self.settings = host.unet, settings
        rank = settings.atoms
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)), "peer")
        self._learnt = {name: p for name, p in self.unet.named_parameters() if ".peer." in name}
        for parameter in self._learnt.values():
            parameter.data = parameter.data.float()
        self.unet.disable_adapters()

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return self._learnt

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        return self.settings.learning_rate

    @contextmanager
    def at_work(self, prior: Tensor) -> Iterator[None]:
        """See `Learner`."""
        self.unet.enable_adapters()
        try:
            yield
        finally:
            self.unet.disable_adapters()

    def penalty(self) -> float:
        """See `Learner`."""
        return 0.0

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """See `Learner`."""
        return []


def against_peft(
    host: DiffusersHost, examples: list[Example], settings: TrainingSettings, repeats: int
) -> dict[str, Any]:
    """Both in turn, through one loop. ``ratio`` is ours / theirs."""
    beside = DiffusersHost(sharing_weights(host.pipeline))  # peft's layers slow a UNet down even where they rest
    peer = PeftLearner(beside, settings)
    with host.trainable(), beside.trainable():
        for parameter in peer.parameters().values():
            parameter.requires_grad_()
        ours = DictionaryLearner(host, settings)
        trainers = [Trainer(*pair, examples, settings) for pair in ((beside, peer), (host, ours))]
        result = interleaved(*(timed(trainer, host.device) for trainer in trainers), repeats, host.device)
    numbers = [sum(t.numel() for t in learner.parameters().values()) for learner in (ours, peer)]
    return {**result, "parameters": numbers[0], "peer_parameters": numbers[1]}


def sharing_weights(pipeline: Any) -> Any:
    """What a host reads of a pipeline, around a second UNet of the same tensors."""
    unet = pipeline.unet
    unet = deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})
    return SimpleNamespace(unet=unet, scheduler=pipeline.scheduler, do_classifier_free_guidance=False)


def timed(trainer: Trainer, device: torch.device) -> Callable[[], float]:
    """Seconds of one step of a training."""

    def step() -> float:
        meter = Meter(device)
        trainer.advance()
        return meter.stop().seconds

    return step


def random_examples(subject: DiffusersSubject, count: int = 2) -> list[Example]:
    """Pictures of noise with captions of noise."""
    condition = Condition(subject.text[:1], None)
    return [Example(torch.randn(4, *subject.size), condition) for _ in range(count)]


def unet_training(subject: DiffusersSubject, atoms: int, repeats: int, seed: int) -> dict[str, Any]:
    """On a UNet of a real model's shape, one picture a step."""
    settings = TrainingSettings(batch=1, atoms=atoms, seed=seed, autocast=subject.unet.dtype != torch.float32)
    return against_peft(subject.host, random_examples(subject), settings, repeats)


def demo_training(atoms: int, repeats: int, seed: int) -> dict[str, Any]:
    """On the bundled model, as `make demo` trains it."""
    from sparse_core.pipelines import load_pipeline

    host = DiffusersHost(load_pipeline())
    config = host.unet.config
    condition = host.encode_prompt("a red cat in the snow")
    shape = (config.in_channels, config.sample_size, config.sample_size)
    examples = [Example(torch.randn(shape), condition) for _ in range(4)]
    return against_peft(host, examples, TrainingSettings(atoms=atoms, seed=seed), repeats)


# ------------------------------------------------------------------------------------------ against ComfyUI's own trainer


def against_core(subject: ComfySubject, atoms: int, repeats: int, seed: int) -> dict[str, Any]:
    """Both on one MODEL, in turn. Core's LoRA trains every layer that has weights and not attention alone; rank, batch
    and number type are ours, gradient checkpointing is off in both. ``ratio`` is ours / theirs."""
    from sparse_core.hosts.comfyui import ComfyHost

    host: Host = ComfyHost(subject.model)
    examples = [Example(subject.noise[0], subject.prompts[0]) for _ in range(2)]
    settings = TrainingSettings(batch=1, atoms=atoms, seed=seed)
    ours: list[Cost] = []
    theirs: list[Cost] = [core_step(subject, atoms, seed)]
    for _ in range(repeats):
        ours.append(our_step(host, examples, settings))
        theirs.append(core_step(subject, atoms, seed))
    return compare(theirs, ours)


def our_step(host: Host, examples: list[Example], settings: TrainingSettings) -> Cost:
    """The second step of a new training."""
    with host.trainable():
        trainer = Trainer(host, DictionaryLearner(host, settings), examples, settings)
        trainer.advance()
        meter = Meter(host.device)
        trainer.advance()
        return meter.stop()


def core_step(subject: ComfySubject, rank: int, seed: int) -> Cost:
    """The same of core's TrainLoraNode."""
    from comfy_extras.nodes_train import TrainLoraNode

    inputs = {
        "model": subject.model,
        "latents": {"samples": subject.noise},
        "positive": subject.prompts[0],
        "batch_size": 1,
        "steps": 2,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": rank,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": seed,
        "training_dtype": "fp32" if subject.model.model_dtype() == torch.float32 else "bf16",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }
    meter = Meter(subject.device)
    costs: list[Cost] = []

    def on_step(*_: Any, **__: Any) -> None:
        costs.append(meter.stop())
        meter.start()

    with progress_to(on_step):
        TrainLoraNode.execute(**{name: [value] for name, value in inputs.items()})
    forget_weight_functions(subject.unet)
    return costs[1]


@contextmanager
def progress_to(function: Callable[..., None]) -> Iterator[None]:
    """ComfyUI's progress bars report to ``function`` for a while."""
    import comfy.utils

    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(function)
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(before)


def forget_weight_functions(unet: nn.Module) -> None:
    """Core leaves its trained adapters in the modules until another model is loaded."""
    for module in unet.modules():
        for name in ("weight_function", "bias_function"):
            if getattr(module, name, None):
                setattr(module, name, [])
