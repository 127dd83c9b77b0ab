"""Taught words: how they are read, stored, weighted, joined and learnt."""

from __future__ import annotations

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import torch
from factories import CHANNELS, random_dictionary, reading_host
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from test_training import QUICK, InThread, preview_into, same, stop_at
from torch import Generator, Tensor

from sparse_core.addresses import parse_lines, parse_selection
from sparse_core.compose import combine, extract, interpolate
from sparse_core.controls import Keep, Mask, Solo, SparseAdapter, controls_of_lines
from sparse_core.describe import describe
from sparse_core.dictionary import SparseDictionary
from sparse_core.files import DictionaryFileError, load_dictionary, read_header, save_dictionary
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.training import Example, TrainingSettings, train
from sparse_core.training.learners import DictionaryLearner, WordLearner
from sparse_core.training.loop import Trainer
from sparse_core.words import Words, occurrences, times, together

WORD_QUICK = replace(QUICK, steps=6, word_rate=0.5)
CAPTIONS = ("a zib in the snow", "a big zib at night", "a small zib on the left")


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusersHost:
    torch.manual_seed(0)
    return reading_host(request.param, tmp_path_factory.mktemp("words"))


def shifts_for(host: DiffusersHost, word: str = "zib", seed: int = 0) -> Words:
    generator = Generator().manual_seed(seed)
    return {
        word: {r.width: torch.randn(len(r.tokens), r.width, generator=generator) for r in host.read(word)}
    }  # fmt: skip


def taught(seed: int = 0, **words: Tensor) -> SparseDictionary:
    """A dictionary with words of one text encoder, 6 wide."""
    return replace(random_dictionary(seed=seed), words={word: {6: shift} for word, shift in words.items()})


ONE = torch.arange(6.0)[None] + 1
OTHER = torch.ones(1, 6)

# ---------------------------------------------------------------------------------------------------------- occurrences


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), min_size=1, max_size=3))
def test_occurrences_are_where_the_word_stands_none_missed_and_none_twice(tokens: list[int], word: list[int]) -> None:
    found, length = occurrences(tokens, word), len(word)
    assert all(tokens[start : start + length] == word for start in found)
    assert all(after - before >= length for before, after in itertools.pairwise(found))
    covered = {start + i for start in found for i in range(1 - length, length)}
    missed = [s for s in range(len(tokens) - length + 1) if tokens[s : s + length] == word and s not in covered]
    assert missed == []


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_taught_word_is_read_otherwise_and_other_prompts_to_the_bit_as_before(host: DiffusersHost) -> None:
    named, others = "a zib, a red boat", ("a cat in the snow", "", "zibs", "a boat and red")
    before = [host.encode_prompt(prompt) for prompt in (named, *others)]
    with host.speaking(shifts_for(host)), host.speaking(shifts_for(host, "red boat")):
        within = [host.encode_prompt(prompt) for prompt in (named, *others)]
    after = host.encode_prompt(named)
    assert torch.equal(after.text, before[0].text)
    assert not torch.allclose(within[0].text, before[0].text, atol=1e-2)
    if before[0].added:
        assert not torch.allclose(within[0].added["text_embeds"], before[0].added["text_embeds"], atol=1e-4)
    for one, other in zip(within[1:], before[1:], strict=True):
        assert torch.equal(one.text, other.text)


def test_what_is_added_is_the_shift_at_each_token_of_the_word(host: DiffusersHost) -> None:
    shifts, (tokenizer, encoder) = shifts_for(host, "red boat"), host.readers[0]
    embedding = encoder.get_input_embeddings()
    prompts = ["a red boat red boat and a red cat", "a red cat a red cat a a red"]
    tokens = torch.tensor(tokenizer(prompts, add_special_tokens=False).input_ids)
    plain = embedding(tokens)
    with host.speaking(shifts):
        moved = embedding(tokens) - plain
    shift = shifts["red boat"][embedding.weight.shape[1]]
    expected = torch.zeros_like(moved)
    expected[0, 1:3] = expected[0, 3:5] = shift
    torch.testing.assert_close(moved, expected)


