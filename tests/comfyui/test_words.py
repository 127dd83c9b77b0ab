"""Taught words: read wherever they stand, learnt along with the atoms, and nothing else of a prompt changes."""

from __future__ import annotations

from copy import copy, deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import comfy.sd
import comfy.sdxl_clip
import prompts
import pytest
import torch
from client import Graph, Node
from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
from conftest import Server
from diffusers import StableDiffusionPipeline
from factories import random_dictionary
from test_host import DynamicStandIn
from torch import Tensor
from world import assert_close, demo_layers, demo_model, pack

from nodes import CLIPSetLastLayer, ConditioningConcat, ConditioningZeroOut
from sparse_core.demo.model import bundled_path, load_pipeline
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.hosts.base import Host
from sparse_core.hosts.comfyui import (
    HEARD,
    PROMPT,
    ComfyHost,
    LearningClip,
    Prompt,
    listen,
    pupil_of,
    speak,
    teach,
    token_names,
)
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.words import Words

WIDTH = 128
NAMING = ["a big zib in the snow", "Zib", "a (zib:1.3) at night", "a zib beside a zib"]
OTHERS = ["a big cat in the snow", "", "zibs at the beach"]


@cache
def clip() -> comfy.sd.CLIP:
    return pack().nodes.demo.load_clip(bundled_path())


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline()


def shift(tokens: int = 1, seed: int = 0) -> dict[int, Tensor]:
    return {WIDTH: 0.2 * torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))}


