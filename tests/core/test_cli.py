"""The command line: what it makes, what it says, and its exit codes."""

from __future__ import annotations

import io
import itertools
import json
import re
import signal
import socket
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from factories import random_dictionary
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from sparse_core import cli, generate, pipelines
from sparse_core.compose import cli as compose_cli
from sparse_core.compose import combine
from sparse_core.controls import SparseAdapter
from sparse_core.demo.text import load_tokenizer, write_tokenizer
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.training import TrainingSettings, TrainingStopped, distil, train
from sparse_core.words import times

SIDE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A diffusers folder of a random Stable Diffusion with a few thousand weights."""
    from factories import tiny_unet

    folder = tmp_path_factory.mktemp("model")
    write_tokenizer(folder / "words")
    tokenizer = load_tokenizer(folder / "words")
    unet = tiny_unet()
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=unet.config.cross_attention_dim,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    coder = {"block_out_channels": (4,) * 4, "norm_num_groups": 2, "latent_channels": 4, "layers_per_block": 1}
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **coder)
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture
def images(tmp_path) -> Path:
    """Two pictures of different shape, one with a caption of its own."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, shape in (("a.png", (90, 90, 3)), ("b.jpg", (60, 120, 3))):
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "a.txt").write_text("a big zib on the left")
    return folder


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_dictionary(random_dictionary(), tmp_path / "saved.safetensors")


@pytest.fixture
def trained(model, images, tmp_path) -> Path:
    out = tmp_path / "trained.safetensors"
    assert run("train", images, "--out", out, "--model", model, *QUICK) == 0
    return out


QUICK = ("--word", "zib", "--steps", "3", "--batch", "2", "--atoms", "2", "--threshold", "0.5")


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def assert_fails(capsys, message: str, *arguments: object) -> None:
    """Exit code 1, one sentence that holds ``message``, and nothing that looks like a traceback."""
    assert run(*arguments) == 1
    told = capsys.readouterr().err
    said = told if "\n    " in message else told.splitlines()[-1]
    assert message in said and "Traceback" not in told


def test_every_command_has_help_with_an_example(capsys):
    for command in (
        ["train"],
        ["generate"],
        ["info"],
        ["report"],
        ["extract"],
        ["distil"],
        ["demo"],
        ["demo", "make"],
    ):
        with pytest.raises(SystemExit) as left:
            cli.main([*command, "--help"])
        assert left.value.code == 0
        assert f"example:\n  sparse-atoms {' '.join(command)}" in capsys.readouterr().out


def test_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "sparse_core", "--help"], capture_output=True, text=True, check=True)
    assert "train" in done.stdout


