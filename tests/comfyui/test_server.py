"""The nodes in a running ComfyUI, as a workflow uses them."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import prompts
import pytest
import torch
from client import Graph, Node, Result
from conftest import Server
from factories import random_dictionary
from safetensors.torch import save_file
from world import demo_layers

from sparse_core.files import load_dictionary, save_dictionary

NODES = (
    "DemoModel",
    "DemoPictures",
    "Load",
    "Save",
    "Train",
    "Apply",
    "Hook",
    "Weights",
    "Mask",
    "Schedule",
    "Keep",
    "Solo",
    "Mute",
    "Prompt",
)


@pytest.fixture(scope="session")
def dictionary_file(server: Server) -> str:
    """A random dictionary that the server lists, strong enough to change every picture."""
    save_dictionary(random_dictionary(demo_layers(), seed=1), server.place("random.safetensors"))
    return "random.safetensors"


def apply(graph: Graph, model: list, dictionary: list, strength: float = 1.0) -> Node:
    return graph.add("SparseAtoms_Apply", model=model, dictionary=dictionary, strength=strength)


def run(server: Server, graph: Graph) -> Result:
    result = server.client.run(graph)
    assert not result.error
    return result


def sampled(server: Server, graph: Graph, *samplers: Node) -> list[torch.Tensor]:
    """The latents that KSamplers of one prompt give."""
    kept = [prompts.keep(graph, sampler) for sampler in samplers]
    result = run(server, graph)
    return [server.client.latents(result, node) for node in kept]


# ------------------------------------------------------------------------------------------------------ registration


def test_every_node_is_registered_and_explained(server: Server) -> None:
    found = {name: node for name, node in server.client.object_info().items() if name.startswith("SparseAtoms_")}
    assert set(found) >= {f"SparseAtoms_{name}" for name in NODES}
    for name, node in found.items():
        assert node["category"].startswith("Sparse Atoms"), name
        assert len(node["description"]) > 40, name
        assert node["display_name"] != name
        assert node["search_aliases"], name
        inputs = node["input"].get("required", {}) | node["input"].get("optional", {})
        for key, (_, *options) in inputs.items():
            assert options and options[0].get("tooltip"), f"{name}.{key} has no tooltip"


def test_the_pack_loads_without_a_complaint(server: Server) -> None:
    log = server.log.read_text()
    assert "sparse-atoms" in log
    assert "IMPORT FAILED" not in log


# ------------------------------------------------------------------------------------------------------ the whole way


def test_train_save_load_apply_gives_a_picture_that_shows_what_was_learnt(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    trained = prompts.training(graph, demo, steps=6)
    saved = graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="friends/whole_way")
    shown = {}
    for name, model in (("plain", demo[0]), ("trained", apply(graph, demo[0], saved[0])[0])):
        picture = graph.add("VAEDecode", samples=prompts.sample(graph, model, demo)[0], vae=demo[2])
        shown[name] = graph.add("SaveImage", images=picture[0], filename_prefix=name)
    result = run(server, graph)

    plain, changed = (server.client.pictures(result, shown[name])[0] for name in ("plain", "trained"))
    assert plain.shape == changed.shape == (128, 128, 3)
    assert not np.array_equal(plain, changed)
    assert [value for node, value, _ in result.progress if node == trained][-1] == 6

    history = server.client.history(result.prompt)
    assert history["status"]["status_str"] == "success"
    assert set(history["outputs"]) == {trained, saved, *shown.values()}

    file = server.dictionaries / "friends" / "whole_way_00001_.safetensors"
    assert load_dictionary(file).metadata["training"]["steps_done"] == 6

    # The file gives the picture that the dictionary in memory gave, but for float16 on disk.
    graph = Graph()
    demo = prompts.demo(graph)
    loaded = graph.add("SparseAtoms_Load", name="friends/whole_way_00001_.safetensors")
    sampler = prompts.sample(graph, apply(graph, demo[0], loaded[0])[0], demo)
    picture = graph.add("PreviewImage", images=graph.add("VAEDecode", samples=sampler[0], vae=demo[2])[0])
    again = server.client.pictures(run(server, graph), picture)[0]
    assert np.abs(again.astype(int) - changed).mean() < 0.5


def test_training_on_lists_of_pictures_and_captions(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    shown = graph.add("SparseAtoms_DemoPictures", lesson="robot")
    latents = graph.add("VAEEncode", pixels=shown[0], vae=demo[2])
    captions = graph.add("CLIPTextEncode", text=shown[1], clip=demo[1])
    trained = prompts.training(graph, demo, latents=latents[0], captions=captions[0], steps=2)
    saved = graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="lists")
    result = run(server, graph)
    assert len([node for node in result.executed if node == trained]) == 1
    assert result.outputs[saved]["text"] == ["Saved as lists_00001_.safetensors"]


def test_a_cancelled_training_is_saved_and_the_graph_goes_on(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    trained = prompts.training(graph, demo, steps=5000, name="cancelled: ../robot?", seed=3)
    saved = graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="after_cancel")
    (latents,) = (prompts.keep(graph, prompts.sample(graph, apply(graph, demo[0], saved[0])[0], demo)),)
    result = server.client.run(graph, cancel_at=3)

    assert not result.error
    assert latents in result.outputs
    kept = load_dictionary(next(server.dictionaries.glob("cancelled_ ___robot__cancelled_*.safetensors")))
    went_on = load_dictionary(server.dictionaries / "after_cancel_00001_.safetensors")
    for dictionary in (kept, went_on):
        assert 3 <= dictionary.metadata["training"]["steps_done"] < 5000
        assert any(atoms.directions.any() for atoms in dictionary.sites.values())


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
def test_a_cancelled_training_goes_on_with_the_same_workflow_and_is_kept_when_done(
    server: Server, linked: bool
) -> None:
    graph = Graph()
    name = graph.add("PrimitiveString", value="gone on")[0] if linked else "gone on"
    trained = prompts.training(graph, prompts.demo(graph), steps=25, name=name, seed=16 + linked, resume=True)
    saved = graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix=f"gone_on_{linked}")
    assert not server.client.run(graph, cancel_at=2).error
    again = run(server, graph)
    assert trained in again.executed
    first, second = (server.dictionaries / f"gone_on_{linked}_0000{number}_.safetensors" for number in (1, 2))
    done = [load_dictionary(path).metadata["training"]["steps_done"] for path in (first, second)]
    assert done[0] < done[1] == 25
    assert next(value for node, value, _ in again.progress if node == trained) == done[0] + 1
    assert not {trained, saved} & set(run(server, graph).executed)


def test_a_cancelled_training_that_is_enough_is_not_done_again(server: Server) -> None:
    graph = Graph()
    trained = prompts.training(graph, prompts.demo(graph), steps=5000, name="enough", seed=17)
    graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="enough")
    assert not server.client.run(graph, cancel_at=2).error
    assert trained not in run(server, graph).executed


def test_a_preview_changes_nothing_that_is_learnt(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    prompt = graph.add("CLIPTextEncode", text="a zib at night", clip=demo[1])
    empty = graph.add("CLIPTextEncode", text="", clip=demo[1])
    for prefix, shown in (("unwatched", {}), ("watched", {"preview": prompt[0], "negative": empty[0]})):
        trained = prompts.training(graph, demo, seed=12, preview_every=2, **shown)
        graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix=prefix)
    run(server, graph)
    unwatched, watched = (server.dictionaries / f"{name}_00001_.safetensors" for name in ("unwatched", "watched"))
    assert watched.read_bytes() == unwatched.read_bytes()


def test_a_preview_without_a_negative_prompt_is_refused(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    prompt = graph.add("CLIPTextEncode", text="a zib at night", clip=demo[1])
    trained = prompts.training(graph, demo, seed=13, preview=prompt[0])
    graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="refused")
    assert "no negative prompt" in server.client.run(graph).error


def test_a_preset_brings_its_own_values_and_custom_takes_those_of_the_node(server: Server) -> None:
    records = {}
    for preset in ("custom", "single picture"):
        graph = Graph()
        demo = prompts.demo(graph)
        values = {"steps": 3, "sparsity": 2e-4, "accumulate": 2, "ema": 0.5, "warm_up": 0.5}
        trained = prompts.training(graph, demo, preset=preset, seed=14, **values)
        graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix=f"preset {preset}")
        assert not server.client.run(graph, cancel_at=2 if preset != "custom" else None).error
        file = server.dictionaries / f"preset {preset}_00001_.safetensors"
        records[preset] = load_dictionary(file).metadata["training"]
    names = ("steps", "batch", "sparsity", "accumulate", "ema", "warm_up", "seed")
    assert [records["custom"][name] for name in names] == [3, 2, 2e-4, 2, 0.5, 0.5, 14]
    assert [records["single picture"][name] for name in names] == [100, 4, 1e-4, 1, 0.0, 0.05, 14]


def test_what_would_do_nothing_in_a_training_is_refused(server: Server) -> None:
    for inputs, message in (
        ({"held_out": True}, "2 held-out pictures and 0 captions"),
        ({"patience": 1}, "are held out"),
        ({"held_out_captions": True}, "no held-out pictures"),
        ({"selective": 0.01}, "no prior prompts are connected"),
    ):
        graph = Graph()
        demo = prompts.demo(graph)
        if "held_out" in inputs:
            pictures = graph.add("EmptyImage", width=128, height=128, batch_size=2, color=0x20FF20)
            inputs["held_out"] = graph.add("VAEEncode", pixels=pictures[0], vae=demo[2])[0]
        if "held_out_captions" in inputs:
            inputs["held_out_captions"] = graph.add("CLIPTextEncode", text="a zib", clip=demo[1])[0]
        trained = prompts.training(graph, demo, seed=15, **inputs)
        graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="refused")
        assert message in server.client.run(graph).error


def test_a_model_that_was_trained_on_still_draws_the_same(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    (before,) = sampled(server, graph, prompts.sample(graph, demo[0], demo))
    graph = Graph()
    demo = prompts.demo(graph)
    trained = prompts.training(graph, demo, seed=11)
    graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="unused")
    run(server, graph)
    graph = Graph()
    demo = prompts.demo(graph)
    (after,) = sampled(server, graph, prompts.sample(graph, demo[0], demo, sampler_name="euler", seed=1))
    assert torch.equal(before, after)


# ------------------------------------------------------------------------------------------------------------ caching


def weighted(dictionary_file: str, lines: str) -> tuple[Graph, dict[str, Node]]:
    graph = Graph()
    demo = prompts.demo(graph)
    nodes = {"demo": demo, "load": graph.add("SparseAtoms_Load", name=dictionary_file)}
    nodes["weights"] = graph.add("SparseAtoms_Weights", dictionary=nodes["load"][0], lines=lines)
    nodes["apply"] = apply(graph, demo[0], nodes["weights"][0])
    nodes["sampler"] = prompts.sample(graph, nodes["apply"][0], demo)
    nodes["decode"] = graph.add("VAEDecode", samples=nodes["sampler"][0], vae=demo[2])
    nodes["show"] = graph.add("PreviewImage", images=nodes["decode"][0])
    return graph, nodes


def test_the_same_workflow_again_runs_nothing(server: Server, dictionary_file: str) -> None:
    run(server, weighted(dictionary_file, "L2 = 0.3")[0])
    again = run(server, weighted(dictionary_file, "L2 = 0.3")[0])
    assert again.executed == []


def test_another_weight_runs_only_what_depends_on_it(server: Server, dictionary_file: str) -> None:
    run(server, weighted(dictionary_file, "L2.v[1] = 0.5")[0])
    graph, nodes = weighted(dictionary_file, "L2.v[1] = 0.75")
    result = run(server, graph)
    assert result.executed == [nodes[name] for name in ("weights", "apply", "sampler", "decode", "show")]


def test_a_new_dictionary_is_first_in_the_list_at_once(server: Server) -> None:
    for name in ("older", "newest"):
        path = save_dictionary(random_dictionary(demo_layers()), server.place(f"{name}.safetensors"))
        os.utime(path, (4e9, 4e9 + (name == "newest")))
        kind, options = server.client.object_info()["SparseAtoms_Load"]["input"]["required"]["name"]
        names = options["options"] if kind == "COMBO" else kind
        assert names[0] == f"{name}.safetensors"
    for name in ("older", "newest"):
        server.place(f"{name}.safetensors").unlink()


def test_a_link_that_leads_nowhere_takes_no_other_dictionary_away(server: Server, dictionary_file: str) -> None:
    link = server.place("unmounted.safetensors")
    link.symlink_to("/nowhere/unmounted.safetensors")
    known = server.client.object_info()
    kind, options = known["SparseAtoms_Load"]["input"]["required"]["name"]
    names = options["options"] if kind == "COMBO" else kind
    listed = [card["name"] for card in json.loads(server.client.get("/sparse_atoms/dictionaries"))]
    link.unlink()
    for found in (names, listed):
        assert dictionary_file in found and link.name not in found


def test_an_overwritten_file_is_loaded_again(server: Server) -> None:
    pictures = []
    for seed in (5, 6):
        save_dictionary(random_dictionary(demo_layers(), seed=seed), server.place("overwritten.safetensors"))
        graph = Graph()
        demo = prompts.demo(graph)
        load = graph.add("SparseAtoms_Load", name="overwritten.safetensors")
        pictures += sampled(server, graph, prompts.sample(graph, apply(graph, demo[0], load[0])[0], demo))
    assert not torch.equal(*pictures)


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_bad_address_line_is_refused_before_anything_runs(server: Server, dictionary_file: str) -> None:
    graph, nodes = weighted(dictionary_file, "L1 = 0.5\nL2[red] = 1")
    error = server.client.run(graph).error
    assert "Line 2" in error and "L2[red]" in error
    assert f'"{nodes["weights"]}"' in error


@pytest.mark.parametrize(
    ("kind", "text"), [("Weights", "L2 = 0.3"), ("Mute", "L2"), ("Mixer", "L2.v[1] = 0.5")], ids=lambda value: value
)
def test_text_may_come_from_a_link(server: Server, dictionary_file: str, kind: str, text: str) -> None:
    """And is then checked when it runs."""
    name = {"Weights": "lines", "Mute": "atoms", "Mixer": "mix"}[kind]
    errors = []
    for linked in (text, "L2[red]"):
        graph = Graph()
        words = graph.add("PrimitiveStringMultiline", value=linked)
        load = graph.add("SparseAtoms_Load", name=dictionary_file)
        control = graph.add(f"SparseAtoms_{kind}", dictionary=load[0], **{name: words[0]})
        graph.add("SparseAtoms_Info", dictionary=control[0], top=8)
        errors.append(server.client.run(graph).error)
    assert not errors[0] and "L2[red]" in errors[1]


def test_an_address_that_picks_nothing_says_what_there_is(server: Server, dictionary_file: str) -> None:
    graph, _ = weighted(dictionary_file, "L99 = 0.5")
    error = server.client.run(graph).error
    assert "L99 picks no atom" in error and f"L{len(demo_layers()) - 1}" in error


def load_error(server: Server, name: str) -> str:
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=name)
    prompts.keep(graph, prompts.sample(graph, apply(graph, demo[0], load[0])[0], demo))
    return server.client.run(graph).error


def test_a_dictionary_of_another_family_is_refused_by_name(server: Server) -> None:
    save_dictionary(random_dictionary(), server.place("foreign.safetensors"))
    error = load_error(server, "foreign.safetensors")
    assert "another model" in error and "same family" in error


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not a file of tensors", "not a safetensors file"),
        (slice(0, 900), "cut off"),
        (slice(0, -100), "cut off"),
    ],
)
def test_a_broken_file_says_what_to_do(server: Server, content: bytes | slice, said: str) -> None:
    path = server.place("broken.safetensors")
    if isinstance(content, slice):
        content = save_dictionary(random_dictionary(), path).read_bytes()[content]
    path.write_bytes(content)
    error = load_error(server, path.name)
    assert path.name in error and said in error


def test_a_lora_among_the_dictionaries_is_named_as_one(server: Server) -> None:
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2, 2)}, server.place("really_a_lora.safetensors"))
    assert "a LoRA" in load_error(server, "really_a_lora.safetensors")


def test_a_deleted_file_is_refused_with_advice(server: Server) -> None:
    error = load_error(server, "never_there.safetensors")
    assert "never_there" in error


# ---------------------------------------------------------------------------------------------------- models in a graph


def test_strength_zero_is_the_plain_model_to_the_bit(server: Server, dictionary_file: str) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    models = [demo[0], *(apply(graph, demo[0], load[0], strength)[0] for strength in (0.0, 1.0))]
    plain, zero, one = sampled(server, graph, *(prompts.sample(graph, model, demo) for model in models))
    assert torch.equal(plain, zero)
    assert not torch.equal(plain, one)


def test_applying_twice_adds_up(server: Server, dictionary_file: str) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    half = apply(graph, demo[0], load[0], 0.5)
    models = [half[0], apply(graph, half[0], load[0], 0.5)[0], apply(graph, demo[0], load[0], 1.0)[0]]
    half, twice, once = sampled(server, graph, *(prompts.sample(graph, model, demo) for model in models))
    torch.testing.assert_close(twice, once, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(half, once, atol=1e-2)


def test_the_source_model_is_unchanged_beside_its_patched_copy(server: Server, dictionary_file: str) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    (alone,) = sampled(server, graph, prompts.sample(graph, demo[0], demo, seed=8))
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    patched = prompts.sample(graph, apply(graph, demo[0], load[0])[0], demo, seed=8)
    plain = prompts.sample(graph, demo[0], demo, seed=8, latent=patched[0], denoise=0.0)
    again = prompts.sample(graph, demo[0], demo, seed=8)
    _, _, after = sampled(server, graph, patched, plain, again)
    assert torch.equal(alone, after)


def lora_file(server: Server, name: str) -> str:
    """A small random LoRA on the demo model's attention, with kohya's key names."""
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for layer in demo_layers():
        stage, number, depth, attention = layer.name.split(".")
        block = {"down": f"down_blocks.{number}.attentions.0", "middle": "mid_block.attentions.0"}.get(
            stage, f"up_blocks.{int(number) // 2}.attentions.{int(number) % 2}"
        )
        d_in, d_out = layer.shape("v")
        key = f"lora_unet_{block}_transformer_blocks_{depth}_{attention}_to_v".replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = 0.3 * torch.randn(4, d_in, generator=generator)
        tensors[f"{key}.lora_up.weight"] = 0.3 * torch.randn(d_out, 4, generator=generator)
    path = server.base / "models" / "loras" / name
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return name


def test_a_lora_works_before_and_after(server: Server, dictionary_file: str) -> None:
    name = lora_file(server, "random_lora.safetensors")
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)

    def lora(model: list) -> list:
        return graph.add("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)[0]

    models = [
        apply(graph, lora(demo[0]), load[0])[0],
        lora(apply(graph, demo[0], load[0])[0]),
        apply(graph, demo[0], load[0])[0],
        lora(demo[0]),
    ]
    before, after, without, lora_alone = sampled(
        server, graph, *(prompts.sample(graph, model, demo) for model in models)
    )
    assert torch.equal(before, after)
    assert not torch.allclose(before, without, atol=1e-2)
    assert not torch.allclose(before, lora_alone, atol=1e-2)


def half_mask(graph: Graph) -> Node:
    """White on the right half of 128 x 128."""
    black = graph.add("SolidMask", value=0.0, width=128, height=128)
    white = graph.add("SolidMask", value=1.0, width=64, height=128)
    return graph.add("MaskComposite", destination=black[0], source=white[0], x=64, y=0, operation="add")


def test_a_mask_keeps_most_of_the_change_inside(server: Server, dictionary_file: str) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    masked = graph.add("SparseAtoms_Mask", dictionary=load[0], mask=half_mask(graph)[0], atoms="*")
    models = [demo[0], apply(graph, demo[0], masked[0])[0]]
    plain, changed = sampled(server, graph, *(prompts.sample(graph, m, demo, steps=1) for m in models))
    left, right = (changed - plain).abs().mean(dim=(0, 1, 2)).chunk(2)
    assert right.mean() > 2 * left.mean()


# -------------------------------------------------------------------------------- the demo model in core's own nodes


def picture(graph: Graph, demo: Node) -> Node:
    """A plain picture to start from, as IMAGE."""
    return graph.add("VAEDecode", samples=prompts.sample(graph, demo[0], demo)[0], vae=demo[2])


def image_to_image(graph: Graph, demo: Node) -> dict[str, Any]:
    latent = graph.add("VAEEncode", pixels=picture(graph, demo)[0], vae=demo[2])
    return {"latent": latent[0], "denoise": 0.5}


def inpaint(graph: Graph, demo: Node) -> dict[str, Any]:
    mask = half_mask(graph)
    latent = graph.add("VAEEncodeForInpaint", pixels=picture(graph, demo)[0], vae=demo[2], mask=mask[0], grow_mask_by=0)
    return {"latent": latent[0], "denoise": 1.0}


def noise_mask(graph: Graph, demo: Node) -> dict[str, Any]:
    latent = graph.add("VAEEncode", pixels=picture(graph, demo)[0], vae=demo[2])
    masked = graph.add("SetLatentNoiseMask", samples=latent[0], mask=half_mask(graph)[0])
    return {"latent": masked[0], "denoise": 0.7}


@pytest.mark.parametrize("start", [image_to_image, inpaint, noise_mask])
def test_pictures_that_start_from_a_picture(server: Server, dictionary_file: str, start: Any) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    models = [demo[0], apply(graph, demo[0], load[0])[0], apply(graph, demo[0], load[0], 0.0)[0]]
    settings = start(graph, demo)
    plain, changed, zero = sampled(server, graph, *(prompts.sample(graph, m, demo, **settings) for m in models))
    assert plain.shape == (1, 12, 16, 16)
    assert torch.equal(plain, zero)
    outside, inside = (changed - plain).abs().mean(dim=(0, 1, 2)).chunk(2)
    assert inside.mean() > 1e-3
    if start is not image_to_image:
        assert outside.max() < 1e-5  # core keeps the rest of the picture


@pytest.mark.parametrize("size", [(96, 128), (136, 200)])
def test_other_picture_sizes(server: Server, dictionary_file: str, size: tuple[int, int]) -> None:
    width, height = size
    graph = Graph()
    demo = prompts.demo(graph)
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    masked = graph.add("SparseAtoms_Mask", dictionary=load[0], mask=half_mask(graph)[0], atoms="*")
    latent = graph.add("EmptyLatentImage", width=width, height=height, batch_size=2)
    sampler = prompts.sample(graph, apply(graph, demo[0], masked[0])[0], demo, latent=latent[0])
    shown = graph.add("PreviewImage", images=graph.add("VAEDecode", samples=sampler[0], vae=demo[2])[0])
    pictures = server.client.pictures(run(server, graph), shown)
    assert [p.shape for p in pictures] == [(height, width, 3)] * 2


def test_a_picture_survives_the_vae(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    first = graph.add("EmptyImage", width=128, height=64, batch_size=3, color=0x2060C0)
    encoded = graph.add("VAEEncode", pixels=first[0], vae=demo[2])
    shown = graph.add("PreviewImage", images=graph.add("VAEDecode", samples=encoded[0], vae=demo[2])[0])
    pictures = server.client.pictures(run(server, graph), shown)
    assert [p.shape for p in pictures] == [(64, 128, 3)] * 3


def test_saving_keeps_what_a_lora_manager_shows(server: Server, dictionary_file: str) -> None:
    graph = Graph()
    load = graph.add("SparseAtoms_Load", name=dictionary_file)
    image = graph.add("EmptyImage", width=400, height=200, batch_size=1, color=0xFF0000)
    said = {"trigger": "zib", "description": "a red one", "author": "me"}
    graph.add("SparseAtoms_Save", dictionary=load[0], filename_prefix="described", thumbnail=image[0], **said)
    assert not server.client.run(graph).error
    metadata = load_dictionary(server.dictionaries / "described_00001_.safetensors").metadata
    assert metadata["modelspec.trigger_phrase"] == "zib" and metadata["modelspec.description"] == "a red one"
    assert metadata["modelspec.author"] == "me" and metadata["modelspec.thumbnail"].startswith("data:image/jpeg")