def test_the_pipeline_reads_the_words_of_adapters_that_are_on_it(host: DiffusersHost) -> None:
    dictionary = replace(random_dictionary(host.layers), words=shifts_for(host))
    plain = host.encode_prompt("a zib").text
    for strength in (0.5, 1.0):
        with host.patched([SparseAdapter(dictionary).at_strength(strength)]):
            found = host.encode_prompt("a zib").text
        with host.speaking(times(dictionary.words, strength)):
            assert torch.equal(found, host.encode_prompt("a zib").text)
    with host.patched([SparseAdapter(dictionary).at_strength(0)]):
        assert torch.equal(host.encode_prompt("a zib").text, plain)


def test_a_word_of_other_text_encoders_is_refused(host: DiffusersHost) -> None:
    shifts = {768: torch.zeros(1, 768)}
    with pytest.raises(
        ValueError, match=r"'zib' was learnt as 1 tokens of width 768; these text encoders read it as 1 tokens of width"
    ):
        host.speaking({"zib": shifts}).__enter__()
    with pytest.raises(ValueError, match=r"'red boat' was learnt as 1 tokens"):
        host.speaking({"red boat": shifts_for(host)["zib"]}).__enter__()


# -------------------------------------------------------------------------------------------------------------- stored


def test_words_come_back_from_a_file_and_need_its_newer_version(tmp_path: Path) -> None:
    dictionary = taught(zib=ONE, **{"red boat.é": torch.cat([ONE, OTHER])})
    path = save_dictionary(dictionary, tmp_path / "taught.safetensors")
    loaded = load_dictionary(path)
    assert read_header(path)["format_version"] == "2"
    assert loaded.words.keys() == dictionary.words.keys()
    assert all(torch.equal(loaded.words[word][6], shifts[6]) for word, shifts in dictionary.words.items())
    assert loaded.content_hash == dictionary.content_hash
    plain = save_dictionary(random_dictionary(), tmp_path / "plain.safetensors")
    assert read_header(plain)["format_version"] == "1" and load_dictionary(plain).words == {}


def test_a_word_counts_in_what_acts_on_a_picture_and_not_in_what_atoms_are_called() -> None:
    plain, one, other = random_dictionary(), taught(zib=ONE), taught(zib=OTHER)
    assert len({d.content_hash for d in (plain, one, other, taught(moko=ONE))}) == 4
    assert len({d.atoms_hash for d in (plain, one, other)}) == 1


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        ("word.zib.6", torch.full((1, 6), torch.nan), "holds NaN"),
        ("word.zib.7", ONE, r"shape \(1, 6\); expected \(number of tokens, 7\)"),
        ("word.zib.6", torch.zeros(0, 6), "expected"),
        ("word.zib.6", torch.zeros(6), "expected"),
        ("word.zib", ONE, "names no width"),
        ("word..6", ONE, "expected"),
    ],
)
def test_damaged_words_are_refused(tmp_path: Path, name: str, tensor: Tensor, told: str) -> None:
    path = save_dictionary(taught(zib=ONE), tmp_path / "taught.safetensors")
    tensors, header = load_file(path), read_header(path)
    del tensors["word.zib.6"]
    save_file({**tensors, name: tensor}, path, {key: value for key, value in header.items() if key})
    with pytest.raises(DictionaryFileError, match=told):
        load_dictionary(path)


# ------------------------------------------------------------------------------------------------------------ weighted