@pytest.mark.parametrize("package", ["torch", "lark", "tqdm", "safetensors"])
def test_a_missing_package_is_told_with_what_installs_it(package):
    program = (
        f"import runpy, sys; sys.modules[{package!r}] = None; runpy.run_module('sparse_core', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program, "info", "x"], capture_output=True, text=True)
    assert done.returncode == 1
    said = f"The package {package} is missing. In the folder of Sparse Atoms, run: pip install -e '.[demo]'"
    assert done.stderr == f"sparse-atoms: {said}\n"


def test_memory_that_does_not_suffice_is_told_on_a_processor_too(saved, monkeypatch, capsys):
    monkeypatch.setattr(cli, "facts_of", lambda *_: torch.empty(1 << 50))
    assert_fails(capsys, "Out of memory. Use a smaller --size or --batch", "info", saved)

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli, "facts_of", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # a fault of the program: its trace says where
        run("info", saved)


WRITERS = {
    "train": ("train", "photos"),
    "distil": ("distil", "lora.safetensors", "--prompt", "a zib"),
    "extract": ("extract", "saved.safetensors", "--atoms", "top:4"),
    "generate": ("generate", "--prompt", "a zib"),
    "demo make": ("demo", "make"),
}


class TestOut:
    @pytest.mark.parametrize("command", WRITERS)
    def test_a_place_that_cannot_be_written_is_told_before_anything_is_read(
        self, command, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(pipelines, "load_pipeline", lambda *_: pytest.fail("a model was loaded"))
        (tmp_path / "afile").touch()
        out = tmp_path / "afile" / ("x.png" if command == "generate" else "x")
        assert_fails(capsys, "can't be written into", *WRITERS[command], "--out", out)

    @pytest.mark.parametrize("out", ["", ".", ".."])
    @pytest.mark.parametrize("command", ["train", "distil", "extract"])
    def test_no_name_is_told(self, command, out, capsys):
        assert_fails(capsys, "names no file to write", *WRITERS[command], "--out", out)

    def test_what_is_read_is_not_replaced(self, saved, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Image.new("L", (8, 8)).save("mask.png")
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        for command in (
            ["extract", saved.name, "--atoms", "top:4", "--out", "saved"],
            ["distil", saved.name, "--prompt", "a zib", "--out", "saved"],
            ["train", "photos", "--model", saved.name, "--out", saved],
            ["generate", "--prompt", "a zib", "--dictionary", saved.name, "--mask", "mask.png", "--out", "mask.png"],
        ):
            assert_fails(capsys, "is what is read here, and would be replaced", *command)
        report = ("report", saved.name, "--prompt", "a zib", "--out", "saved.safetensors")
        assert_fails(capsys, "saved.safetensors does not end in .html", *report)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["train", "images"],
        ["train", "images", "--out", "x", "--sites", "q,x"],
        ["train", "images", "--out", "x", "--attentions", ""],
        ["train", "images", "--out", "x", "--steps", "many"],
        ["train", "images", "--out", "x", "--preset", "picasso"],
        ["train", "images", "--out", "x", "--resume", "--anew"],
        ["train", "images", "--out", "x", "--seed", "9" * 23],
        ["distil", "lora", "--prompt", "x", "--out", "x", "--seed", "9" * 23],
        ["report", "x", "--out", "x.html", "--seed", "-1"],
        ["generate", "--prompt", "a cat", "--out", "x.png", "--seed", "9" * 23],
        ["generate", "--prompt", "a cat", "--out", "x.png", "--size", "64"],
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == 2


# What --multi_gpu means to accelerate is several processes: where there is no GPU, they run on the CPU.
_ACCELERATE = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate launch": f"{_ACCELERATE} --dynamo_backend no --main_process_port 0".split(),
}


class TestTrain:
    def test_writes_a_dictionary_that_says_how_it_was_made(self, trained):
        dictionary = load_dictionary(trained)
        assert dictionary.metadata["training"]["steps_done"] == 3
        assert dictionary.metadata["modelspec.trigger_phrase"] == "zib"
        assert dictionary.metadata["modelspec.title"] == "trained"
        assert len(dictionary.metadata["captions_sha256"]) == 2
        assert all(len(atoms) == 2 for atoms in dictionary.sites.values())

    def test_the_same_seed_gives_the_same_file(self, trained, model, images, tmp_path):
        again = tmp_path / "again.safetensors"
        assert run("train", images, "--out", again, "--model", model, *QUICK, "--title", "trained") == 0
        assert again.read_bytes() == trained.read_bytes()

    def test_only_the_chosen_sites_get_atoms(self, model, images, tmp_path):
        out = tmp_path / "few"
        assert (
            run("train", images, "--out", out, "--model", model, *QUICK, "--sites", "v,o", "--attentions", "attn2") == 0
        )
        dictionary = load_dictionary(tmp_path / "few.safetensors")
        assert {site.projection for site in dictionary.sites} == {"v", "o"}
        assert {dictionary.layers[site.layer].attention for site in dictionary.sites} == {"attn2"}

    def test_what_is_given_wins_over_the_preset_and_the_preset_over_the_defaults(self, model, images, tmp_path):
        out = tmp_path / "one.safetensors"
        preset = ("--preset", "single picture")
        assert run("train", images, "--out", out, "--model", model, *preset, "--word", "zib", "--steps", 2) == 0
        record = load_dictionary(out).metadata["training"]
        assert (record["steps"], record["batch"], record["sparsity"], record["atoms"]) == (2, 4, 1e-4, 16)

    def test_every_setting_has_an_option(self, monkeypatch):
        assert cli.SETTINGS.keys() == {field.name for field in fields(TrainingSettings)}
        given = {"steps": 7, "warm_up": 0.5, "projections": ("v",), "prior": 0.25, "checkpointing": True, "seed": 3}
        words = ["--steps=7", "--warm-up=0.5", "--sites=v", "--prior-weight=0.25", "--checkpointing", "--seed=3"]
        options = cli.build_parser().parse_args(["train", "x", "--out", "x", *words])
        assert cli.settings_of(options) == TrainingSettings(**given)

    def test_prior_prompts_are_drawn_and_prior_folders_read(self, trained, model, images, tmp_path, monkeypatch):
        seen = []

        def watched(host, examples, *arguments, **others):
            seen.append([(example.prior, tuple(example.latents.shape)) for example in examples])
            return train(host, examples, *arguments, **others)

        monkeypatch.setattr(cli, "train", watched)
        keep = tmp_path / "keep"
        keep.mkdir()
        Image.new("RGB", (90, 90), "red").save(keep / "c.png")
        (keep / "c.txt").write_text("a red wall")
        out = tmp_path / "kept.safetensors"
        prior = ("--prior", "a cat", "--prior", "a house", "--prior-folder", keep, "--title", "trained")
        assert run("train", images, "--out", out, "--model", model, *QUICK, *prior) == 0
        (examples,) = seen
        to_learn = [shape for is_prior, shape in examples if not is_prior]
        to_keep = [shape for is_prior, shape in examples if is_prior]
        assert len(to_learn) == len(set(to_learn)) == 2  # a batch is of one size
        assert [to_keep.count(shape) for shape in to_learn] == [8 + 1, 8 + 1]
        assert out.read_bytes() != trained.read_bytes()

    def test_a_black_mask_leaves_that_part_out(self, model, images, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(
            cli, "train", lambda host, examples, *a, **o: seen.extend(examples) or train(host, examples, *a, **o)
        )
        mask = Image.new("L", (90, 90))
        mask.paste(255, (45, 0, 90, 90))
        mask.save(images / "a.mask.png")
        assert run("train", images, "--out", tmp_path / "x", "--model", model, *QUICK) == 0
        masked, plain = seen
        assert plain.mask is None and masked.mask.shape == masked.latents.shape[-2:]
        assert not masked.mask[:, :3].any() and bool((masked.mask[:, -3:] == 1).all())

    def test_masks_that_do_not_fit_are_refused(self, model, images, tmp_path, capsys):
        base = ("train", images, "--out", tmp_path / "x.safetensors", "--model", model, "--word", "zib")
        Image.new("L", (90, 60)).save(images / "a.mask.png")
        assert_fails(capsys, "a.mask.png has 90x60 pixels and a.png 90x90; expected the same size", *base)
        (images / "a.mask.png").rename(images / "c.mask.png")
        assert_fails(capsys, "there is no picture c beside it", *base)

    def test_held_out_pictures_end_a_training_that_gains_nothing(self, model, images, tmp_path, capsys):
        out = tmp_path / "ended.safetensors"
        base = ("train", images, "--out", out, "--model", model, *QUICK, "--patience", 1, "--check-every", 1)
        # With a rate that changes nothing to speak of, no check is better than the first by more than rounding.
        still = ("--steps", 40, "--learning-rate", "1e-12", "--word-rate", "1e-12", "--held-out", images)
        assert run(*base, *still) == 0
        record = load_dictionary(out).metadata["training"]
        assert record["steps_done"] < 40 and len(record["held_out"]) == record["steps_done"]
        assert f"Held-out loss, every 1 steps: {record['held_out'][0]:.4f}, " in capsys.readouterr().out
        assert_fails(capsys, "patience is 1, but no pictures are held out", *base)

    def test_the_word_is_learnt_told_of_and_read_in_pictures(self, model, images, trained, tmp_path, capsys):
        assert run("info", trained) == 0
        assert "the meaning of the word 'zib' comes with it" in capsys.readouterr().out
        left = tmp_path / "left.safetensors"
        assert run("train", images, "--out", left, "--model", model, *QUICK, "--word-rate", "0") == 0
        assert load_dictionary(left).words == {}
        assert run("info", left) == 0
        assert "the meaning of the word" not in capsys.readouterr().out
        silent = save_dictionary(
            replace(load_dictionary(trained), words=times(load_dictionary(trained).words, 50)),
            tmp_path / "loud.safetensors",
        )
        draw = (
            "generate",
            "--model",
            model,
            "--steps",
            "2",
            "--prompt",
            "a zib",
            "--atoms-lines",
            "mute attn1 | attn2",
        )
        for name, dictionary in (("with", silent), ("without", left)):
            assert run(*draw, "--dictionary", dictionary, "--out", tmp_path / f"{name}.png") == 0
        assert run(*draw[:-2], "--out", tmp_path / "base.png") == 0
        assert (pixels(tmp_path / "without.png") == pixels(tmp_path / "base.png")).all()
        assert (pixels(tmp_path / "with.png") != pixels(tmp_path / "base.png")).any()

    def test_a_word_that_no_caption_names_is_refused_unless_it_is_the_trigger_alone(
        self, model, images, tmp_path, capsys
    ):
        (images / "b.txt").write_text("a big zib on the right")
        base = ("train", images, "--out", tmp_path / "a.safetensors", "--model", model, *QUICK)
        assert_fails(
            capsys, "The word 'moko' stands in none of the captions, such as 'a big zib", *base, "--word", "moko"
        )
        assert run(*base, "--word", "moko", "--word-rate", "0") == 0
        assert load_dictionary(tmp_path / "a.safetensors").metadata["modelspec.trigger_phrase"] == "moko"
        wordless = ("train", images, "--out", tmp_path / "b.safetensors", "--model", model)
        assert_fails(capsys, "--word-rate needs --word", *wordless, "--word-rate", "0.1")

    def test_a_resumed_training_gives_the_file_of_an_uninterrupted_one(
        self, trained, model, images, tmp_path, monkeypatch
    ):
        out, state = tmp_path / "resumed.safetensors", tmp_path / "resumed.training"
        base = ("train", images, "--out", out, "--model", model, *QUICK, "--title", "trained")

        def train_with_an_interrupt(host, examples, settings, on_step, metadata, **others):
            def step(progress):
                signal.raise_signal(signal.SIGINT)
                on_step(progress)

            return train(host, examples, settings, step, metadata, **others)

        with monkeypatch.context() as patch:
            patch.setattr(cli, "train", train_with_an_interrupt)
            assert run(*base) == 130
        assert state.is_file() and load_dictionary(out).metadata["training"]["steps_done"] == 1
        assert run(*base, "--resume") == 0
        assert out.read_bytes() == trained.read_bytes() and not state.exists()

    def test_resuming_nothing_starts_a_training_but_replaces_no_finished_one(
        self, trained, model, images, tmp_path, capsys
    ):
        out, state = tmp_path / "again.safetensors", tmp_path / "again.training"
        base = ("train", images, "--out", out, "--model", model, *QUICK, "--title", "trained", "--resume")
        assert run(*base) == 0
        assert f"There is nothing to resume: {state} does not exist" in capsys.readouterr().out
        assert out.read_bytes() == trained.read_bytes()
        assert_fails(capsys, f"There is nothing to resume: {out} is there", *base, "--steps", 6)
        assert out.read_bytes() == trained.read_bytes() and not state.exists()

    def test_what_an_unfinished_training_has_kept_is_dropped_only_when_asked(
        self, trained, model, images, tmp_path, monkeypatch, capsys
    ):
        out, state = tmp_path / "anew.safetensors", tmp_path / "anew.training"
        base = ("train", images, "--out", out, "--model", model, *QUICK, "--title", "trained")

        def train_with_an_interrupt(host, examples, settings, on_step, metadata, **others):
            def step(progress):
                raise TrainingStopped

            return train(host, examples, settings, step, metadata, **others)

        with monkeypatch.context() as patch:
            patch.setattr(cli, "train", train_with_an_interrupt)
            assert run(*base) == 0
        kept = state.read_bytes()
        assert_fails(capsys, f"{state} holds 1 steps; give --resume to go on, or --anew to start over.", *base)
        assert_fails(capsys, "patience is 1", *base, "--anew", "--patience", 1)
        wrong = ("--preview-prompt", "a zib", "--preview-every", 0)
        assert_fails(capsys, "every 0 steps", *base, "--anew", *wrong)
        assert state.read_bytes() == kept
        assert run(*base, "--anew") == 0
        assert out.read_bytes() == trained.read_bytes() and not state.exists()

    def test_a_kept_training_that_is_damaged_can_be_dropped_too(self, trained, model, images, tmp_path, capsys):
        out, state = tmp_path / "anew.safetensors", tmp_path / "anew.training"
        state.write_bytes(b"left over")
        base = ("train", images, "--out", out, "--model", model, *QUICK, "--title", "trained")
        assert_fails(capsys, "anew.training is damaged", *base)
        assert run(*base, "--anew") == 0
        assert out.read_bytes() == trained.read_bytes() and not state.exists()

    def test_says_which_pictures_it_takes(self, model, images, tmp_path, capsys):
        (images / "2.tif").touch()
        (images / "a.txt").rename(images / "a.TXT")
        held_out = tmp_path / "held out"
        held_out.mkdir()
        Image.new("RGB", (90, 90)).save(held_out / "c.png")
        base = ("train", images, "--out", tmp_path / "x", "--model", model, *QUICK, "--held-out", held_out)
        assert run(*base, "--keep-captions") == 0
        told = capsys.readouterr().out.splitlines()
        assert told[:2] == [
            f"{images}: 2 pictures, 1 with captions; skipped: 2.tif",
            f"{held_out}: 1 picture, 0 with captions",
        ]
        assert load_dictionary(tmp_path / "x.safetensors").metadata["captions"] == ["a big zib on the left", "zib"]

    def test_an_interrupt_saves_what_was_learnt(self, model, images, tmp_path, monkeypatch, capsys):
        def train_with_an_interrupt(host, examples, settings, on_step, metadata, **others):
            def step(progress):
                if progress.step == 2:
                    signal.raise_signal(signal.SIGINT)
                on_step(progress)

            return train(host, examples, settings, step, metadata, **others)

        monkeypatch.setattr(cli, "train", train_with_an_interrupt)
        out = tmp_path / "interrupted.safetensors"
        assert run("train", images, "--out", out, "--model", model, *QUICK) == 130
        assert load_dictionary(out).metadata["training"]["steps_done"] == 2
        assert "2 steps is saved" in capsys.readouterr().err
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_an_interrupt_after_the_last_step_promises_no_further_ones(
        self, model, images, tmp_path, monkeypatch, capsys
    ):
        def train_with_an_interrupt(host, examples, settings, on_step, metadata, **others):
            dictionary = train(host, examples, settings, on_step, metadata, **others)
            signal.raise_signal(signal.SIGINT)
            return dictionary

        monkeypatch.setattr(cli, "train", train_with_an_interrupt)
        out = tmp_path / "late.safetensors"
        assert run("train", images, "--out", out, "--model", model, *QUICK) == 130
        told = capsys.readouterr().err
        assert "3 steps is saved. The training is finished." in told and "--resume" not in told
        assert not out.with_suffix(".training").exists()

    def test_previews_lie_beside_the_file_and_change_nothing_in_it(self, trained, model, images, tmp_path):
        out = tmp_path / "shown.safetensors"
        shown = ("--preview-prompt", "a zib", "--preview-every", 2, "--title", "trained")
        assert run("train", images, "--out", out, "--model", model, *QUICK, "--steps", 4, *shown) == 0
        folder = tmp_path / "shown_previews"
        assert sorted(path.name for path in folder.iterdir()) == ["step_00002.png", "step_00004.png"]
        first, second = (pixels(path) for path in sorted(folder.iterdir()))
        assert first.shape == (SIDE, SIDE, 3) and first.std() > 0
        assert (first != second).any()
        plain = tmp_path / "plain.safetensors"
        assert run("train", images, "--out", plain, "--model", model, *QUICK, "--steps", 4, "--title", "trained") == 0
        assert plain.read_bytes() == out.read_bytes()

    @pytest.mark.parametrize("launcher", LAUNCHERS)
    def test_two_launched_processes_train_as_one_with_the_double_batch(self, launcher, model, images, tmp_path):
        alone, shared = tmp_path / "alone.safetensors", tmp_path / "shared.safetensors"
        base = ("train", images, "--model", model, "--word", "zib", "--atoms", 2, "--threshold", "0.5", "--steps", 3)
        base += ("--preview-prompt", "a zib", "--preview-every", 3)
        launch = [*LAUNCHERS[launcher], "-m", "sparse_core", *base, "--batch", 1, "--out", shared]
        command = [sys.executable, "-m", *map(str, launch)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("shared.safetensors:") == 1
        assert [path.name for path in (tmp_path / "shared_previews").iterdir()] == ["step_00003.png"]
        assert run(*base, "--batch", 2, "--out", alone) == 0
        one, two = load_dictionary(alone), load_dictionary(shared)
        for site, atoms in one.sites.items():
            torch.testing.assert_close(two.sites[site].directions, atoms.directions, rtol=1e-2, atol=1e-2)
        losses = [dictionary.metadata["training"]["final_loss"] for dictionary in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)

    def test_errors_are_told(self, model, images, tmp_path, capsys):
        out = ("--out", tmp_path / "x.safetensors", "--model", model)
        assert_fails(capsys, "There is no folder", "train", tmp_path / "nowhere", *out)
        assert_fails(capsys, "b.jpg has no caption", "train", images, *out)
        assert_fails(capsys, "steps is 0", "train", images, *out, "--word", "zib", "--steps", "0")
        none = ("--word", "zib", "--preview-prompt", "a zib", "--preview-every", "0")
        assert_fails(capsys, "every 0 steps; expected at least 1", "train", images, *out, *none)
        (tmp_path / "empty").mkdir()
        assert_fails(capsys, "holds no pictures", "train", tmp_path / "empty", *out)
        (images / "c.png").write_bytes(b"not a picture")
        assert_fails(capsys, "c.png can't be read", "train", images, *out, "--word", "zib")
        assert not (tmp_path / "x.safetensors").exists()


class TestGenerate:
    def draw(self, model: Path, out: Path, *more: object) -> np.ndarray:
        assert run("generate", "--prompt", "a zib", "--model", model, "--out", out, "--steps", "2", *more) == 0
        return pixels(out)

    def test_a_dictionary_changes_the_picture_and_strength_0_does_not(self, model, trained, tmp_path):
        base = self.draw(model, tmp_path / "base.png")
        assert base.shape == (SIDE, SIDE, 3)
        full = self.draw(model, tmp_path / "full.png", "--dictionary", trained, "--strength", "8")
        assert (full != base).any()
        for number, off in enumerate((["--strength", 0], ["--density", 0], ["--atoms-lines", "* = 0"])):
            same = self.draw(model, tmp_path / f"{number}.png", "--dictionary", trained, *off)
            assert (same == base).all(), off

    def test_lines_come_from_a_file_too(self, model, trained, tmp_path):
        lines = tmp_path / "lines.txt"
        lines.write_text("# nothing\n* = 0\n")
        base = self.draw(model, tmp_path / "base.png")
        assert (
            self.draw(model, tmp_path / "a.png", "--dictionary", trained, "--atoms-lines", f"@{lines}") == base
        ).all()

    def test_lines_of_windows_notepad_are_read(self, tmp_path):
        lines = tmp_path / "lines.txt"
        lines.write_text("* = 0\n", encoding="utf-8-sig")
        assert cli.read_lines([f"@{lines}", "top:1 = 2"]) == "* = 0\n\ntop:1 = 2"
        lines.write_text("* = 0", encoding="utf-16")
        with pytest.raises(ValueError, match=r"lines.txt is not UTF-8.*Save it as UTF-8"):
            cli.read_lines([f"@{lines}"])

    def test_a_black_mask_is_the_base(self, model, trained, tmp_path):
        Image.new("L", (10, 10)).save(tmp_path / "mask.png")
        base = self.draw(model, tmp_path / "base.png")
        masked = self.draw(model, tmp_path / "a.png", "--dictionary", trained, "--mask", tmp_path / "mask.png")
        # The taught word is read in the whole picture. It is no atom's.
        assert (masked != base).any()
        atoms = save_dictionary(replace(load_dictionary(trained), words={}), tmp_path / "atoms.safetensors")
        masked = self.draw(model, tmp_path / "b.png", "--dictionary", atoms, "--mask", tmp_path / "mask.png")
        assert (masked == base).all()

    def test_a_mask_painted_on_nothing_is_one_on_black(self, model, trained, tmp_path):
        loud = ("--dictionary", trained, "--strength", "8")
        drawn = [self.draw(model, tmp_path / "everywhere.png", *loud)]
        for name, mask in (("black", Image.new("L", (SIDE, SIDE))), ("clear", Image.new("LA", (SIDE, SIDE)))):
            mask.paste("white", (0, 0, SIDE // 2, SIDE))
            mask.save(tmp_path / f"{name}-mask.png")
            drawn.append(self.draw(model, tmp_path / f"{name}.png", *loud, "--mask", tmp_path / f"{name}-mask.png"))
        everywhere, on_black, on_clear = drawn
        assert (on_clear == on_black).all() and (on_clear != everywhere).any()

    def test_a_dictionary_acts_on_the_prompts_that_are_asked_for(self, model, trained, tmp_path):
        loud = ("--dictionary", trained, "--strength", "8")
        made = [self.draw(model, tmp_path / f"{on}.png", *loud, "--on", on) for on in ("both", "positive", "negative")]
        made.append(self.draw(model, tmp_path / "base.png"))
        assert all((one != other).any() for one, other in itertools.combinations(made, 2))
        # Without guidance no negative prompt is run.
        alone = [
            self.draw(model, tmp_path / f"{on}.png", *loud, "--on", on, "--guidance", 1) for on in ("both", "positive")
        ]
        assert (alone[0] == alone[1]).all()

    def test_several_pictures_have_seeds_of_their_own(self, model, tmp_path):
        base = ("generate", "--prompt", "a zib", "--model", model, "--steps", 2, "--size", "64x96")
        assert run(*base, "--count", 2, "--seed", 5, "--out", tmp_path / "folder") == 0
        assert run(*base, "--seed", 6, "--out", tmp_path / "one.png") == 0
        first, second = (pixels(path) for path in sorted((tmp_path / "folder").iterdir()))
        assert second.shape == (96, 64, 3)
        assert (first != second).any()
        assert (second == pixels(tmp_path / "one.png")).all()

    def test_every_picture_is_written_as_soon_as_it_is_drawn(self, model, tmp_path, monkeypatch, capsys):
        draw = generate.generate

        def draw_until_the_third(host, prompts, seeds, *arguments):
            if 7 in seeds:
                raise KeyboardInterrupt
            return draw(host, prompts, seeds, *arguments)

        monkeypatch.setattr(generate, "generate", draw_until_the_third)
        many = ("--steps", 1, "--count", 100, "--seed", 5, "--out", tmp_path / "folder")
        assert run("generate", "--prompt", "a zib", "--model", model, *many) == 130
        written = [str(tmp_path / "folder" / name) for name in ("0001.png", "0002.png")]
        assert sorted(map(str, (tmp_path / "folder").iterdir())) == written
        assert capsys.readouterr().out.splitlines() == written

    def test_numbers_go_on_after_those_that_are_there(self, tmp_path):
        folder = tmp_path / "folder"
        assert generate.numbered(folder, 2) == [folder / "0001.png", folder / "0002.png"]
        folder.mkdir()
        for name in ("0002.png", "0011.PNG", "x-7.png", "0100.jpg", "robot.png"):
            (folder / name).touch()
        assert generate.numbered(folder, 2) == [folder / "0012.png", folder / "0013.png"]
        assert generate.numbered(folder / "x.png", 2) == [folder / "x-8.png", folder / "x-9.png"]
        assert generate.numbered(folder / "robot.png", 1) == [folder / "robot.png"]
        assert generate.numbered(folder / "v1.5", 1) == [folder / "v1.5" / "0001.png"]

    def test_a_second_run_into_a_folder_keeps_the_first(self, model, tmp_path):
        base = ("generate", "--prompt", "a zib", "--model", model, "--steps", 1, "--out", tmp_path / "folder")
        assert run(*base) == 0
        first = (tmp_path / "folder" / "0001.png").read_bytes()
        assert run(*base, "--seed", 1) == 0
        assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["0001.png", "0002.png"]
        assert (tmp_path / "folder" / "0001.png").read_bytes() == first

    @pytest.mark.parametrize(
        "option",
        [
            ("--density", 0.5),
            ("--strength", 0),
            ("--mask", "nowhere.png"),
            ("--atoms-lines", "* = 0"),
            ("--on", "positive"),
        ],
        ids=lambda option: option[0],
    )
    def test_controls_without_a_dictionary_are_refused(self, option, tmp_path, capsys):
        base = ("generate", "--prompt", "a zib", "--out", tmp_path / "x.png", "--model", tmp_path / "nowhere")
        assert_fails(capsys, f"{option[0]} needs --dictionary", *base, *option)

    @pytest.mark.parametrize("name", ["robot.jpg", "robot.WEBP", "robot.tiff"])
    def test_pictures_of_other_kinds_are_refused(self, name, tmp_path, capsys):
        base = ("generate", "--prompt", "a zib", "--out", tmp_path / name, "--model", tmp_path / "nowhere")
        assert_fails(capsys, "expected a folder or a .png file", *base)
        assert not (tmp_path / name).exists()

    def test_errors_are_told(self, model, saved, trained, tmp_path, capsys):
        base = ("generate", "--prompt", "a zib", "--out", tmp_path / "x.png", "--model", model, "--steps", 1)
        assert_fails(capsys, f"There is no file {tmp_path / 'nowhere'}", *base, "--dictionary", tmp_path / "nowhere")
        assert_fails(capsys, "made for another model", *base, "--dictionary", saved)
        assert_fails(capsys, "L99 does not exist", *base, "--dictionary", trained, "--atoms-lines", "L99 = 1")
        assert_fails(capsys, "\n    L3 =\n", *base, "--dictionary", trained, "--atoms-lines", "L3 =")
        assert_fails(capsys, "Density is 2", *base, "--dictionary", trained, "--density", 2)
        assert_fails(capsys, "multiples of 8", *base, "--size", "65x64")
        assert_fails(capsys, "--count is 0", *base, "--count", 0)
        assert not (tmp_path / "x.png").exists()


class TestModels:
    def fails(self, capsys, message: str, model: Path, *more: object) -> None:
        assert_fails(capsys, message, "generate", "--prompt", "x", "--out", "x.png", "--model", model, *more)

    def test_what_is_no_model_is_refused(self, tmp_path, capsys, saved, monkeypatch):
        self.fails(capsys, "There is no model at", tmp_path / "nowhere")
        self.fails(capsys, "no complete diffusers folder", tmp_path)
        (tmp_path / "old.ckpt").write_bytes(b"\x80\x02}q\x00.")
        self.fails(capsys, "never read", tmp_path / "old.ckpt")
        self.fails(capsys, "holds no diffusion model", saved)

    @pytest.mark.parametrize(
        ("extra", "family"),
        [("cond_stage_model.x", "SD1.x or SD2.x"), ("conditioner.embedders.1.x", "SDXL")],
    )
    def test_a_bare_checkpoint_asks_for_its_configuration(self, tmp_path, capsys, monkeypatch, extra, family):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        names = ("model.diffusion_model.input_blocks.0.0.weight", extra)
        save_file({name: torch.zeros(1) for name in names}, tmp_path / "bare.safetensors")
        self.fails(capsys, "--config FOLDER", tmp_path / "bare.safetensors")
        self.fails(capsys, f"a diffusers folder of {family} on this machine", tmp_path / "bare.safetensors")

    def test_a_configuration_that_does_not_fit_is_named(self, tmp_path, capsys, model):
        save_file({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "odd.safetensors")
        self.fails(capsys, "does not fit the configuration", tmp_path / "odd.safetensors", "--config", model)

    def test_nothing_is_asked_of_the_network(self, tmp_path, capsys, monkeypatch):
        """Not even with a configuration that is not there, whose path diffusers would take for a repository's name."""
        asked = []

        def refuse(*arguments, **_):
            asked.append(arguments)
            raise OSError("no network in this test")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        bare = tmp_path / "bare.safetensors"
        save_file({"model.diffusion_model.x": torch.zeros(1)}, bare)
        self.fails(capsys, "There is no folder nobody/nothing", bare, "--config", "nobody/nothing")
        self.fails(capsys, f"There is no folder {bare}", bare, "--config", bare)
        (tmp_path / "empty").mkdir()
        self.fails(capsys, "does not fit the configuration", bare, "--config", tmp_path / "empty")
        self.fails(capsys, "--config FOLDER", bare)
        self.fails(capsys, "There is no model at nobody/nothing", Path("nobody/nothing"))
        assert not asked


class TestInfo:
    def test_tells_what_a_file_is(self, saved, capsys):
        assert run("info", saved, "--top", 3) == 0
        said = capsys.readouterr().out
        dictionary = load_dictionary(saved)
        assert f"{len(dictionary)} atoms" in said
        assert dictionary.fingerprint in said
        assert said.count("[") == 3

    def test_json_holds_the_same(self, saved, capsys):
        assert run("info", saved, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        dictionary = load_dictionary(saved)
        assert facts["atoms"] == len(dictionary)
        assert facts["importance_curve"]["1.0"] == pytest.approx(1)
        importances = [atom["importance"] for atom in facts["most_important"]]
        assert importances == sorted(importances, reverse=True)
        assert max(importances) == max(float(atoms.importance.max()) for atoms in dictionary.sites.values())

    def test_pictures_and_what_single_atoms_carry_are_counted(self, tmp_path, capsys):
        picture = "data:image/jpeg;base64," + "A" * 8000
        metadata = {
            "modelspec.thumbnail": picture,
            "thumbnails": {"L0.q[0]": picture, "L0.q[1]": picture},
            "effects": {"L0.q[0]": 0.5},
            "labels": {"L0.q[0]": "red"},
            "notes": {"L0.q[0]": "the roof"},
        }
        file = save_dictionary(replace(random_dictionary(), metadata=metadata), tmp_path / "a.safetensors")
        assert run("info", file) == 0
        said = capsys.readouterr().out
        assert "AAAA" not in said and "  modelspec.thumbnail: picture, 6 kB\n" in said
        assert (
            "  effects: of 1 atoms\n" in said
            and "  labels: of 1 atoms\n" in said
            and "  thumbnails: of 2 atoms" in said
        )
        assert "  notes.L0.q[0]: the roof\n" in said
        assert run("info", file, "--json") == 0
        assert json.loads(capsys.readouterr().out)["metadata"] == metadata

    def test_of_a_combined_file_it_counts_where_atoms_came_from(self, tmp_path, capsys):
        both = combine([SparseAdapter(random_dictionary(seed=seed)) for seed in (1, 2)])
        assert run("info", save_dictionary(both, tmp_path / "both.safetensors")) == 0
        said = capsys.readouterr().out
        assert f"  origins: of {len(both)} atoms\n" in said and "origins.L0" not in said

    def test_what_strangers_wrote_does_not_steer_the_terminal(self, tmp_path, capsys):
        metadata = {"modelspec.title": "\x1b[2Jrobot", "labels": {"L0.q[0]": "red\x1b]0;x\x07"}}
        file = save_dictionary(replace(random_dictionary(), metadata=metadata), tmp_path / "a.safetensors")
        assert run("info", file, "--top", 99) == 0
        said = capsys.readouterr().out
        assert "robot" in said and "red" in said and not {"\x1b", "\x07"} & set(said)

    def test_a_reader_that_has_seen_enough_is_no_error(self, saved):
        command = [sys.executable, "-m", "sparse_core", "info", str(saved)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0

    def test_what_the_code_page_of_windows_lacks_is_replaced(self, tmp_path, monkeypatch):
        title = "\N{HIRAGANA LETTER A}"
        file = save_dictionary(
            replace(random_dictionary(), metadata={"modelspec.title": title}), tmp_path / "a.safetensors"
        )
        for how in ((), ("--json",)):
            written = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
            assert run("info", file, *how) == 0
            sys.stdout.flush()
            said = written.getvalue().decode("cp1252")
            assert json.loads(said)["metadata"]["modelspec.title"] == title if how else "modelspec.title: ?" in said

    def test_other_files_are_named(self, tmp_path, capsys):
        assert_fails(capsys, f"There is no file {tmp_path / 'nowhere'}", "info", tmp_path / "nowhere")
        assert_fails(capsys, f"{tmp_path} is a folder; expected a dictionary", "info", tmp_path)
        save_file({"lora_unet_down.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
        assert_fails(capsys, "is a LoRA", "info", tmp_path / "lora.safetensors")
        (tmp_path / "empty.safetensors").touch()
        assert_fails(capsys, "is empty", "info", tmp_path / "empty.safetensors")


# ------------------------------------------------------------------------------------------------------------- report


def test_a_report_is_one_page_that_loads_nothing_and_runs_nothing_of_a_files_own(model: Path, tmp_path: Path) -> None:
    from sparse_core.hosts.diffusers import DiffusersHost
    from sparse_core.pipelines import load_pipeline

    attack = "<img src=x onerror=alert(1)>"
    layers = DiffusersHost(load_pipeline(model)).layers
    dictionary = random_dictionary(layers)
    metadata = {
        "modelspec.title": attack,
        "modelspec.description": f"</script>{attack}",
        "labels": {f"{site}[0]": attack for site in dictionary.sites},
        "notes": {f"{site}[0]": attack for site in dictionary.sites},
        "training": {attack: attack},
        attack: attack,
    }
    file, page = tmp_path / "evil.safetensors", tmp_path / "new" / "folder" / "page.html"
    save_dictionary(replace(dictionary, metadata=metadata), file)
    taught = tmp_path / "taught"
    taught.mkdir()
    Image.new("RGB", (64, 64), "red").save(taught / f"{attack}.png")
    options = ["--prompt", f"a zib {attack}", "--steps", "2", "--top", "4", "--model", str(model)]
    options += ["--images", str(taught), "--word", "zib"]
    assert cli.main(["report", str(file), "--out", str(page), *options]) == 0
    text = re.sub(r"data:image/[^\"]+", "data:", page.read_text(encoding="utf-8"))
    assert attack not in text and text.count("&lt;img src=x onerror=alert(1)&gt;") > 5
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "http" not in text.replace("http-equiv", "")
    assert text.count('class="card"') == 4 and "only it" in text and "where it fires" in text
    assert text.count(">fires most on &lt;img") == 4


def test_a_report_without_a_trigger_asks_for_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "nameless.safetensors"
    save_dictionary(random_dictionary(), file)
    assert cli.main(["report", str(file), "--out", str(tmp_path / "page.html")]) == 1
    assert "--prompt" in capsys.readouterr().err


def test_a_report_of_too_small_a_batch_is_refused_before_anything_is_drawn(saved, model, tmp_path, capsys):
    base = ("report", saved, "--prompt", "a zib", "--model", model, "--out", tmp_path / "page.html")
    assert_fails(capsys, "--batch is 0; expected at least 2", *base, "--batch", 0)


def test_a_report_that_cannot_be_written_is_told_before_anything_is_loaded(saved, tmp_path, capsys):
    base = ("report", saved, "--prompt", "a zib", "--model", tmp_path / "nowhere")
    assert_fails(capsys, f"{tmp_path} is a folder; expected the .html file", *base, "--out", tmp_path)
    assert_fails(capsys, str(saved), *base, "--out", saved / "page.html")


class TestExtract:
    def test_writes_the_atoms_asked_for(self, saved, tmp_path, capsys):
        out = tmp_path / "hat.safetensors"
        assert run("extract", saved, "--atoms", "top:5", "--out", out) == 0
        part = load_dictionary(out)
        assert len(part) == 5 and len(part.metadata["origins"]) == 5
        assert "5 of 64 atoms" in capsys.readouterr().out

    def test_a_name_without_suffix_gets_that_of_a_dictionary(self, saved, tmp_path, capsys):
        assert run("extract", saved, "--atoms", "top:5", "--out", tmp_path / "hat") == 0
        assert len(load_dictionary(tmp_path / "hat.safetensors")) == 5 and not (tmp_path / "hat").exists()
        assert "hat.safetensors: 5 of" in capsys.readouterr().out

    def test_a_selection_that_picks_nothing_is_an_error(self, saved, tmp_path, capsys):
        assert_fails(
            capsys, "L99 picks no atom", "extract", saved, "--atoms", "L99", "--out", tmp_path / "x.safetensors"
        )


@pytest.fixture
def distilling(tmp_path):
    """A LoRA, and the arguments that distil it in three steps."""
    generator = torch.Generator().manual_seed(0)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    factors = {"A": (2, 24), "B": (16, 2)}
    lora = tmp_path / "lora.safetensors"
    save_file({f"{key}.lora_{n}.weight": torch.randn(s, generator=generator) for n, s in factors.items()}, lora)
    (tmp_path / "prompts.txt").write_text("a zib in the snow\n\na zib\n")
    prompts = ["--prompt", "a zib", "--prompt", f"@{tmp_path / 'prompts.txt'}"]
    return ["distil", lora, *prompts, "--pictures", "1", *QUICK[2:4], "--atoms", "2", "--threshold", "0.5"]


def test_distil_makes_a_dictionary_of_a_lora(model, tmp_path, distilling):
    out = tmp_path / "distilled.safetensors"
    assert run(*distilling, "--out", out, "--model", model) == 0
    dictionary = load_dictionary(out)
    assert dictionary.metadata["training"]["steps_done"] == 3
    assert any(atoms.directions.any() for atoms in dictionary.sites.values())


def test_an_interrupted_distil_saves_what_was_learnt(model, tmp_path, distilling, monkeypatch, capsys):
    def distil_with_an_interrupt(host, asked, settings, on_step, metadata):
        def step(progress):
            if progress.step == 2:
                signal.raise_signal(signal.SIGINT)
            on_step(progress)

        return distil(host, asked, settings, step, metadata)

    monkeypatch.setattr(compose_cli, "distil", distil_with_an_interrupt)
    out = tmp_path / "interrupted.safetensors"
    assert run(*distilling, "--out", out, "--model", model) == 130
    assert load_dictionary(out).metadata["training"]["steps_done"] == 2
    assert "2 steps is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
