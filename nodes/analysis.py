"""See what was learnt: recordings, heat maps, charts, galleries, labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..sparse_core.addresses import parse_selection
from ..sparse_core.analysis import comparison, effects, firing, heatmaps, importance_chart, labels, words
from ..sparse_core.analysis.recording import MOST_ATOMS, Recorder, Recording, addresses_of, chosen_atoms
from ..sparse_core.controls import SparseAdapter
from ..sparse_core.hosts.comfyui import ComfyHost, examples_of, token_names
from .controls import ControlNode
from .drawing import Drawing, as_images, sampling_inputs
from .types import ANALYSIS, RecordingType, atoms_input, dictionary_input, dictionary_output


class RecordCoefficients(ControlNode):
    """A sampling with its atoms watched."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Record",
            display_name="Record Coefficients",
            category=ANALYSIS,
            description="Draws pictures as KSampler does and writes down where on them, and on which words, the chosen atoms "
            "fire. Looking changes nothing: the pictures are those that Apply and KSampler draw.",
            search_aliases=["sparse atoms", "activations", "attention map", "inspect"],
            inputs=[
                dictionary_input(
                    "The dictionary to watch, with whatever controls hang on it. Muted atoms leave no trace."
                ),
                *sampling_inputs(),
                atoms_input("top:24", "Which atoms to watch; * to replay all of them. The pictures stay the same."),
            ],
            outputs=[io.Latent.Output(display_name="latent"), RecordingType.Output(display_name="recording")],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, atoms: str, **drawing: Any) -> io.NodeOutput:
        recorder = Recorder(dictionary.dictionary, addresses_of(dictionary.dictionary, parse_selection(atoms)))
        latent = Drawing(**drawing).record(dictionary, recorder)
        return io.NodeOutput(latent, recorder.recording())


