"""CLIPs that know words: which a prompt names, what was taught of them, and which are to be learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import takewhile
from typing import Any

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...plan import Heard
from ...words import Reading, Words, occurrences, speaking, together
from .applying import HEARD, KEY

PROMPT = f"{KEY}_prompt"
"""What a CLIP that a word is learnt with notes in its CONDITIONINGs, as a `Prompt`."""


def token_names(clip: comfy.sd.CLIP, tokens: dict[str, list]) -> list[str]:
    """What the tokens of a prompt say, without the padding at the end.

    :param tokens: what ``clip.tokenize`` gave.
    """
    first = max(tokens.values(), key=lambda chunks: sum(map(len, chunks)))
    names = []
    for chunk in tokens.get("g", first):
        words = [clip.tokenizer.untokenize([pair])[0][1] if isinstance(pair[0], int) else "embedding" for pair in chunk]
        names += [word.replace("</w>", "") for word in words]
    padding = len(list(takewhile(lambda name: name == names[-1], reversed(names))))
    return names[: len(names) - padding + 1]


class WordClip(comfy.sd.CLIP):
    """A CLIP that knows words. Copies of it do so too."""

    listened: tuple[str, ...] = ()
    """Words of which every CONDITIONING notes whether the prompt names them."""
    taught: tuple[Words, ...] = ()
    """Words that it reads as they were taught, by those who hand them to it."""
    learnt: str = ""
    """A word whose meaning a training may learn: every CONDITIONING notes its prompt."""
    _speaks = False

    def clone(self, *args: Any, **kwargs: Any) -> WordClip:
        """See ComfyUI's."""
        copy = with_words(super().clone(*args, **kwargs))
        copy.listened, copy.taught, copy.learnt = self.listened, self.taught, self.learnt
        return copy

    def encode_from_tokens_scheduled(
        self,
        tokens: dict[str, list],
        unprojected: bool = False,
        add_dict: dict[str, Any] | None = None,
        *args: Any,
        **kw: Any,
    ) -> list:
        """See ComfyUI's."""
        notes: dict[str, Any] = {}
        if self.listened:
            named = frozenset(word for word in self.listened if self.names(tokens, word))
            notes[HEARD] = Heard(frozenset(self.listened), named)
        with self.speaking():
            said = super().encode_from_tokens_scheduled(tokens, unprojected, {**(add_dict or {}), **notes}, *args, **kw)
        if self.learnt:
            said = [[text, {**options, PROMPT: Prompt(self, tokens, text)}] for text, options in said]
        return said

    def encode_from_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """See ComfyUI's."""
        with self.speaking():
            return super().encode_from_tokens(*args, **kwargs)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """The text encoders with the taught words, while the context lasts. Contexts within it change nothing."""
        if self._speaks:
            yield
            return
        self._speaks = True
        try:
            with self.reading():
                yield
        finally:
            self._speaks = False

    def reading(self) -> AbstractContextManager[None]:
        """The text encoders with the taught words, while the context lasts."""
        return speaking(together(self.taught), self.read)

    def read(self, word: str) -> list[Reading]:
        """How the text encoders read a word.

        :raises ValueError: one of them is none of Stable Diffusion's.
        """
        found = []
        for encoder, tokens in self._tokens(word).items():
            model = getattr(self.cond_stage_model, f"clip_{encoder}", None)
            if model is None:
                raise ValueError(
                    f"Words can be taught to the text encoders of SD1.x, SD2.x and SDXL; this CLIP has another, {encoder}. Connect "
                    "the CLIP of such a checkpoint."
                )
            found.append(Reading(tokens, model.transformer.get_input_embeddings()))
        return found

    def names(self, tokens: dict[str, list], word: str) -> bool:
        """Whether any of the encoders reads a word in a prompt's tokens."""
        sought, prompts = self._tokens(word), self._chunks(tokens)
        return any(
            bool(ids) and bool(occurrences(chunk, ids))
            for encoder, ids in sought.items()
            for chunk in prompts.get(encoder, ())
        )

    def knows(self, word: str) -> bool:
        """Whether it is anything to the tokenizer."""
        return any(self._tokens(word).values())

    def reads_like(self, other: WordClip) -> bool:
        """Whether a prompt means the same to both: the same text encoders, LoRAs on them, last layer and words."""
        mine, theirs = (
            (id(c.cond_stage_model), c.patcher.patches_uuid, c.layer_idx, list(map(id, c.taught)))
            for c in (self, other)
        )
        return mine == theirs

    def _tokens(self, word: str) -> dict[str, list[int]]:
        """Of a word by text encoder."""
        return {encoder: chunks[0] for encoder, chunks in self._chunks(self.tokenize(word)).items()}

    def _chunks(self, tokens: dict[str, list]) -> dict[str, list[list[int]]]:
        """Numbers of a prompt's tokens by text encoder, in the pieces that it reads one after the other, without start, end and
        padding."""

        def numbers(chunk: list) -> list[int]:
            return [pair[0] for pair in chunk if isinstance(pair[0], int)]

        silent = {encoder: set(numbers(chunks[0])) for encoder, chunks in self.tokenize("").items()}
        return {
            encoder: [[number for number in numbers(chunk) if number not in padding] for chunk in tokens[encoder]]
            for encoder, padding in silent.items()
            if encoder in tokens
        }


