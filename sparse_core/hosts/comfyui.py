"""ComfyUI as a host. The only module of the core that imports ComfyUI.

A stack of adapters sits on a MODEL as one `Wrapper` of its diffusion model. For every model call it puts its patches into
a copy of the transformer options, around whatever other nodes have put there; nothing outlives the call, no weight is
touched, and the source MODEL is unchanged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
import torch.nn.functional as F
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, V_PREDICTION
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..controls import Schedule, SparseAdapter, Stack
from ..examples import Example
from ..layers import Layer
from ..lora import ImportedLora, load_lora
from ..modules import from_original
from ..plan import Crop, Heard, LayerRun, MaskPlacementError, Observer, Plan, Rows, Run, compile_plan
from ..sampling import invert, sample
from ..words import OpenWord, Reading, Words, occurrences, opened, speaking, together
from .base import Prediction
from .checkpointing import checkpointed
from .updating import check_modules, updating, weight_shapes

KEY = "sparse_atoms"
"""Our name wherever ComfyUI keeps things by key."""

HEARD = f"{KEY}_heard"
"""What a listening CLIP notes in its CONDITIONINGs, as a `Heard`."""

PROMPT = f"{KEY}_prompt"
"""Likewise of one that a word is learnt with, as a `Prompt`."""

GUIDED = f"{KEY}_guided"
"""Under it the options of a step hold which of the guider's conditionings, by id, belong to a positive prompt."""

Place = tuple[int, int, str]
"""Where ComfyUI says it is: running number of the SpatialTransformer, block inside it, attn1 or attn2."""


def list_layers(unet: torch.nn.Module) -> dict[Place, Layer]:
    """Every attention of the UNet in execution order, with its host-neutral description.

    :raises ValueError: the model has no UNet of the Stable Diffusion kind.
    """
    if not isinstance(unet, UNetModel):
        raise ValueError(
            f"A sparse dictionary acts on UNets of the Stable Diffusion kind (SD1.x, SD2.x, SDXL); this MODEL has a "
            f"{type(unet).__name__}. Connect a checkpoint of one of those families."
        )
    middle = [] if unet.middle_block is None else [unet.middle_block]
    stages = {"down": unet.input_blocks, "middle": middle, "up": unet.output_blocks}
    layers: dict[Place, Layer] = {}
    running = 0
    for stage, blocks in stages.items():
        transformers = [m for block in blocks for m in block if isinstance(m, SpatialTransformer)]
        for number, transformer in enumerate(transformers):
            if isinstance(transformer, SpatialVideoTransformer):
                raise ValueError("Video UNets are not supported: their tokens are frames as well as places.")
            for depth, block in enumerate(transformer.transformer_blocks):
                for name in ("attn1", "attn2"):
                    attention = getattr(block, name)
                    inner, width = attention.to_q.weight.shape
                    context = attention.to_k.weight.shape[1]
                    layers[running, depth, name] = Layer(f"{stage}.{number}.{depth}.{name}", width, context, inner)
            running += 1
    return layers


def named_modules(unet: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The UNet's modules by host-neutral name."""
    modules = dict(unet.named_modules())
    return {name: modules[original] for original, name in from_original(modules).items()}


# --------------------------------------------------------------------------------------------------------- applying


def apply_adapter(model: ModelPatcher, adapter: SparseAdapter, observer: Observer | None = None) -> ModelPatcher:
    """A clone of the MODEL on which the adapter acts too, beside those already there.

    :param observer: sees the adapter's coefficients during sampling.
    :raises ValueError: the dictionary belongs to another model family.
    """
    adapter.dictionary.check_fits(list(list_layers(model.model.diffusion_model).values()))
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Wrapper((adapter,), observer))
    for moment, once in LISTENERS.items():
        patched.remove_wrappers_with_key(moment, KEY)
        patched.add_wrapper_with_key(moment, KEY, once)
    return patched


