"""A diffusers UNet as a host: the same dictionaries, the same pictures, without ComfyUI."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn

from ..controls import Stack
from ..layers import Layer
from ..lora import ImportedLora, load_lora
from ..plan import Crop, Observer, Plan, Rows, Run, compile_plan
from ..words import OpenWord, Reading, Words, occurrences, opened, speaking, together
from .base import Prediction
from .checkpointing import checkpointed
from .updating import check_modules, updating, weight_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizer

PREDICTIONS: dict[str, Prediction] = {"epsilon": "eps", "v_prediction": "v"}


@dataclass(frozen=True)
class Condition:
    """A batch of encoded prompts."""

    text: Tensor
    """(rows, tokens, width)."""
    added: dict[str, Tensor] | None = None
    """SDXL's pooled text and picture size."""
    prompt: str | None = None
    """What was encoded, of a single one: it can be read anew."""


class DiffusersHost:
    """The UNet and schedule of a Stable Diffusion pipeline. Implements `Host`."""

    interruptions = ()

    def __init__(self, pipeline: StableDiffusionPipeline | StableDiffusionXLPipeline) -> None:
        """
        :raises ValueError: the pipeline's schedule is of no known kind.
        """
        self.pipeline = pipeline
        self.unet = pipeline.unet
        self.device = self.unet.device
        self.attentions = list_attentions(self.unet)
        self.layers = tuple(layer for layer, _, _ in self.attentions)
        kind = getattr(pipeline.scheduler.config, "prediction_type", type(pipeline.scheduler).__name__)
        if kind not in PREDICTIONS:
            raise ValueError(f"The model predicts {kind!r}; expected one of {', '.join(PREDICTIONS)}.")
        self.prediction = PREDICTIONS[kind]
        self.signal = pipeline.scheduler.alphas_cumprod.to(self.device)  # (timesteps,)
        self.readers: list[tuple[PreTrainedTokenizer, nn.Module]] = [
            (getattr(pipeline, f"tokenizer{which}"), getattr(pipeline, f"text_encoder{which}"))
            for which in ("", "_2")
            if getattr(pipeline, f"text_encoder{which}", None) is not None
        ]
        self._learning = False
        self._asked: bool | None = None  # which prompt `denoise` runs; None where the pipeline calls

    @property
    def dtype(self) -> torch.dtype:
        """What the UNet computes in. Its own ``dtype`` walks through all weights: milliseconds in every step."""
        stored = self.unet.conv_in.weight.dtype
        return stored if stored.itemsize > 1 else self.unet.dtype

    @property
    def guided(self) -> bool:
        """Whether a UNet call holds every picture twice: with the negative prompt, then with the positive. A pipeline that has
        not drawn yet does not know its guidance."""
        return self._asked is None and getattr(self.pipeline, "do_classifier_free_guidance", False)

    def timestep(self, progress: Tensor) -> Tensor:
        """(rows,) whole timesteps, the last one at progress 0."""
        last = len(self.signal) - 1
        return ((1 - progress) * last).round().clamp(0, last).long().to(self.device)

    def snr(self, progress: Tensor) -> Tensor:
        """See `Host.snr`."""
        signal = self.signal[self.timestep(progress)]
        return signal / (1 - signal)

    def add_noise(self, latents: Tensor, noise: Tensor, progress: Tensor) -> Tensor:
        """See `Host.add_noise`."""
        signal = self.signal[self.timestep(progress)][:, None, None, None]
        return signal.sqrt() * latents + (1 - signal).sqrt() * noise

    def denoise(self, noisy: Tensor, progress: Tensor, condition: Condition, positive: bool = True) -> Tensor:
        """See `Host.denoise`."""
        timestep = self.timestep(progress)
        signal = self.signal[timestep][:, None, None, None]
        self._asked = positive
        try:
            output = self.unet(noisy.to(self.dtype), timestep, condition.text, added_cond_kwargs=condition.added)
        finally:
            self._asked = None
        output = output.sample.float()
        if self.prediction == "v":
            return signal.sqrt() * noisy - (1 - signal).sqrt() * output
        return (noisy - (1 - signal).sqrt() * output) / signal.sqrt()

    def stack_conditions(self, conditions: Sequence[Condition]) -> Condition:
        """See `Host.stack_conditions`."""
        if self._learning:
            conditions = self._read_anew(conditions)
        added = None
        if conditions[0].added is not None:
            added = {name: torch.cat([c.added[name] for c in conditions]) for name in conditions[0].added}
        return Condition(torch.cat([c.text for c in conditions]), added)

    def _read_anew(self, conditions: Sequence[Condition]) -> list[Condition]:
        """All prompts in one batch; what is of no prompt stays as it is."""
        prompts = [condition.prompt for condition in conditions if condition.prompt is not None]
        rows = iter(zip(*self._read(prompts), strict=True) if prompts else ())
        anew = []
        for condition in conditions:
            if condition.prompt is not None:
                text, pooled = next(rows)
                added = condition.added and {**condition.added, "text_embeds": pooled[None]}
                condition = replace(condition, text=text[None], added=added)
            anew.append(condition)
        return anew

    def _read(self, prompts: list[str]) -> tuple[Tensor, Sequence[Tensor | None]]:
        """(prompts, tokens, width), and of SDXL (prompts, width) pooled."""
        if not isinstance(self.pipeline, StableDiffusionXLPipeline):
            text, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
            return text, [None] * len(prompts)
        text, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return text, pooled

    @torch.no_grad()
    def encode_prompt(self, prompt: str, size: tuple[int, int] | None = None) -> Condition:
        """The condition of one prompt; ``size`` (height, width) in pixels matters to SDXL alone."""
        text, (pooled,) = self._read([prompt])
        if pooled is None:
            return Condition(text, prompt=prompt)
        height, width = size or (self.unet.config.sample_size * self.pipeline.vae_scale_factor,) * 2
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.dtype, device=self.device)
        return Condition(text, {"text_embeds": pooled[None], "time_ids": ids}, prompt)

    def read(self, word: str) -> list[Reading]:
        """How the text encoders read a word."""
        return [
            Reading(tokenizer(word, add_special_tokens=False).input_ids, encoder.get_input_embeddings())
            for tokenizer, encoder in self.readers
        ]

    def check_named(self, word: str, captions: Sequence[str]) -> None:
        """
        :raises ValueError: no caption holds the word, as far as the text encoders read it.
        """
        lengths = [tokenizer.model_max_length for tokenizer, _ in self.readers]
        for caption in captions:
            for (tokenizer, _), reading, length in zip(self.readers, self.read(word), lengths, strict=True):
                tokens = tokenizer(caption, truncation=True, max_length=length).input_ids
                if reading.tokens and occurrences(tokens, reading.tokens):
                    return
        raise ValueError(
            f"The word {word!r} stands in none of the captions, such as {captions[0]!r}, of which {min(lengths)} tokens are read. "
            "Write it into them, or give the word that they call the new thing by."
        )

    def speaking(self, words: Words) -> AbstractContextManager[None]:
        """The text encoders with taught words, while the context lasts: for prompts that are encoded in it.

        :raises ValueError: a word was learnt with other text encoders.
        """
        return speaking(words, self.read)

    @contextmanager
    def learning(self, word: str) -> Iterator[OpenWord]:
        """See `Host.learning`."""
        readings = self.read(word)
        if not all(reading.tokens for reading in readings):
            raise ValueError(f"{word!r} is no word to this model. Choose one that stands in the captions.")
        for _, encoder in self.readers:
            encoder.requires_grad_(False)
        learnt = opened(word, readings, self.device)
        self._learning = True
        try:
            with self.speaking({word: learnt.shifts}):
                yield learnt
        finally:
            self._learning = False

    def import_lora(self, path: str | os.PathLike) -> ImportedLora:
        """A LoRA file as a dictionary for this UNet.

        :raises LoraFileError: see `load_lora`.
        """
        return load_lora(path, self.layers, weight_shapes(dict(self.unet.named_modules())))

    @contextmanager
    def patched(self, stack: Stack, observer: Observer | None = None) -> Iterator[None]:
        """See `Host.patched`; calls of the pipeline itself are patched too, and read taught words.

        :raises ValueError: an attention is patched already, or runs a processor of another package.
        """
        plan = compile_plan(stack, self.layers).to(self.device, self.dtype)
        state = _State(plan)
        modules = dict(self.unet.named_modules()) if plan.modules else {}
        check_modules(plan, modules)
        with ExitStack() as undo:
            undo.enter_context(self.speaking(together(adapter.words for adapter in stack)))
            if plan.acts:
                handle = self.unet.register_forward_pre_hook(
                    lambda _, args, kwargs: state.begin(self, [observer] * len(stack), *args, **kwargs),
                    with_kwargs=True,
                )
                undo.callback(handle.remove)
                transformers = {id(transformer): transformer for _, _, transformer in self.attentions}
                for transformer in transformers.values():
                    undo.callback(transformer.register_forward_pre_hook(state.enter).remove)
                for number, (_, attention, _) in enumerate(self.attentions):
                    if number in plan.layers:
                        undo.callback(attention.set_processor, attention.processor)
                        attention.set_processor(SparseProcessor(state, number, attention.processor))
                undo.enter_context(updating(plan, modules, lambda: state.run))
            yield

    @contextmanager
    def trainable(self, checkpointing: bool = False) -> Iterator[None]:
        """See `Host.trainable`."""
        self.unet.requires_grad_(False)
        with torch.enable_grad(), checkpointed(self.unet, checkpointing):
            yield