@pytest.mark.parametrize(
    ("controls", "weight"),
    [
        (controls_of_lines(parse_lines("* = 0.5")), 0.5),
        (controls_of_lines(parse_lines("* = 3\n* *= 0.5")), 1.5),
        (controls_of_lines(parse_lines("* = -1")), -1),
        (controls_of_lines(parse_lines("attn1 = 0\nmute L0.q[0]\ntop:1 = 2")), 1),
        ([Solo(parse_selection("L0.q"))], 1),
        ([Mask(torch.zeros(4, 4))], 1),
        ([Keep(0.1)], 1),
        ([Keep(0)], 0),
        (controls_of_lines(parse_lines("* = 0")), 0),
    ],
)
def test_a_words_weight_is_that_of_all_atoms(controls: list, weight: float) -> None:
    adapter = SparseAdapter(taught(zib=ONE)).with_controls(*controls)
    assert bool(adapter.words) == bool(weight)
    if weight:
        torch.testing.assert_close(adapter.words["zib"][6], weight * ONE)


def test_info_tells_of_the_word_and_how_much_of_it_is_read() -> None:
    assert "taught word: 'zib', where Apply Sparse Dictionary has the CLIP, at 50%" in describe(
        SparseAdapter(taught(zib=ONE)).at_strength(0.5)
    )
    assert "taught word" not in describe(SparseAdapter(random_dictionary()))


# -------------------------------------------------------------------------------------------------------------- joined


def test_combining_adds_words_up_by_weight() -> None:
    one, other = SparseAdapter(taught(zib=ONE)), SparseAdapter(taught(seed=1, zib=OTHER, moko=ONE))
    words = combine([one, other], [1.0, 0.5]).words
    torch.testing.assert_close(words["zib"][6], ONE + 0.5 * OTHER)
    torch.testing.assert_close(words["moko"][6], 0.5 * ONE)


def test_parts_of_one_dictionary_bring_its_word_once_whatever_comes_between() -> None:
    whole = SparseAdapter(taught(zib=ONE))
    parts = [SparseAdapter(extract(whole, parse_selection(which))) for which in ("attn1", "attn2")]
    torch.testing.assert_close(combine(parts, [0.5, 1.0]).words["zib"][6], ONE)
    other = SparseAdapter(taught(seed=1, zib=OTHER))
    torch.testing.assert_close(combine([parts[0], other, parts[1]]).words["zib"][6], ONE + OTHER)


def test_one_dictionary_in_two_regions_teaches_its_word_once(host: DiffusersHost) -> None:
    adapter = SparseAdapter(replace(random_dictionary(host.layers), words=shifts_for(host)))
    halves = [adapter.with_controls(Mask(mask)) for mask in (torch.eye(4), 1 - torch.eye(4))]
    with host.patched([adapter]):
        expected = host.encode_prompt("a zib").text
    with host.patched(halves):
        assert torch.equal(host.encode_prompt("a zib").text, expected)


def test_interpolating_goes_from_one_meaning_to_the_other() -> None:
    one, other = SparseAdapter(taught(zib=ONE)), SparseAdapter(taught(zib=OTHER, moko=ONE))
    words = interpolate(one, other, 0.25).words
    torch.testing.assert_close(words["zib"][6], 0.75 * ONE + 0.25 * OTHER)
    torch.testing.assert_close(words["moko"][6], 0.25 * ONE)
    assert interpolate(one, other, 0).words.keys() == {"zib"}
    torch.testing.assert_close(interpolate(one, one, 0.25).words["zib"][6], ONE)


def test_an_extracted_part_reads_the_word_as_the_whole_does() -> None:
    part = extract(SparseAdapter(taught(zib=ONE)).at_strength(0.5), parse_selection("L0.q"))
    torch.testing.assert_close(part.words["zib"][6], 0.5 * ONE)


def test_a_word_that_was_learnt_in_two_ways_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'zib' was learnt in two ways.*same text encoders"):
        together([{"zib": {6: ONE}}, {"zib": {6: torch.cat([ONE, ONE])}}])


# -------------------------------------------------------------------------------------------------------------- learnt


def lessons(
    host: DiffusersHost, captions: tuple[str, ...] = CAPTIONS, seed: int = 0, **options: object
) -> list[Example]:
    generator = Generator().manual_seed(seed)
    return [
        Example(torch.randn(CHANNELS, 8, 8, generator=generator), host.encode_prompt(caption), **options)
        for caption in captions
    ]


