"""One node for each control. Every one returns the dictionary with one more control."""

from __future__ import annotations

import comfy.sd
import torch
from comfy_api.latest import io

from ..sparse_core.addresses import parse_lines, parse_selection
from ..sparse_core.analysis.recording import Recording
from ..sparse_core.controls import (
    CURVES,
    KEYFRAMED,
    Conditioning,
    Curve,
    Keep,
    Listen,
    Mask,
    Schedule,
    Solo,
    SparseAdapter,
    Weight,
    controls_of_lines,
)
from ..sparse_core.hosts.comfyui import listen
from ..sparse_core.replaying import Replay
from .types import CONTROLS, RecordingType, atoms_input, checked, dictionary_input, dictionary_output


class ControlNode(io.ComfyNode):
    """What all controls share: a selection is checked before anything runs."""

    @classmethod
    def validate_inputs(cls, atoms: str | None = "*") -> bool | str:
        return checked(parse_selection, atoms)


class AtomWeights(io.ComfyNode):
    """Many weights as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Weights",
            display_name="Atom Weights",
            category=CONTROLS,
            description="Turns single atoms up, down, off or negative, one line each. See the help page for all addresses.",
            search_aliases=["sparse atoms", "block weight", "layer weight"],
            inputs=[
                dictionary_input(),
                io.String.Input(
                    "lines",
                    multiline=True,
                    default="# one line each: which atoms = how much\ntop:8 = 1.0\n",
                    tooltip="Each line changes how strongly some atoms show: L3.v[7] = 0.5 halves one, attn2 *= 1.5 "
                    "strengthens a group, mute L3[2] removes it from the picture, solo top:8 leaves only these.",
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def validate_inputs(cls, lines: str | None) -> bool | str:
        return checked(parse_lines, lines)

    @classmethod
    def execute(cls, dictionary: SparseAdapter, lines: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(*controls_of_lines(parse_lines(lines))))


class AtomMask(ControlNode):
    """A place in the picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Mask",
            display_name="Atom Mask",
            category=CONTROLS,
            description="Confines atoms to a region of the picture, in the same single pass. Soft edges blend. Two masks on "
            "the same atoms leave the part that both cover; masks on different atoms add up.",
            search_aliases=["sparse atoms", "regional lora", "masked lora", "attention mask"],
            inputs=[
                dictionary_input(),
                io.Mask.Input("mask", tooltip="White: the atoms act. Black: they don't."),
                atoms_input("*", "Which atoms to keep inside the mask; the others still act everywhere."),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, mask: torch.Tensor, atoms: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Mask(mask, parse_selection(atoms))))


class AtomSchedule(ControlNode):
    """A time during sampling."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Schedule",
            display_name="Atom Schedule",
            category=CONTROLS,
            description="Lets atoms act during a part of sampling only: early steps decide the layout, late ones the detail.",
            search_aliases=["sparse atoms", "keyframes", "start end percent"],
            inputs=[
                dictionary_input(),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When the atoms begin to show: 0 is the first step. Later starts keep the plain model's layout.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="When they stop: 1 is the last step. Earlier ends leave the details to the plain model.",
                ),
                io.Combo.Input(
                    "curve",
                    options=[*CURVES, *KEYFRAMED],
                    tooltip="How their strength moves between start and end: constant holds it, fades make the concept "
                    "come or go gradually, keyframes follow the list below, gliding or in steps.",
                ),
                io.String.Input(
                    "keyframes",
                    default="0, 1, 0",
                    tooltip="For the curve keyframes: strengths at equal distances from start to end, such as 0, 1, 0 for a "
                    "swell in the middle.",
                    optional=True,
                ),
                atoms_input("*", "Which atoms follow the schedule; the others act all the time."),
                io.Custom("FLOATS").Input(
                    "floats",
                    tooltip="Strengths from another node, one after the other from start to end, such as those that drive hook "
                    "keyframes. They take the place of the curve; with keyframes (steps) they jump, else they glide.",
                    optional=True,
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(
        cls,
        dictionary: SparseAdapter,
        start: float,
        end: float,
        curve: str,
        atoms: str,
        keyframes: str = "1",
        floats: list[float] | float | None = None,
    ) -> io.NodeOutput:
        shape = Curve.named(curve, start, end, keyframes, floats)
        return io.NodeOutput(dictionary.with_controls(Schedule(shape, parse_selection(atoms))))


class KeepTopAtoms(io.ComfyNode):
    """The density slider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Keep",
            display_name="Keep Top Atoms",
            category=CONTROLS,
            description="Drops the least important atoms. Much of a dictionary can go before the likeness does.",
            search_aliases=["sparse atoms", "density", "prune", "count"],
            inputs=[
                dictionary_input(),
                io.Float.Input(
                    "density",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The share of atoms that stay: 1 keeps all, 0.25 the most important quarter, 0 is the plain model. "
                    "Lower values loosen the concept's grip on the rest of the picture.",
                ),
                io.Combo.Input(
                    "scope",
                    options=["dictionary", "layer", "site"],
                    tooltip="Among which atoms the share is taken: dictionary lets busy layers keep more, layer and site keep "
                    "the same share everywhere, so that every part of the picture thins out evenly.",
                ),
                io.Combo.Input(
                    "by",
                    options=["importance", "contrast", "random"],
                    tooltip="What decides which atoms stay. contrast prefers atoms that are silent where the prompt doesn't name "
                    "what was learnt, so that the rest of the picture loosens first; it differs from importance if the "
                    "dictionary was trained with prior prompts. random is for comparison: the likeness goes sooner.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31,
                    tooltip="Another seed drops other atoms. Matters for random only.",
                ),
                io.Int.Input(
                    "count",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="How many atoms stay, in place of a share: 50 keeps the best fifty (of each layer or site, if that is "
                    "the scope). 0 goes by density.",
                    optional=True,
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(
        cls, dictionary: SparseAdapter, density: float, scope: str, by: str, seed: int, count: int = 0
    ) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Keep(density, scope, by, seed, count)))


