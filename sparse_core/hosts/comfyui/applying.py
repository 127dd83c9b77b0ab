"""Dictionaries on a MODEL.

A stack of adapters sits on it as one `Wrapper` of its diffusion model. For every model call it puts its patches into a copy of
the transformer options, around whatever other nodes have put there; nothing outlives the call, no weight is touched, and the
source MODEL is unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import comfy.patcher_extension
import comfy.sd
import torch
from comfy.hooks import EnumHookScope, HookGroup, TransformerOptionsHook
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...controls import Schedule, SparseAdapter, Stack
from ...lora import ImportedLora, load_lora
from ...plan import Crop, Heard, LayerRun, MaskPlacementError, Observer, Plan, Rows, Run, compile_plan
from ..updating import check_modules, updating, weight_shapes
from .layers import Place, list_layers, named_modules

KEY = "sparse_atoms"
"""Our name wherever ComfyUI keeps things by key."""

HEARD = f"{KEY}_heard"
"""What a listening CLIP notes in its CONDITIONINGs, as a `Heard`."""

GUIDED = f"{KEY}_guided"
"""Under it the options of a step hold which of the guider's conditionings, by id, belong to a positive prompt."""


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


def computing_type(model: ModelPatcher) -> torch.dtype:
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
        unet, dtype = model.model.diffusion_model, computing_type(model)
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
