"""Composing and editing nodes in a running ComfyUI, and inversion in both hosts."""

from __future__ import annotations

import prompts
import pytest
import torch
from client import Graph, Node, Result
from conftest import Server
from factories import random_dictionary
from world import assert_close, demo_layers, demo_model, text

from sparse_core.controls import SparseAdapter
from sparse_core.demo.model import load_pipeline
from sparse_core.files import save_dictionary
from sparse_core.hosts.comfyui import ComfyHost
from sparse_core.hosts.diffusers import Condition, DiffusersHost
from sparse_core.sampling import invert

LORA = "sparse_atoms_demo_robot.safetensors"


@pytest.fixture(scope="module")
def files(server: Server) -> list[str]:
    """Two random dictionaries that the server lists."""
    made = {f"compose_{seed}.safetensors": random_dictionary(demo_layers(), seed=seed) for seed in (21, 22)}
    return [save_dictionary(dictionary, server.place(name)).name for name, dictionary in made.items()]


def run(server: Server, graph: Graph) -> Result:
    result = server.client.run(graph)
    assert not result.error
    return result


def applied(graph: Graph, model: list, dictionary: list, strength: float = 1.0) -> list:
    return graph.add("SparseAtoms_Apply", model=model, dictionary=dictionary, strength=strength)[0]


def latents_of(server: Server, graph: Graph, demo: Node, models: list[list]) -> list[torch.Tensor]:
    kept = [prompts.keep(graph, prompts.sample(graph, model, demo)) for model in models]
    result = run(server, graph)
    return [server.client.latents(result, node) for node in kept]


def loaded(graph: Graph, names: list[str]) -> list[list]:
    return [graph.add("SparseAtoms_Load", name=name)[0] for name in names]