def list_attentions(unet: nn.Module) -> list[tuple[Layer, Attention, nn.Module]]:
    """Every attention of the UNet in execution order, with the transformer it is part of.

    :raises ValueError: the UNet has no attention of the Stable Diffusion kind.
    """
    stages = {"down": unet.down_blocks, "middle": [unet.mid_block], "up": unet.up_blocks}
    found = []
    for stage, blocks in stages.items():
        transformers = [t for block in blocks for t in (getattr(block, "attentions", None) or ())]
        for number, transformer in enumerate(transformers):
            for depth, block in enumerate(transformer.transformer_blocks):
                for name in ("attn1", "attn2"):
                    attention = getattr(block, name)
                    inner, width = attention.to_q.weight.shape
                    context = attention.to_k.weight.shape[1]
                    found.append(
                        (Layer(f"{stage}.{number}.{depth}.{name}", width, context, inner), attention, transformer)
                    )
    if not found:
        raise ValueError("This UNet has no transformer blocks for a sparse dictionary to act on.")
    return found


class _State:
    """The model call under way."""

    run: Run
    grid: tuple[int, int]

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def begin(
        self,
        host: DiffusersHost,
        observers: Sequence[Observer | None],
        sample: Tensor,
        timestep: Any,
        *_: Any,
        **__: Any,
    ) -> None:
        rows, (height, width) = len(sample), sample.shape[-2:]
        pictures = rows // 2 if host.guided else rows
        progress = 1 - float(torch.as_tensor(timestep).max()) / (len(host.signal) - 1)
        if self.plan.device != sample.device:  # a pipeline that is offloaded comes to the device for the call
            self.plan = self.plan.to(sample.device, host.dtype)
        self.run = Run(
            self.plan,
            Rows(
                pictures=tuple(row % pictures for row in range(rows)),
                positive=tuple(host._asked is not False and row >= rows - pictures for row in range(rows)),
                crops=(Crop((height, width), 0, 0, height, width),) * rows,
            ),
            progress,
            observers,
        )

    def enter(self, transformer: nn.Module, args: tuple) -> None:
        self.grid = tuple(args[0].shape[-2:])


class SparseProcessor:
    """diffusers' plain attention, with the plan in it."""

    def __init__(self, state: _State, number: int, replaced: Any) -> None:
        if isinstance(replaced, SparseProcessor):
            raise ValueError(
                f"Layer L{number} is patched already: this runs inside another `host.patched(...)`. Leave that one first, or "
                "give it all adapters together: `host.patched([first, second])`."
            )
        if type(replaced) not in (AttnProcessor, AttnProcessor2_0):
            raise ValueError(
                f"Layer L{number} runs {type(replaced).__name__}, which a sparse dictionary can't share. Load the pipeline "
                "without that extension (IP-Adapter, custom attention)."
            )
        self.state, self.number = state, number

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        layer = self.state.run.layer(self.number, hidden_states, context, context, self.state.grid)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
            attention_mask = attention_mask.view(len(context), attn.heads, -1, attention_mask.shape[-1])

        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (rows, heads, tokens, d)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask).transpose(1, 2).flatten(2)

        out = layer.attend(
            attn.to_q(hidden_states),
            attn.to_k(context),
            attn.to_v(context),
            attention,
            any_queries=attention_mask is None,
        )
        return attn.to_out[1](layer.output(attn.to_out[0](out)))
