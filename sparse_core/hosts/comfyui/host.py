"""A MODEL as training and analysis ask it, outside of ComfyUI's samplers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, V_PREDICTION
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...controls import Stack
from ...examples import Example
from ...plan import Heard, Observer
from ...words import OpenWord, opened
from ..base import Prediction
from ..checkpointing import checkpointed
from .applying import KEY, Note, Wrapper, computing_type, heard_in
from .layers import list_layers
from .words import PROMPT, LearningClip, WordClip, check_reads_like

UNHEEDED = ("control", "area", "mask", "hooks", "gligen", "concat_latent_image")
"""What a conditioning may carry that only ComfyUI's samplers honour."""
WHOLE_RANGE = {"start_percent": 0.0, "end_percent": 1.0, "clip_start_percent": 0.0, "clip_end_percent": 1.0}
"""Likewise, unless it says that the conditioning always holds."""


@dataclass(frozen=True)
class Condition:
    """A batch of text conditionings: what CONDITIONING holds, tensors joined."""

    cross_attention: Tensor
    """(rows, tokens, width)."""
    options: tuple[dict[str, Any], ...]
    """Of each row: SDXL's sizes and pooled text among them."""
    heard: tuple[Heard, ...]
    """What each row's prompt names."""


class ComfyHost:
    """A MODEL for training and analysis. Implements `Host`."""

    interruptions = (comfy.model_management.InterruptProcessingException,)

    def __init__(self, model: ModelPatcher, pupil: WordClip | None = None) -> None:
        """
        :param pupil: the CLIP to learn a word with, from `pupil_of`.
        :raises ValueError: the model has no UNet of the Stable Diffusion kind.
        """
        self.model = model.clone()
        self.pupil = pupil
        self._learning: LearningClip | None = None
        self.layers = tuple(list_layers(model.model.diffusion_model).values())
        self.device = model.load_device
        self.dtype = computing_type(model)
        self.sampling = model.get_model_object("model_sampling")
        self.prediction: Prediction = "eps"
        if isinstance(self.sampling, CONST):
            self.prediction = "flow"
        elif isinstance(self.sampling, V_PREDICTION):
            self.prediction = "v"

    def load(self) -> ComfyHost:
        """The host with its model in memory and its weight patches in place, as drawing and measuring need it outside of
        ComfyUI's samplers."""
        comfy.model_management.load_models_gpu([self.model])
        return self

    def latent_shape(self, latent: dict) -> tuple[int, int, int]:
        """(channels, height, width) of this model's latents at the size of a LATENT, which may be an empty one."""
        height, width = latent["samples"].shape[-2:]
        return self.model.model.latent_format.latent_channels, height, width

    def sigma(self, progress: Tensor) -> Tensor:
        """(rows,) noise levels."""
        inside = progress.clamp(1e-3, 1 - 1e-3).tolist()
        return torch.tensor([self.sampling.percent_to_sigma(p) for p in inside], device=self.device)

    def snr(self, progress: Tensor) -> Tensor:
        """(rows,) signal-to-noise ratios."""
        sigma = self.sigma(progress)
        signal = 1 - sigma if self.prediction == "flow" else torch.ones_like(sigma)
        return (signal / sigma).square()

    def add_noise(self, latents: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
        """See `Host.add_noise`."""
        return self.sampling.noise_scaling(self.sigma(progress), noise.clone(), latents)

    def denoise(self, noisy: Tensor, progress: Tensor, condition: Condition, positive: bool = True) -> Tensor:
        """See `Host.denoise`."""
        model, sigma = self.model.model, self.sigma(progress)
        conds = self._encoded(noisy, condition, "positive" if positive else "negative")
        options = comfy.patcher_extension.copy_nested_dicts(self.model.model_options["transformer_options"])
        options["wrappers"] = comfy.patcher_extension.copy_nested_dicts(self.model.wrappers)
        note = Note(self.sampling, tuple(noisy.shape[-2:]), {}, condition.heard, {})
        options |= {"sigmas": sigma, "cond_or_uncond": [0 if positive else 1], KEY: note}
        return model.apply_model(noisy, sigma, transformer_options=options, **conds)

    def _encoded(self, noisy: Tensor, condition: Condition, prompt: str) -> dict[str, Tensor]:
        """What the model reads beside the noisy latents, each row by its own options. Inpainting models read an empty picture."""
        entries = [
            {"cross_attn": text[None], "model_conds": {}, **options}
            for text, options in zip(condition.cross_attention, condition.options, strict=True)
        ]
        extra_conds, first = self.model.model.extra_conds, noisy[:1]
        encoded = comfy.samplers.encode_model_conds(
            extra_conds, entries, first, self.device, prompt, latent_image=torch.zeros_like(first)
        )
        return comfy.samplers.cond_cat(
            [{name: c.process_cond(batch_size=1, area=None) for name, c in e["model_conds"].items()} for e in encoded]
        )

    def stack_conditions(self, conditions: Sequence[list]) -> Condition:
        """One batch from CONDITIONINGs of one entry each.

        :raises ValueError: a conditioning carries what can't be honoured here, or texts for several pictures, or only some
            have a pooled text.
        """
        given = [entry for conditioning in conditions for entry in conditioning]
        read: dict[int, list] = {}  # one text of several pictures is read once
        for entry in given:
            if id(entry) not in read:
                read[id(entry)] = self._read(entry)
        entries = [read[id(entry)] for entry in given]
        for text, options in entries:
            found = [name for name in UNHEEDED if name in options]
            found += [name for name, whole in WHOLE_RANGE.items() if options.get(name, whole) != whole]
            if found:
                raise ValueError(
                    f"The conditioning carries {', '.join(found)}, which this node can't honour. Connect CLIP Text Encode "
                    "directly."
                )
            if len(text) != 1:
                raise ValueError(
                    f"A conditioning holds the texts of {len(text)} pictures in one; expected one text. Connect a CLIP Text "
                    "Encode for each."
                )
        longest = math.lcm(*(c.shape[1] for c, _ in entries))  # ComfyUI pads a text by repeating it
        texts = torch.cat([c.repeat(1, longest // c.shape[1], 1) for c, _ in entries]).to(self.device).clone()
        pooled = [o.get("pooled_output") for _, o in entries]
        if 0 < (lacking := sum(one is None for one in pooled)) < len(pooled):
            raise ValueError(
                f"{lacking} of {len(pooled)} conditionings carry no pooled_output; expected it on all or on none. Encode every "
                "prompt with the same CLIP."
            )
        options = tuple(
            dict(o) if one is None else {**o, "pooled_output": one.to(self.device).clone()}
            for (_, o), one in zip(entries, pooled, strict=True)
        )
        return Condition(texts, options, tuple(heard_in(text, o) for text, o in entries))

    def _read(self, entry: list) -> list:
        """A conditioning as it is; anew, where its word is being learnt and no node has changed it since."""
        prompt, clip = entry[1].get(PROMPT), self._learning
        if clip is None or prompt is None or entry[0] is not prompt.text or not clip.names(prompt.tokens, clip.learnt):
            return entry
        check_reads_like(prompt.clip, self.pupil)
        # ComfyUI's text encoders write into what they have computed with, so that the backward pass needs copies. Leaves are
        # weights, which nobody writes into.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t if t.is_leaf else t.clone(), lambda t: t):
            text, said = clip.encode_from_tokens_scheduled(prompt.tokens)[0]
        return [text, {**entry[1], **said}]

    @contextmanager
    def patched(self, stack: Stack, observer: Observer | None = None) -> Iterator[None]:
        """See `Host.patched`. The plan is compiled anew at each entry, so gradients reach the atoms of ``stack``."""
        unpatched = self.model
        self.model = unpatched.clone()
        self.model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Wrapper(stack, observer))
        try:
            yield
        finally:
            self.model = unpatched

    @contextmanager
    def learning(self, word: str) -> Iterator[OpenWord]:
        """See `Host.learning`; of the prompts of the host's pupil.

        :raises ValueError: there is no pupil; or see `resting`.
        """
        if self.pupil is None:
            raise ValueError(
                f"No CLIP came along to learn {word!r} with. Encode the captions with the CLIP of Teach Word."
            )
        with torch.inference_mode(False):
            patcher = resting(self.pupil.patcher.clone(), "CLIP")
            learnt = opened(word, self.pupil.read(word), self.device)
        reader = LearningClip(no_init=True)
        vars(reader).update(vars(self.pupil))
        reader.patcher, reader.cond_stage_model = patcher, patcher.model
        reader.learnt, reader.opened = word, {word: learnt.shifts}
        self._learning = reader
        try:
            yield learnt
        finally:
            self._learning = None

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        """See `Host.trainable`.

        :raises ValueError: see `resting`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self.model = resting(self.model)
            clips = [] if self._learning is None else [self._learning.patcher]
            comfy.model_management.load_models_gpu([self.model, *clips], force_full_load=True)
            with ExitStack() as undo:
                open_to_gradients(self.model.model)
                for patcher in clips:
                    open_to_gradients(patcher.model)
                    undo.enter_context(in_single(patcher.model))
                undo.enter_context(checkpointed(self.model.model.diffusion_model, checkpointing))
                yield


@contextmanager
def in_single(model: torch.nn.Module) -> Iterator[None]:
    """Weights that are kept in half precision in float32, while the context lasts. ComfyUI's text encoders compute in that, and
    the backward pass would keep a cast of every weight for every prompt."""
    halves = [(p, p.dtype) for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    for parameter, _ in halves:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in halves:
            parameter.data = parameter.data.to(dtype)


def open_to_gradients(model: torch.nn.Module) -> None:
    """Makes gradients pass through a model that learns nothing itself.

    Nodes run in inference mode, and weights loaded there are refused by autograd for ever after; each is replaced by a copy of
    itself, one at a time, so the peak is one tensor.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_inference():
                setattr(module, name, torch.nn.Parameter(parameter.data.clone(), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_inference():
                setattr(module, name, buffer.clone())
    model.requires_grad_(False)


def resting(model: ModelPatcher, what: str = "MODEL") -> ModelPatcher:
    """The MODEL or CLIP with weights that stay in memory, as gradients need them: what ComfyUI's dynamic memory hands out for a
    forward pass may be another's by the backward pass. Such a one is loaded from its file again, as ComfyUI does where hooks
    hang on it.

    :raises ValueError: it is of no file.
    """
    if not hasattr(model, "is_dynamic") or not model.is_dynamic():  # older ComfyUIs have no such memory
        return model
    if model.cached_patcher_init is None:
        raise ValueError(
            f"This {what} sits in ComfyUI's dynamic memory, where it can't be trained on, and was not loaded by one of ComfyUI's "
            "own loaders, so that it can't be moved out. Use Load Checkpoint, or start ComfyUI with --disable-dynamic-vram."
        )
    return model.get_non_dynamic_delegate()


def single_entries(conditionings: Sequence[list]) -> list[list]:
    """CONDITIONINGs of one entry each, in order."""
    return [[entry] for conditioning in conditionings for entry in conditioning]


def one_entry(conditioning: list, which: str) -> list:
    """The CONDITIONING, where it is one prompt.

    :param which: what the prompt is called, such as ``negative``.
    :raises ValueError: it holds several.
    """
    if len(conditioning) != 1:
        raise ValueError(
            f"The {which} prompt holds {len(conditioning)} conditionings; expected one. Join texts with Conditioning (Concat) "
            "instead of (Combine), or connect CLIP Text Encode directly."
        )
    return conditioning


def examples_of(
    host: ComfyHost,
    latents: Sequence[dict],
    conditionings: Sequence[list],
    masks: Sequence[Tensor] | None = None,
    what: str = "pictures",
) -> list[Example]:
    """Pairs the pictures of LATENTs with CONDITIONINGs and, where given, MASKs: one each, or one for all.

    :param what: what the pictures are called.
    :raises ValueError: the numbers don't match, a latent does not fit the model, or a mask is black everywhere.
    """
    pictures = [picture for latent in latents for picture in latent["samples"]]
    channels = host.model.model.latent_format.latent_channels
    for picture in pictures:
        if picture.ndim != 3 or picture.shape[0] != channels:
            raise ValueError(
                f"A latent has shape {tuple(picture.shape)}; this model expects {channels} channels. Encode the pictures with "
                "the VAE that belongs to the model."
            )
    captions = _one_each("captions", single_entries(conditionings), len(pictures), what)
    single_masks = [mask for batch in masks or () for mask in batch.reshape(-1, *batch.shape[-2:])]
    regions = _one_each("masks", single_masks, len(pictures), what) if single_masks else [None] * len(pictures)
    _check_not_black(single_masks)
    scale = host.model.model.process_latent_in
    examples = []
    for picture, caption, region in zip(pictures, captions, regions, strict=True):
        size = picture.shape[-2:]
        on_grid = (
            None if region is None else F.interpolate(region[None, None].float(), size=size, mode="area")[0, 0].clone()
        )
        examples.append(Example(scale(picture[None].float()).clone()[0], caption, on_grid))
    return examples


def _check_not_black(masks: Sequence[Tensor]) -> None:
    for number, mask in enumerate(masks, 1):
        if not mask.any():
            raise ValueError(
                f"Mask {number} is black everywhere, so nothing of its picture would be learnt. Paint white what counts, or "
                "disconnect the masks: Load Image gives a black one for a picture without transparency."
            )


def _one_each(kind: str, values: list, pictures: int, what: str) -> list:
    if len(values) not in (1, pictures):
        raise ValueError(
            f"There are {pictures} {what} and {len(values)} {kind}; expected one for each picture, or one for all."
        )
    return values * pictures if len(values) == 1 else values