def same_words(one: SparseDictionary, other: SparseDictionary) -> bool:
    return one.words.keys() == other.words.keys() and all(
        torch.equal(shift, other.words[word][width]) for word, s in one.words.items() for width, shift in s.items()
    )


def test_training_learns_the_word_beside_the_atoms(host: DiffusersHost) -> None:
    learnt = train(host, lessons(host), WORD_QUICK, word="zib")
    assert {width: tuple(shift.shape) for width, shift in learnt.words["zib"].items()} == {
        reading.width: (1, reading.width) for reading in host.read("zib")
    }
    assert all(shift.any() and not shift.requires_grad for shift in learnt.words["zib"].values())
    assert any(atoms.directions.any() for atoms in learnt.sites.values())
    assert host.encode_prompt("a zib").text.isfinite().all()


@pytest.mark.parametrize(("word", "rate"), [(None, 0.5), ("zib", 0.0)])
def test_without_a_word_or_a_rate_none_is_learnt_and_the_atoms_are_those_of_before(
    host: DiffusersHost, word: str | None, rate: float
) -> None:
    settings = replace(WORD_QUICK, word_rate=rate)
    plain = train(host, lessons(host), replace(settings, word_rate=0.3))
    learnt = train(host, lessons(host), settings, word=word)
    assert learnt.words == {} and same(learnt, plain)


def test_a_step_of_the_word_is_in_the_scale_of_the_models_words(host: DiffusersHost) -> None:
    """The first step of Adam moves every value by the rate, whatever the gradient."""
    settings = TrainingSettings(steps=1, batch=2, word_rate=0.25, warm_up=0.0)
    (shifts,) = train(host, lessons(host), settings, word="zib").words.values()
    for reading in host.read("zib"):
        spread = float(reading.embedding.weight.square().mean().sqrt())
        torch.testing.assert_close(shifts[reading.width].abs().mean(), torch.tensor(0.25 * spread), rtol=1e-2, atol=0)


def test_a_word_of_several_tokens_learns_each(host: DiffusersHost) -> None:
    learnt = train(host, lessons(host, ("a red boat", "a red boat at night")), WORD_QUICK, word="red boat")
    assert all(len(shift) == 2 and bool(shift.any(dim=1).all()) for shift in learnt.words["red boat"].values())


def test_checkpointing_learns_the_same_word(host: DiffusersHost) -> None:
    one, other = (train(host, lessons(host), replace(WORD_QUICK, checkpointing=on), word="zib") for on in (False, True))
    for width, shift in one.words["zib"].items():
        torch.testing.assert_close(other.words["zib"][width], shift, rtol=1e-3, atol=1e-5)


def test_a_batch_without_the_word_leaves_it_to_the_others(host: DiffusersHost) -> None:
    """With one picture in a batch, half of them are prior pictures."""
    examples = lessons(host) + lessons(host, ("a cat", "a house"), seed=5, prior=True)
    learnt = train(host, examples, replace(WORD_QUICK, batch=1, steps=12), word="zib")
    assert all(shift.any() and shift.isfinite().all() for shift in learnt.words["zib"].values())


def test_a_resumed_training_has_the_word_of_an_uninterrupted_one(host: DiffusersHost, tmp_path: Path) -> None:
    state, settings = tmp_path / "zib.training", replace(WORD_QUICK, ema=0.5)
    stopped = train(host, lessons(host), settings, stop_at(3), word="zib", autosave=state)
    resumed = train(host, lessons(host), settings, word="zib", autosave=state)
    whole = train(host, lessons(host), settings, word="zib")
    assert same(resumed, whole) and same_words(resumed, whole) and not same_words(stopped, whole)