class SoloAtoms(ControlNode):
    """Only these."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Solo",
            display_name="Solo Atoms",
            category=CONTROLS,
            description="Lets only the chosen atoms act, to see what they do by themselves.",
            search_aliases=["sparse atoms", "isolate"],
            inputs=[dictionary_input(), atoms_input("top:8", "Which atoms the picture shows; all others are off.")],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, atoms: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Solo(parse_selection(atoms))))


class MuteAtoms(ControlNode):
    """All but these."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Mute",
            display_name="Mute Atoms",
            category=CONTROLS,
            description="Turns the chosen atoms off, to see what the picture loses without them.",
            search_aliases=["sparse atoms", "ablate", "remove"],
            inputs=[dictionary_input(), atoms_input("top:1", "Which atoms vanish from the picture.")],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, atoms: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Weight(parse_selection(atoms), 0.0)))


class AtomPrompt(ControlNode):
    """On one prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Prompt",
            display_name="Atom Prompt",
            category=CONTROLS,
            description="Lets atoms act on the positive or on the negative prompt only. On the negative one the picture is "
            "pushed away from what they draw.",
            search_aliases=["sparse atoms", "conditioning", "negative lora"],
            inputs=[
                dictionary_input(),
                io.Combo.Input(
                    "prompt",
                    options=["positive", "negative"],
                    tooltip="positive: the picture shows what the atoms draw, follows the prompt better than with both, and moves "
                    "less where the prompt does not name it. negative: it avoids what they draw.",
                ),
                atoms_input("*", "Which atoms; the others act on both prompts."),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, prompt: str, atoms: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Conditioning(prompt, parse_selection(atoms))))


class AtomTrigger(ControlNode):
    """Only where a prompt names it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Trigger",
            display_name="Atom Trigger",
            category=CONTROLS,
            description="Lets atoms act only on prompts that name what was learnt. All other pictures are the plain model's, to "
            "the bit; where regions have prompts of their own, atoms act in those that name it.",
            search_aliases=["sparse atoms", "trigger word", "activation", "bleeding"],
            inputs=[
                dictionary_input(),
                io.Clip.Input(
                    "clip",
                    tooltip="The text encoder that reads the prompts. Encode all of them, the negative one too, with the CLIP that "
                    "comes out: it notes which of them name the words, and so where the picture changes.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    tooltip="What a prompt must name for the picture to change; several words or names apart by commas, of which "
                    "any will do. Empty: what the dictionary's file calls it.",
                ),
                atoms_input("*", "Which atoms wait for the words; the others act on all prompts."),
            ],
            outputs=[dictionary_output(), io.Clip.Output(display_name="clip")],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, clip: comfy.sd.CLIP, words: str, atoms: str) -> io.NodeOutput:
        known = words if words.strip() else dictionary.dictionary.metadata.get("modelspec.trigger_phrase", "")
        sought = tuple(word.strip() for word in known.split(",") if word.strip())
        listening = Listen(sought, parse_selection(atoms))
        return io.NodeOutput(dictionary.with_controls(listening), listen(clip, sought))


class ReplayCoefficients(ControlNode):
    """What another picture's atoms did."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Replay",
            display_name="Replay Coefficients",
            category=CONTROLS,
            description="Lets atoms act as they did in a recorded picture, at another seed or prompt. The new picture takes over "
            "what the atoms drew there, and where. Weights, masks and schedules act on top.",
            search_aliases=["sparse atoms", "inject", "transfer", "features"],
            inputs=[
                dictionary_input("The dictionary that was recorded, with whatever other controls hang on it."),
                RecordingType.Input(
                    "recording",
                    tooltip="What Record Coefficients saw while it drew the picture to take from. Record * to have all of it.",
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far the picture follows the recorded one: 1 takes over what its atoms drew, 0 is as if this node "
                    "were not there, between the two mixes.",
                ),
                atoms_input(
                    "*",
                    "Which atoms follow the recording, as far as they are in it; the others answer to the new picture.",
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, recording: Recording, amount: float, atoms: str) -> io.NodeOutput:
        return io.NodeOutput(dictionary.with_controls(Replay(recording, amount, parse_selection(atoms))))


CONTROL_NODES = [
    AtomWeights,
    AtomMask,
    AtomSchedule,
    KeepTopAtoms,
    SoloAtoms,
    MuteAtoms,
    AtomPrompt,
    AtomTrigger,
    ReplayCoefficients,
]