class LearningClip(WordClip):
    """A CLIP during a training."""

    opened: Words
    """The word that is being learnt."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """See `WordClip`. What is learnt is added to what the CLIP knows of the word, however the two lie."""
        with super().reading(), speaking(self.opened, self.read):
            yield

    def load_model(self, tokens: Any = None) -> ModelPatcher:
        """See ComfyUI's. It was loaded together with the model, which loading it in each step could push out."""
        return self.patcher


class Prompt:
    """What a CONDITIONING was made of: it can be read anew."""

    def __init__(self, clip: WordClip, tokens: dict[str, list], text: Tensor) -> None:
        """
        :param text: what the prompt was read as. Nodes such as Conditioning (Concat) put another in its place and keep the notes.
        """
        self.clip, self.tokens, self.text = clip, tokens, text

    @property
    def names_the_word(self) -> bool:
        """Whether it holds the word that is to be learnt."""
        return self.clip.names(self.tokens, self.clip.learnt)

    def __reduce__(self) -> tuple:
        """Nodes that write CONDITIONINGs into files leave it behind: a text encoder does not belong there."""
        return type(None), ()


def with_words(clip: comfy.sd.CLIP) -> WordClip:
    """The same CLIP as one that knows words."""
    knowing = WordClip(no_init=True)
    vars(knowing).update(vars(clip))
    return knowing


def _clone(clip: comfy.sd.CLIP) -> WordClip:
    return clip.clone() if isinstance(clip, WordClip) else with_words(clip.clone())


def listen(clip: comfy.sd.CLIP, words: Sequence[str]) -> WordClip:
    """A clone of the CLIP that listens for some words too, beside those it knows already.

    :raises ValueError: a word is nothing to the CLIP's tokenizer.
    """
    listener = _clone(clip)
    listener.listened = (*listener.listened, *words)
    for word in words:
        if not listener.knows(word):
            raise ValueError(f"{word!r} is no word to this CLIP. Listen for one that stands in the captions.")
    return listener


def speak(clip: comfy.sd.CLIP, words: Words) -> comfy.sd.CLIP:
    """A clone of the CLIP that reads some words as they were taught, beside those it knows already.

    :raises ValueError: a word was learnt with other text encoders.
    """
    if not words:
        return clip
    speaker = _clone(clip)
    speaker.taught = (*speaker.taught, words)
    with speaker.speaking():  # told here, where the two meet
        return speaker


def teach(clip: comfy.sd.CLIP, word: str) -> WordClip:
    """A clone of the CLIP whose CONDITIONINGs a training can learn the meaning of a word from.

    :raises ValueError: the word is nothing to the CLIP's tokenizer, or the CLIP is to learn another one already.
    """
    pupil, word = _clone(clip), word.strip()
    if pupil.learnt not in ("", word):
        raise ValueError(
            f"This CLIP is to learn {pupil.learnt!r} already, and a training learns one word. Take one Teach Word out; several "
            "words in a row, such as 'red boat', are fine."
        )
    if not word or not pupil.knows(word):
        raise ValueError(f"{word!r} is no word to this CLIP. Give the one that the captions call the new thing by.")
    pupil.read(word)
    pupil.learnt = word
    return pupil


def pupil_of(captions: Sequence[list], what: str = "captions") -> WordClip | None:
    """The CLIP of captions from which a word's meaning is to be learnt, if they are such.

    :param what: what the captions are called.
    :raises ValueError: they are to teach several words or come from several CLIPs, none of them names the word, one that does was
        changed since, or they were to teach a word but don't say any more which.
    """
    entries = [entry for caption in captions for entry in caption]
    if any(PROMPT in options and options[PROMPT] is None for _, options in entries):
        raise ValueError(
            f"The {what} come from Teach Word by way of a file or a copy, which keep no prompt, so that no word can be learnt from "
            "them. Encode them in this workflow, or make the file without Teach Word."
        )
    noted = [(text, options[PROMPT]) for text, options in entries if PROMPT in options]
    words = list(dict.fromkeys(prompt.clip.learnt for _, prompt in noted))
    if len(words) > 1:
        raise ValueError(
            f"The {what} are to teach {', '.join(map(repr, words))}; expected one word. Use one Teach Word."
        )
    naming = [(text, prompt) for text, prompt in noted if prompt.names_the_word]
    if words and not naming:
        raise ValueError(
            f"The word to teach is {words[0]!r}, but it stands in none of the {what}. Write it into them, or give Teach Word the "
            "one that they call the new thing by."
        )
    if any(text is not prompt.text for text, prompt in naming):
        raise ValueError(
            f"One of the {what} that name {words[0]!r} was changed after CLIP Text Encode, by Conditioning (Concat) or the like, "
            "so that the word can't be learnt from it. Write it as one text, or take Teach Word out."
        )
    for _, prompt in naming:
        check_reads_like(prompt.clip, naming[0][1].clip)
    return naming[0][1].clip if naming else None


def check_reads_like(clip: WordClip, pupil: WordClip) -> None:
    if not clip.reads_like(pupil):
        raise ValueError(
            f"Prompts that name {pupil.learnt!r} come from several CLIPs: with another LoRA, last layer or taught word. Encode the "
            "captions, the preview and held-out captions with one."
        )