class AtomHeatmaps(io.ComfyNode):
    """Where atoms fire."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Heatmaps",
            display_name="Atom Heatmaps",
            category=ANALYSIS,
            description="Shows where on a picture each recorded atom fires, and gives the same as masks, so that an edit can be "
            "kept to where an atom lives.",
            search_aliases=["sparse atoms", "activation map", "attention map", "segment"],
            inputs=[
                RecordingType.Input("recording", tooltip="What Record Coefficients saw while it drew the picture."),
                io.Image.Input("image", tooltip="The recorded picture, decoded; the heat is laid over it."),
                io.Int.Input(
                    "picture",
                    default=0,
                    min=0,
                    max=3,
                    tooltip="Which picture of the batch to look at, from 0. The first four are recorded.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="From where in sampling to look: 0 is the first step, where the layout of the picture is decided.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Up to where: 1 is the last step, where the picture's details are drawn.",
                ),
                io.Combo.Input(
                    "prompt",
                    options=["positive", "negative"],
                    tooltip="Whose model runs to look at: positive shows where atoms draw, negative what the picture is pushed "
                    "away from.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet"),
                io.Mask.Output(display_name="masks"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, recording: Recording, image: torch.Tensor, picture: int, start: float, end: float, prompt: str
    ) -> io.NodeOutput:
        if picture >= len(image):
            raise ValueError(
                f"Picture {picture} is asked for, counted from 0, and {len(image)} came in. Connect the whole batch that was "
                "recorded, decoded, or ask for another."
            )
        shown = image[picture].float().cpu()
        maps = heatmaps.heat_maps(
            recording, tuple(shown.shape[:2]), picture=picture, start=start, end=end, prompt=prompt
        )
        sheet = heatmaps.heat_sheet(recording, maps, shown)
        text = heatmaps.heat_text(maps)
        return io.NodeOutput(as_images([sheet]), heatmaps.to_masks(maps), text, ui=ui.PreviewText(text))


class AtomImportance(io.ComfyNode):
    """Which atoms matter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Importance",
            display_name="Atom Importance",
            category=ANALYSIS,
            description="Charts which atoms, layers and sites of a dictionary matter, as measured in training: how many atoms you "
            "can drop before the picture loses much.",
            search_aliases=["sparse atoms", "chart", "plot", "prune"],
            inputs=[
                dictionary_input("The dictionary to look at. Controls on it don't count."),
                io.Int.Input(
                    "top",
                    default=24,
                    min=1,
                    max=10_000,
                    tooltip="How many atoms the text lists, the most important first. Does not change a picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="chart"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, top: int) -> io.NodeOutput:
        text = importance_chart.importance_text(dictionary.dictionary, top)
        chart = importance_chart.importance_chart(dictionary.dictionary)
        return io.NodeOutput(as_images([chart]), text, ui=ui.PreviewText(text))


class AtomWords(ControlNode):
    """Which words atoms answer to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Words",
            display_name="Atom Words",
            category=ANALYSIS,
            description="Shows which words of a prompt each atom answers to. Turn such an atom down, and that word draws less of "
            "what was learnt. Nothing is drawn for it, so it takes no time.",
            search_aliases=["sparse atoms", "tokens", "prompt", "cross attention"],
            inputs=[
                dictionary_input("The dictionary to look at. Controls on it don't count."),
                io.Clip.Input("clip", tooltip="The text encoder of the model that draws the picture."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="a big robot on the left in the snow",
                    tooltip="The prompt of the picture whose words to look at.",
                ),
                atoms_input("attn2.kv", "Which atoms to look at; only those of attn2.kv read words."),
                io.Int.Input(
                    "top",
                    default=24,
                    min=1,
                    max=200,
                    tooltip="How many of them to show, the most important first. Does not change a picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="chart"), io.String.Output(display_name="table")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, clip: comfy.sd.CLIP, text: str, atoms: str, top: int) -> io.NodeOutput:
        tokens = clip.tokenize(text)
        encoded = clip.encode_from_tokens(tokens)[0]
        table = words.word_table(dictionary.dictionary, encoded, token_names(clip, tokens), parse_selection(atoms), top)
        said = words.word_text(table)
        return io.NodeOutput(as_images([words.word_chart(table)]), said, ui=ui.PreviewText(said))


class AtomPictures(ControlNode):
    """Which pictures fire atoms most."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Pictures",
            display_name="Atom Pictures",
            category=ANALYSIS,
            description="Shows which of some pictures fire each atom most, and where on them. Give it those that the dictionary "
            "was taught from, to see what an atom took from them.",
            search_aliases=["sparse atoms", "training images", "dataset", "activations", "top examples"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the dictionary is for, without it."),
                dictionary_input(
                    "The dictionary to look at, with whatever controls hang on it. Muted atoms fire nowhere."
                ),
                io.Image.Input(
                    "images",
                    tooltip="The pictures to look through: a batch, or a list of several sizes. Nothing new is drawn.",
                ),
                io.Conditioning.Input(
                    "captions",
                    tooltip="What the pictures show, through CLIP Text Encode: one for each, or one for all. Atoms that read "
                    "words fire by the caption.",
                ),
                io.Vae.Input("vae", tooltip="Turns the pictures into what the model reads; it belongs to the model."),
                atoms_input("top:8", f"Which atoms to show, a row each, at most {MOST_ATOMS}."),
                io.Int.Input(
                    "most",
                    default=4,
                    min=1,
                    max=16,
                    tooltip="How many pictures of each atom to show, those that fire it most first. Does not change a picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="sheet"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, atoms: list[str | None]) -> bool | str:
        return super().validate_inputs(atoms[0])

    @classmethod
    def execute(
        cls,
        model: list[ModelPatcher],
        dictionary: list[SparseAdapter],
        images: list[torch.Tensor],
        captions: list[list],
        vae: list[comfy.sd.VAE],
        atoms: list[str],
        most: list[int],
    ) -> io.NodeOutput:
        encoded = [{"samples": vae[0].encode(batch[..., :3])} for batch in images]
        host = ComfyHost(model[0]).load()
        examples = examples_of(host, encoded, captions)
        addresses = chosen_atoms(dictionary[0].dictionary, parse_selection(atoms[0]))
        bar = ProgressBar(len(examples))
        found = firing.firing(host, dictionary[0], addresses, examples, on_picture=lambda: bar.update(1))
        pictures = [picture.float().cpu() for batch in images for picture in batch[..., :3]]
        text = firing.firing_text(found, [f"picture {number}" for number in range(len(pictures))], most[0])
        return io.NodeOutput(as_images([firing.firing_sheet(found, pictures, most[0])]), text, ui=ui.PreviewText(text))


class AtomEffect(ControlNode):
    """What some atoms do together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Effect",
            display_name="Atom Effect",
            category=ANALYSIS,
            description="Draws the picture with the chosen atoms alone and with all but them, from the same noise, and shows what "
            "differs: what these atoms do together.",
            search_aliases=["sparse atoms", "solo", "ablation", "difference"],
            inputs=[
                dictionary_input("The dictionary they belong to, with whatever controls hang on it."),
                *sampling_inputs(),
                io.Vae.Input("vae", tooltip="Turns what the model drew into pictures; it belongs to the model."),
                atoms_input("top:8", "Which atoms to show alone and to leave out, all of them together."),
            ],
            outputs=[
                io.Image.Output(display_name="whole"),
                io.Image.Output(display_name="solo"),
                io.Image.Output(display_name="without"),
                io.Image.Output(display_name="difference"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, vae: comfy.sd.VAE, atoms: str, **drawing: Any) -> io.NodeOutput:
        draws = Drawing(**drawing).drawers(vae, effects.pictures_needed(1))
        gallery = effects.draw_gallery(dictionary, {atoms: parse_selection(atoms)}, draws, 2)
        (effect,) = gallery.effects
        text = effects.effects_text(gallery, {})
        difference = effects.difference_map(gallery.removed(effect))
        pictures = (gallery.whole, effect.solo, effect.without, difference)
        return io.NodeOutput(*(as_images([picture]) for picture in pictures), text, ui=ui.PreviewText(text))


class AtomGallery(ControlNode):
    """What each atom does."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Gallery",
            display_name="Atom Gallery",
            category=ANALYSIS,
            description="Draws one picture with each chosen atom alone and with all but it, from the same noise. Where the same "
            "colour goes from several pictures, the atom gets a label in plain words, and each a thumbnail; both go with the "
            "dictionary that comes out, so that Save keeps them.",
            search_aliases=["sparse atoms", "solo", "ablation", "thumbnails", "label"],
            inputs=[
                dictionary_input("The dictionary to go through, with whatever controls hang on it."),
                *sampling_inputs(),
                io.Vae.Input("vae", tooltip="Turns what the model drew into pictures; it belongs to the model."),
                atoms_input("top:24", f"Which atoms to go through, one by one, at most {MOST_ATOMS}."),
                io.Int.Input(
                    "batch",
                    default=16,
                    min=2,
                    max=128,
                    tooltip="Pictures drawn at once. Fewer need less memory; the pictures stay the same.",
                ),
                io.Int.Input(
                    "pictures",
                    default=4,
                    min=1,
                    max=16,
                    tooltip="How many pictures decide on labels, each from noise of its own. Only the first is shown. One names no "
                    "colour and is drawn soonest.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="sheet"),
                dictionary_output(),
                io.Image.Output(display_name="solo"),
                io.Image.Output(display_name="without"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, dictionary: SparseAdapter, vae: comfy.sd.VAE, atoms: str, batch: int, pictures: int, **drawing: Any
    ) -> io.NodeOutput:
        learnt = dictionary.dictionary
        addresses = chosen_atoms(learnt, parse_selection(atoms))
        groups = {address: parse_selection(address) for address in addresses}
        draws = Drawing(**drawing).drawers(vae, effects.pictures_needed(len(groups), pictures), pictures)
        gallery = effects.draw_gallery(dictionary, groups, draws, batch)
        labelled = labels.with_looks(learnt, gallery.ablations, {})
        text = effects.effects_text(gallery, labelled.labels)
        return io.NodeOutput(
            as_images([effects.gallery_sheet(gallery, labelled.labels)]),
            replace(dictionary, dictionary=labelled),
            as_images([effect.solo for effect in gallery.effects]),
            as_images([effect.without for effect in gallery.effects]),
            text,
            ui=ui.PreviewText(text),
        )


class CompareDictionaries(io.ComfyNode):
    """Two dictionaries side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Compare",
            display_name="Compare Dictionaries",
            category=ANALYSIS,
            description="Tells how alike two dictionaries of one model are, which atoms of them draw the same, and which atoms "
            "of one are copies of each other.",
            search_aliases=["sparse atoms", "similarity", "cosine", "duplicates", "diff"],
            inputs=[
                dictionary_input("The first dictionary. Controls on it don't count."),
                dictionary_input("The second dictionary, of the same model. Controls on it don't count.", "other"),
                io.Int.Input(
                    "top",
                    default=20,
                    min=1,
                    max=10_000,
                    tooltip="How many pairs of atoms the text lists, the most alike first. Does not change a picture.",
                ),
            ],
            outputs=[io.Image.Output(display_name="chart"), io.String.Output(display_name="text")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, other: SparseAdapter, top: int) -> io.NodeOutput:
        first, second = dictionary.dictionary, other.dictionary
        compared = comparison.compare(first, second)
        text = comparison.comparison_text(compared, first, second, top)
        chart = comparison.comparison_chart(compared)
        return io.NodeOutput(as_images([chart]), text, ui=ui.PreviewText(text))


class LabelAtoms(io.ComfyNode):
    """Names for atoms."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SparseAtoms_Label",
            display_name="Label Atoms",
            category=ANALYSIS,
            description="Gives atoms names of your own, such as red roof, and notes of what you saw. Names are addresses too: "
            'label:"red roof". Both are kept in the file when you save the dictionary.',
            search_aliases=["sparse atoms", "name", "rename", "notes"],
            inputs=[
                dictionary_input("The dictionary whose atoms get names; the picture stays the same."),
                io.String.Input(
                    "lines",
                    multiline=True,
                    default="# one line each: which atoms = their name\ntop:1 = the strongest\n",
                    tooltip="Each line names some atoms: L3.v[7] = red roof. Nothing after = takes a name away. The picture "
                    "changes only where another node picks atoms by their name.",
                ),
                io.String.Input(
                    "notes",
                    multiline=True,
                    default="# one line each: which atoms = what you noticed\n",
                    tooltip="Each line keeps a remark with some atoms: L3.v[7] = also darkens the door. Nothing after = takes it "
                    "away. Atom Mixer and the report show notes; no picture changes.",
                    optional=True,
                ),
            ],
            outputs=[dictionary_output()],
        )

    @classmethod
    def execute(cls, dictionary: SparseAdapter, lines: str, notes: str = "") -> io.NodeOutput:
        learnt = dictionary.dictionary
        named = labels.with_labels(learnt, labels.parse_texts(lines, learnt, "label"))
        noted = labels.with_notes(named, labels.parse_texts(notes, named, "note"))
        return io.NodeOutput(replace(dictionary, dictionary=noted))


ANALYSIS_NODES = [
    RecordCoefficients,
    AtomHeatmaps,
    AtomImportance,
    AtomWords,
    AtomPictures,
    AtomEffect,
    AtomGallery,
    CompareDictionaries,
    LabelAtoms,
]