def said(clip: comfy.sd.CLIP, prompt: str) -> list:
    """The CONDITIONING of a prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def read(clip: comfy.sd.CLIP, prompt: str) -> Tensor:
    return said(clip, prompt)[0][0]


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("prompt", NAMING)
def test_a_taught_word_is_read_otherwise_and_so_in_copies(prompt: str) -> None:
    speaker = speak(clip(), {"zib": shift()})
    assert not torch.allclose(read(speaker, prompt), read(clip(), prompt), atol=1e-2)
    assert torch.equal(read(speaker.clone(), prompt), read(speaker, prompt))


@pytest.mark.parametrize("prompt", OTHERS)
def test_prompts_without_the_word_are_read_to_the_bit_as_before(prompt: str) -> None:
    speaker = speak(clip(), {"zib": shift(), "red boat": shift(2)})
    assert torch.equal(read(speaker, prompt), read(clip(), prompt))


@pytest.mark.parametrize(("word", "prompt"), [("zib", NAMING[0]), ("red boat", "a red boat and a boat, red")])
def test_both_hosts_read_a_taught_word_alike(pipeline: StableDiffusionPipeline, word: str, prompt: str) -> None:
    words = {word: shift(len(word.split()))}
    host = DiffusersHost(pipeline)
    with host.speaking(words):
        expected = host.encode_prompt(prompt).text
    assert_close(read(speak(clip(), words), prompt)[:, : expected.shape[1]], expected)


def test_words_of_several_dictionaries_are_read_together_and_shifts_of_one_word_add_up() -> None:
    one, other = {"zib": shift(seed=1)}, {"moko": shift(seed=2)}
    both = speak(speak(clip(), one), other)
    assert torch.equal(read(both, "a zib"), read(speak(clip(), one), "a zib"))
    assert torch.equal(read(both, "a moko"), read(speak(clip(), other), "a moko"))
    more = {"zib": shift(seed=3)}
    summed = {"zib": {WIDTH: one["zib"][WIDTH] + more["zib"][WIDTH]}}
    assert_close(read(speak(speak(clip(), one), more), "a zib"), read(speak(clip(), summed), "a zib"))


def test_one_word_within_another_is_read_with_both(pipeline: StableDiffusionPipeline) -> None:
    words = {"red boat": shift(2), "boat": shift(seed=3)}
    host = DiffusersHost(pipeline)
    with host.speaking(words):
        expected = host.encode_prompt("a red boat").text
    both = speak(speak(clip(), {"red boat": words["red boat"]}), {"boat": words["boat"]})
    assert_close(read(both, "a red boat")[:, : expected.shape[1]], expected)


def test_one_dictionary_in_two_regions_teaches_its_word_once() -> None:
    once, twice = speak(clip(), {"zib": shift()}), speak(speak(clip(), {"zib": shift()}), {"zib": shift()})
    assert torch.equal(read(once, "a zib"), read(twice, "a zib"))


def test_a_word_is_read_by_the_weights_that_a_clip_has_when_it_encodes() -> None:
    """ComfyUI puts patches into the weights when it loads a CLIP, and takes them out for another."""
    merged = clip().clone()
    key = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
    merged.add_patches({key: ("diff", (torch.randn(merged.patcher.model_state_dict()[key].shape),))})
    expected = read(merged, "a zib")
    read(clip(), "a zib")
    assert torch.equal(read(speak(merged, {"zib": {WIDTH: torch.zeros(1, WIDTH)}}), "a zib"), expected)
    read(clip(), "a zib")


def test_a_clip_that_is_asked_without_notes_reads_the_word_too() -> None:
    speaker = speak(clip(), {"zib": shift()})
    assert torch.equal(speaker.encode_from_tokens(speaker.tokenize("a zib")), read(speaker, "a zib"))
    assert torch.equal(speaker.encode("a zib"), read(speaker, "a zib"))


def test_no_taught_word_leaves_the_clip_as_it_is() -> None:
    assert speak(clip(), {}) is clip()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            {"zib": {768: torch.zeros(1, 768)}},
            "1 tokens of width 768; these text encoders read it as 1 tokens of width 128",
        ),
        ({"zib": shift(2)}, "2 tokens of width 128; these text encoders read it as 1 tokens of width 128"),
    ],
)
def test_a_word_of_other_text_encoders_is_refused(words: Words, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        speak(clip(), words)


def test_text_encoders_of_other_kinds_are_refused_in_words() -> None:
    other = copy(clip())
    other.cond_stage_model = torch.nn.Module()
    with pytest.raises(ValueError, match=r"SD1.x, SD2.x and SDXL; this CLIP has another, l"):
        speak(other, {"zib": shift()})


def test_a_trigger_hears_a_taught_word_whichever_comes_first() -> None:
    taught = {"zib": shift()}
    for both in (listen(speak(clip(), taught), ("zib",)), speak(listen(clip(), ("zib",)), taught)):
        assert [said(both, prompt)[0][1][HEARD].named for prompt in ("a zib", "a cat")] == [{"zib"}, set()]
        assert torch.equal(read(both, "a zib"), read(speak(clip(), taught), "a zib"))


def test_a_taught_word_goes_on_to_be_called_by_its_name() -> None:
    speaker = speak(clip(), {"zib": shift()})
    assert token_names(speaker, speaker.tokenize("a zib")) == token_names(clip(), clip().tokenize("a zib"))


# ------------------------------------------------------------------------------------------------------------ learning


def test_a_pupil_reads_as_before_and_leaves_no_text_encoder_in_files(tmp_path) -> None:
    caption = said(teach(clip(), "zib"), "a zib")
    assert torch.equal(caption[0][0], read(clip(), "a zib")) and pupil_of([caption]).learnt == "zib"
    torch.save(caption, tmp_path / "caption.pt")  # as core's dataset nodes do
    assert torch.load(tmp_path / "caption.pt", weights_only=False)[0][1][PROMPT] is None
    assert (tmp_path / "caption.pt").stat().st_size < 100_000


def test_captions_of_no_pupil_teach_no_word() -> None:
    assert pupil_of([said(clip(), "a zib")]) is None


def test_captions_that_dont_agree_on_a_word_or_dont_name_it_are_refused() -> None:
    with pytest.raises(ValueError, match="'zib', 'moko'; expected one word"):
        pupil_of([said(teach(clip(), word), f"a {word}") for word in ("zib", "moko")])
    with pytest.raises(ValueError, match="'zib', but it stands in none of the captions"):
        pupil_of([said(teach(clip(), "zib"), "a cat")])
    with pytest.raises(ValueError, match="is no word to this CLIP"):
        teach(clip(), " ")


def joined(one: list, other: list) -> list:
    (result,) = ConditioningConcat().concat(one, other)
    return result


def test_a_caption_that_was_changed_after_it_was_encoded_is_refused() -> None:
    pupil = teach(clip(), "zib")
    naming, silent = said(pupil, "a zib"), said(pupil, "at night")
    with pytest.raises(ValueError, match=r"'zib' was changed after CLIP Text Encode"):
        pupil_of([joined(naming, silent)])
    assert pupil_of([naming, joined(silent, silent)]).learnt == "zib"


def test_what_other_nodes_made_of_a_prompt_stays_while_its_word_is_learnt() -> None:
    pupil = teach(clip(), "zib")
    host, naming = ComfyHost(demo_model(), pupil), said(pupil, "a zib")
    (zeroed,) = ConditioningZeroOut().zero_out(naming)
    with host.learning("zib") as word:
        with torch.no_grad():
            word.shifts[WIDTH] += 1
        assert not host.stack_conditions([zeroed]).cross_attention.any()
        assert host.stack_conditions([joined(naming, said(pupil, "at night"))]).cross_attention.shape[1] == 64


def test_a_clip_is_taken_out_of_dynamic_memory_too_and_leaves_nothing_behind() -> None:
    there, other = copy(clip()), pack().nodes.demo.load_clip(bundled_path())
    there.patcher = DynamicStandIn(clip().patcher.model, clip().patcher.load_device, clip().patcher.offload_device)
    there.patcher.partially_load = clip().patcher.partially_load
    pupil = teach(there, "zib")
    host = ComfyHost(demo_model(), pupil)
    with pytest.raises(ValueError, match="This CLIP sits in ComfyUI's dynamic memory"), host.learning("zib"):
        pass
    pupil.patcher.cached_patcher_init = (lambda disable_dynamic: other.patcher, ())
    with torch.inference_mode():
        tokens = pupil.tokenize("a zib")
        caption = [[read(clip(), "a zib"), {PROMPT: None}]]
        caption[0][1][PROMPT] = Prompt(pupil, tokens, caption[0][0])
        with host.learning("zib") as word, host.trainable():
            host.stack_conditions([caption]).cross_attention.sum().backward()
    assert word.shifts[WIDTH].grad.any()
    assert pupil.patcher.non_dynamic_delegate_model is None


def test_words_that_the_clip_knows_already_are_read_once_while_another_is_learnt() -> None:
    """Apply before Teach Word, or after it; and the same word once more."""
    taught = {"zib": shift(), "moko": shift(seed=1)}
    for pupil in (teach(speak(clip(), taught), "zib"), speak(teach(clip(), "zib"), taught)):
        caption = said(pupil, "a zib beside a moko")
        host = ComfyHost(demo_model(), pupil_of([caption]))
        with host.learning("zib"), torch.no_grad():
            assert torch.equal(host.stack_conditions([caption]).cross_attention, caption[0][0])


def test_prompts_of_several_clips_are_refused() -> None:
    pupil = teach(clip(), "zib")
    (skipping,) = CLIPSetLastLayer().set_last_layer(pupil, -2)
    captions = [said(one, "a zib") for one in (pupil, skipping)]
    with pytest.raises(ValueError, match="'zib' come from several CLIPs"):
        pupil_of(captions)
    host = ComfyHost(demo_model(), pupil_of(captions[:1]))
    with host.learning("zib"), pytest.raises(ValueError, match="'zib' come from several CLIPs"):
        host.stack_conditions(captions[1:])


def test_two_words_in_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="is to learn 'zib' already"):
        teach(teach(clip(), "zib"), "moko")
    assert teach(teach(clip(), "zib"), "zib").learnt == "zib"


def test_captions_that_have_lost_their_prompt_are_refused() -> None:
    caption = deepcopy(said(teach(clip(), "zib"), "a zib"))
    with pytest.raises(ValueError, match="by way of a file or a copy"):
        pupil_of([caption])


def test_a_host_without_a_pupil_learns_no_word() -> None:
    with (
        pytest.raises(ValueError, match="No CLIP came along to learn 'zib' with"),
        ComfyHost(demo_model()).learning("zib"),
    ):
        pass


def test_a_text_of_several_pictures_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pupil, calls = teach(clip(), "zib"), []
    host, caption, other = ComfyHost(demo_model(), pupil), said(pupil, "a zib"), said(pupil, "a big zib")
    encode = LearningClip.encode_from_tokens
    monkeypatch.setattr(LearningClip, "encode_from_tokens", lambda *a, **k: calls.append(1) or encode(*a, **k))
    with host.learning("zib"):
        assert len(host.stack_conditions([caption, other, caption, caption]).cross_attention) == 4
    assert len(calls) == 2


def tiny_sdxl(dtype: torch.dtype) -> comfy.sd.CLIP:
    """SDXL's two text encoders, small and random."""

    def sizes(width: int) -> dict[str, int]:
        return {
            "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 4
        }  # fmt: skip

    target = SimpleNamespace(params={}, clip=comfy.sdxl_clip.SDXLClipModel, tokenizer=comfy.sdxl_clip.SDXLTokenizer)
    options = {"dtype": dtype, "clip_l_model_config": sizes(32), "clip_g_model_config": sizes(48)}
    made, generator = comfy.sd.CLIP(target, model_options=options), torch.Generator().manual_seed(0)
    for parameter in made.cond_stage_model.parameters():
        parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["single", "half"])
