"""Dictionaries in chains of ComfyUI's own nodes: nothing of a chain is lost, and what is off is off to the bit."""

from __future__ import annotations

from collections.abc import Callable

import comfy.ops
import prompts
import pytest
import torch
from client import Graph, Node
from comfy.cldm.cldm import ControlNet as ControlNetModel
from comfy.controlnet import ControlNet
from conftest import Server
from factories import random_dictionary
from world import TEXT_WIDTH, assert_close, sample, text, tiny_layers, tiny_model

from sparse_core.controls import SparseAdapter
from sparse_core.hosts.comfyui import apply_adapter


class Chain:
    """A graph with a picture to start from, a mask of its right half, and the robot."""

    def __init__(self) -> None:
        self.graph = Graph()
        add = self.graph.add
        self.demo = prompts.demo(self.graph)
        self.robot = add("SparseAtoms_Load", name="robot.safetensors")
        self.image = add("EmptyImage", width=128, height=128, batch_size=1, color=0x4080C0)
        black = add("SolidMask", value=0.0, width=128, height=128)
        white = add("SolidMask", value=1.0, width=64, height=128)
        corner = dict(x=64, y=0, operation="add")
        self.right = add("MaskComposite", destination=black[0], source=white[0], **corner)
        self.black = black

    def text(self, prompt: str) -> Node:
        return self.graph.add("CLIPTextEncode", text=prompt, clip=self.demo[1])

    def encoded(self) -> Node:
        return self.graph.add("VAEEncode", pixels=self.image[0], vae=self.demo[2])

    def sample(self, model: list, **settings: object) -> Node:
        said = self.text("a big robot on the right in the snow")
        return prompts.sample(self.graph, model, self.demo, **{"positive": said[0], **settings})


def img2img(c: Chain, model: list) -> Node:
    return c.sample(model, latent=c.encoded()[0], denoise=0.7)


def encoded_for_inpainting(c: Chain) -> Node:
    return c.graph.add("VAEEncodeForInpaint", pixels=c.image[0], vae=c.demo[2], mask=c.right[0], grow_mask_by=0)


def inpainting(c: Chain, model: list) -> Node:
    return c.sample(model, latent=encoded_for_inpainting(c)[0])


def differential_diffusion(c: Chain, model: list) -> Node:
    sides = dict(left=60, top=0, right=0, bottom=0)
    soft = c.graph.add("FeatherMask", mask=c.right[0], **sides)
    latent = c.graph.add("SetLatentNoiseMask", samples=c.encoded()[0], mask=soft[0])
    changed = c.graph.add("DifferentialDiffusion", model=model, strength=1.0)
    return c.sample(changed[0], latent=latent[0])


