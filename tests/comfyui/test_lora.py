"""A LoRA as a dictionary draws what ComfyUI's own loader draws, and takes a region of its own in the same pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import comfy.sd
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.model_base import SDXL
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from safetensors.torch import save_file
from torch import Tensor
from world import demo_model, noise_of, pack, sample, text, tiny_model

from sparse_core.addresses import parse_selection
from sparse_core.controls import Conditioning, Control, Keep, Mask, SparseAdapter, Weight
from sparse_core.demo.model import bundled_path
from sparse_core.hosts.comfyui import apply_adapter, import_lora, named_modules
from sparse_core.hosts.updating import weight_shapes
from sparse_core.modules import original_names

ALL = parse_selection("*")
POOLED = 8
Pairs = dict[str, tuple[Tensor, Tensor]]


class TinyXlConfig(comfy.supported_models.SDXL):
    """SDXL's layout in small: none, two and three transformer blocks at three resolutions."""

    unet_extra_config: ClassVar = {}

    def __init__(self) -> None:
        super().__init__(
            {
                "image_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "channel_mult": [1, 2, 2],
                "num_res_blocks": [1, 1, 1],
                "transformer_depth": [0, 2, 3],
                "transformer_depth_output": [0, 0, 2, 2, 3, 3],
                "transformer_depth_middle": 3,
                "context_dim": 24,
                "num_heads": -1,
                "num_head_channels": 16,
                "use_spatial_transformer": True,
                "use_linear_in_transformer": True,
                "legacy": False,
                "num_classes": "sequential",
                "adm_in_channels": POOLED + 6 * 256,
                "use_temporal_attention": False,
            }
        )
        self.set_inference_dtype(torch.float32, None)


@cache
def tiny_xl_model() -> ModelPatcher:
    """A random UNet. Shared: leave it as it was."""
    model = SDXL(TinyXlConfig(), device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(values * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1 + 0.1 * values)
    return ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


MODELS: dict[str, Callable[[], ModelPatcher]] = {"SD1.5": tiny_model, "SDXL": tiny_xl_model}


def draw(model: ModelPatcher, **kwargs: Any) -> Tensor:
    pooled = torch.ones(1, POOLED)
    prompts = {"positive": text(1), "negative": text(2)}
    for (_, options), *_ in prompts.values():
        options["pooled_output"] = pooled
    return sample(model, **prompts, **kwargs)


def random_pairs(model: ModelPatcher, seed: int = 0, rank: int = 4, strength: float = 0.5) -> Pairs:
    """A LoRA on every linear and convolution module, by host-neutral name."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, shape in weight_shapes(named_modules(model.model.diffusion_model)).items():
        down = torch.randn(rank, *shape[1:], generator=generator) * strength * shape[1] ** -0.5
        pairs[name] = down, torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator) * rank**-0.5
    return pairs


def written(pairs: Pairs, spell: Callable[[str], str], down: str, up: str) -> dict[str, Tensor]:
    return {
        f"{spell(name)}.{part}": t for name, pair in pairs.items() for part, t in zip((down, up), pair, strict=True)
    }


def kohya(pairs: Pairs) -> dict[str, Tensor]:
    tensors = written(pairs, lambda n: f"lora_unet_{n.replace('.', '_')}", "lora_down.weight", "lora_up.weight")
    return tensors | {
        f"lora_unet_{n.replace('.', '_')}.alpha": torch.tensor(float(len(p[0]))) for n, p in pairs.items()
    }


def peft(pairs: Pairs) -> dict[str, Tensor]:
    return written(pairs, lambda name: f"unet.{name}", "lora_A.weight", "lora_B.weight")


def original(pairs: Pairs, model: ModelPatcher) -> dict[str, Tensor]:
    own = dict(model.model.diffusion_model.named_modules())
    names = {name: theirs for theirs, name in original_names(list(pairs)).items() if theirs in own}
    spelled = {names[name].replace(".", "_"): pair for name, pair in pairs.items()}
    return written(spelled, lambda name: f"lora_unet_{name}", "lora_down.weight", "lora_up.weight")


def by_core(model: ModelPatcher, tensors: dict[str, Tensor], strength: float = 1.0) -> ModelPatcher:
    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]


def as_dictionary(model: ModelPatcher, tensors: dict[str, Tensor], folder: Path) -> SparseAdapter:
    path = folder / "some.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return SparseAdapter(import_lora(model, path).dictionary)


def check_close(found: Tensor, expected: Tensor, plain: Tensor) -> None:
    """Equal as far as float32 goes, on a LoRA that changes the picture."""
    assert float((expected - plain).norm() / plain.norm()) > 0.03
    assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("style", ["kohya", "original layout", "peft"])
@pytest.mark.parametrize("kind", MODELS)
def test_equals_the_lora_loader(kind: str, style: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    pairs = random_pairs(model)
    tensors = {"kohya": kohya, "peft": peft}[style](pairs) if style != "original layout" else original(pairs, model)
    expected = draw(by_core(model, kohya(pairs), 0.8))  # core reads no peft file of a UNet's attentions
    adapter = as_dictionary(model, tensors, tmp_path)
    assert len(adapter.dictionary.sites) == 4 * len(adapter.dictionary.layers)
    check_close(draw(apply_adapter(model, adapter.at_strength(0.8))), expected, draw(model))


def test_beside_a_lora_of_core(tmp_path: Path) -> None:
    model = tiny_model()
    one, two = kohya(random_pairs(model)), kohya(random_pairs(model, seed=1))
    expected = draw(by_core(by_core(model, one), two))
    adapter = as_dictionary(model, one, tmp_path)
    check_close(draw(by_core(apply_adapter(model, adapter), two)), expected, draw(model))


# --------------------------------------------------------------------------------------------- trained on the demo model


@pytest.fixture(scope="module")
def trained() -> Pairs:
    """A LoRA that peft trained for a few steps, with alpha twice the rank folded into its up matrices."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model
    from peft.utils import get_peft_model_state_dict

    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_pretrained(bundled_path() / "unet", local_files_only=True).float()
        targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "time_emb_proj"]
        model = get_peft_model(unet, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        channels, width = unet.config.in_channels, unet.config.cross_attention_dim
        x, context = torch.randn(2, channels, 8, 8), torch.randn(2, 6, width)
        for _ in range(4):
            loss = (model(x, torch.tensor([200, 700]), context).sample - 1).square().mean()
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        state = get_peft_model_state_dict(model)
    modules = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in state}
    key = "base_model.model.{}.lora_{}.weight"
    return {m: (state[key.format(m, "A")].clone(), 2 * state[key.format(m, "B")].clone()) for m in modules}


