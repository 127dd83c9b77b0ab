"""Workflows that put dictionaries into chains of ComfyUI's own nodes."""

from __future__ import annotations

from .graph import Node, Slot, Workflow
from .pieces import SIDE, column_mask, look_at, sampled, saved, stacked, workflow

HALF = SIDE // 2


def one_mask(w: Workflow, masks: Slot, number: int) -> Node:
    """One of several masks."""
    images = w("MaskToImage", mask=masks)
    return w("ImageToMask", image=w("ImageFromBatch", image=images[0], batch_index=number)[0], channel="red")


@workflow(
    "28 Only where an atom lives",
    "The robot is recorded (left), and the heat map of its strongest atom (second) becomes the mask of two edits: a house and a "
    "tree are drawn where that atom lives, and the face stays. Differential Diffusion lets grey change less than white. Choose "
    "another atom by **batch_index**; Atom Heatmaps says which is which.",
)
def where_an_atom_lives(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    prompt = "a big robot in the middle in the meadow"
    recorded = w("SparseAtoms_Record", dictionary=robot[0], **look_at(w, demo, prompt) | {"steps": 20})
    picture = w("VAEDecode", samples=recorded[0], vae=demo[2])
    heat = w("SparseAtoms_Heatmaps", recording=recorded[1], image=picture[0])
    mask = one_mask(w, heat[1], 0)
    latent = w("SetLatentNoiseMask", samples=recorded[0], mask=mask[0])
    soft = w("DifferentialDiffusion", model=demo[0])
    edits = [
        sampled(w, soft[0], demo, f"a big {thing} in the middle in the meadow", latent_image=latent[0], seed=3)[0]
        for thing in ("red house", "green tree")
    ]
    shown = w("MaskToImage", mask=mask[0])
    return saved(w, stacked(w, [picture[0], shown[0], *edits]))


@workflow(
    "29 A prompt for each half",
    "Two prompts, each with a mask of its own by Conditioning Set Mask, and the dictionary kept to the left half: the robot is "
    "drawn where its prompt holds. In the last two pictures ComfyUI's own loader has put a penguin's LoRA on the model too. Areas, "
    "composed latents and inpainting go together with a dictionary in the same way.",
)
def a_prompt_for_each_half(w: Workflow) -> Node:
    demo = w("SparseAtoms_DemoModel")
    robot = w("SparseAtoms_Load", name="robot.safetensors")
    here = w("SparseAtoms_Mask", dictionary=robot[0], mask=column_mask(w, 0, HALF)[0])
    negative = w("CLIPTextEncode", clip=demo[1], text="", title="Negative prompt")
    latent = w("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=2)
    left = w("CLIPTextEncode", clip=demo[1], text="a small robot on the left in the snow", title="Prompt, left")
    lora = w(
        "LoraLoaderModelOnly", model=demo[0], lora_name="sparse_atoms_demo_penguin.safetensors", strength_model=0.8
    )
    pictures = []
    for thing, base in (("red house", demo[0]), ("penguin", lora[0])):
        text = f"a small {thing} on the right in the snow"
        right = w("CLIPTextEncode", clip=demo[1], text=text, title="Prompt, right")
        halves = [
            w("ConditioningSetMask", conditioning=prompt[0], mask=column_mask(w, x, HALF)[0])[0]
            for prompt, x in ((left, 0), (right, HALF))
        ]
        both = w("ConditioningCombine", conditioning_1=halves[0], conditioning_2=halves[1])
        model = w("SparseAtoms_Apply", model=base, dictionary=here[0])
        drawn = w(
            "KSampler", model=model[0], positive=both[0], negative=negative[0], latent_image=latent[0], seed=1, cfg=3.0,
            sampler_name="euler", scheduler="simple",
        )  # fmt: skip
        pictures.append(w("VAEDecode", samples=drawn[0], vae=demo[2])[0])
    return saved(w, stacked(w, pictures))