def with_stacks(model: ModelPatcher, change: Callable[[SparseAdapter], SparseAdapter]) -> ModelPatcher:
    """A clone of the MODEL on which changed adapters act in place of those applied to it."""
    changed = model.clone()
    changed.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    for wrapper in model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        stack = tuple(map(change, wrapper.stack))
        changed.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Wrapper(stack, wrapper.observer))
    return changed


def import_lora(model: ModelPatcher, path: str | os.PathLike) -> ImportedLora:
    """A LoRA file as a dictionary for this MODEL.

    :raises LoraFileError: see `load_lora`.
    :raises ValueError: the model has no UNet of the Stable Diffusion kind.
    """
    unet = model.model.diffusion_model
    return load_lora(path, tuple(list_layers(unet).values()), weight_shapes(named_modules(unet)))


def patch_clip(clip: comfy.sd.CLIP, lora: ImportedLora, strength: float) -> comfy.sd.CLIP:
    """The CLIP with a LoRA's part on the text encoders, by ComfyUI's own patches."""
    return comfy.sd.load_lora_for_models(None, clip, dict(lora.text), 0.0, strength)[1]


def hook_adapter(adapter: SparseAdapter) -> HookGroup:
    """The adapter as HOOKS, for conditionings: it acts on those that carry it alone, times their hook keyframes."""
    group = HookGroup()
    group.add(TransformerOptionsHook({"wrappers": {moment: {KEY: [once]} for moment, once in LISTENERS.items()}}))
    group.add(AdapterHook(adapter))
    return group


def token_names(clip: comfy.sd.CLIP, tokens: dict[str, list]) -> list[str]:
    """What the tokens of a prompt say, without the padding at the end.

    :param tokens: what ``clip.tokenize`` gave.
    """
    first = max(tokens.values(), key=lambda chunks: sum(map(len, chunks)))
    names = []
    for chunk in tokens.get("g", first):
        words = [clip.tokenizer.untokenize([pair])[0][1] if isinstance(pair[0], int) else "embedding" for pair in chunk]
        names += [word.replace("</w>", "") for word in words]
    padding = len(list(takewhile(lambda name: name == names[-1], reversed(names))))
    return names[: len(names) - padding + 1]


