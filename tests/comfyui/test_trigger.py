"""Atom Trigger: atoms act where a prompt names their word, and pictures are the plain model's everywhere else."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import comfy.sd
import prompts
import pytest
import torch
from client import Graph, Node
from comfy.sdxl_clip import SDXLTokenizer
from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL
from conftest import Server
from world import assert_close, pack

from sparse_core.demo.model import bundled_path
from sparse_core.hosts.comfyui import HEARD, listen
from sparse_core.plan import Heard


@cache
def clip() -> comfy.sd.CLIP:
    return pack().nodes.demo.load_clip(bundled_path())


def heard(clip: comfy.sd.CLIP, prompt: str) -> Heard:
    """What a CONDITIONING of the prompt carries."""
    ((_, options),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return options[HEARD]


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a big robot in the snow", {"robot"}),
        ("a big Robot, in the snow", {"robot"}),
        ("a (robot:1.3) at night", {"robot"}),
        ("robot", {"robot"}),
        ("a red boat", {"red boat"}),
        ("a robot beside a red boat", {"robot", "red boat"}),
        ("a boat and a red cat", set()),  # the words of a name, apart
        ("robots at the beach", set()),  # another token
        ("", set()),
    ],
)
def test_a_word_is_heard_where_its_tokens_stand_together(prompt: str, named: set[str]) -> None:
    assert heard(listen(clip(), ("robot", "red boat")), prompt) == (frozenset({"robot", "red boat"}), named)


def test_listening_changes_no_text_and_not_the_clip_it_starts_from() -> None:
    tokens = clip().tokenize("a big robot in the snow")
    before, after = (c.encode_from_tokens_scheduled(tokens) for c in (clip(), listen(clip(), ("robot",))))
    assert torch.equal(before[0][0], after[0][0]) and torch.equal(
        before[0][1]["pooled_output"], after[0][1]["pooled_output"]
    )
    assert HEARD not in before[0][1]


def test_copies_go_on_listening_and_a_second_trigger_adds_its_words() -> None:
    both = listen(listen(clip(), ("robot",)).clone(), ("owl",))
    assert heard(both.clone(), "an owl at night") == (frozenset({"robot", "owl"}), {"owl"})


class TwoEncoders(comfy.sd.CLIP):
    """SDXL's CLIP as far as it reads words: two tokenizers."""

    def __init__(self) -> None:
        super().__init__(no_init=True)
        self.tokenizer, self.tokenizer_options = SDXLTokenizer(), {}
        self.patcher, self.use_clip_schedule = SimpleNamespace(forced_hooks=None), False
        self.encode_from_tokens = lambda *args, **kwargs: {"cond": torch.zeros(1, 77, 2048)}

    def clone(self) -> TwoEncoders:
        return self


@pytest.mark.parametrize(("g", "l"), [("a big robot", "in the snow"), ("in the snow", "a robot"), ("a robot",) * 2])
def test_a_word_is_heard_whichever_encoder_reads_it(g: str, l: str) -> None:  # noqa: E741 - as the node calls it
    sizes = dict(width=64, height=64, crop_w=0, crop_h=0, target_width=64, target_height=64)
    listener = listen(TwoEncoders(), ("robot", "owl"))
    (((_, options),),) = CLIPTextEncodeSDXL.execute(clip=listener, text_g=g, text_l=l, **sizes).result
    assert options[HEARD].named == {"robot"}


def test_what_is_no_word_to_the_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="is no word to this CLIP"):
        listen(clip(), (" ",))


# ------------------------------------------------------------------------------------------------------- real runs


class Scene:
    """A graph with the robot behind a trigger."""

    def __init__(self, words: str = "", atoms: str = "*") -> None:
        self.graph = Graph()
        self.demo = prompts.demo(self.graph)
        self.robot = self.graph.add("SparseAtoms_Load", name="robot.safetensors")
        self.waiting = self.graph.add(
            "SparseAtoms_Trigger", dictionary=self.robot[0], clip=self.demo[1], words=words, atoms=atoms
        )

    def picture(self, model: list, prompt: str, negative: str = "", clip: list | None = None) -> Node:
        """Prompts through the trigger's CLIP, unless another is given."""
        said = [self.graph.add("CLIPTextEncode", text=t, clip=clip or self.waiting[1])[0] for t in (prompt, negative)]
        return prompts.sample(self.graph, model, self.demo, positive=said[0], negative=said[1])

    def applied(self, dictionary: list) -> list:
        return self.graph.add("SparseAtoms_Apply", model=self.demo[0], dictionary=dictionary, strength=1.0)[0]