def test_both_encoders_of_sdxl_learn_the_word(dtype: torch.dtype) -> None:
    """Also behind CLIP Set Last Layer, with weights, in prompts of several chunks and of two texts."""
    with torch.inference_mode():
        pupil = teach(tiny_sdxl(dtype), "robot")
        sizes = dict(width=64, height=64, crop_w=0, crop_h=0, target_width=64, target_height=64)
        two = CLIPTextEncodeSDXL.execute(
            clip=pupil, text_g="a robot", text_l="a robot in the (snow:1.3)", **sizes
        ).args[0]
        (skipping,) = CLIPSetLastLayer().set_last_layer(pupil, -3)
        for caption in (two, said(skipping, "a (robot:1.2) " + "very " * 90 + "robot")):
            host = ComfyHost(demo_model(), pupil_of([caption]))
            with host.learning("robot") as word, host.trainable():
                again = host.stack_conditions([caption])
                assert torch.equal(again.cross_attention, caption[0][0])
                assert torch.equal(again.options[0]["pooled_output"], caption[0][1]["pooled_output"])
                (again.cross_attention.sin().sum() + again.options[0]["pooled_output"].sin().sum()).backward()
            assert {width: bool(s.grad.any()) for width, s in word.shifts.items()} == {32: True, 48: True}
            assert {p.dtype for p in pupil.cond_stage_model.clip_g.transformer.parameters()} == {dtype}
    shifts = {width: 0.1 * torch.randn(1, width) for width in (32, 48)}
    assert not torch.equal(read(speak(pupil, {"robot": shifts}), "a robot"), read(pupil, "a robot"))
    with pytest.raises(
        ValueError, match="1 tokens of width 32; these text encoders read it as 1 tokens of width 32 and"
    ):
        speak(pupil, {"robot": {32: shifts[32]}})