class WordClip(comfy.sd.CLIP):
    """A CLIP that knows words. Copies of it do so too."""

    listened: tuple[str, ...] = ()
    """Words of which every CONDITIONING notes whether the prompt names them."""
    taught: tuple[Words, ...] = ()
    """Words that it reads as they were taught, by those who hand them to it."""
    learnt: str = ""
    """A word whose meaning a training may learn: every CONDITIONING notes its prompt."""
    _speaks = False

    def clone(self, *args: Any, **kwargs: Any) -> WordClip:
        """See ComfyUI's."""
        copy = with_words(super().clone(*args, **kwargs))
        copy.listened, copy.taught, copy.learnt = self.listened, self.taught, self.learnt
        return copy

    def encode_from_tokens_scheduled(
        self,
        tokens: dict[str, list],
        unprojected: bool = False,
        add_dict: dict[str, Any] | None = None,
        *args: Any,
        **kw: Any,
    ) -> list:
        """See ComfyUI's."""
        notes: dict[str, Any] = {}
        if self.listened:
            named = frozenset(word for word in self.listened if self.names(tokens, word))
            notes[HEARD] = Heard(frozenset(self.listened), named)
        with self.speaking():
            said = super().encode_from_tokens_scheduled(tokens, unprojected, {**(add_dict or {}), **notes}, *args, **kw)
        if self.learnt:
            said = [[text, {**options, PROMPT: Prompt(self, tokens, text)}] for text, options in said]
        return said

    def encode_from_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """See ComfyUI's."""
        with self.speaking():
            return super().encode_from_tokens(*args, **kwargs)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """The text encoders with the taught words, while the context lasts. Contexts within it change nothing."""
        if self._speaks:
            yield
            return
        self._speaks = True
        try:
            with self.reading():
                yield
        finally:
            self._speaks = False

    def reading(self) -> AbstractContextManager[None]:
        """The text encoders with the taught words, while the context lasts."""
        return speaking(together(self.taught), self.read)

    def read(self, word: str) -> list[Reading]:
        """How the text encoders read a word.

        :raises ValueError: one of them is none of Stable Diffusion's.
        """
        found = []
        for encoder, tokens in self._tokens(word).items():
            model = getattr(self.cond_stage_model, f"clip_{encoder}", None)
            if model is None:
                raise ValueError(
                    f"Words can be taught to the text encoders of SD1.x, SD2.x and SDXL; this CLIP has another, {encoder}. Connect "
                    "the CLIP of such a checkpoint."
                )
            found.append(Reading(tokens, model.transformer.get_input_embeddings()))
        return found

    def names(self, tokens: dict[str, list], word: str) -> bool:
        """Whether any of the encoders reads a word in a prompt's tokens."""
        sought, prompts = self._tokens(word), self._chunks(tokens)
        return any(
            bool(ids) and bool(occurrences(chunk, ids))
            for encoder, ids in sought.items()
            for chunk in prompts.get(encoder, ())
        )

    def knows(self, word: str) -> bool:
        """Whether it is anything to the tokenizer."""
        return any(self._tokens(word).values())

    def reads_like(self, other: WordClip) -> bool:
        """Whether a prompt means the same to both: the same text encoders, LoRAs on them, last layer and words."""
        mine, theirs = (
            (id(c.cond_stage_model), c.patcher.patches_uuid, c.layer_idx, list(map(id, c.taught)))
            for c in (self, other)
        )
        return mine == theirs

    def _tokens(self, word: str) -> dict[str, list[int]]:
        """Of a word by text encoder."""
        return {encoder: chunks[0] for encoder, chunks in self._chunks(self.tokenize(word)).items()}

    def _chunks(self, tokens: dict[str, list]) -> dict[str, list[list[int]]]:
        """Numbers of a prompt's tokens by text encoder, in the pieces that it reads one after the other, without start, end and
        padding."""

        def numbers(chunk: list) -> list[int]:
            return [pair[0] for pair in chunk if isinstance(pair[0], int)]

        silent = {encoder: set(numbers(chunks[0])) for encoder, chunks in self.tokenize("").items()}
        return {
            encoder: [[number for number in numbers(chunk) if number not in padding] for chunk in tokens[encoder]]
            for encoder, padding in silent.items()
            if encoder in tokens
        }


class LearningClip(WordClip):
    """A CLIP during a training."""

    opened: Words
    """The word that is being learnt."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `WordClip`. What is learnt is added to what the CLIP knows of the word, however the two lie."""
        with super().reading(), speaking(self.opened, self.read):
            yield

    def load_model(self, tokens: Any = None) -> ModelPatcher:
        """See ComfyUI's. It was loaded together with the model, which loading it in each step could push out."""
        return self.patcher


class Prompt:
    """What a CONDITIONING was made of: it can be read anew."""

    def __init__(self, clip: WordClip, tokens: dict[str, list], text: Tensor) -> None:
        """
        :param text: what the prompt was read as. Nodes such as Conditioning (Concat) put another in its place and keep the notes.
        """
        self.clip, self.tokens, self.text = clip, tokens, text

    @property
    def names_the_word(self) -> bool:
        """Whether it holds the word that is to be learnt."""
        return self.clip.names(self.tokens, self.clip.learnt)

    def __reduce__(self) -> tuple:
        """Nodes that write CONDITIONINGs into files leave it behind: a text encoder does not belong there."""
        return type(None), ()


def with_words(clip: comfy.sd.CLIP) -> WordClip:
    """The same CLIP as one that knows words."""
    knowing = WordClip(no_init=True)
    vars(knowing).update(vars(clip))
    return knowing


def _clone(clip: comfy.sd.CLIP) -> WordClip:
    return clip.clone() if isinstance(clip, WordClip) else with_words(clip.clone())


