"""The picture-book world: a scene specification, the picture it means, and the words that describe it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from .scenery import SCENES, SIDE, STYLES, VARIANTS, backdrop
from .sprites import COLOURS, Artwork, recolour

PLACES = ("left", "middle", "right")
SIZES = {"small": 48, "big": 72}

# word in a caption -> name of the drawing. Core things come in every colour, further things in their own.
CORE = {
    "cat": "cat", "bird": "bird", "fish": "fish", "frog": "frog", "house": "house", "tree": "deciduous-tree",
    "car": "automobile", "boat": "sailboat", "mushroom": "mushroom", "umbrella": "umbrella", "star": "star",
    "flower": "tulip", "apple": "red-apple", "butterfly": "butterfly",
}  # fmt: skip
FURTHER = {
    "dog": "dog", "pig": "pig", "cow": "cow", "horse": "horse", "sheep": "ewe", "camel": "camel", "tiger": "tiger",
    "elephant": "elephant", "giraffe": "giraffe", "zebra": "zebra", "kangaroo": "kangaroo", "panda": "panda",
    "koala": "koala", "lion": "lion", "monkey": "monkey", "rabbit": "rabbit", "mouse": "mouse", "squirrel": "chipmunk",
    "hippo": "hippopotamus", "wolf": "wolf", "snake": "snake", "crocodile": "crocodile", "dinosaur": "sauropod",
    "whale": "spouting-whale", "dolphin": "dolphin", "shark": "shark", "crab": "crab", "squid": "squid",
    "snail": "snail", "spider": "spider", "peacock": "peacock", "swan": "swan", "duck": "duck", "chick": "baby-chick",
    "ghost": "ghost", "alien": "alien-monster", "witch": "woman-mage", "baby": "baby", "cactus": "cactus",
    "palm": "palm-tree", "pine": "evergreen-tree", "sunflower": "sunflower", "leaf": "maple-leaf",
    "clover": "four-leaf-clover", "banana": "banana", "cherry": "cherries", "strawberry": "strawberry",
    "grapes": "grapes", "pineapple": "pineapple", "watermelon": "watermelon", "carrot": "carrot", "corn": "ear-of-corn",
    "bread": "bread", "cheese": "cheese-wedge", "pizza": "pizza", "taco": "taco", "egg": "cooking",
    "cake": "birthday-cake", "donut": "doughnut", "cookie": "cookie", "icecream": "soft-ice-cream", "candy": "candy",
    "lollipop": "lollipop", "coffee": "hot-beverage", "ball": "soccer-ball", "basketball": "basketball", "drum": "drum",
    "trumpet": "trumpet", "piano": "musical-keyboard", "bell": "bell", "book": "closed-book", "pencil": "pencil",
    "scissors": "scissors", "hammer": "hammer", "key": "key", "lock": "locked", "clock": "alarm-clock",
    "lamp": "light-bulb", "camera": "camera", "phone": "telephone", "television": "television", "chair": "chair",
    "bed": "bed", "door": "door", "gift": "wrapped-gift", "balloon": "balloon", "crown": "crown", "hat": "top-hat",
    "shoe": "running-shoe", "shirt": "t-shirt", "dress": "dress", "glasses": "sunglasses", "backpack": "backpack",
    "train": "locomotive", "bus": "bus", "truck": "delivery-truck", "tractor": "tractor", "bicycle": "bicycle",
    "scooter": "motor-scooter", "plane": "airplane", "ship": "ship", "tent": "tent", "castle": "castle",
    "rainbow": "rainbow", "fire": "fire", "trophy": "trophy", "heart": "red-heart", "diamond": "gem-stone",
    "kite": "kite", "teapot": "teapot", "basket": "basket", "bucket": "bucket", "magnet": "magnet",
    "compass": "compass", "ufo": "flying-saucer",
}  # fmt: skip

# One spot for each place and size, on the VAE's 8-pixel grid: a thing has the same latents wherever it stands, and a
# caption leaves no choice of positions open. Spots left to chance made the model average them into blobs.
_LEFT_EDGES = {"small": {"left": 8, "middle": 40, "right": 72}, "big": {"left": 0, "middle": 32, "right": 56}}
_FEET = {"small": 112, "big": 120}


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing in a picture. `colour` is None for things drawn in their own colours."""

    word: str
    place: str
    size: str = "big"
    colour: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """All that a picture shows. `seed` settles what captions leave open: where sun, clouds and hills are."""

    things: tuple[Thing, ...]
    scene: str
    style: str = STYLES[0]
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Rendering:
    """picture: uint8 (128, 128, 3). masks: one float32 (128, 128) in 0..1 per thing, what is visible of it."""

    picture: np.ndarray
    masks: tuple[np.ndarray, ...]
    caption: str


