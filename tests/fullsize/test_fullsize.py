"""SD1.5 and SDXL at their real size, through the stock loaders of both hosts."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import torch
from checkpoints import write_checkpoint, write_configuration
from client import Graph, Node, Result
from conftest import recorded, server_module
from torch import Tensor

from benchmarks.models import TEXT_TOKENS, Kind, random_dictionary
from sparse_core.controls import Mask, SparseAdapter
from sparse_core.dictionary import SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.training import Example, TrainingSettings, train
from sparse_core.words import times

pytestmark = pytest.mark.timeout(3600)

SIDE = 128
"""Pixels along a side: 16 latent pixels, so that the UNet's lowest level has 2 x 2."""
WAIT = 1800
"""Seconds that one prompt may take."""


@dataclass(frozen=True)
class Case:
    """A model as a user has it on disk, and as ComfyUI keeps it in memory."""

    kind: Kind
    storage: torch.dtype
    flag: str

    def __str__(self) -> str:
        return f"{self.kind}-{str(self.storage).removeprefix('torch.')}"


CASES = (
    Case("sd15", torch.float16, "--fp16-unet"),
    Case("sd15", torch.bfloat16, "--bf16-unet"),
    Case("sd15", torch.float8_e4m3fn, "--fp8_e4m3fn-unet"),
    Case("sdxl", torch.float16, "--fp16-unet"),
)


@dataclass
class World:
    """A checkpoint, and a ComfyUI that has it."""

    case: Case
    checkpoint: Path
    configuration: Path
    server: Any

    def run(self, what: str, graph: Graph, **options: Any) -> Result:
        """Queues a prompt; it must end well unless it is cancelled."""
        with recorded(str(self.case), f"ComfyUI: {what}", self.process):
            result = self.server.client.run(graph, timeout=WAIT, **options)
        assert result.error in ("", "interrupted"), result.error
        return result

    @property
    def process(self) -> int:
        """The server's process id."""
        children = psutil.Process().children()
        return next(child.pid for child in children if str(self.server.base) in " ".join(child.cmdline()))

    def forget_models(self) -> None:
        """Asks the server to give its memory back, which it does before the next prompt at the latest."""
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        request = Request(
            f"http://{self.server.client.address}/free", body, {"Content-Type": "application/json"}, method="POST"
        )
        urlopen(request).close()

    def inputs(self, kind: str, **given: Any) -> dict[str, Any]:
        """A node's inputs: those given, the schema's defaults for the rest."""
        required = self.server.client.object_info()[kind]["input"]["required"]
        defaults = {}
        for name, (of_type, *options) in required.items():
            choices = options[0].get("options") if options and of_type == "COMBO" else of_type
            if options and "default" in options[0]:
                defaults[name] = options[0]["default"]
            elif isinstance(choices, list):
                defaults[name] = choices[0]
        return {**defaults, **given}

    def add(self, graph: Graph, kind: str, **given: Any) -> Node:
        """Adds a node with the schema's defaults."""
        return graph.add(kind, **self.inputs(kind, **given))

    def loaded(self, graph: Graph) -> Node:
        """The stock loader: outputs 0 MODEL, 1 CLIP, 2 VAE."""
        return graph.add("CheckpointLoaderSimple", ckpt_name=self.checkpoint.name)

    def training(self, graph: Graph, loader: Node, **given: Any) -> Node:
        """A short training on one plain picture, with its word."""
        picture = self.add(graph, "EmptyImage", width=SIDE, height=SIDE, color=0x3366CC)
        latents = graph.add("VAEEncode", pixels=picture[0], vae=loader[2])
        pupil = graph.add("SparseAtoms_TeachWord", clip=loader[1], word="robot")
        caption = graph.add("CLIPTextEncode", text="a robot", clip=pupil[0])
        small = {"steps": 2, "batch": 1, "atoms": 4, "threshold": 0.2}
        connected = {"model": loader[0], "latents": latents[0], "captions": caption[0]}
        return self.add(graph, "SparseAtoms_Train", **{**connected, **small, **given})

    def sampling(self, graph: Graph, model: list, loader: Node, clip: list | None = None) -> Node:
        """Two steps; returns the node that keeps the latents. ``clip`` reads the prompt in the loader's place."""
        positive = graph.add("CLIPTextEncode", text="a robot on a beach", clip=clip or loader[1])
        negative = graph.add("CLIPTextEncode", text="", clip=loader[1])
        empty = graph.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
        sampler = self.add(
            graph,
            "KSampler",
            model=model,
            positive=positive[0],
            negative=negative[0],
            latent_image=empty[0],
            steps=2,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            seed=1,
        )
        decoded = graph.add("VAEDecode", samples=sampler[0], vae=loader[2])
        graph.add("PreviewImage", images=decoded[0])
        return graph.add("SaveLatent", samples=sampler[0], filename_prefix="fullsize/test")


