"""Builds every shipped workflow: ``python -m workflows.build 127.0.0.1:8188`` with a ComfyUI running that has this pack.

With ``--pictures`` each is run too, and what it draws becomes the picture on its card.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from .graph import Node, Slot, Workflow, dump, to_prompt

FOLDER = Path(__file__).parent
SIDE = 128
"""Pixels of a side of the demo model's pictures."""


# ------------------------------------------------------------------------------------------------------------ pieces


def sampled(w: Workflow, model: Slot, demo: Node, prompt: str, seed: int = 1, batch: int = 4, **options: Any) -> Node:
    """Prompt to decoded pictures, the stock way."""
    positive = w("CLIPTextEncode", clip=demo[1], text=prompt, title="Prompt")
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=batch)
    settings = {"seed": seed, "steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    sampler = w(
        "KSampler",
        model=model,
        positive=positive[0],
        negative=negative[0],
        latent_image=latent[0],
        **settings | options,
    )
    return w("VAEDecode", samples=sampler[0], vae=demo[2])


def saved(w: Workflow, images: Slot) -> Node:
    """The end of a workflow."""
    return w("SaveImage", images=images, filename_prefix=f"sparse_atoms/{w.name}")


def column_mask(w: Workflow, x: int, width: int) -> Node:
    """White from ``x`` on, ``width`` pixels wide, over the whole height."""
    black = w("SolidMask", value=0.0, width=SIDE, height=SIDE)
    white = w("SolidMask", value=1.0, width=width, height=SIDE)
    return w(
        "MaskComposite", destination=black[0], source=white[0], x=x, y=0, operation="add", title=f"Mask {x}-{x + width}"
    )


def stacked(w: Workflow, images: list[Slot]) -> Slot:
    """Several batches in one."""
    whole = images[0]
    for one in images[1:]:
        whole = w("ImageBatch", image1=whole, image2=one)[0]
    return whole


# --------------------------------------------------------------------------------------------------------- workflows

WORKFLOWS: dict[str, tuple[str, Callable[[Workflow], Node]]] = {}
"""Name to note and builder, in learning order."""


def workflow(name: str, note: str) -> Callable[[Callable[[Workflow], Node]], Callable[[Workflow], Node]]:
    """Registers a builder; it returns the node whose pictures stand for the workflow."""

    def register(build: Callable[[Workflow], Node]) -> Callable[[Workflow], Node]:
        WORKFLOWS[name] = (note, build)
        return build

    return register


@workflow(
    "01 First picture",
    "A dictionary taught the demo model a robot; press Run to see four. Turn **strength** down to 0 to get the plain model "
    "back. Then change the place, the scene or the size in the prompt.",
)
def first_picture(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=robot[0], strength=1.0)
    return saved(w, sampled(w, model[0], demo, "a big robot on the left in the snow")[0])


@workflow(
    "02 Train your own",
    "Six pictures of a penguin become a dictionary in a minute or two, and it is saved where **Load** finds it. Cancel at any "
    "time: what was learnt so far is kept and used. Replace Demo Pictures by Load Image Dataset to teach your own.",
)
def train_your_own(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    lesson = w("SparseAtoms_DemoPictures", creature="penguin")
    latents = w("VAEEncode", pixels=lesson[0], vae=demo[2])
    captions = w("CLIPTextEncode", text=lesson[1], clip=demo[1], title="Captions")
    learnt = w("SparseAtoms_Train", model=demo[0], latents=latents[0], captions=captions[0], name="penguin")
    kept = w("SparseAtoms_Save", dictionary=learnt[0], filename_prefix="penguin")
    model = w("SparseAtoms_Apply", model=demo[0], dictionary=kept[0])
    return saved(w, sampled(w, model[0], demo, "a big penguin on the right in the desert")[0])


@workflow(
    "03 Only here",
    "The mask lets the dictionary act on the left half alone, in one pass and without touching the rest. Move or soften the "
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


# ---------------------------------------------------------------------------------------------------------- building


def build(schemas: dict[str, Any]) -> dict[str, tuple[Workflow, Node]]:
    """Every workflow with the node whose pictures stand for it."""
    built = {}
    for name, (note, builder) in WORKFLOWS.items():
        w = Workflow(name, note, schemas)
        built[name] = (w, builder(w))
    return built


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="host:port of a running ComfyUI with this pack")
    parser.add_argument("--pictures", action="store_true", help="run each workflow and keep what it draws")
    options = parser.parse_args()
    schemas = json.loads(_get(options.address, "/object_info"))
    for name, (w, last) in build(schemas).items():
        (FOLDER / f"{name}.json").write_bytes(dump(w))
        if options.pictures:
            sheet(_run(options.address, to_prompt(w.to_editor(), schemas), str(last.number))).save(
                FOLDER / f"{name}.jpg", quality=90
            )
        print(name)


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Pictures side by side, twice their size."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i * width, 0))
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