def listen(clip: comfy.sd.CLIP, words: Sequence[str]) -> WordClip:
    """A clone of the CLIP that listens for some words too, beside those it knows already.

    :raises ValueError: a word is nothing to the CLIP's tokenizer.
    """
    listener = _clone(clip)
    listener.listened = (*listener.listened, *words)
    for word in words:
        if not listener.knows(word):
            raise ValueError(f"{word!r} is no word to this CLIP. Listen for one that stands in the captions.")
    return listener


def speak(clip: comfy.sd.CLIP, words: Words) -> comfy.sd.CLIP:
    """A clone of the CLIP that reads some words as they were taught, beside those it knows already.

    :raises ValueError: a word was learnt with other text encoders.
    """
    if not words:
        return clip
    speaker = _clone(clip)
    speaker.taught = (*speaker.taught, words)
    with speaker.speaking():  # told here, where the two meet
        return speaker


def teach(clip: comfy.sd.CLIP, word: str) -> WordClip:
    """A clone of the CLIP whose CONDITIONINGs a training can learn the meaning of a word from.

    :raises ValueError: the word is nothing to the CLIP's tokenizer, or the CLIP is to learn another one already.
    """
    pupil, word = _clone(clip), word.strip()
    if pupil.learnt not in ("", word):
        raise ValueError(
            f"This CLIP is to learn {pupil.learnt!r} already, and a training learns one word. Take one Teach Word out; several "
            "words in a row, such as 'red boat', are fine."
        )
    if not word or not pupil.knows(word):
        raise ValueError(f"{word!r} is no word to this CLIP. Give the one that the captions call the new thing by.")
    pupil.read(word)
    pupil.learnt = word
    return pupil


def pupil_of(captions: Sequence[list], what: str = "captions") -> WordClip | None:
    """The CLIP of captions from which a word's meaning is to be learnt, if they are such.

    :param what: what the captions are called.
    :raises ValueError: they are to teach several words or come from several CLIPs, none of them names the word, one that does was
        changed since, or they were to teach a word but don't say any more which.
    """
    entries = [entry for caption in captions for entry in caption]
    if any(PROMPT in options and options[PROMPT] is None for _, options in entries):
        raise ValueError(
            f"The {what} come from Teach Word by way of a file or a copy, which keep no prompt, so that no word can be learnt from "
            "them. Encode them in this workflow, or make the file without Teach Word."
        )
    noted = [(text, options[PROMPT]) for text, options in entries if PROMPT in options]
    words = list(dict.fromkeys(prompt.clip.learnt for _, prompt in noted))
    if len(words) > 1:
        raise ValueError(
            f"The {what} are to teach {', '.join(map(repr, words))}; expected one word. Use one Teach Word."
        )
    naming = [(text, prompt) for text, prompt in noted if prompt.names_the_word]
    if words and not naming:
        raise ValueError(
            f"The word to teach is {words[0]!r}, but it stands in none of the {what}. Write it into them, or give Teach Word the "
            "one that they call the new thing by."
        )
    if any(text is not prompt.text for text, prompt in naming):
        raise ValueError(
            f"One of the {what} that name {words[0]!r} was changed after CLIP Text Encode, by Conditioning (Concat) or the like, "
            "so that the word can't be learnt from it. Write it as one text, or take Teach Word out."
        )
    for _, prompt in naming:
        _check_reads_like(prompt.clip, naming[0][1].clip)
    return naming[0][1].clip if naming else None


def _check_reads_like(clip: WordClip, pupil: WordClip) -> None:
    if not clip.reads_like(pupil):
        raise ValueError(
            f"Prompts that name {pupil.learnt!r} come from several CLIPs: with another LoRA, last layer or taught word. Encode the "
            "captions, the preview and held-out captions with one."
        )