def gradient(host: Host, conditions: list, text: str) -> Tensor:
    """Of a number made of what the prompts are read as, with respect to the word. The nodes call in inference mode."""
    with torch.inference_mode(isinstance(host, ComfyHost)), host.learning("zib") as word, host.trainable():
        read = getattr(host.stack_conditions(conditions), text)[:, :16]
        (read * torch.randn(read.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return word.shifts[WIDTH].grad


def test_both_hosts_learn_a_word_alike(pipeline: StableDiffusionPipeline) -> None:
    captions, there = ("a zib in the snow", "a cat", "a big zib at night"), DiffusersHost(pipeline)
    expected = gradient(there, [there.encode_prompt(caption) for caption in captions], "text")
    with torch.inference_mode():
        pupil = teach(pack().nodes.demo.load_clip(bundled_path()), "zib")
        here = [said(pupil, caption) for caption in captions]
    found = gradient(ComfyHost(demo_model(), pupil), here, "cross_attention")
    assert expected.abs().max() > 0
    assert_close(found, expected)


def test_after_learning_prompts_are_read_as_before() -> None:
    pupil = teach(clip(), "zib")
    host, caption = ComfyHost(demo_model(), pupil), said(pupil, "a zib")
    with host.learning("zib") as word:
        with torch.no_grad():
            word.shifts[WIDTH] += 1
        assert not torch.equal(host.stack_conditions([caption]).cross_attention, caption[0][0])
    assert torch.equal(host.stack_conditions([caption]).cross_attention, caption[0][0])
    assert torch.equal(read(pupil, "a zib"), caption[0][0])


# ----------------------------------------------------------------------------------------------------------- real runs


def taught(graph: Graph, demo: Node, **settings: object) -> Node:
    """A training whose captions come from Teach Word."""
    pupil = graph.add("SparseAtoms_TeachWord", clip=demo[1], word="zib")
    captions = graph.add("CLIPTextEncode", text="a zib in the snow", clip=pupil[0])
    return prompts.training(graph, demo, captions=captions[0], seed=21, **settings)


def test_a_trained_word_comes_with_the_file_and_changes_the_picture_where_a_clip_is_applied(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    trained = taught(graph, demo, steps=6)
    graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix="word")
    kept, applied = [], []
    for strength in (1.0, 0.0):
        there = graph.add("SparseAtoms_Apply", model=demo[0], dictionary=trained[0], strength=strength, clip=demo[1])
        applied.append(there)
        for reader in (there[1], demo[1]):
            positive = graph.add("CLIPTextEncode", text="a zib on the left", clip=reader)
            kept.append(prompts.keep(graph, prompts.sample(graph, there[0], demo, positive=positive[0])))
    positive = graph.add("CLIPTextEncode", text="a zib on the left", clip=demo[1])
    kept.append(prompts.keep(graph, prompts.sample(graph, demo[0], demo, positive=positive[0])))
    result = server.client.run(graph)
    assert not result.error
    told, silent = (result.outputs.get(node, {}).get("text") for node in applied)
    assert told == ["Prompts through the CLIP that comes out read 'zib' as it was taught."] and silent is None
    assert "atoms, learnt with the word 'zib', in 6 steps" in result.outputs[trained]["text"][0]
    full, atoms_alone, off, off_too, plain = (server.client.latents(result, node) for node in kept)
    assert not torch.equal(full, atoms_alone) and not torch.equal(atoms_alone, plain)
    assert torch.equal(off, plain) and torch.equal(off_too, plain)
    (path,) = server.dictionaries.glob("word_*.safetensors")
    dictionary = load_dictionary(path)
    assert list(dictionary.words) == ["zib"] and dictionary.words["zib"][WIDTH].any()
    assert dictionary.metadata["modelspec.trigger_phrase"] == "zib"


def test_an_applied_word_that_no_clip_hears_is_told_of(server: Server) -> None:
    save_dictionary(
        replace(random_dictionary(demo_layers()), words={"zib": shift()}), server.place("heard.safetensors")
    )
    graph = Graph()
    demo, loaded = prompts.demo(graph), graph.add("SparseAtoms_Load", name="heard.safetensors")
    applied = [
        graph.add("SparseAtoms_Apply", model=demo[0], dictionary=loaded[0], strength=strength, **options)
        for strength, options in ((1.0, {}), (0.0, {}), (1.0, {"clip": demo[1]}))
    ]
    for one in applied:
        prompts.keep(graph, prompts.sample(graph, one[0], demo))
    result = server.client.run(graph)
    assert not result.error
    deaf, off, hearing = (result.outputs.get(one, {}).get("text") for one in applied)
    assert "taught the word 'zib': connect a CLIP" in deaf[0] and off is None and "as it was taught" in hearing[0]


def test_a_training_with_a_word_that_was_cancelled_goes_on_as_if_it_had_not_been(server: Server) -> None:
    """Its preview reads the word as it is by then, and changes nothing that is learnt."""

    def graph_of(name: str, **settings: object) -> Graph:
        graph = Graph()
        demo = prompts.demo(graph)
        pupil = graph.add("SparseAtoms_TeachWord", clip=demo[1], word="zib")
        preview = graph.add("CLIPTextEncode", text="a zib at night", clip=pupil[0])
        empty = graph.add("CLIPTextEncode", text="", clip=demo[1])
        trained = taught(
            graph, demo, steps=25, name=name, preview=preview[0], preview_every=10, negative=empty[0], **settings
        )
        graph.add("SparseAtoms_Save", dictionary=trained[0], filename_prefix=name)
        return graph

    assert not server.client.run(graph_of("word whole")).error
    halves = graph_of("word halves", resume=True)
    assert not server.client.run(halves, cancel_at=12).error
    assert not server.client.run(halves).error
    whole, cut, gone_on = (
        load_dictionary(server.dictionaries / f"word {name}_.safetensors")
        for name in ("whole_00001", "halves_00001", "halves_00002")
    )
    assert cut.metadata["training"]["steps_done"] < 25
    assert torch.equal(whole.words["zib"][WIDTH], gone_on.words["zib"][WIDTH])
    assert not torch.equal(whole.words["zib"][WIDTH], cut.words["zib"][WIDTH])


def test_captions_without_the_word_are_refused_in_a_run(server: Server) -> None:
    graph = Graph()
    demo = prompts.demo(graph)
    pupil = graph.add("SparseAtoms_TeachWord", clip=demo[1], word="moko")
    captions = graph.add("CLIPTextEncode", text="a zib in the snow", clip=pupil[0])
    graph.add("SparseAtoms_Info", dictionary=prompts.training(graph, demo, captions=captions[0])[0], top=1)
    assert "'moko', but it stands in none of the captions" in server.client.run(graph).error