@pytest.fixture(scope="module", params=CASES, ids=str)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One server for each case; the checkpoint is removed afterwards."""
    case: Case = request.param
    folder = tmp_path_factory.mktemp(str(case))
    configuration = write_configuration(folder / "configuration", case.kind)
    for server in server_module().start_server(folder / "base", case.flag):
        place = server.base / "models" / "checkpoints"
        place.mkdir(exist_ok=True)
        with recorded(str(case), "write the checkpoint"):
            checkpoint = write_checkpoint(place / "model.safetensors", case.kind, case.storage)
        yield World(case, checkpoint, configuration, server)
    checkpoint.unlink()
    gc.collect()


@pytest.fixture(scope="module")
def trained(world: World) -> Path:
    """A dictionary trained and saved in ComfyUI."""
    graph = Graph()
    loader = world.loaded(graph)
    dictionary = world.training(graph, loader)
    graph.add("SparseAtoms_Save", dictionary=dictionary[0], filename_prefix="trained")
    result = world.run("load, train 2 steps, save", graph)
    assert not result.error
    (path,) = world.server.dictionaries.glob("trained_*.safetensors")
    return path


# -------------------------------------------------------------------------------------------------------- in ComfyUI


def test_training_learns_at_every_site(trained: Path) -> None:
    dictionary = load_dictionary(trained)
    assert len(dictionary.sites) == 4 * len(dictionary.layers)
    learnt = [bool(atoms.directions.any()) for atoms in dictionary.sites.values()]
    assert sum(learnt) > 0.98 * len(learnt)


def test_training_learns_the_word_in_every_text_encoder(world: World, trained: Path) -> None:
    widths = {"sd15": {768}, "sdxl": {768, 1280}}[world.case.kind]
    (shifts,) = load_dictionary(trained).words.values()
    assert shifts.keys() == widths
    assert all(len(shift) == 1 and shift.any() and shift.isfinite().all() for shift in shifts.values())


def test_a_word_is_read_as_it_was_taught(world: World, trained: Path) -> None:
    strong = replace(load_dictionary(trained), words=times(load_dictionary(trained).words, 20))
    save_dictionary(strong, world.server.place("strong.safetensors"))
    graph = Graph()
    loader = world.loaded(graph)
    dictionary = graph.add("SparseAtoms_Load", name="strong.safetensors")
    muted = graph.add("SparseAtoms_Weights", dictionary=dictionary[0], lines="mute attn1 | attn2")
    kept = [world.sampling(graph, loader[0], loader)]
    for chosen, strength in ((muted, 1.0), (dictionary, 0.0)):
        applied = world.add(
            graph, "SparseAtoms_Apply", model=loader[0], dictionary=chosen[0], strength=strength, clip=loader[1]
        )
        kept.append(world.sampling(graph, applied[0], loader, applied[1]))
    result = world.run("read a taught word, sample 2 steps, three ways", graph)
    plain, taught, off = (world.server.client.latents(result, node) for node in kept)
    assert torch.isfinite(taught).all() and not torch.equal(taught, plain)
    assert torch.equal(off, plain)


def test_cancelling_keeps_what_was_learnt(world: World) -> None:
    graph = Graph()
    dictionary = world.training(graph, world.loaded(graph), name="stopped", steps=1000)
    graph.add("SparseAtoms_Save", dictionary=dictionary[0], filename_prefix="unused")
    world.run("train, cancel at step 2", graph, cancel_at=2)
    (path,) = world.server.dictionaries.glob("stopped_cancelled_*.safetensors")
    assert load_dictionary(path).metadata["training"]["steps_done"] < 1000


def test_a_weight_and_a_mask_act(world: World, trained: Path) -> None:
    graph = Graph()
    loader = world.loaded(graph)
    dictionary = graph.add("SparseAtoms_Load", name=trained.name)
    weighted = graph.add("SparseAtoms_Weights", dictionary=dictionary[0], lines="attn2 = 0.5\nmute L0.q[0]")
    white = graph.add("SolidMask", value=1.0, width=SIDE // 2, height=SIDE)
    black = graph.add("SolidMask", value=0.0, width=SIDE, height=SIDE)
    half = graph.add("MaskComposite", destination=black[0], source=white[0], x=0, y=0, operation="add")
    masked = world.add(graph, "SparseAtoms_Mask", dictionary=weighted[0], mask=half[0])
    off = world.add(graph, "SparseAtoms_Apply", model=loader[0], dictionary=dictionary[0], strength=0.0)
    models = [
        loader[0],
        off[0],
        *(
            world.add(graph, "SparseAtoms_Apply", model=loader[0], dictionary=chosen[0], strength=5.0)[0]
            for chosen in (dictionary, masked)
        ),
    ]
    kept = [world.sampling(graph, model, loader) for model in models]
    result = world.run("sample 2 steps, four ways", graph)
    assert not result.error
    plain, at_zero, whole, confined = (world.server.client.latents(result, node) for node in kept)
    assert torch.isfinite(plain).all() and torch.isfinite(whole).all() and torch.isfinite(confined).all()
    assert torch.equal(at_zero, plain)
    assert not torch.equal(whole, plain)
    assert not torch.equal(confined, plain) and not torch.equal(confined, whole)


def test_a_unet_file_in_fp8(world: World, trained: Path) -> None:
    """The stock UNet loader with its own choice of storage."""
    if world.case.kind != "sd15" or world.case.storage != torch.float16:
        pytest.skip("once is enough")
    place = world.server.base / "models" / "diffusion_models"
    place.mkdir(exist_ok=True)
    os.link(world.checkpoint, place / "unet.safetensors")
    graph = Graph()
    loader = world.loaded(graph)
    unet = graph.add("UNETLoader", unet_name="unet.safetensors", weight_dtype="fp8_e4m3fn")
    dictionary = graph.add("SparseAtoms_Load", name=trained.name)
    applied = world.add(graph, "SparseAtoms_Apply", model=unet[0], dictionary=dictionary[0])
    kept = world.sampling(graph, applied[0], loader)
    result = world.run("UNet loader fp8, sample 2 steps", graph)
    assert torch.isfinite(world.server.client.latents(result, kept)).all()


# ------------------------------------------------------------------------------------------------------ in diffusers


@pytest.fixture(scope="module")
def pipeline(world: World) -> Iterator[Any]:
    """The same checkpoint through diffusers' single-file loader."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    if world.case.storage != torch.float16:
        pytest.skip("diffusers casts as it loads: fp16 stands for all")
    kind = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[world.case.kind]
    world.forget_models()
    # SDXL in float32 would take 14 GB.
    number_type = {"sd15": torch.float32, "sdxl": torch.bfloat16}[world.case.kind]
    with recorded(str(world.case), "diffusers: from_single_file"):
        loaded = kind.from_single_file(
            str(world.checkpoint), config=str(world.configuration), torch_dtype=number_type, local_files_only=True
        )
    loaded.set_progress_bar_config(disable=True)
    yield loaded
    del loaded
    gc.collect()