class AdapterHook(TransformerOptionsHook):
    """Puts an adapter into the model calls of the conditionings it hangs on."""

    def __init__(self, adapter: SparseAdapter | None = None) -> None:
        super().__init__({}, EnumHookScope.HookedOnly)
        self.adapter = adapter

    def clone(self) -> AdapterHook:
        """ComfyUI clones hooks when keyframes are set; every clone follows its own keyframes."""
        copy = super().clone()
        copy.adapter = self.adapter
        return copy

    @cached_property
    def wrapper(self) -> Wrapper:
        """The adapter with the current keyframe's strength as its schedule. A plan holds that, and must not hold the hook: it
        goes with it."""
        keyframes = self.hook_keyframe
        return Wrapper((self.adapter.with_controls(Schedule(lambda progress: keyframes.strength)),))

    def on_apply_hooks(self, model: ModelPatcher, transformer_options: dict) -> None:
        """Called by ComfyUI before every model call of a hooked conditioning."""
        wrappers = {WrappersMP.DIFFUSION_MODEL: {KEY: [self.wrapper]}}
        comfy.patcher_extension.merge_nested_dicts(transformer_options, {"wrappers": wrappers}, copy_dict1=False)


def take_names(executor: Callable, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None = None) -> Any:
    """Leaves word for `take_notes` which of its conditionings the guider calls negative. Each guider has an order of its own,
    and some nodes run one prompt alone."""
    named = executor.class_obj.conds.items()
    sides = {id(c): "negative" not in name for name, cond in named for c in cond}
    return executor(x, timestep, _with(model_options, {GUIDED: sides}), seed)


def take_notes(executor: Callable, model: BaseModel, conds: list, x: Tensor, timestep: Tensor, options: dict) -> Any:
    """Leaves word for the model calls of this step: which area of the picture each conditioning covers, since a call for
    a regional one sees a crop and its masks must be cropped with it, what it names, which of them are the positive
    prompt's, and the noise schedule in use."""
    sides = options.get("transformer_options", {}).get(GUIDED, {})
    lists = {index: cond for index, cond in enumerate(conds) if cond}
    note = Note(
        model.model_sampling,
        tuple(x.shape[-2:]),
        areas={c["uuid"]: tuple(c["area"]) for cond in lists.values() for c in cond if "area" in c},
        heard={(index, uuid): heard for index, cond in lists.items() for uuid, heard in _heard(cond).items()},
        positive={index: _is_positive(index, cond, sides) for index, cond in lists.items()},
    )
    return executor(model, conds, x, timestep, _with(options, {KEY: note}))


def _with(options: dict, notes: dict[str, Any]) -> dict:
    """ComfyUI's model options with notes for the model calls."""
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **notes}}


def _heard(cond: Sequence[dict]) -> dict[Any, Heard]:
    """What the prompts of one list of conditionings name, by uuid.

    Where one list sets an area and another does not, ComfyUI gives the other a copy of the first one's conditioning, uuid and
    notes included, with the other's text in it. So what counts is what was noted beside the text, which its first owner has.
    """
    notes: dict[int, Heard] = {}
    for c in cond:
        if (text := _text_id(c)) not in notes:
            notes[text] = heard_in(c.get("cross_attn"), c)
    return {c["uuid"]: notes[_text_id(c)] for c in cond}


def _text_id(c: dict) -> int:
    return id(c["model_conds"].get("c_crossattn", c))


def heard_in(text: Tensor | None, options: dict) -> Heard:
    """What a conditioning names: nothing where its text has been zeroed out, whatever it said before."""
    heard = options.get(HEARD, Heard())
    silent = bool(heard.named) and text is not None and not text.any()
    return heard._replace(named=frozenset()) if silent else heard


def _is_positive(index: int, cond: Sequence[dict], sides: dict[int, bool]) -> bool:
    """Whether a list of conditionings is a positive prompt. What the guider does not hold is taken to be in ComfyUI's own order,
    the positive first."""
    return next((sides[id(c)] for c in cond if id(c) in sides), index == 0)


