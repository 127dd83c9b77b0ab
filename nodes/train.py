"""Train Sparse Dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import latent_preview
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..sparse_core.controls import SparseAdapter
from ..sparse_core.files import save_dictionary
from ..sparse_core.hosts.comfyui import ComfyHost, examples_of, one_entry, pupil_of, single_entries
from ..sparse_core.training import PRESETS, Preview, Progress, TrainingSettings, prior_examples, shared_out, train
from ..sparse_core.training.metadata import file_metadata
from . import folders
from .types import CATEGORY, dictionary_output

DEFAULTS = TrainingSettings()
CUSTOM = "custom"
"""The choice of *preset* that takes the values of the node."""
UNFINISHED: Counter[str] = Counter()
"""How many trainings of a name were cancelled while ComfyUI has been running, which is as long as it keeps their results."""
ATTENTIONS = {"both": ("attn1", "attn2"), "cross-attention": ("attn2",), "self-attention": ("attn1",)}


class TrainSparseDictionary(io.ComfyNode):
    """Pictures into a dictionary."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Train",
            display_name="Train Sparse Dictionary",
            category=CATEGORY,
            description="Teaches a model something new from a few pictures. Cancelling keeps what was learnt: it is saved "
            "and goes on to the next node.",
            search_aliases=["sparse atoms", "train lora", "fine-tune", "dreambooth"],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to teach. The dictionary will fit every checkpoint of its family."
                ),
                io.Latent.Input(
                    "latents",
                    tooltip="The pictures to learn from, through VAE Encode: a batch, or a list of several sizes. Four to eight "
                    "with different backgrounds teach best.",
                ),
                io.Conditioning.Input(
                    "captions",
                    tooltip="What the pictures show, through CLIP Text Encode: one for each picture, or one for all. Name the "
                    "new thing by the same rare word each time; describe the rest, so that it is held less to the new thing. With "
                    "Teach Word before CLIP Text Encode the word's meaning is learnt too, and the picture follows prompts better.",
                ),
                io.String.Input(
                    "name",
                    default="dictionary",
                    tooltip="Names the file that is kept when you cancel, and the dictionary's title.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[CUSTOM, *PRESETS],
                    tooltip="What you want to teach. A preset brings its own values: this node's steps, learning_rate, batch, "
                    "atoms, attention, projections, threshold, sparsity, accumulate, warm_up and ema count for custom only.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100_000,
                    tooltip="How long to learn. Too few: the new thing is not recognisable. Too many: it takes over the picture.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=DEFAULTS.learning_rate,
                    min=1e-6,
                    max=0.5,
                    step=1e-6,
                    tooltip="How big each step is. Higher learns faster and holds on to more of the training pictures, "
                    "backgrounds included.",
                ),
                io.Int.Input(
                    "batch",
                    default=DEFAULTS.batch,
                    min=1,
                    max=64,
                    tooltip="Pictures per step. More learns more steadily and takes longer.",
                ),
                io.Int.Input(
                    "atoms",
                    default=DEFAULTS.atoms,
                    min=1,
                    max=1024,
                    tooltip="Atoms in each projection of each attention. More hold more detail; most can be dropped "
                    "afterwards with Keep Top Atoms.",
                ),
                io.Combo.Input(
                    "attention",
                    options=list(ATTENTIONS),
                    tooltip="cross-attention learns what a word means, self-attention how things look and fit together; both "
                    "gives the best likeness.",
                ),
                io.String.Input(
                    "projections",
                    default="".join(DEFAULTS.projections),
                    tooltip="Which parts of an attention learn: q what looks, k what is found, v what is passed on, o how it "
                    "lands. All four, qkvo, draw the best likeness. Counts for the preset custom only.",
                    advanced=True,
                ),
                io.Float.Input(
                    "threshold",
                    default=DEFAULTS.threshold,
                    min=0.0,
                    max=4.0,
                    step=0.1,
                    tooltip="How sure an atom must be before it acts. Higher keeps the rest of the picture more as the plain "
                    "model draws it; 0 makes it a LoRA; above 3 little is learnt. Counts for the preset custom only.",
                    advanced=True,
                ),
                io.Float.Input(
                    "sparsity",
                    default=DEFAULTS.sparsity,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    tooltip="How hard atoms compete. Higher puts the likeness into fewer atoms, so that more can be dropped. "
                    "Counts for the preset custom only.",
                    advanced=True,
                ),
                io.Conditioning.Input(
                    "prior",
                    optional=True,
                    tooltip="Prompts that don't name the new thing, through CLIP Text Encode. The model paints pictures for them "
                    "first and is held to those while it learns, so that other pictures stay as they were.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The empty prompt, through CLIP Text Encode: needed to paint the prior pictures and the preview.",
                ),
                io.Conditioning.Input(
                    "preview",
                    optional=True,
                    tooltip="A prompt with the new word, through CLIP Text Encode. Its picture is painted again and again while "
                    "the model learns and is shown on this node, so that you see when to stop. Does not change what is learnt.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=1,
                    max=100_000,
                    tooltip="Steps between two preview pictures. Lower shows the picture change sooner and takes longer.",
                    optional=True,
                    advanced=True,
                ),
                io.Mask.Input(
                    "loss_mask",
                    optional=True,
                    tooltip="White where the pictures show what is to be learnt; black parts don't count. One for each picture, "
                    "or one for all.",
                ),
                io.Latent.Input(
                    "held_out",
                    optional=True,
                    tooltip="Pictures of the new thing that are not learnt from, through VAE Encode. They tell when the model "
                    "starts to copy the training pictures; with patience, training then ends.",
                ),
                io.Conditioning.Input(
                    "held_out_captions",
                    optional=True,
                    tooltip="What the held-out pictures show, through CLIP Text Encode: one for each picture, or one for all.",
                ),
                io.Int.Input(
                    "patience",
                    default=DEFAULTS.patience,
                    min=0,
                    max=1000,
                    tooltip="Ends the training when the held-out pictures fared no better for this many checks, one every 50 "
                    "steps: before the training pictures take over. 0 never does; needs held-out pictures.",
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "selective",
                    default=DEFAULTS.selective,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    tooltip="How hard atoms are kept silent on the prior prompts. Higher moves pictures without the new thing "
                    "less, and draws the new thing less like itself; needs prior prompts.",
                    optional=True,
                    advanced=True,
                ),
                io.Int.Input(
                    "accumulate",
                    default=DEFAULTS.accumulate,
                    min=1,
                    max=64,
                    tooltip="Batches per step. More learns more steadily, as a larger batch does, without needing more memory, and "
                    "takes longer. Counts for the preset custom only.",
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "warm_up",
                    default=DEFAULTS.warm_up,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    tooltip="Share of the training in which steps grow to the learning rate. Higher starts more gently: broken "
                    "pictures are less likely at a high rate. Counts for the preset custom only.",
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "ema",
                    default=DEFAULTS.ema,
                    min=0.0,
                    max=0.9999,
                    step=0.0001,
                    tooltip="Keeps the mean of the last steps in place of the last: 0 none, 0.99 about the last hundred. Higher "
                    "gives calmer pictures that lag behind the last steps. Counts for the preset custom only.",
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=DEFAULTS.checkpointing,
                    tooltip="Less memory, about a third slower. Does not change what is learnt.",
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "autocast",
                    default=DEFAULTS.autocast,
                    tooltip="Runs the model in bfloat16: less memory and faster on most cards; the likeness hardly changes.",
                    optional=True,
                    advanced=True,
                ),
                io.Boolean.Input(
                    "resume",
                    default=False,
                    tooltip="Goes on where a cancelled or crashed training of this name stopped. Does not change what is learnt.",
                    optional=True,
                    advanced=True,
                ),
                io.Float.Input(
                    "word_rate",
                    default=DEFAULTS.word_rate,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How fast the word of Teach Word takes on its new meaning, in the scale of the model's words. Higher "
                    "leaves more to the word and less to the atoms; 0 leaves it as it is. Counts where captions come from Teach "
                    "Word.",
                    optional=True,
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    default=DEFAULTS.seed,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Another seed learns the same thing with other atoms. The same seed gives the same dictionary.",
                ),
            ],
            outputs=[
                dictionary_output(),
                io.Custom("LOSS_MAP").Output(display_name="loss", tooltip="For Plot Loss Graph."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name: list[str | None], resume: Sequence[bool | None] = (False,), **_: Any) -> int:
        """A training that was cancelled has more to do where it is to be resumed. Otherwise what it gave stays, as wanted by
        whoever cancelled because it was enough. What comes by a link is not known here, so it may be any."""
        if resume[0] is False:
            return 0
        return UNFINISHED.total() if name[0] is None else UNFINISHED[name[0]]

    @classmethod
    def execute(
        cls,
        model: list[ModelPatcher],
        latents: list[dict],
        captions: list[list],
        name: list[str],
        preset: list[str],
        steps: list[int],
        learning_rate: list[float],
        batch: list[int],
        atoms: list[int],
        attention: list[str],
        projections: list[str],
        threshold: list[float],
        sparsity: list[float],
        seed: list[int],
        prior: list[list] | None = None,
        negative: list[list] | None = None,
        preview: list[list] | None = None,
        preview_every: Sequence[int] = (50,),
        loss_mask: list[torch.Tensor] | None = None,
        held_out: list[dict] | None = None,
        held_out_captions: list[list] | None = None,
        patience: Sequence[int] = (DEFAULTS.patience,),
        selective: Sequence[float] = (DEFAULTS.selective,),
        accumulate: Sequence[int] = (DEFAULTS.accumulate,),
        warm_up: Sequence[float] = (DEFAULTS.warm_up,),
        ema: Sequence[float] = (DEFAULTS.ema,),
        checkpointing: Sequence[bool] = (DEFAULTS.checkpointing,),
        autocast: Sequence[bool] = (DEFAULTS.autocast,),
        resume: Sequence[bool] = (False,),
        word_rate: Sequence[float] = (DEFAULTS.word_rate,),
    ) -> io.NodeOutput:
        custom = dict(
            steps=steps[0],
            batch=batch[0],
            learning_rate=learning_rate[0],
            atoms=atoms[0],
            projections=tuple(p for p in projections[0] if p not in " ,"),
            attentions=ATTENTIONS[attention[0]],
            threshold=threshold[0],
            sparsity=sparsity[0],
            accumulate=accumulate[0],
            warm_up=warm_up[0],
            ema=ema[0],
        )
        settings = TrainingSettings(
            **(custom if preset[0] == CUSTOM else PRESETS[preset[0]]),
            patience=patience[0],
            selective=selective[0],
            checkpointing=checkpointing[0],
            autocast=autocast[0],
            seed=seed[0],
            word_rate=word_rate[0],
        )
        pupil = pupil_of(captions)
        word = pupil.learnt if pupil else None
        host = ComfyHost(model[0], pupil)
        show = latent_preview.prepare_callback(model[0], settings.steps)
        losses: list[float] = []
        newest: list[torch.Tensor] = []

        def keep_picture(_step: int, latents: torch.Tensor) -> None:
            newest[:] = [latents]

        def on_step(progress: Progress) -> None:
            losses[:] = progress.losses
            show(progress.step - 1, newest[0] if newest else progress.estimate, None, progress.steps)
            throw_exception_if_processing_interrupted()

        examples = examples_of(host, latents, captions, loss_mask)
        shape = tuple(latents[0]["samples"].shape[1:])
        if (prior or preview) and not negative:
            raise ValueError(
                "A prior or preview prompt is connected, but no negative prompt. Connect an empty CLIP Text Encode to it."
            )
        if selective[0] and not prior:
            raise ValueError(
                f"selective is {selective[0]:g}, but no prior prompts are connected for atoms to be silent on. Connect prior, or "
                "set selective to 0."
            )
        if held_out_captions and not held_out:
            raise ValueError(
                "Held-out captions are connected, but no held-out pictures. Connect held_out, or disconnect held_out_captions."
            )
        if word and held_out_captions and pupil_of(held_out_captions, "held-out captions") is None:
            raise ValueError(
                f"The captions come from Teach Word, the held-out captions don't: they would not tell how {word!r} fares. Encode "
                "both with its CLIP."
            )
        empty = one_entry(negative[0], "negative") if prior or preview else []
        if prior:
            host.load()
            sizes = dict.fromkeys(tuple(example.latents.shape) for example in examples)
            for size, prompts in zip(sizes, shared_out(single_entries(prior), len(sizes)), strict=True):
                examples += prior_examples(
                    host,
                    prompts,
                    empty,
                    size,
                    count=len(prompts),
                    on_step=throw_exception_if_processing_interrupted,
                )
        picture = None
        if preview:
            picture = Preview(
                one_entry(preview[0], "preview"),
                empty,
                shape,
                keep_picture,
                preview_every[0],
                on_step=throw_exception_if_processing_interrupted,
            )
        state = folders.training_state(name[0])
        if not resume[0]:
            state.unlink(missing_ok=True)
        dictionary = train(
            host,
            examples,
            settings,
            on_step,
            metadata=file_metadata(name[0], word),
            word=word,
            held_out=examples_of(host, held_out or [], held_out_captions or [], what="held-out pictures"),
            preview=picture,
            autosave=state,
        )
        record = dictionary.metadata["training"]
        if record["finished"]:
            state.unlink(missing_ok=True)
        else:
            UNFINISHED[name[0]] += 1
            save_dictionary(dictionary, folders.free_path(f"{folders.plain(name[0])}_cancelled"))
        words = f"learnt with the word {word!r}" if dictionary.words else "learnt without a word"
        said = f"{len(dictionary)} atoms, {words}, in {record['steps_done']} steps; loss {record['final_loss']:.4f}"
        return io.NodeOutput(SparseAdapter(dictionary), {"loss": losses}, ui=ui.PreviewText(said))