def test_a_state_of_another_word_or_of_none_is_refused(host: DiffusersHost, tmp_path: Path) -> None:
    state, examples = tmp_path / "zib.training", lessons(host, ("a zib and a red/moko",))
    train(host, examples, WORD_QUICK, stop_at(3), word="red/moko", autosave=state)
    for word in ("zib", None):
        with pytest.raises(ValueError, match="started for another model or word"):
            train(host, examples, WORD_QUICK, word=word, autosave=state)
    assert train(host, examples, WORD_QUICK, word="red/moko", autosave=state).metadata["training"]["finished"]


def test_a_preview_reads_the_word_as_it_is_by_then_and_changes_nothing(host: DiffusersHost) -> None:
    shown: dict[int, Tensor] = {}
    preview = replace(
        preview_into(shown, every=2), condition=host.encode_prompt("a zib"), negative=host.encode_prompt("")
    )
    # Atoms that learn next to nothing: what changes from picture to picture is the word.
    settings = replace(WORD_QUICK, learning_rate=1e-12, word_rate=2.0)
    watched = train(host, lessons(host), settings, word="zib", preview=preview)
    assert not torch.allclose(shown[2], shown[6], atol=1e-4)
    assert same_words(watched, train(host, lessons(host), settings, word="zib"))


def test_held_out_pictures_are_checked_with_the_word_and_the_best_is_kept(host: DiffusersHost) -> None:
    settings = replace(WORD_QUICK, steps=30, check_every=1, patience=1, word_rate=5.0)
    learnt = train(host, lessons(host), settings, word="zib", held_out=lessons(host, seed=8))
    record = learnt.metadata["training"]
    assert len(record["held_out"]) == record["steps_done"] < 30
    assert len(set(record["held_out"])) > 1


def test_two_processes_learn_the_word_of_one_with_the_whole_batch(host: DiffusersHost) -> None:
    """Of which one may see nothing but prior pictures, which do not name it."""
    examples = lessons(host) + lessons(host, ("a cat", "a house"), seed=5, prior=True)
    settings = replace(WORD_QUICK, steps=4)
    alone = train(host, examples, replace(settings, batch=2), word="zib")
    barrier, said = Barrier(2), [None, None]
    hosts = [DiffusersHost(copy.deepcopy(host.pipeline)) for _ in range(2)]

    def one(rank: int) -> SparseDictionary:
        try:
            return train(
                hosts[rank],
                examples,
                replace(settings, batch=1),
                word="zib",
                processes=InThread(2, rank, barrier, said),
            )
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, range(2))
    assert same_words(first, second)
    for width, shift in alone.words["zib"].items():
        torch.testing.assert_close(first.words["zib"][width], shift, rtol=2e-2, atol=2e-3)


def test_a_learnt_word_lowers_the_loss_by_itself(host: DiffusersHost) -> None:
    """Atoms held still: what is learnt is the word's."""
    examples = lessons(host)
    with host.learning("zib") as word, host.trainable():
        names = {f"word.{width}": shift for width, shift in word.shifts.items()}
        atoms = DictionaryLearner(host, replace(QUICK, learning_rate=1e-12))
        settings = replace(QUICK, steps=60, batch=3, learning_rate=1e-12)
        trainer = Trainer(host, WordLearner(atoms, names, dict.fromkeys(names, 0.05)), examples, settings, examples)
        before = trainer.check()
        while not trainer.finished:
            trainer.advance()
        assert trainer.check() < before


def test_a_caption_names_a_word_as_far_as_it_is_read(host: DiffusersHost) -> None:
    host.check_named("zib", ["a cat", "a big zib"])
    length = min(tokenizer.model_max_length for tokenizer, _ in host.readers)
    for captions in (["a cat", "zibs"], ["a " * length + "zib"]):
        with pytest.raises(
            ValueError, match=f"'zib' stands in none of the captions, such as .*{length} tokens are read"
        ):
            host.check_named("zib", captions)


def test_a_word_that_is_nothing_to_the_model_is_refused(host: DiffusersHost) -> None:
    with pytest.raises(ValueError, match=r"is no word to this model"):
        train(host, lessons(host), WORD_QUICK, word=" ")