def take_memory(
    executor: Callable, model: ModelPatcher, noise_shape: Sequence[int], conds: dict, *args: Any, **kwargs: Any
) -> Any:
    """Hands the atoms to ComfyUI's memory management before it loads the model: they are counted, loaded and unloaded
    with it. Those of hooks come with their conditionings, since the MODEL is not theirs to change."""
    applied: list[Wrapper] = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    if applied:
        model.set_additional_models(KEY, [applied[0].resident(applied, model)])
    for c in chain.from_iterable(conds.values()):
        group = c.get("hooks") or HookGroup()
        hooked = [hook.wrapper for hook in group.hooks if isinstance(hook, AdapterHook)]
        if hooked:
            atoms = hooked[0].resident([*hooked, *applied], model)  # in the order in which a model call meets them
            c["additional_models"] = [*c.get("additional_models", ()), atoms]
    return executor(model, noise_shape, conds, *args, **kwargs)


LISTENERS = {
    WrappersMP.PREPARE_SAMPLING: take_memory,
    WrappersMP.PREDICT_NOISE: take_names,
    WrappersMP.CALC_COND_BATCH: take_notes,
}
"""What hears from the sampler about its model calls, by the moment at which ComfyUI calls it."""


class Note(NamedTuple):
    """What a model call can't see by itself."""

    sampling: Any
    """ComfyUI's model_sampling."""
    picture: tuple[int, int]
    """Latent height and width of the whole picture."""
    areas: dict[Any, tuple[int, ...]]
    """Conditioning's uuid to (height, width, top, left) in latent pixels."""
    heard: dict[tuple[int, Any], Heard] | tuple[Heard, ...]
    """What prompts name, where a CLIP has listened: by the number of the conditioning's list and its uuid, or one for each row
    of the call."""
    positive: dict[int, bool]
    """Whether a list of conditionings is a positive prompt, by its number."""

    def heard_by_row(self, places: Sequence[tuple[int, Any]], pictures: int) -> tuple[Heard, ...]:
        """For a call whose conditionings, given by number of list and uuid, each run all pictures."""
        if isinstance(self.heard, tuple):
            return self.heard
        return tuple(self.heard.get(place, Heard()) for place in places for _ in range(pictures))


def _dtype(model: ModelPatcher) -> torch.dtype:
    """What a model computes in, whatever its weights are kept in."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


class Wrapper:
    """Applies a stack of adapters to every call of a diffusion model. Shared by all clones of a MODEL: it holds no state
    of a run, only compiled plans, each as long as the UNet that it is for and all whose atoms are in it."""

    def __init__(self, stack: Stack, observer: Observer | None = None) -> None:
        self.stack, self.observer = tuple(stack), observer
        self._plans: WeakKeyDictionary[torch.nn.Module, _Plans] = WeakKeyDictionary()

    @torch.compiler.disable  # a compiled MODEL runs as it is while atoms act on it: dynamo can't trace what patches share
    def __call__(
        self,
        executor: Callable,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        # Several Apply nodes and hooks may meet in one call: the first to be called compiles all into one plan, so that
        # masks of different dictionaries cost one attention each instead of multiplying.
        team: list[Wrapper] = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {}).get(KEY, [self])
        if self is team[0]:
            index, plan, modules, _ = self.compiled(team, executor.class_obj, x.device, x.dtype)
            if plan.acts:
                note = options.get(KEY)
                observers = [w.observer for w in team for _ in w.stack]
                observed = any(observer is not None for observer in observers)
                progress = call_progress(options, note) if plan.scheduled or observed else 0.0
                rows = call_rows(x, options, note, placed=bool(plan.masks) or plan.replayed or observed)
                run = Run(plan, rows, progress, observers)
                options = _Patches(run, index).around(options)
                with updating(plan, modules, lambda: run):
                    return executor(x, timesteps, context, y, control, options, **kwargs)
        return executor(x, timesteps, context, y, control, options, **kwargs)

    def compiled(
        self, team: Sequence[Wrapper], unet: torch.nn.Module, device: torch.device, dtype: torch.dtype
    ) -> _Compiled:
        """What all wrappers of a call amount to, kept for the next."""
        kept = self._kept(team, unet)
        if dtype not in kept:
            layers = list_layers(unet)
            plan = compile_plan([adapter for wrapper in team for adapter in wrapper.stack], list(layers.values()))
            index = {place: number for number, place in enumerate(layers)}
            modules = named_modules(unet) if plan.modules else {}
            check_modules(plan, modules)
            kept[dtype] = _Compiled(index, plan.to(device, dtype), modules)
        compiled = kept[dtype]
        if compiled.plan.device in (device, None):
            return compiled
        return compiled._replace(plan=compiled.plan.to(device, dtype))  # ComfyUI had no room to load it

    def resident(self, team: Sequence[Wrapper], model: ModelPatcher) -> ModelPatcher:
        """The plan for a MODEL as a model of its own, in the hands of ComfyUI's memory management."""
        unet, dtype = model.model.diffusion_model, _dtype(model)
        kept = self._kept(team, unet)
        if dtype not in kept or kept[dtype].patcher is None:
            compiled = self.compiled(team, unet, model.offload_device, dtype)
            held = _Held(compiled.plan)
            patcher = ModelPatcher(held, model.load_device, model.offload_device)
            kept[dtype] = compiled._replace(plan=held.plan, patcher=patcher)
        return kept[dtype].patcher

    def _kept(self, team: Sequence[Wrapper], unet: torch.nn.Module) -> dict[torch.dtype, _Compiled]:
        """The plans of a team that this wrapper is the first of, by the model's type."""
        plans = self._plans.setdefault(unet, _Plans())
        for member in team[1:]:
            plans = plans.with_more.setdefault(member, _Plans())
        return plans.by_type