def demo_prompts() -> dict[str, list]:
    width = demo_model().model.model_config.unet_config["context_dim"]
    return {"positive": text(1, width=width), "negative": text(2, width=width)}


def demo_noise() -> Tensor:
    return noise_of(1, (16, 16), demo_model().model.latent_format.latent_channels)


@pytest.mark.parametrize("write", [kohya, peft])
def test_a_lora_trained_by_peft(write: Callable, trained: Pairs, tmp_path: Path) -> None:
    model = demo_model()
    run = {**demo_prompts(), "noise": demo_noise(), "steps": 4}
    expected = sample(by_core(model, kohya(trained)), **run)
    adapter = as_dictionary(model, write(trained), tmp_path)
    check_close(sample(apply_adapter(model, adapter), **run), expected, sample(model, **run))


def test_three_loras_in_three_regions_take_one_pass(trained: Pairs, tmp_path: Path) -> None:
    calls: list[int] = []

    def count(executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return executor(*args, **kwargs)

    model = demo_model()
    patched = model.clone()
    for region in range(3):
        mask = torch.zeros(12, 12)
        mask[:, 4 * region : 4 * region + 4] = 1
        scaled = {name: (down, (region - 1.5) * up) for name, (down, up) in trained.items()}
        adapter = as_dictionary(model, kohya(scaled), tmp_path).with_controls(Mask(mask))
        patched = apply_adapter(patched, adapter)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    run = {**demo_prompts(), "noise": demo_noise(), "steps": 3}
    found = sample(patched, **run)
    assert len(calls) == 3
    assert float((found - sample(model, **run)).norm()) > 0


# ------------------------------------------------------------------------------------------------------------ exactness


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> SparseAdapter:
    """On every module of the tiny model."""
    return as_dictionary(tiny_model(), kohya(random_pairs(tiny_model())), tmp_path_factory.mktemp("loras"))


@pytest.mark.parametrize(
    "control", [Mask(torch.zeros(8, 8)), Weight(ALL, 0.0), Keep(0.0)], ids=["mask of zeros", "strength 0", "density 0"]
)
def test_nothing_left_is_the_plain_model(control: Control, adapter: SparseAdapter) -> None:
    assert torch.equal(sample(apply_adapter(tiny_model(), adapter.with_controls(control))), sample(tiny_model()))


def test_mask_of_ones_is_no_mask(adapter: SparseAdapter) -> None:
    masked = adapter.with_controls(Mask(torch.ones(8, 8)))
    assert torch.equal(sample(apply_adapter(tiny_model(), masked)), sample(apply_adapter(tiny_model(), adapter)))


@pytest.mark.parametrize("size", [(16, 16), (13, 11)], ids=["even", "odd"])
def test_pictures_of_a_batch_have_their_own_masks(adapter: SparseAdapter, size: tuple[int, int]) -> None:
    masks = torch.zeros(2, 16, 16)
    masks[0, :, :8] = 1
    masks[1, :4] = 1
    noise = noise_of(2, size)
    both = sample(apply_adapter(tiny_model(), adapter.with_controls(Mask(masks))), noise=noise)
    for picture, mask in enumerate(masks):
        alone = sample(apply_adapter(tiny_model(), adapter.with_controls(Mask(mask))), noise=noise[picture, None])
        assert torch.allclose(both[picture, None], alone, atol=1e-3 * float(alone.abs().max()))


def test_one_prompt_alone(adapter: SparseAdapter) -> None:
    """At CFG 1 ComfyUI runs the positive prompt only."""
    positive = apply_adapter(tiny_model(), adapter.with_controls(Conditioning("positive")))
    negative = apply_adapter(tiny_model(), adapter.with_controls(Conditioning("negative")))
    whole = apply_adapter(tiny_model(), adapter)
    assert torch.equal(sample(positive, cfg=1.0), sample(whole, cfg=1.0))
    assert torch.allclose(sample(negative, cfg=1.0), sample(tiny_model(), cfg=1.0))
    assert not torch.allclose(sample(positive), sample(whole), atol=1e-3)


def test_no_hook_outlives_a_call(adapter: SparseAdapter) -> None:
    def fail(executor: Callable, *args: Any, **kwargs: Any) -> Tensor:
        executor(*args, **kwargs)
        raise InterruptedError

    model = apply_adapter(tiny_model(), adapter)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "fail", fail)
    with pytest.raises(InterruptedError):
        sample(model)
    sample(apply_adapter(tiny_model(), adapter))
    modules = tiny_model().model.diffusion_model.modules()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def test_another_model_is_refused(adapter: SparseAdapter) -> None:
    with pytest.raises(ValueError, match="another model"):
        apply_adapter(tiny_xl_model(), adapter)