def loras_of_comfyui(c: Chain, model: list) -> Node:
    name = "sparse_atoms_demo_owl.safetensors"
    after = c.graph.add("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.7)
    return c.sample(after[0])


def combined_prompts(c: Chain, model: list) -> Node:
    both = c.graph.add(
        "ConditioningCombine", conditioning_1=c.text("a big robot")[0], conditioning_2=c.text("a house in the snow")[0]
    )
    return c.sample(model, positive=both[0])


def prompts_for_areas(c: Chain, model: list) -> Node:
    size = dict(width=64, height=128, y=0, strength=1.0)
    left = c.graph.add("ConditioningSetArea", conditioning=c.text("a house")[0], x=0, **size)
    right = c.graph.add("ConditioningSetArea", conditioning=c.text("a big robot")[0], x=64, **size)
    both = c.graph.add("ConditioningCombine", conditioning_1=left[0], conditioning_2=right[0])
    return c.sample(model, positive=both[0])


def prompts_with_masks(c: Chain, model: list) -> Node:
    options = dict(mask=c.right[0], strength=1.0, set_cond_area="default")
    right = c.graph.add("ConditioningSetMask", conditioning=c.text("a big robot")[0], **options)
    both = c.graph.add("ConditioningCombine", conditioning_1=c.text("a house in the snow")[0], conditioning_2=right[0])
    return c.sample(model, positive=both[0])


def composed_latents(c: Chain, model: list) -> Node:
    plain, other = c.sample(c.demo[0]), c.sample(model, seed=2)
    place = dict(x=64, y=0, feather=16)
    whole = c.graph.add("LatentComposite", samples_to=plain[0], samples_from=other[0], **place)
    return c.sample(model, latent=whole[0], denoise=0.5)


CHAINS = [
    img2img,
    inpainting,
    differential_diffusion,
    loras_of_comfyui,
    combined_prompts,
    prompts_for_areas,
    prompts_with_masks,
    composed_latents,
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain.__name__)
def test_a_chain_of_stock_nodes_works_with_atoms_and_is_untouched_without(
    server: Server, chain: Callable[[Chain, list], Node]
) -> None:
    c = Chain()

    def model(dictionary: list, strength: float) -> list:
        return c.graph.add("SparseAtoms_Apply", model=c.demo[0], dictionary=dictionary, strength=strength)[0]

    nowhere = c.graph.add("SparseAtoms_Mask", dictionary=c.robot[0], mask=c.black[0], atoms="*")
    models = [c.demo[0], model(c.robot[0], 0.0), model(nowhere[0], 1.0), model(c.robot[0], 1.0)]
    kept = [prompts.keep(c.graph, chain(c, one)) for one in models]
    result = server.client.run(c.graph)
    assert not result.error
    plain, off, masked, on = (server.client.latents(result, node) for node in kept)
    assert torch.equal(off, plain)
    assert torch.equal(masked, plain)
    assert float((on - plain).square().mean().sqrt()) > 0.05


def test_inpainting_keeps_the_rest_of_the_picture_and_draws_the_dictionary_in_its_mask(server: Server) -> None:
    c = Chain()
    model = c.graph.add("SparseAtoms_Apply", model=c.demo[0], dictionary=c.robot[0], strength=1.0)
    kept = [prompts.keep(c.graph, node) for node in (encoded_for_inpainting(c), inpainting(c, model[0]))]
    result = server.client.run(c.graph)
    assert not result.error
    before, after = (server.client.latents(result, node) for node in kept)
    assert_close(after[..., :7], before[..., :7], 1e-4)
    assert float((after - before)[..., 9:].abs().mean()) > 0.1


# ---------------------------------------------------------------------------------------------------------- ControlNet


def controlled() -> list:
    """CONDITIONING with a random ControlNet of the tiny model's layout."""
    torch.manual_seed(0)
    network = ControlNetModel(
        image_size=8,
        in_channels=4,
        hint_channels=3,
        model_channels=32,
        channel_mult=[1, 2],
        num_res_blocks=[1, 1],
        transformer_depth=[1, 1],
        transformer_depth_middle=1,
        context_dim=TEXT_WIDTH,
        num_heads=2,
        use_spatial_transformer=True,
        dtype=torch.float32,
        operations=comfy.ops.manual_cast,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape))
    cpu = torch.device("cpu")
    control = ControlNet(network.eval(), load_device=cpu, manual_cast_dtype=None)
    hint = torch.rand(1, 3, 128, 128)
    return text(1, control=control.set_cond_hint(hint, 1.0), control_apply_to_uncond=True)


def test_a_controlnet_acts_beside_atoms_and_alone_where_they_are_off() -> None:
    dictionary = SparseAdapter(random_dictionary(tiny_layers()))
    off, on = (apply_adapter(tiny_model(), dictionary.at_strength(strength)) for strength in (0.0, 1.0))
    alone = sample(tiny_model(), positive=controlled())
    assert torch.equal(sample(off, positive=controlled()), alone)
    both, without = sample(on, positive=controlled()), sample(on)
    assert not torch.allclose(both, alone, atol=1e-2)
    assert not torch.allclose(both, without, atol=1e-2)