class _Plans:
    """Plans of a team, and of those that start with it. None outlives a member: a MODEL stays in ComfyUI's cache while one
    thing after the other is tried on top of it, and conditionings with hooks come and go."""

    def __init__(self) -> None:
        self.by_type: dict[torch.dtype, _Compiled] = {}
        self.with_more: WeakKeyDictionary[Wrapper, _Plans] = WeakKeyDictionary()


class _Held(torch.nn.Module):
    """A plan's tensors as weights: what moves the module moves the plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList()
        self.plan = plan.map(self._hold, self._hold)

    def _hold(self, tensor: Tensor) -> torch.nn.Parameter:
        weight = torch.nn.Parameter(tensor, requires_grad=False)
        self.weights.append(weight)
        return weight


class _Compiled(NamedTuple):
    """A plan with what it acts on."""

    index: dict[Place, int]
    """The layers' numbers."""
    plan: Plan
    modules: dict[str, torch.nn.Module]
    """By name, if any of them is updated outside the attentions."""
    patcher: ModelPatcher | None = None
    """Whoever loads the plan, once a sampler has asked for it."""


def call_progress(options: dict, note: Note | None) -> float:
    """How far sampling has come, 0..1."""
    if note is None:
        raise RuntimeError(
            "Atoms are scheduled, recorded or replayed, but this model call does not come from a sampler that says how far it is."
        )
    return progress_of(note.sampling, options["sigmas"])