def test_dictionary_moves_from_comfyui_to_diffusers(world: World, pipeline: Any, trained: Path) -> None:
    from sparse_core.hosts.diffusers import DiffusersHost

    host = DiffusersHost(pipeline)
    dictionary = load_dictionary(trained)
    dictionary.check_fits(host.layers)
    half = torch.zeros(1, SIDE // 8, SIDE // 8)
    half[..., : SIDE // 16] = 1
    stack = [SparseAdapter(dictionary, (Mask(half),)).at_strength(5.0)]

    def drawn() -> Tensor:
        return pipeline(
            "a robot on a beach",
            num_inference_steps=2,
            width=SIDE,
            height=SIDE,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images

    with recorded(str(world.case), "diffusers: sample 2 steps, two ways"):
        plain = drawn()
        with host.patched(stack):
            moved = drawn()
    assert torch.isfinite(moved).all() and not torch.equal(moved, plain)


def test_dictionary_moves_from_diffusers_to_comfyui(world: World, pipeline: Any) -> None:
    from sparse_core.hosts.diffusers import DiffusersHost

    host = DiffusersHost(pipeline)
    condition = host.encode_prompt("a robot", (SIDE, SIDE))
    example = Example(torch.randn(4, SIDE // 8, SIDE // 8), condition)
    autocast = pipeline.unet.dtype != torch.float32
    settings = TrainingSettings(steps=2, batch=1, atoms=4, threshold=1.0, autocast=autocast)
    with recorded(str(world.case), "diffusers: train 2 steps"):
        dictionary = train(host, [example], settings, word="robot")
    assert all(shift.any() for shift in dictionary.words["robot"].values())
    save_dictionary(dictionary, world.server.place("moved.safetensors"))

    graph = Graph()
    loader = world.loaded(graph)
    loaded = graph.add("SparseAtoms_Load", name="moved.safetensors")
    applied = world.add(graph, "SparseAtoms_Apply", model=loader[0], dictionary=loaded[0], strength=5.0, clip=loader[1])
    kept = [
        world.sampling(graph, model, loader, clip) for model, clip in ((loader[0], loader[1]), (applied[0], applied[1]))
    ]
    result = world.run("sample 2 steps, two ways", graph)
    plain, moved = (world.server.client.latents(result, node) for node in kept)
    assert torch.isfinite(moved).all() and not torch.equal(moved, plain)


def test_both_hosts_compute_the_same(world: World, pipeline: Any) -> None:
    """One model call with a strong random dictionary: the hosts' updates agree as far as their plain models do."""
    from sparse_core.hosts.diffusers import DiffusersHost

    if world.case.kind == "sdxl":
        pytest.skip("two copies of SDXL in float32 are 20 GB")
    host = DiffusersHost(pipeline)
    dictionary = random_dictionary(host.layers, 8, seed=3)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator)
    text = torch.randn(1, TEXT_TOKENS, pipeline.unet.config.cross_attention_dim, generator=generator)
    timestep = 500
    there = [diffusers_noise(host, stack, noisy, timestep, text) for stack in ((), (SparseAdapter(dictionary),))]
    here = comfy_noise(world.checkpoint, dictionary, noisy, timestep, text)
    change = (there[1] - there[0]).norm() / there[0].norm()
    assert change > 0.05
    for ours, theirs in zip(here, there, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < 0.02 * change


@torch.no_grad()
def diffusers_noise(host: Any, stack: tuple, noisy: Tensor, timestep: int, text: Tensor) -> Tensor:
    """The UNet's answer in diffusers."""
    host.pipeline._guidance_scale = 1.0  # one prompt a call
    with host.patched(stack):
        return host.unet(noisy, timestep, text).sample


@torch.no_grad()
def comfy_noise(
    checkpoint: Path, dictionary: SparseDictionary, noisy: Tensor, timestep: int, text: Tensor
) -> list[Tensor]:
    """The UNet's answers in ComfyUI, plain and with the dictionary."""
    import comfy.sd
    from comfy.patcher_extension import WrappersMP

    from sparse_core.hosts.comfyui import KEY, Wrapper

    model = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0].model
    sigma = model.model_sampling.sigmas[timestep][None]
    scaled = noisy * (1 + sigma**2).sqrt()
    wrapped = {"wrappers": {WrappersMP.DIFFUSION_MODEL: {KEY: [Wrapper([SparseAdapter(dictionary)])]}}}
    answers = []
    for options in ({}, wrapped):
        clean = model.apply_model(scaled, sigma, c_crossattn=text, transformer_options=options)
        answers.append((scaled - clean) / sigma)
    return answers