# ----------------------------------------------------------------------------------------------------------------- node


@pytest.fixture
def loras(tmp_path: Path) -> Iterator[Path]:
    """A folder that ComfyUI lists LoRAs of."""
    folders = folder_paths.folder_names_and_paths["loras"][0]
    folders.insert(0, str(tmp_path))
    yield tmp_path
    folders.remove(str(tmp_path))


def test_the_node(loras: Path, trained: Pairs) -> None:
    node = pack().nodes.lora.LoadLoraAsDictionary
    clip = pack().nodes.demo.load_clip(bundled_path())
    weights = clip.cond_stage_model.state_dict()
    (name,) = [n for n in weights if n.endswith("encoder.layers.0.self_attn.q_proj.weight")]
    d_out, d_in = weights[name].shape
    generator = torch.Generator().manual_seed(0)
    key = "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_"
    words = {
        f"{key}down.weight": torch.randn(2, d_in, generator=generator),
        f"{key}up.weight": torch.randn(d_out, 2, generator=generator),
    }
    save_file(kohya(trained) | words, loras / "robot.safetensors")
    dictionary, patched, report = node.execute(demo_model(), "robot.safetensors", 0.7, clip).result
    assert len(dictionary.dictionary.sites) == 4 * len(dictionary.dictionary.layers)
    assert "robot.safetensors" in report and "under atom control" in report and "time_emb_proj" in report
    expected = comfy.sd.load_lora_for_models(None, clip, words, 0, 0.7)[1]

    def encode(clip: comfy.sd.CLIP) -> Tensor:
        return clip.encode_from_tokens(clip.tokenize("a red cat"))

    assert torch.equal(encode(patched), encode(expected))
    assert not torch.allclose(encode(patched), encode(clip))


def test_the_node_reads_a_file_again_when_it_has_changed(loras: Path) -> None:
    node = pack().nodes.lora.LoadLoraAsDictionary
    save_file({"a": torch.ones(1)}, loras / "some.safetensors")
    before = node.fingerprint_inputs("some.safetensors")
    save_file({"a": torch.ones(2)}, loras / "some.safetensors")
    assert node.fingerprint_inputs("some.safetensors") != before
    assert node.validate_inputs("some.safetensors") is True
    assert "no LoRA" in node.validate_inputs("missing.safetensors")