def drawn(server: Server, graph: Graph, *samplers: Node) -> list[torch.Tensor]:
    """Their latents."""
    kept = [prompts.keep(graph, sampler) for sampler in samplers]
    result = server.client.run(graph)
    assert not result.error
    return [server.client.latents(result, node) for node in kept]


def test_a_prompt_that_does_not_name_it_gives_the_plain_picture_to_the_bit(server: Server) -> None:
    scene = Scene()
    prompt = "a big red cat on the right in the snow"
    waiting, plain = scene.picture(scene.applied(scene.waiting[0]), prompt), scene.picture(scene.demo[0], prompt)
    always = scene.picture(scene.applied(scene.robot[0]), prompt)
    waiting, plain, always = drawn(server, scene.graph, waiting, plain, always)
    assert torch.equal(waiting, plain) and not torch.equal(always, plain)


def test_a_prompt_that_names_it_is_drawn_as_on_the_positive_prompt_alone(server: Server) -> None:
    scene = Scene("zib, robot")
    prompt = "a big robot on the right in the snow"
    positive = scene.graph.add("SparseAtoms_Prompt", dictionary=scene.robot[0], prompt="positive", atoms="*")
    waiting, alone = (scene.picture(scene.applied(d), prompt) for d in (scene.waiting[0], positive[0]))
    both = scene.picture(scene.applied(scene.waiting[0]), prompt, negative="a robot")
    always = scene.picture(scene.applied(scene.robot[0]), prompt, negative="a robot")
    waiting, alone, both, always = drawn(server, scene.graph, waiting, alone, both, always)
    assert torch.equal(waiting, alone) and torch.equal(both, always) and not torch.equal(waiting, both)


def test_prompts_of_regions_each_decide_for_their_own(server: Server) -> None:
    """A robot's prompt on the left, a cat's on the right, in one run: as if the dictionary hung on the left prompt, and not on
    the copy of the negative one that ComfyUI makes for the left."""
    scene = Scene()
    graph = scene.graph

    def regional(left: list) -> list:
        right = graph.add("CLIPTextEncode", text="a big red cat on the right in the snow", clip=scene.waiting[1])
        places = [
            graph.add("ConditioningSetArea", conditioning=said, width=64, height=128, x=x, y=0, strength=1.0)[0]
            for said, x in ((left, 0), (right[0], 64))
        ]
        return graph.add("ConditioningCombine", conditioning_1=places[0], conditioning_2=places[1])[0]

    left = graph.add("CLIPTextEncode", text="a big robot on the left in the snow", clip=scene.waiting[1])[0]
    negative = graph.add("CLIPTextEncode", text="", clip=scene.waiting[1])[0]
    positive = graph.add("SparseAtoms_Prompt", dictionary=scene.robot[0], prompt="positive", atoms="*")
    hooks = graph.add("SparseAtoms_Hook", dictionary=positive[0], strength=1.0)
    hooked = graph.add(
        "ConditioningSetProperties", cond_NEW=left, strength=1.0, set_cond_area="default", hooks=hooks[0]
    )
    waiting = prompts.sample(
        graph, scene.applied(scene.waiting[0]), scene.demo, positive=regional(left), negative=negative
    )
    expected = prompts.sample(graph, scene.demo[0], scene.demo, positive=regional(hooked[0]), negative=negative)
    waiting, expected = drawn(server, graph, waiting, expected)
    assert_close(waiting, expected)


def test_a_prompt_of_another_clip_is_refused_by_name(server: Server) -> None:
    scene = Scene()
    prompts.keep(scene.graph, scene.picture(scene.applied(scene.waiting[0]), "a robot in the snow", clip=scene.demo[1]))
    assert "Atoms wait for robot" in server.client.run(scene.graph).error
