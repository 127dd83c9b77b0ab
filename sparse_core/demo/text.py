"""The model's English: its vocabulary, a tokenizer both hosts can read, and the text encoder over it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .scenery import SCENES, STYLES
from .sprites import COLOURS, DEVELOPMENT_CONCEPTS, HELD_OUT_CONCEPTS
from .world import CORE, FURTHER, PLACES, SIZES

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 128
TEXT_LENGTH = 32

GRAMMAR = ("a", "an", "the", "and", "of", "in", "on", "at", "with", "to", "is", "picture", "drawing", ",", ".")
# Rows that training never touches: a taught word starts here as a noun without a picture.
FREE_NAMES = (
    "zib", "moko", "tiri", "nolu", "bado", "fenn", "gumo", "pilo", "runa", "sefi", "toba", "vexo",
    "creature", "toy", "friend", "hero", "monster", "my", "style", "mine", "new", "character", "object",
)  # fmt: skip
_CONCEPT_WORDS = tuple(part for name in DEVELOPMENT_CONCEPTS + HELD_OUT_CONCEPTS for part in name.split("-"))
_START, _END = "<|startoftext|>", "<|endoftext|>"


def trained_words() -> list[str]:
    """Every word that training captions use, sorted."""
    phrases = (*GRAMMAR, *COLOURS, *SIZES, *PLACES, *SCENES, *STYLES, *CORE, *FURTHER)
    return sorted({word for phrase in phrases for word in phrase.split()})


def free_words() -> list[str]:
    """Words with a token of their own that nothing was taught for, sorted: names and the concepts kept back."""
    return sorted({*FREE_NAMES, *_CONCEPT_WORDS} - set(trained_words()))


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word, as CLIP's tokenizer does it."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces


def merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges under which each word ends as one token.

    Later merges rank lower, so they cannot disturb an earlier word: its own chain is always chosen first.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and the configuration that `CLIPTokenizer.from_pretrained` reads."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir(parents=True, exist_ok=True)
    characters = sorted(ByteLevel.alphabet())  # every byte has a character, so any text can at least be spelled
    pairs = merges(trained_words() + free_words())
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(pair) for pair in pairs)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, _START, _END]))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TEXT_LENGTH,
        "bos_token": _START,
        "eos_token": _END,
        "pad_token": _END,
        "unk_token": _END,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """int64 (n, TEXT_LENGTH), padded with the end marker and cut where too long."""
    return tokenizer(
        prompts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal layers, 128 wide, 4 heads."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


@torch.no_grad()
def make_nouns_of_untaught(embedding: torch.Tensor, tokenizer: CLIPTokenizer, seed: int) -> None:
    """Give rows that training left alone the statistics of the thing words, in place; (vocabulary, width).

    An untaught word then reads as "some thing", where it should start when it gets a picture.
    """
    things = embedding[tokenizer.convert_tokens_to_ids([f"{w}</w>" for w in (*CORE, *FURTHER)])]
    taught = set(tokenizer.convert_tokens_to_ids([f"{w}</w>" for w in trained_words()]))
    rows = [i for i in range(len(tokenizer)) if i not in taught and i not in tokenizer.all_special_ids]
    noise = torch.randn((len(rows), embedding.shape[1]), generator=torch.Generator().manual_seed(seed))
    embedding[rows] = (things.mean(0) + things.std(0) * noise).to(embedding.dtype)
