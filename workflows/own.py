"""Variants of the workflows that start from a checkpoint, pictures and dictionaries of one's own, from the same descriptions."""

from __future__ import annotations

import re
from typing import Any

from .graph import Node, Slot, Workflow
from .pieces import SIDE

SUFFIX = " (own checkpoint)"
LARGER = 512 // SIDE
"""How many times larger pictures are than the demo model's."""
GUIDANCE = {3.0: 7.0, 2.5: 4.0}
"""Of the demo model to what suits others."""
WORDS = {"robot": "zib", "penguin": "zib", "owl": "zob"}
"""Creatures of the demo to words that stand for one's own."""
NODES = {
    "SparseAtoms_DemoModel": ("CheckpointLoaderSimple", {"ckpt_name": "my checkpoint.safetensors"}),
    "SparseAtoms_DemoPictures": ("LoadImageTextDataSetFromFolder", {"folder": "my pictures"}),
}
"""Nodes of the demo to the stock nodes with the same outputs."""
PIXELS = {
    "EmptyLatentImage": ("width", "height"),
    "SolidMask": ("width", "height"),
    "MaskComposite": ("x", "y"),
    "FeatherMask": ("left", "top", "right", "bottom"),
    "ConditioningSetArea": ("x", "y", "width", "height"),
    "LatentComposite": ("x", "y", "feather"),
}
"""Inputs that count pixels."""
PRIOR = ("a person in a street", "an animal in a meadow")
"""Prompts that hold the model to what it draws without the new word."""
SENSIBLE = {
    "01", "02", "03", "04", "05", "08", "09", "10", "12", "17", "18", "19", "20", "21", "22", "27", "28", "29", "30",
    "31", "32", "33", "34",
}  # fmt: skip
"""Numbers of those whose point does not hang on what the demo model learnt."""


def title(name: str) -> str:
    """Sorts beside the workflow that it is a variant of."""
    return name + SUFFIX


def note(name: str) -> str:
    """What to put in, in three sentences."""
    return (
        f"{name} for a checkpoint of yours: choose it, and your own files wherever a name begins with *my*. Write the words that "
        "you taught where the prompts say zib. Pictures are 512 pixels wide and guidance is 7, as SD1.5 likes them; for SDXL set "
        "1024 (the card's picture is the demo model's)."
    )


class OwnWorkflow(Workflow):
    """A workflow under construction, with every node of the demo replaced."""

    @property
    def shown(self) -> str:
        """The workflow whose picture stands for it."""
        return self.name.removesuffix(SUFFIX)

    def __call__(self, kind: str, title: str = "", **inputs: Any) -> Node:
        """See `Workflow`."""
        if kind in NODES:
            kind, inputs = NODES[kind]
        if kind == "SparseAtoms_Train" and "preset" not in inputs:
            inputs |= self._thorough(inputs["captions"].node.inputs["clip"])
        inputs = {name: self._own(kind, name, value) for name, value in inputs.items()}
        return super().__call__(kind, _worded(title), **inputs)

    def _thorough(self, clip: Slot) -> dict[str, Any]:
        """What the documents recommend for a training that need not be over in a minute."""
        prompts = [self("CLIPTextEncode", clip=clip, text=text, title="Prior prompt")[0] for text in PRIOR]
        prior = self("ConditioningCombine", conditioning_1=prompts[0], conditioning_2=prompts[1])
        negative = self("CLIPTextEncode", clip=clip, text="", title="Negative prompt")
        return {"preset": "character", "prior": prior[0], "negative": negative[0]}

    def _own(self, kind: str, name: str, value: Any) -> Any:
        if name in PIXELS.get(kind, ()):
            return value * LARGER
        if name == "cfg":
            return GUIDANCE.get(value, value)
        if name == "mix" and "[" in value:
            return ""  # a single atom's address means another atom in another dictionary
        if kind in ("SparseAtoms_Load", "SparseAtoms_LoadLora", "LoraLoaderModelOnly") and isinstance(value, str):
            creature = re.search("|".join(WORDS), value)[0]
            return f"my {WORDS[creature]}.safetensors"
        return _worded(value) if isinstance(value, str) else value


def _worded(text: str) -> str:
    return re.sub("|".join(WORDS), lambda found: WORDS[found[0]], text)