class World:
    """Renders scenes from artwork.

    `sprites` adds or replaces things: a word and a function from a size in pixels to uint8 RGBA (size, size, 4).
    That is how pictures of a new concept are made::

        world = World(art, {"robot": lambda size: art.sprite("robot", size)})
        world.render(Scene((Thing("robot", "left"),), "beach")).picture
    """

    def __init__(self, art: Artwork, sprites: Mapping[str, Callable[[int], np.ndarray]] | None = None):
        self._art = art
        self._own = dict(sprites or {})
        self._sprite = lru_cache(maxsize=2048)(self._make_sprite)

    def render(self, scene: Scene) -> Rendering:
        """Deterministic in `scene`. KeyError for a word, scene, place or size that the world lacks."""
        canvas = backdrop(scene.scene, scene.style, random.Random(scene.seed).randrange(VARIANTS)).astype(np.float32)
        masks: list[np.ndarray] = []
        for thing in scene.things:
            sprite = self._sprite(thing.word, thing.size, thing.colour, scene.style)
            x = _LEFT_EDGES[thing.size][thing.place]
            y = _FEET[thing.size] - SIZES[thing.size]
            layer = np.zeros((SIDE, SIDE, 4), np.float32)
            layer[y : y + sprite.shape[0], x : x + sprite.shape[1]] = sprite
            alpha = layer[..., 3] / 255
            canvas = canvas * (1 - alpha[..., None]) + layer[..., :3] * alpha[..., None]
            masks = [m * (1 - alpha) for m in masks] + [alpha]
        return Rendering(canvas.round().astype(np.uint8), tuple(masks), caption(scene))

    def _make_sprite(self, word: str, size: str, colour: str | None, style: str) -> np.ndarray:
        pixels = SIZES[size]
        own = self._own.get(word)
        sprite = own(pixels) if own else self._art.sprite((CORE | FURTHER)[word], pixels)
        if colour:
            sprite = recolour(sprite, colour)
        return paper_edge(sprite) if style == "paper cutout" else sprite


def paper_edge(sprite: np.ndarray) -> np.ndarray:
    """Give a sprite the white border of a paper cutout; uint8 RGBA of the same shape."""
    alpha = Image.fromarray(sprite[..., 3])
    border = alpha.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.GaussianBlur(0.6))
    sheet = Image.new("RGBA", alpha.size, (255, 255, 255, 0))
    sheet.putalpha(border)
    return np.array(Image.alpha_composite(sheet, Image.fromarray(sprite)))


_SCENE_WORDS = {
    "meadow": "in the meadow",
    "beach": "at the beach",
    "night": "in the night",
    "snow": "in the snow",
    "desert": "in the desert",
    "sunset": "at sunset",
}
_PLACE_WORDS = {"left": "on the left", "middle": "in the middle", "right": "on the right"}


def describe_thing(thing: Thing) -> str:
    """`a small red cat on the left`"""
    words = " ".join(filter(None, (thing.size, thing.colour, thing.word)))
    article = "an" if words[0] in "aeiou" else "a"
    return f"{article} {words} {_PLACE_WORDS[thing.place]}"


def caption(scene: Scene) -> str:
    """The plain description of a scene, which a prompt should follow for best results."""
    things = " and ".join(describe_thing(thing) for thing in scene.things)
    return f"{things} {_SCENE_WORDS[scene.scene]}, {scene.style}"


def paraphrase(scene: Scene, rng: random.Random) -> str:
    """A description as an artist may type it: other order, or something left open. Style left out means the first."""
    things = [describe_thing(thing) for thing in scene.things]
    if len(things) == 2 and rng.random() < 0.3:
        things.reverse()
    if len(things) == 1 and rng.random() < 0.3:
        thing = scene.things[0]
        things = [things[0].replace(rng.choice((f" {_PLACE_WORDS[thing.place]}", f" {thing.size}")), "", 1)]
    joined = " and ".join(things)
    place = _SCENE_WORDS[scene.scene]
    text = rng.choice((f"{joined} {place}", f"{place} {joined}", f"a picture of {joined} {place}"))
    if scene.style == STYLES[0] and rng.random() < 0.5:
        return text
    return rng.choice((f"{text}, {scene.style}", f"{scene.style}, {text}"))


def random_scene(rng: random.Random, core_share: float = 0.6, pair_share: float = 0.5) -> Scene:
    """Draw a scene with every attribute balanced; `core_share` of the things are core things."""
    places = ["left", "right"] if rng.random() < pair_share else [rng.choice(PLACES)]
    things = []
    for place in places:
        size = rng.choice(tuple(SIZES))
        if rng.random() < core_share:
            things.append(Thing(rng.choice(tuple(CORE)), place, size, rng.choice(tuple(COLOURS))))
        else:
            things.append(Thing(rng.choice(tuple(FURTHER)), place, size))
    return Scene(tuple(things), rng.choice(SCENES), rng.choice(STYLES), rng.randrange(2**31))


def held_out(scene: Scene) -> bool:
    """Whether a combination is kept for evaluation: one in ten, by its content and not by its seed."""
    key = "|".join((scene.scene, scene.style, *(f"{t.word} {t.colour} {t.size} {t.place}" for t in scene.things)))
    return random.Random(key).random() < 0.1
