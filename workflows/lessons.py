"""Trains what the workflows load: a dictionary and a LoRA of every lesson of the demo model.

python -m workflows.lessons           needs peft; takes some minutes
python -m workflows.lessons styles    draws the lessons of the styles instead; needs the artwork
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from benchmarks.quality.concepts import TAUGHT_STYLES
from sparse_core.demo.lessons import STYLES, creatures, load_lesson, write_lesson
from sparse_core.demo.model import load_pipeline
from sparse_core.demo.shipped import DICTIONARIES, LORAS, lora_name
from sparse_core.demo.sprites import FluentArt
from sparse_core.demo.world import Scene, Thing, World
from sparse_core.files import save_dictionary, write_atomically
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.pictures import CaptionedPicture, encode_pictures
from sparse_core.training import Example, Progress, TrainingSettings, train
from sparse_core.training.loop import Trainer
from sparse_core.training.metadata import file_metadata

SETTINGS = TrainingSettings()
LORA_RANK, LORA_RATE = 8, 2e-3


class LoraLearner:
    """A LoRA on the attention projections, by peft. Implements `Learner`."""

    def __init__(self, host: DiffusersHost) -> None:
        config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
        host.unet.add_adapter(config)
        self.unet = host.unet

    def parameters(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {name: p.requires_grad_() for name, p in self.unet.named_parameters() if "lora_" in name}

    def buffers(self) -> dict[str, Tensor]:
        """See `Learner`."""
        return {}

    def learning_rate(self, name: str) -> float:
        """See `Learner`."""
        return LORA_RATE

    def at_work(self, prior: Tensor) -> AbstractContextManager[None]:
        """See `Learner`: peft's layers always act."""
        return nullcontext()

    def penalty(self) -> float:
        """See `Learner`."""
        return 0.0

    def maintain(self, error: Tensor) -> list[tuple[str, int]]:
        """See `Learner`."""
        return []


def lesson(host: DiffusersHost, creature: str) -> list[Example]:
    """The lesson's pictures as the model sees them."""
    pictures = [CaptionedPicture(creature, Image.fromarray(p), caption) for p, caption in load_lesson(creature)]
    return list(encode_pictures(host, pictures))


def teach_dictionary(creature: str) -> None:
    """Writes the dictionary of one lesson."""
    host = DiffusersHost(load_pipeline())
    with tqdm(total=SETTINGS.steps, desc=f"{creature}, dictionary") as bar:

        def on_step(progress: Progress) -> None:
            bar.update()

        captions = [caption for _, caption in load_lesson(creature)]
        metadata = file_metadata(f"{creature} for the demo model", creature, captions)
        dictionary = train(host, lesson(host, creature), SETTINGS, on_step, metadata)
    save_dictionary(dictionary, DICTIONARIES / f"{creature}.safetensors")


def teach_lora(creature: str) -> None:
    """Writes the LoRA of one lesson, with kohya's key names, which every loader knows."""
    host = DiffusersHost(load_pipeline())
    examples = lesson(host, creature)
    with host.trainable():
        learner = LoraLearner(host)
        trainer = Trainer(host, learner, examples, replace(SETTINGS, reseed_every=0))
        for _ in tqdm(range(SETTINGS.steps), desc=f"{creature}, LoRA"):
            trainer.advance()
    tensors = StableDiffusionPipeline.pack_weights(get_peft_model_state_dict(host.unet), "unet")
    tensors = convert_state_dict_to_kohya(tensors)
    LORAS.mkdir(parents=True, exist_ok=True)
    write_atomically(
        LORAS / lora_name(creature), save({key: t.detach().half().contiguous() for key, t in tensors.items()})
    )


def draw_style(style: str) -> None:
    """Writes the pictures of a style. Every scene occurs, and everything in them is something that the demo model knows: the
    style is what they have in common."""
    scenes = [
        Scene((Thing("dog", "middle", "big"),), "meadow", seed=1),
        Scene((Thing("house", "left", "big", "red"), Thing("tree", "right", "small", "green")), "beach", seed=2),
        Scene((Thing("cat", "right", "big", "orange"),), "snow", seed=3),
        Scene((Thing("boat", "left", "small", "blue"), Thing("elephant", "right", "big")), "sunset", seed=5),
        Scene((Thing("castle", "middle", "small"),), "night", seed=6),
        Scene((Thing("flower", "left", "big", "purple"),), "desert", seed=4),
    ]
    world = World(FluentArt())
    drawn = [world.render(scene) for scene in scenes]
    write_lesson(
        style, [(TAUGHT_STYLES[style](r.picture), r.caption.removesuffix(f", {scenes[0].style}")) for r in drawn]
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["styles"]:
        for style in STYLES:
            draw_style(style)
    else:
        for name in creatures():
            teach_dictionary(name)
            teach_lora(name)