def test_combined_draws_what_two_apply_nodes_draw(server: Server, files: list[str]) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    one, other = loaded(graph, files)
    both = graph.add(
        "SparseAtoms_Combine", first=one, second=other, first_weight=0.5, second_weight=-0.3, budget=0, merge_above=1.0
    )
    stack = applied(graph, applied(graph, demo[0], one, 0.5), other, -0.3)
    combined, stacked, plain = latents_of(server, graph, demo, [applied(graph, demo[0], both[0]), stack, demo[0]])
    torch.testing.assert_close(combined, stacked, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(stacked, plain, atol=1e-2)


def test_an_extract_is_a_solo_and_an_interpolation_has_its_ends(server: Server, files: list[str]) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    (one,) = loaded(graph, files[:1])
    solo = graph.add("SparseAtoms_Solo", dictionary=one, atoms="attn2")
    part = graph.add("SparseAtoms_Extract", dictionary=one, atoms="attn2", title="")
    end = graph.add("SparseAtoms_Interpolate", first=one, second=solo[0], position=1.0)
    models = [applied(graph, demo[0], d, 0.5) for d in (solo[0], part[0], end[0])]
    solo, part, end = latents_of(server, graph, demo, models)
    torch.testing.assert_close(part, solo, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(end, solo, atol=1e-3, rtol=1e-3)


def test_a_mask_before_combine_is_refused_by_name(server: Server, files: list[str]) -> None:
    graph = Graph()
    one, other = loaded(graph, files)
    mask = graph.add("SolidMask", value=0.5, width=64, height=64)
    masked = graph.add("SparseAtoms_Mask", dictionary=one, mask=mask[0], atoms="*")
    both = graph.add(
        "SparseAtoms_Combine",
        first=masked[0],
        second=other,
        first_weight=1.0,
        second_weight=1.0,
        budget=0,
        merge_above=1.0,
    )
    graph.add("SparseAtoms_Save", dictionary=both[0], filename_prefix="never")
    assert "carries a mask" in server.client.run(graph).error


def test_a_collision_report_has_numbers_and_a_chart(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    robot, owl = loaded(graph, ["robot.safetensors", "owl.safetensors"])
    positive = graph.add("CLIPTextEncode", text="a robot on the left and an owl on the right", clip=demo[1])
    negative = graph.add("CLIPTextEncode", text="", clip=demo[1])
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    found = graph.add(
        "SparseAtoms_Collisions", model=demo[0], first=robot, second=owl, positive=positive[0], negative=negative[0],
        latent=latent[0], pictures=1, seed=0,
    )  # fmt: skip
    shown = graph.add("PreviewImage", images=found[1])
    result = run(server, graph)
    (report,) = result.outputs[found]["text"]
    assert "both on" in report and "| overlap | direction |" in report
    (chart,) = server.client.pictures(result, shown)
    assert chart.shape == (500, 1100, 3) and chart.std() > 5


def test_an_inverted_picture_comes_back_from_both_kinds_of_sampler(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    (robot,) = loaded(graph, ["robot.safetensors"])
    model = applied(graph, demo[0], robot)
    positive = graph.add("CLIPTextEncode", text="a big robot on the left in the snow", clip=demo[1])
    negative = graph.add("CLIPTextEncode", text="", clip=demo[1])
    drawn = prompts.sample(graph, model, demo, positive=positive[0], steps=12)
    found = graph.add(
        "SparseAtoms_Invert", model=model, latent=drawn[0], positive=positive[0], negative=negative[0], steps=12, cfg=1.0,
        refinements=3,
    )  # fmt: skip
    again = graph.add(
        "KSamplerAdvanced", model=model, add_noise="disable", noise_seed=0, steps=12, cfg=1.0, sampler_name="euler",
        scheduler="simple", positive=positive[0], negative=negative[0], latent_image=found[0], start_at_step=0,
        end_at_step=10000, return_with_leftover_noise="disable",
    )  # fmt: skip
    empty = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    other = graph.add(
        "SamplerCustomAdvanced",
        noise=found[1],
        guider=graph.add("BasicGuider", model=model, conditioning=positive[0])[0],
        sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
        sigmas=graph.add("BasicScheduler", model=model, scheduler="simple", steps=12, denoise=1.0)[0],
        latent_image=empty[0],
    )
    kept = [prompts.keep(graph, node) for node in (drawn, again, other)]
    result = run(server, graph)
    drawn, again, other = (server.client.latents(result, node) for node in kept)
    for one in (again, other):
        assert float((one - drawn).square().mean().sqrt() / drawn.std()) < 0.15
    assert "of their spread" in result.outputs[found]["text"][0]


def test_distilling_learns_from_weight_patches_and_leaves_the_model_alone(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    lora = graph.add("LoraLoaderModelOnly", model=demo[0], lora_name=LORA, strength_model=1.0)
    words = [graph.add("CLIPTextEncode", text=words, clip=demo[1]) for words in ("a big robot in the snow", "")]
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    learnt = graph.add(
        "SparseAtoms_Distil", model=demo[0], patched=lora[0], prompts=words[0][0], negative=words[1][0], latent=latent[0],
        name="distilled", steps=60, learning_rate=0.004, batch=4, atoms=8, threshold=1.5, sparsity=1e-4, pictures=2, seed=0,
    )  # fmt: skip
    models = [demo[0], lora[0], applied(graph, demo[0], learnt[0])]
    kept = [prompts.keep(graph, prompts.sample(graph, m, demo, positive=words[0][0], steps=8)) for m in models]
    result = run(server, graph)
    plain, goal, pupil = (server.client.latents(result, node) for node in kept)
    assert (pupil - goal).square().mean() < 0.7 * (plain - goal).square().mean()

    graph = Graph()
    demo = prompts.demo(graph)
    words = [graph.add("CLIPTextEncode", text="a big robot in the snow", clip=demo[1])]
    node = prompts.keep(graph, prompts.sample(graph, demo[0], demo, positive=words[0][0], steps=8, seed=1))
    after = server.client.latents(run(server, graph), node)
    assert torch.equal(after, plain)


def test_a_cancelled_distillation_does_not_pass_for_a_whole_one(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    words = [graph.add("CLIPTextEncode", text=words, clip=demo[1]) for words in ("a big robot in the snow", "")]
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)
    learnt = graph.add(
        "SparseAtoms_Distil", model=demo[0], patched=demo[0], prompts=words[0][0], negative=words[1][0], latent=latent[0],
        name="part", steps=5000, learning_rate=0.004, batch=1, atoms=2, threshold=1.5, sparsity=1e-4, pictures=1, seed=0,
    )  # fmt: skip
    graph.add("SparseAtoms_Save", dictionary=learnt[0], filename_prefix="part")
    assert server.client.run(graph, cancel_at=2).error == "interrupted"
    assert not list(server.dictionaries.glob("part_*"))


def test_both_hosts_invert_to_the_same_noise() -> None:
    hosts = ComfyHost(demo_model()).load(), DiffusersHost(load_pipeline())
    latents = torch.randn(1, 12, 16, 16, generator=torch.Generator().manual_seed(3))
    prompt = text(1, width=128)
    conditions = hosts[0].stack_conditions([prompt]), Condition(prompt[0][0])
    adapter = SparseAdapter(random_dictionary(demo_layers(), seed=4)).at_strength(0.3)
    found = []
    for host, condition in zip(hosts, conditions, strict=True):
        with torch.no_grad(), host.patched([adapter]):
            found.append(invert(host, latents, condition, steps=6, refinements=1))
    assert_close(*found, 0.1)  # one rounds to whole timesteps, the other does not
