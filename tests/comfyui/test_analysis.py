"""Seeing the atoms in a running ComfyUI, as the workflows do."""

from __future__ import annotations

import re

import prompts
import pytest
import torch
from client import Graph, Node, Result
from conftest import Server
from world import pack

from sparse_core.demo.shipped import DICTIONARIES
from sparse_core.files import load_dictionary


def looking(graph: Graph, demo: Node) -> dict:
    """What nodes that draw for themselves take, with the settings of `prompts.sample`."""
    return dict(
        model=demo[0],
        positive=graph.add("CLIPTextEncode", text="a red cat on the left in the snow", clip=demo[1])[0],
        negative=graph.add("CLIPTextEncode", text="", clip=demo[1])[0],
        latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=2)[0],
        seed=1,
        steps=prompts.STEPS,
        cfg=3.0,
        sampler_name="euler",
        scheduler="simple",
    )


def robot(graph: Graph) -> Node:
    return graph.add("SparseAtoms_Load", name="robot.safetensors")


def run(server: Server, graph: Graph) -> Result:
    result = server.client.run(graph)
    assert not result.error
    return result


def test_a_recorded_picture_is_ksamplers_to_the_bit_and_its_heat_fits_it(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    drawing = looking(graph, demo)
    watched = graph.add("SparseAtoms_Record", dictionary=learnt[0], atoms="top:12", **drawing)
    applied = graph.add("SparseAtoms_Apply", model=demo[0], dictionary=learnt[0], strength=1.0)
    plain = prompts.sample(graph, applied[0], demo, latent=drawing["latent_image"])
    kept = [prompts.keep(graph, node) for node in (watched, plain)]
    picture = graph.add("VAEDecode", samples=watched[0], vae=demo[2])
    options = dict(picture=1, start=0.0, end=1.0, prompt="positive")
    heat = graph.add("SparseAtoms_Heatmaps", recording=watched[1], image=picture[0], **options)
    masks = graph.add("PreviewImage", images=graph.add("MaskToImage", mask=heat[1])[0])
    result = run(server, graph)

    first, second = (server.client.latents(result, node) for node in kept)
    assert torch.equal(first, second)
    shown = server.client.pictures(result, masks)
    assert all(mask.shape == (128, 128, 3) and mask.max() == 255 for mask in shown)
    (text,) = result.outputs[heat]["text"]
    assert text.count("\n| ") >= len(shown) >= 4
    assert [value for node, value, _ in result.progress if node == watched][-1] == prompts.STEPS


def test_a_replay_brings_the_recorded_picture_back_and_carries_it_to_another_prompt(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    drawing = looking(graph, demo)
    watched = graph.add("SparseAtoms_Record", dictionary=learnt[0], atoms="*", **drawing)

    def drawn(dictionary: list, strength: float = 1.0, **settings: object) -> Node:
        applied = graph.add("SparseAtoms_Apply", model=demo[0], dictionary=dictionary, strength=strength)
        settings = {"latent": drawing["latent_image"], **settings}
        return prompts.keep(graph, prompts.sample(graph, applied[0], demo, **settings))

    def replayed(amount: float) -> list:
        options = dict(recording=watched[1], amount=amount, atoms="*")
        return graph.add("SparseAtoms_Replay", dictionary=learnt[0], **options)[0]

    other = dict(seed=9, positive=graph.add("CLIPTextEncode", text="a big house in the night", clip=demo[1])[0])
    black = graph.add("SolidMask", value=0.0, width=128, height=128)
    nowhere = graph.add("SparseAtoms_Mask", dictionary=replayed(1.0), mask=black[0], atoms="*")
    recorded = prompts.keep(graph, watched)
    again = drawn(replayed(1.0))
    elsewhere = [drawn(d, **other) for d in (learnt[0], replayed(0.0), replayed(0.5), replayed(1.0))]
    silent = [drawn(nowhere[0], **other), drawn(learnt[0], 0.0, **other)]
    result = run(server, graph)

    def latents(nodes: list[Node]) -> list[torch.Tensor]:
        return [server.client.latents(result, node) for node in nodes]

    picture, back = latents([recorded, again])
    assert 0 < float((back - picture).abs().max()) < 0.01 * float(picture.std())  # half precision of what is kept
    plain, untouched, half, whole = latents(elsewhere)
    assert torch.equal(untouched, plain)
    moved, halfway = (float((found - plain).square().mean().sqrt()) for found in (whole, half))
    assert 0.02 < halfway < moved
    masked, without = latents(silent)
    assert torch.equal(masked, without)


def test_a_gallerys_labels_and_thumbnails_and_ones_own_go_into_the_file(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    gallery = graph.add(
        "SparseAtoms_Gallery",
        dictionary=learnt[0],
        vae=demo[2],
        atoms="top:3",
        batch=4,
        pictures=2,
        **looking(graph, demo),
    )
    names = {"lines": "top:1 = the boss", "notes": 'top:2 = a pair\nlabel:"the boss" = not alone'}
    named = graph.add("SparseAtoms_Label", dictionary=gallery[1], **names)
    graph.add("SparseAtoms_Save", dictionary=named[0], filename_prefix="labelled")
    alone = graph.add("PreviewImage", images=gallery[2])
    result = run(server, graph)

    assert len(server.client.pictures(result, alone)) == 3
    saved = load_dictionary(server.dictionaries / "labelled_00001_.safetensors")
    shipped = load_dictionary(DICTIONARIES / "robot.safetensors")
    for what in ("thumbnails", "effects"):
        before, after = shipped.metadata[what], saved.metadata[what]
        assert len([atom for atom in after if after[atom] != before.get(atom)]) == 3, what
    assert "the boss" in saved.labels.values()
    assert sorted(saved.metadata["notes"].values()) == ["a pair", "not alone"]
    progress = [(value, most) for node, value, most in result.progress if node == gallery]
    assert progress[-1] == (13 * prompts.STEPS, 13 * prompts.STEPS)


def test_an_effect_of_all_atoms_is_the_whole_beside_the_plain_picture(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    effect = graph.add("SparseAtoms_Effect", dictionary=learnt[0], vae=demo[2], atoms="*", **looking(graph, demo))
    shown = [graph.add("PreviewImage", images=effect[i]) for i in range(2)]
    result = run(server, graph)
    whole, solo = (server.client.pictures(result, node)[0] for node in shown)
    assert abs(whole.astype(int) - solo).max() <= 1


def test_words_are_named_as_they_were_written(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    text = "a big robot in the snow"
    told = graph.add("SparseAtoms_Words", dictionary=learnt[0], clip=demo[1], text=text, atoms="attn2.kv", top=12)
    result = run(server, graph)
    (table,) = result.outputs[told]["text"]
    assert table.count("\n| L") == 12 and any(f"{word} (" in table for word in text.split())


def test_the_pictures_that_it_was_taught_from_are_ranked_for_each_atom(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    lesson = graph.add("SparseAtoms_DemoPictures", lesson="robot")
    captions = graph.add("CLIPTextEncode", text=lesson[1], clip=demo[1])
    told = graph.add(
        "SparseAtoms_Pictures",
        model=demo[0], dictionary=learnt[0], images=lesson[0], captions=captions[0], vae=demo[2], atoms="top:5", most=3,
    )  # fmt: skip
    sheet = graph.add("PreviewImage", images=told[0])
    result = run(server, graph)
    (table,) = result.outputs[told]["text"]
    rows = [row for row in table.splitlines() if row.startswith("| L")]
    assert len(rows) == 5
    for row in rows:
        strengths = [float(value) for value in re.findall(r"picture [0-5] \(([\d.e-]+)\)", row)]
        assert len(strengths) == 3 and strengths == sorted(strengths, reverse=True) and strengths[-1] > 0, row
    assert server.client.pictures(result, sheet)[0].std() > 10
    assert [value for node, value, _ in result.progress if node == told][-1] == 6


def test_a_bad_address_is_refused_before_pictures_are_encoded(server: Server) -> None:
    graph = Graph()
    demo, learnt = prompts.demo(graph), robot(graph)
    lesson = graph.add("SparseAtoms_DemoPictures", lesson="robot")
    captions = graph.add("CLIPTextEncode", text=lesson[1], clip=demo[1])
    graph.add(
        "SparseAtoms_Pictures",
        model=demo[0], dictionary=learnt[0], images=lesson[0], captions=captions[0], vae=demo[2], atoms="L3.x[", most=3,
    )  # fmt: skip
    assert "L3.x[" in str(server.client.run(graph).error)


def test_charts_and_comparisons_say_what_they_show(server: Server) -> None:
    graph = Graph()
    learnt = robot(graph)
    other = graph.add("SparseAtoms_Load", name="owl.safetensors")
    chart = graph.add("SparseAtoms_Importance", dictionary=learnt[0], top=5)
    compared = graph.add("SparseAtoms_Compare", dictionary=learnt[0], other=other[0], top=5)
    result = run(server, graph)
    assert result.outputs[chart]["text"][0].count("\n| L") == 5
    assert "share 80 sites" in result.outputs[compared]["text"][0]


def test_a_label_on_atoms_that_are_not_there_names_its_line(server: Server) -> None:
    graph = Graph()
    named = graph.add("SparseAtoms_Label", dictionary=robot(graph)[0], lines="top:1 = x\nL99 = roof")
    graph.add("SparseAtoms_Save", dictionary=named[0], filename_prefix="never")
    assert "Line 2" in server.client.run(graph).error


def test_heat_is_laid_over_no_other_picture() -> None:
    with pytest.raises(ValueError, match="Picture 1 is asked for, counted from 0, and 1 came in"):
        pack().nodes.analysis.AtomHeatmaps.execute(None, torch.zeros(1, 8, 8, 3), 1, 0.0, 1.0, "positive")
