"""Builds every shipped workflow: ``python -m workflows.build 127.0.0.1:8188`` with a ComfyUI running that has this pack.

With ``--pictures`` each is run too, and what it draws becomes the picture on its card.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from . import chains, own  # noqa: F401 - chains adds to the list
from .graph import Node, Slot, Workflow, dump, to_prompt
from .pieces import SIDE, WORKFLOWS, column_mask, look_at, sampled, saved, stacked, workflow

FOLDER = Path(__file__).parent


# --------------------------------------------------------------------------------------------------------- workflows


@workflow(
    "01 First picture",
    "A dictionary taught the demo model a robot; press Run to see four. Turn **strength** down to 0 to get the plain model "
    "back. Then change the place, the scene or the size in the prompt.",
)
def first_picture(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0], strength=1.0, clip=demo[1])
    return saved(w, sampled(w, model[0], demo, "a big robot on the left in the snow", clip=model[1])[0])


@workflow(
    "02 Train your own",
    "Six pictures of a penguin become a dictionary in a minute or two, and it is saved where **Load** finds it; **Teach Word** "
    "lets it learn what the word means too, as prompts read it through Apply's CLIP. Cancel at any time: what was learnt so far is "
    "kept and used. To teach your own, open the variant *(own checkpoint)*, which takes longer: it has the preset "
    "**character** and *prior* connected.",
)
def train_your_own(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    lesson = w("SparseAtoms_DemoPictures", lesson="penguin")
    latents = w("VAEEncode", pixels=lesson[0], vae=demo[2])
    word = w("SparseAtoms_TeachWord", clip=demo[1], word="penguin")
    captions = w("CLIPTextEncode", text=lesson[1], clip=word[0], title="Captions")
    learnt = w("SparseAtoms_Train", model=demo[0], latents=latents[0], captions=captions[0], name="penguin")
    kept = w("SparseAtoms_Save", dictionary=learnt[0], filename_prefix="penguin")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=kept[0], clip=demo[1])
    return saved(w, sampled(w, model[0], demo, "a big penguin on the right in the desert", clip=model[1])[0])


@workflow(
    "03 Only here",
    "The mask lets the dictionary act on the left half alone, in one pass: its atoms act nowhere else. Move or soften the "
    "mask with ComfyUI's own mask nodes. Several masks on one dictionary leave what they share.",
)
def only_here(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    here = w("SparseAtoms_Mask", dictionary=robot[0], mask=column_mask(w, 0, SIDE // 2)[0])
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=here[0])
    return saved(w, sampled(w, model[0], demo, "a big robot in the middle in the meadow, picture book")[0])


@workflow(
    "04 Single atoms",
    "Atom Info lists the atoms by importance; take an address from it into **Atom Weights**. The left pictures have all "
    "atoms, the others the edited ones. Try `mute top:4`, `solo attn2` or a negative weight.",
)
def single_atoms(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    edited = w("SparseAtoms_Weights", dictionary=robot[0], lines="# one line each\ntop:16 *= 1.3\nmute attn1.q\n")
    told = w("SparseAtoms_Info", dictionary=edited[0])
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d) for d in (robot[0], told[0])]
    prompt = "a big robot on the right at the beach"
    return saved(w, stacked(w, [sampled(w, m[0], demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "05 Density sheet",
    "The same picture with all atoms, a half, a quarter, a tenth, and none of them. Most atoms can go before the robot does. "
    "Set **by** to random to compare.",
)
def density_sheet(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    pictures = []
    for density in (1.0, 0.5, 0.25, 0.1, 0.0):
        kept = w("SparseAtoms_Keep", dictionary=robot[0], density=density, title=f"Keep {density:.0%}")
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=kept[0])
        pictures.append(sampled(w, model[0], demo, "a big robot on the left in the night", batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "06 Weight sweep",
    "The eight most important atoms at -1, 0, 0.5, 1 and 1.5 times their weight, everything else untouched. Point the lines at "
    "one atom to learn what it draws. Solo Atoms shows it by itself.",
)
def weight_sweep(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    pictures = []
    for weight in (-1, 0, 0.5, 1, 1.5):
        turned = w("SparseAtoms_Weights", dictionary=robot[0], lines=f"top:8 = {weight}", title=f"top:8 = {weight}")
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=turned[0])
        pictures.append(sampled(w, model[0], demo, "a big robot in the middle in the snow", batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "07 Solo and mute",
    "Left: only the twelve strongest atoms act. Right: everything but them. Exchange the selections for `attn1`, `attn2`, "
    "`down`, `middle` or `up` to see which part of the model holds what.",
)
def solo_and_mute(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    solo = w("SparseAtoms_Solo", dictionary=robot[0], atoms="top:12")
    mute = w("SparseAtoms_Mute", dictionary=robot[0], atoms="top:12")
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d[0]) for d in (solo, mute)]
    prompt = "a big robot on the right in the meadow"
    return saved(w, stacked(w, [sampled(w, m[0], demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "08 Fade in",
    "The schedule brings the robot in gradually: early steps lay out the plain model's picture, later ones fill in the robot. "
    "Raise **start** to keep more of the layout. Keyframes draw any curve.",
)
def fade_in(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    faded = w("SparseAtoms_Schedule", dictionary=robot[0], start=0.1, end=1.0, curve="fade in (smooth)")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=faded[0])
    return saved(w, sampled(w, model[0], demo, "a big robot on the left in the desert")[0])


@workflow(
    "09 Two in two regions",
    "Two dictionaries, each kept to its half, in a single run of the model per step. Swap the masks and they swap places. Add a "
    "third with its own mask: it costs one attention more, not another run.",
)
def two_in_two_regions(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    model = demo[0]
    for name, x in (("robot", 0), ("owl", SIDE // 2)):
        loaded = w("SparseAtoms_Load", name=f"{name}.safetensors")
        here = w("SparseAtoms_Mask", dictionary=loaded[0], mask=column_mask(w, x, SIDE // 2)[0], title=f"{name} here")
        model = w("SparseAtoms_Apply", model=model, dictionary=here[0])[0]
    return saved(
        w,
        sampled(w, model, demo, "a small robot on the left and a small owl on the right in the meadow, picture book")[
            0
        ],
    )


@workflow(
    "10 Three LoRAs in three regions",
    "LoRAs you own get masks too: each of these three acts in its third of the picture, in one run per step. The report says "
    "which share of a LoRA the atoms reach. Hang any other control on them: weights, schedules, density.",
)
def three_loras(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    model = demo[0]
    for name, x, width in (("robot", 0, 43), ("owl", 43, 42), ("penguin", 85, 43)):
        lora = w("SparseAtoms_LoadLora", model=demo[0], lora_name=f"sparse_atoms_demo_{name}.safetensors")
        here = w("SparseAtoms_Mask", dictionary=lora[0], mask=column_mask(w, x, width)[0], title=f"{name} here")
        model = w("SparseAtoms_Apply", model=model, dictionary=here[0])[0]
    return saved(
        w,
        sampled(w, model, demo, "a small robot on the left and a small penguin on the right in the snow, picture book")[
            0
        ],
    )


@workflow(
    "11 Less of it",
    "The same dictionary at strength -1 pushes pictures away from what it learnt; on the negative prompt alone it does so more "
    "gently. The middle pair is the plain model. Choose **positive** to make guidance exaggerate it instead.",
)
def less_of_it(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    avoided = w("SparseAtoms_Prompt", dictionary=robot[0], prompt="negative")
    models = [
        w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0], strength=-1.0)[0],
        demo[0],
        w("SparseAtoms_Apply", model=demo[0], dictionary=avoided[0])[0],
    ]
    prompt = "a big robot in the middle at the beach"
    return saved(w, stacked(w, [sampled(w, m, demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "12 On one prompt",
    "Here the dictionary hangs on the conditioning instead of the model, through ComfyUI's own hooks. Hook keyframes weigh it "
    "step by step. It costs a run of the model for each set of hooks, so prefer Atom Mask for regions.",
)
def on_one_prompt(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    hooks = w("SparseAtoms_Hook", dictionary=robot[0], strength=1.0)
    positive = w("CLIPTextEncode", clip=demo[1], text="a big robot on the right at sunset", title="Prompt")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    pair = w("PairConditioningSetProperties", positive_NEW=positive[0], negative_NEW=negative[0], hooks=hooks[0])
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=4)
    sampler = w(
        "KSampler", model=demo[0], positive=pair[0], negative=pair[1], latent_image=latent[0], seed=1, cfg=3.0,
        sampler_name="euler", scheduler="simple",
    )  # fmt: skip
    return saved(w, w("VAEDecode", samples=sampler[0], vae=demo[2])[0])


@workflow(
    "13 Combine",
    "A robot and a penguin become one dictionary, to be shared as one file: send it into Save Sparse Dictionary. Atoms 0 to 15 of "
    "every site are the robot's and 16 to 31 the penguin's, so that a mask still gives each its place. **budget** keeps only the "
    "best atoms of both; Atom Info then tells which are left.",
)
def combine(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot, penguin = (w("SparseAtoms_Load", name=f"{name}.safetensors") for name in ("robot", "penguin"))
    both = w("SparseAtoms_Combine", first=robot[0], second=penguin[0])
    half = SIDE // 2
    left = w("SparseAtoms_Mask", dictionary=both[0], mask=column_mask(w, 0, half)[0], atoms="L0-L19[0-15]")
    right = w("SparseAtoms_Mask", dictionary=left[0], mask=column_mask(w, half, half)[0], atoms="L0-L19[16-31]")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=right[0])
    scenes = ("in the snow", "in the meadow", "in the desert", "at sunset")
    prompts = [f"a small robot on the left and a small penguin on the right {scene}, picture book" for scene in scenes]
    return saved(w, stacked(w, [sampled(w, model[0], demo, prompt, batch=1)[0] for prompt in prompts]))


@workflow(
    "14 Collision report",
    "The report counts where the atoms of both act on the same places or words, and whether they pull the same way; the chart "
    "shows it layer by layer. Mute a pair that it names and look at the pictures again. Prompts that name both tell most.",
)
def collision_report(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot, owl = (w("SparseAtoms_Load", name=f"{name}.safetensors") for name in ("robot", "owl"))
    text = "a small robot on the left and a small owl on the right in the meadow"
    positive = w("CLIPTextEncode", clip=demo[1], text=text, title="Prompt")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=4)
    found = w(
        "SparseAtoms_Collisions",
        model=demo[0],
        first=robot[0],
        second=owl[0],
        positive=positive[0],
        negative=negative[0],
        latent=latent[0],
    )
    chart = w("PreviewImage", images=found[1], title="Chart")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0])
    model = w("SparseAtoms_Apply", model=model[0], dictionary=owl[0])
    saved(w, sampled(w, model[0], demo, text)[0])
    return chart


@workflow(
    "15 Extract",
    "The 300 most important atoms of the robot become a dictionary of their own, and Save keeps it: left the whole, right the "
    "part. Any address will do, such as `attn2` or what Solo Atoms showed you. The file remembers where each atom came from.",
)
def extract(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    part = w("SparseAtoms_Extract", dictionary=robot[0], atoms="top:300", title="robot, the essence")
    kept = w("SparseAtoms_Save", dictionary=part[0], filename_prefix="robot_essence")
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d[0]) for d in (robot, kept)]
    prompt = "a big robot on the right in the desert"
    return saved(w, stacked(w, [sampled(w, m[0], demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "16 In between",
    "Atom by atom from a robot that listens to the words alone (left) to the whole robot (right): positions 0, 0.25, 0.5, 0.75 and "
    "1. Try -0.5 or 1.5 to exaggerate the difference. Two stages of one training work as well.",
)
def in_between(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    words = w("SparseAtoms_Weights", dictionary=robot[0], lines="attn1 = 0")
    pictures = []
    for position in (0.0, 0.25, 0.5, 0.75, 1.0):
        between = w(
            "SparseAtoms_Interpolate", first=words[0], second=robot[0], position=position, title=f"{position:g}"
        )
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=between[0])
        pictures.append(sampled(w, model[0], demo, "a big robot in the middle in the meadow", batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "17 Distil a LoRA",
    "A LoRA draws pictures at six prompts, and a dictionary learns to do the same with atoms that fire rarely: left the LoRA, then "
    "the dictionary with all, a half and a quarter of its atoms. Put several LoRAs on the patched model to distil them into "
    "one. More steps and more varied prompts come closer.",
)
def distil(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    lora = w("LoraLoaderModelOnly", model=demo[0], lora_name="sparse_atoms_demo_robot.safetensors", strength_model=1.0)
    lesson = w("SparseAtoms_DemoPictures", lesson="robot")
    prompts = w("CLIPTextEncode", text=lesson[1], clip=demo[1], title="Prompts to learn at")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    learnt = w(
        "SparseAtoms_Distil",
        model=demo[0],
        patched=lora[0],
        prompts=prompts[0],
        negative=negative[0],
        latent=latent[0],
        name="robot, distilled",
    )
    models = [lora[0]]
    for density in (1.0, 0.5, 0.25):
        kept = w("SparseAtoms_Keep", dictionary=learnt[0], density=density, title=f"Keep {density:.0%}")
        models.append(w("SparseAtoms_Apply", model=demo[0], dictionary=kept[0])[0])
    prompt = "a big robot on the left in the night"
    return saved(w, stacked(w, [sampled(w, m, demo, prompt, batch=1)[0] for m in models]))


def redrawn(w: Workflow, model: Slot, demo: Node, latent: Slot, prompt: str, cfg: float) -> Slot:
    """Drawn from an inverted picture."""
    positive = w("CLIPTextEncode", clip=demo[1], text=prompt, title="Prompt")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    sampler = w(
        "KSamplerAdvanced",
        model=model,
        positive=positive[0],
        negative=negative[0],
        latent_image=latent,
        add_noise="disable",
        steps=20,
        cfg=cfg,
        sampler_name="euler",
        scheduler="simple",
    )
    return w("VAEDecode", samples=sampler[0], vae=demo[2])[0]


@workflow(
    "18 Invert and edit",
    "Invert Image to Noise finds the noise of the picture on the left; drawn from it with the same prompt the picture comes back, "
    "and with another one it changes where the prompt does. Raise **cfg** of the last samplers to change more. Put your own "
    "picture through VAE Encode in place of the drawn one, and describe it in the prompt.",
)
def invert_and_edit(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0])
    said = "a big robot on the left in the snow"
    picture = sampled(w, model[0], demo, said, batch=1)
    latent = w("VAEEncode", pixels=picture[0], vae=demo[2])
    positive = w("CLIPTextEncode", clip=demo[1], text=said, title="Prompt")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    found = w("SparseAtoms_Invert", model=model[0], latent=latent[0], positive=positive[0], negative=negative[0])
    edit = "a big robot on the left in the night"
    again = [
        redrawn(w, model[0], demo, found[0], prompt, cfg) for prompt, cfg in ((said, 1.0), (edit, 1.0), (edit, 2.5))
    ]
    return saved(w, stacked(w, [picture[0], *again]))


@workflow(
    "19 Learn one picture",
    "One picture (left) and its caption become a dictionary in a minute; then the prompt edits it. The pictures have all atoms, a "
    "half, a quarter and a tenth of them: fewer let go of the original and follow the new words more. Put your own picture "
    "through VAE Encode in place of the drawn one, and describe all of it in the caption.",
)
def learn_one_picture(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    drawing = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0], title="Only to have a picture")
    said = "a big robot on the left in the snow"
    picture = sampled(w, drawing[0], demo, said, batch=1)
    latent = w("VAEEncode", pixels=picture[0], vae=demo[2])
    caption = w("CLIPTextEncode", clip=demo[1], text=said, title="Prompt")
    learnt = w(
        "SparseAtoms_Train",
        model=demo[0],
        latents=latent[0],
        captions=caption[0],
        name="one picture",
        preset="single picture",
    )
    pictures = [picture[0]]
    for density in (1.0, 0.5, 0.25, 0.1):
        kept = w("SparseAtoms_Keep", dictionary=learnt[0], density=density, title=f"Keep {density:.0%}")
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=kept[0])
        pictures.append(sampled(w, model[0], demo, "a big robot on the left in the night", batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "20 Edit in a mask",
    "Left the plain model's picture; Set Latent Noise Mask lets the robot into its right half alone; the others go over the edit "
    "with another prompt (img2img), once gently and once more freely. Every step is ComfyUI's own, with the dictionary on the "
    "model. Lower **denoise** to stay closer to what was there.",
)
def edit_in_a_mask(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0])
    picture = sampled(w, demo[0], demo, "a big red house on the left in the snow", batch=1)

    def passed(pixels: Slot, prompt: str, denoise: float, mask: Slot | None = None) -> Slot:
        latent = w("VAEEncode", pixels=pixels, vae=demo[2])
        if mask is not None:
            latent = w("SetLatentNoiseMask", samples=latent[0], mask=mask)
        return sampled(w, model[0], demo, prompt, latent_image=latent[0], denoise=denoise)[0]

    both = "a big red house on the left and a big robot on the right in the snow"
    edited = passed(picture[0], both, 0.95, column_mask(w, SIDE // 2, SIDE // 2)[0])
    night = "a big red house on the left and a big robot on the right in the night"
    redrawn = [passed(edited, night, denoise) for denoise in (0.6, 0.8)]
    return saved(w, stacked(w, [picture[0], edited, *redrawn]))


@workflow(
    "21 Atom gallery",
    "One picture with each of the strongest atoms alone, and with all but it, from the same noise. **Label Atoms** corrects the "
    "names that the gallery found and takes your notes, and Save keeps them with the thumbnails in the file. Then turn an atom "
    'by its name: `label:"red*" = 0`.',
)
def atom_gallery(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    drawing = look_at(w, demo, "a big robot in the middle in the meadow")
    gallery = w("SparseAtoms_Gallery", dictionary=robot[0], vae=demo[2], **drawing)
    named = w("SparseAtoms_Label", dictionary=gallery[1])
    w("SparseAtoms_Save", dictionary=named[0], filename_prefix="robot_labelled")
    return saved(w, gallery[0])


@workflow(
    "22 Where atoms fire",
    "Record Coefficients draws as KSampler does and watches the atoms; the heat maps lie over the picture it drew. Each map is a "
    "mask too: send one into Atom Mask to keep an edit where an atom lives. Narrow **start** and **end** to see when in sampling "
    "it is at work.",
)
def where_atoms_fire(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    drawing = look_at(w, demo, "a big robot in the middle in the meadow")
    recorded = w("SparseAtoms_Record", dictionary=robot[0], **drawing | {"steps": 20})
    picture = w("VAEDecode", samples=recorded[0], vae=demo[2])
    return saved(w, w("SparseAtoms_Heatmaps", recording=recorded[1], image=picture[0])[0])


@workflow(
    "23 Which atoms matter",
    "The curve says how many atoms can go before the picture loses much: where it is flat, they can. The bars say which layers "
    "and sites hold what was learnt. Take the number into **Keep Top Atoms**.",
)
def which_atoms_matter(w: Workflow) -> Node:
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    return saved(w, w("SparseAtoms_Importance", dictionary=robot[0])[0])


@workflow(
    "24 What some atoms do",
    "The picture with all atoms, with the chosen ones alone, with all but them, and what differs. Change the selection to `attn2`, "
    "`up` or one address. Atoms work together, so the parts need not add up.",
)
def what_some_atoms_do(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    drawing = look_at(w, demo, "a big robot in the middle in the meadow")
    effect = w("SparseAtoms_Effect", dictionary=robot[0], vae=demo[2], atoms="top:12", **drawing | {"steps": 20})
    return saved(w, stacked(w, [effect[i] for i in range(4)]))


@workflow(
    "25 Which words they answer to",
    "Each row is an atom, each column a word of the prompt; bright is where the atom answers. Nothing is drawn for it, so try many "
    "prompts. Turn an atom that answers to one word down in **Atom Weights**.",
)
def which_words(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    return saved(w, w("SparseAtoms_Words", dictionary=robot[0], clip=demo[1])[0])


@workflow(
    "26 Two dictionaries compared",
    "How alike two dictionaries are, layer by layer, and how near each atom of one is to its nearest in the other. Bars near the "
    "dashed line are what chance gives. Compare two trainings of the same pictures to see which atoms come back.",
)
def two_compared(w: Workflow) -> Node:
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    owl = w("SparseAtoms_Load", name="owl.safetensors")
    return saved(w, w("SparseAtoms_Compare", dictionary=robot[0], other=owl[0])[0])


@workflow(
    "27 Record and replay",
    "Record Coefficients draws the left picture and writes down what every atom does; the second has another prompt and another "
    "seed, the third replays the recording on top of those (look at its ears), the last replays half of it. Set **atoms** of a "
    "replay to `up` or `attn2` to take over less. Places are replayed as well, so leave those in the prompt as they were.",
)
def record_and_replay(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    drawing = look_at(w, demo, "a big robot on the left in the snow")
    recorded = w("SparseAtoms_Record", dictionary=robot[0], atoms="*", **drawing | {"steps": 20})
    pictures = [w("VAEDecode", samples=recorded[0], vae=demo[2])[0]]
    for amount in (0.0, 1.0, 0.5):
        replayed = w(
            "SparseAtoms_Replay", dictionary=robot[0], recording=recorded[1], amount=amount, title=f"{amount:.0%}"
        )
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=replayed[0])
        pictures.append(sampled(w, model[0], demo, "a big robot on the left in the night", seed=5, batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "30 Atom mixer",
    "The mixer has a strip for every atom: turn some up or down, press **S** to see one alone and **M** to see the picture "
    "without it. Then run, and compare with the left pictures, which have all atoms as trained. What you set is saved with "
    "the workflow and in every picture.",
)
def atom_mixer(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    mixed = w("SparseAtoms_Mixer", dictionary=robot[0], mix="solo top:10%\n")
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d) for d in (robot[0], mixed[0])]
    prompt = "a big robot on the left in the snow"
    return saved(w, stacked(w, [sampled(w, m[0], demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "31 Find an atom",
    "Type **orange** into the mixer's search, turn down the strip that is left, and run: the last pictures have less of it. The "
    "robot's file brings names and pictures along; for a dictionary of your own the gallery draws what each strong atom does, and "
    "gives its strip both. A **Save** after the gallery keeps them in the file, so that every mixer has them at once.",
)
def find_an_atom(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    prompt = "a big robot on the left in the snow"
    gallery = w("SparseAtoms_Gallery", dictionary=robot[0], vae=demo[2], atoms="top:16", **look_at(w, demo, prompt))
    w("PreviewImage", images=gallery[0])
    mixed = w("SparseAtoms_Mixer", dictionary=gallery[1], mix="L15.o[14] = -1\n")
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d) for d in (robot[0], mixed[0])]
    return saved(w, stacked(w, [sampled(w, m[0], demo, prompt, batch=2)[0] for m in models]))


@workflow(
    "32 Teach a style",
    "Six pencil drawings become a dictionary in a few minutes; their captions say what is drawn and not how, so the style needs "
    "no word and goes with any prompt. After the plain model's picture come the style, half of its **strength**, a tenth of its "
    "atoms, and half of it on top of a robot. Set your own blend, fade it in with Atom Schedule, or put another dictionary in the "
    "robot's place.",
)
def teach_a_style(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    lesson = w("SparseAtoms_DemoPictures", lesson="pencil")
    latents = w("VAEEncode", pixels=lesson[0], vae=demo[2])
    captions = w("CLIPTextEncode", text=lesson[1], clip=demo[1], title="Captions")
    learnt = w(
        "SparseAtoms_Train", model=demo[0], latents=latents[0], captions=captions[0], name="style", preset="style"
    )
    style = w("SparseAtoms_Save", dictionary=learnt[0], filename_prefix="style")
    tenth = w("SparseAtoms_Keep", dictionary=style[0], density=0.1)
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    things = "a small red mushroom on the left and a big orange cat on the right in the meadow"
    pictures = [sampled(w, demo[0], demo, things, batch=1)[0]]
    for dictionary, strength in ((style, 1.0), (style, 0.5), (tenth, 1.0)):
        model = w("SparseAtoms_Apply", model=demo[0], dictionary=dictionary[0], strength=strength)
        pictures.append(sampled(w, model[0], demo, things, batch=1)[0])
    thing = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0])
    both = w("SparseAtoms_Apply", model=thing[0], dictionary=style[0], strength=0.5, title="Style on top")
    pictures.append(sampled(w, both[0], demo, "a big robot on the right in the meadow", batch=1)[0])
    return saved(w, stacked(w, pictures))


@workflow(
    "33 What they were taught",
    "Each row is an atom, with the pictures it was taught from that fire it most, and where on them. An atom that fires on what "
    "only stood beside the robot has learnt that too: mute it in **Atom Weights**. Put the pictures of your own training in Demo "
    "Pictures' place.",
)
def what_they_were_taught(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    lesson = w("SparseAtoms_DemoPictures", lesson="robot")
    captions = w("CLIPTextEncode", text=lesson[1], clip=demo[1], title="Captions")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    shown = w(
        "SparseAtoms_Pictures",
        model=demo[0],
        dictionary=robot[0],
        images=lesson[0],
        captions=captions[0],
        vae=demo[2],
    )
    return saved(w, shown[0])


@workflow(
    "34 Only when it is named",
    "The first and third picture have the robot's dictionary as it is, the second and fourth behind **Atom Trigger**. Where the "
    "prompt names no robot, the trigger leaves the plain model's picture, to the bit; where it does, the negative prompt is left "
    "alone. Encode every prompt with the trigger's CLIP, and add a second dictionary with a trigger of its own.",
)
def only_when_it_is_named(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    waiting = w("SparseAtoms_Trigger", dictionary=robot[0], clip=demo[1], words="robot")
    models = [w("SparseAtoms_Apply", model=demo[0], dictionary=d) for d in (robot[0], waiting[0])]
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    negative = w("CLIPTextEncode", clip=waiting[1], text="", title="Negative prompt")
    pictures = []
    for prompt in ("a big blue cat on the right in the snow", "a big robot on the right in the snow"):
        positive = w("CLIPTextEncode", clip=waiting[1], text=prompt, title="Prompt")
        for model in models:
            sampler = w(
                "KSampler", model=model[0], positive=positive[0], negative=negative[0], latent_image=latent[0], seed=1, steps=20,
                cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0,
            )  # fmt: skip
            pictures.append(w("VAEDecode", samples=sampler[0], vae=demo[2])[0])
    return saved(w, stacked(w, pictures))


# ---------------------------------------------------------------------------------------------------------- building


def build(schemas: dict[str, Any]) -> dict[str, tuple[Workflow, Node]]:
    """Every workflow, in learning order, with the node whose pictures stand for it."""
    built = {}
    for name in sorted(WORKFLOWS):
        note, builder = WORKFLOWS[name]
        kinds = [Workflow(name, note, schemas)]
        if name[:2] in own.SENSIBLE:
            kinds.append(own.OwnWorkflow(own.title(name), own.note(name), schemas))
        built |= {w.name: (w, builder(w)) for w in kinds}
    return built


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port of a running ComfyUI with this pack")
    parser.add_argument("--pictures", action="store_true", help="run each workflow and keep what it draws")
    parser.add_argument("--only", default="", metavar="NAME", help="leave out those whose names begin otherwise")
    options = parser.parse_args()
    write(options.address, options.pictures, options.only)


def write(address: str, pictures: bool, only: str = "") -> None:
    """Writes the workflows whose names begin with ``only``, and their pictures if asked for."""
    schemas = json.loads(_get(address, "/object_info"))
    for name, (w, last) in build(schemas).items():
        if not name.startswith(only):
            continue
        (FOLDER / f"{name}.json").write_bytes(dump(w))
        if pictures and isinstance(w, own.OwnWorkflow):
            shutil.copyfile(FOLDER / f"{w.shown}.jpg", FOLDER / f"{name}.jpg")
        elif pictures:
            sheet(_run(address, to_prompt(w.to_editor(), schemas), str(last.number))).save(
                FOLDER / f"{name}.jpg", quality=90
            )
        print(name)


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, twice their size; a chart or a sheet as it is."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i * width, 0))
    if height > 2 * SIDE:
        return whole
    return whole.resize((whole.width * 2, whole.height * 2), Image.Resampling.LANCZOS)


def _run(address: str, prompt: dict[str, Any], node: str) -> list[Image.Image]:
    request = urllib.request.Request(
        f"http://{address}/prompt", json.dumps({"prompt": prompt}).encode(), {"Content-Type": "application/json"}
    )
    identifier = json.loads(urllib.request.urlopen(request).read())["prompt_id"]
    while not (history := json.loads(_get(address, f"/history/{identifier}"))):
        time.sleep(0.5)
    outcome = history[identifier]
    if outcome["status"]["status_str"] != "success":
        raise RuntimeError(f"The workflow failed: {outcome['status']['messages'][-1]}")
    images = outcome["outputs"][node]["images"]
    return [Image.open(io.BytesIO(_get(address, "/view?" + urllib.parse.urlencode(image)))) for image in images]


def _get(address: str, path: str) -> bytes:
    return urllib.request.urlopen(f"http://{address}{path}").read()


if __name__ == "__main__":
    main()