def call_rows(x: Tensor, options: dict, note: Note | None, placed: bool) -> Rows:
    """What the rows of this model call are. A batch is a list of conditionings, each over all pictures.

    :param placed: whether it matters which part of the picture they see.
    :raises MaskPlacementError: it matters, but the call sees an unknown part.
    """
    conditionings = options.get("cond_or_uncond") or [0]
    pictures = x.shape[0] // len(conditionings)
    height, width = x.shape[-2:]
    uuids = options.get("uuids") or [None] * len(conditionings)
    picture, areas = (note.picture, note.areas) if placed and note is not None else ((height, width), {})
    crops = []
    for uuid in uuids:
        area = areas.get(uuid)
        top, left = (0, 0) if area is None else area[len(area) // 2 :][-2:]
        if area is None and picture != (height, width):
            raise MaskPlacementError(
                f"This model call sees {height} x {width} latent pixels of a picture of {picture[0]} x {picture[1]}, and "
                "nothing says which: another patch tiles the picture. Remove it, or the masks, replays and recordings of atoms."
            )
        crops += [Crop(picture, top, left, height, width)] * pictures
    positive = {} if note is None else note.positive
    return Rows(
        pictures=tuple(range(pictures)) * len(conditionings),
        positive=tuple(positive.get(c, c == 0) for c in conditionings for _ in range(pictures)),
        crops=tuple(crops),
        heard=() if note is None else note.heard_by_row(list(zip(conditionings, uuids, strict=True)), pictures),
    )


def progress_of(sampling: Any, sigma: Tensor) -> float:
    """The inverse of ``percent_to_sigma``, which falls monotonically: 0 at pure noise, 1 at the finished picture."""
    target, low, high = float(sigma.max()), 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if sampling.percent_to_sigma(middle) > target else (low, middle)
    return (low + high) / 2


class _Patches:
    """The patches of one model call: each attention is opened by its input patch, fed by the attention itself, and
    closed by its output patch."""

    def __init__(self, run: Run, index: dict[Place, int]) -> None:
        self.run, self.index = run, index
        self.current: LayerRun | None = None

    def around(self, options: dict) -> dict:
        """A copy of the options with our patches innermost: last on the way in and first on the way out, so that patches
        which re-tile tokens bracket ours."""
        self.previous = options.get("optimized_attention_override")
        patches = dict(options.get("patches", {}))
        replace = dict(options.get("patches_replace", {}))
        for name in ("attn1", "attn2"):
            patches[f"{name}_patch"] = [*patches.get(f"{name}_patch", ()), self.opening(name)]
            patches[f"{name}_output_patch"] = [self.close, *patches.get(f"{name}_output_patch", ())]
            if name in replace:
                replace[name] = {block: self.replacing(patch) for block, patch in replace[name].items()}
        return {
            **options,
            "patches": patches,
            "patches_replace": replace,
            "optimized_attention_override": self.override,
        }

    def opening(self, name: str) -> Callable:
        def patch(n: Tensor, context: Tensor, value: Tensor, extra: dict) -> tuple[Tensor, Tensor, Tensor]:
            place = (extra["transformer_index"], extra["block_index"], name)
            grid = tuple(extra["activations_shape"][-2:])
            self.current = self.run.layer(self.index[place], n, context, value, grid)
            return n, context, value

        return patch

    def override(
        self, function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
    ) -> Tensor:
        def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if self.previous is not None:
                return self.previous(function, q, k, v, heads, *args, **kwargs)
            return function(q, k, v, heads, *args, **kwargs)

        if self.current is None or self.current.attended:
            return attention(q, k, v)
        masked = bool(args and args[0] is not None) or kwargs.get("mask") is not None
        # What another pack's override makes of an attention may depend on all its queries.
        return self.current.attend(q, k, v, attention, any_queries=not masked and self.previous is None)

    def replacing(self, patch: Callable) -> Callable:
        def wrapped(q: Tensor, k: Tensor, v: Tensor, extra: dict) -> Tensor:
            if self.current is None:
                return patch(q, k, v, extra)
            return self.current.attend(q, k, v, lambda q, k, v: patch(q, k, v, extra), any_queries=False)

        return wrapped

    def close(self, n: Tensor, extra: dict) -> Tensor:
        current, self.current = self.current, None
        if current is None:
            return n
        if not current.attended:
            raise RuntimeError(
                f"Layer L{current.index} computed its attention where sparse atoms could not reach it: another patch "
                "bypasses ComfyUI's attention function. Remove that patch, or mute this layer's atoms."
            )
        return current.output(n)


# --------------------------------------------------------------------------------------------------------- training

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
        self.dtype = _dtype(model)
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
        read = {id(entry): self._read(entry) for entry in {id(entry): entry for entry in given}.values()}
        entries = [read[id(entry)] for entry in given]  # one text of several pictures is read once
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
        _check_reads_like(prompt.clip, self.pupil)
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


# -------------------------------------------------------------------------------------------------------- inverting


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
