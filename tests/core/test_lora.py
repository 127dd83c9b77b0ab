"""LoRA files of every style become the same dictionary, which does exactly what the LoRA does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from factories import CHANNELS, random_condition, tiny_host
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from sparse_core.addresses import parse_selection
from sparse_core.controls import Conditioning, Control, Curve, Keep, Mask, Schedule, Solo, SparseAdapter, Weight
from sparse_core.dictionary import SparseDictionary
from sparse_core.files import load_dictionary, save_dictionary
from sparse_core.hosts.diffusers import DiffusersHost
from sparse_core.hosts.updating import weight_shapes
from sparse_core.lora import ImportedLora, LoraFileError
from sparse_core.lora.algorithms import low_rank, orthogonal_atoms
from sparse_core.modules import LowRank, original_names, projection_sites
from sparse_core.plan import Crop, MaskPlacementError, Plan, Rows, Run, compile_plan

ALL = parse_selection("*")
Pairs = dict[str, tuple[Tensor, Tensor]]
"""Module's name to (down, up), shaped as kohya's scripts save them."""


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def host(kind: str) -> DiffusersHost:
    return tiny_host(kind)


def shapes_of(host: DiffusersHost) -> dict[str, tuple[int, ...]]:
    return weight_shapes(dict(host.unet.named_modules()))


def random_pairs(host: DiffusersHost, rank: int = 3, seed: int = 0, only: Callable[[str], bool] = bool) -> Pairs:
    """A LoRA on every linear and convolution module, strong enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, shape in shapes_of(host).items():
        if only(name):
            down = torch.randn(rank, *shape[1:], generator=generator) * shape[1] ** -0.5
            up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator) * rank**-0.5
            pairs[name] = down, up
    return pairs


def attention(name: str) -> bool:
    return ".attn" in name


def kohya(pairs: Pairs) -> dict[str, Tensor]:
    flat = {f"lora_unet_{name.replace('.', '_')}": pair for name, pair in pairs.items()}
    return {
        f"{n}.lora_{part}.weight": t for n, pair in flat.items() for part, t in zip(("down", "up"), pair, strict=True)
    }


def original(pairs: Pairs) -> Pairs:
    """The modules under their names in the original layout. An upsampler has two possible ones; one is enough."""
    return {theirs: pairs[name] for name, theirs in {v: k for k, v in original_names(list(pairs)).items()}.items()}


def peft(pairs: Pairs, prefix: str = "unet.", adapter: str = "") -> dict[str, Tensor]:
    return {
        f"{prefix}{name}.lora_{part}{adapter}.weight": tensor
        for name, pair in pairs.items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def processor(pairs: Pairs) -> dict[str, Tensor]:
    """As diffusers saved LoRAs before peft."""
    renamed = {
        name.replace(".to_out.0", ".to_out").replace(".to_", ".processor.to_"): pair for name, pair in pairs.items()
    }
    return {
        f"unet.{name}_lora.{part}.weight": tensor
        for name, pair in renamed.items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }


def comfyui(pairs: Pairs) -> dict[str, Tensor]:
    return {
        f"diffusion_model.{name}.lora_{part}.weight": tensor
        for name, pair in original(pairs).items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }


STYLES: dict[str, Callable[[Pairs], dict[str, Tensor]]] = {
    "kohya": kohya,
    "kohya, original layout": lambda pairs: kohya(original(pairs)),
    "diffusers": peft,
    "peft": lambda pairs: peft(pairs, "base_model.model."),
    "peft with the adapter's name": lambda pairs: peft(pairs, "base_model.model.unet.", ".default"),
    "bare": lambda pairs: peft(pairs, ""),
    "comfyui": comfyui,
}


def import_file(host: DiffusersHost, tensors: dict[str, Tensor], folder: Path) -> ImportedLora:
    path = folder / "some.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return host.import_lora(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def dictionary(host: DiffusersHost, folder: Path) -> SparseDictionary:
    return import_file(host, kohya(random_pairs(host)), folder).dictionary


def same(one: SparseDictionary, other: SparseDictionary) -> bool:
    """Equal to the last bit."""
    return (
        one.sites.keys() == other.sites.keys()
        and list(one.rest) == list(other.rest)
        and all(
            torch.equal(tensor, other.sites[site].tensors()[name])
            for site, atoms in one.sites.items()
            for name, tensor in atoms.tensors().items()
        )
        and all(
            torch.equal(update.down, other.rest[name].down) and torch.equal(update.up, other.rest[name].up)
            for name, update in one.rest.items()
        )
    )


# ---------------------------------------------------------------------------------------------------------- key styles


@pytest.mark.parametrize("style", STYLES)
def test_key_styles_give_one_dictionary(
    style: str, host: DiffusersHost, dictionary: SparseDictionary, folder: Path
) -> None:
    assert same(import_file(host, STYLES[style](random_pairs(host)), folder).dictionary, dictionary)


def test_old_processor_style(host: DiffusersHost, folder: Path) -> None:
    pairs = random_pairs(host, only=attention)
    expected = import_file(host, kohya(pairs), folder).dictionary
    assert same(import_file(host, processor(pairs), folder).dictionary, expected)


def test_every_projection_has_its_site(host: DiffusersHost, dictionary: SparseDictionary) -> None:
    sites = projection_sites(shapes_of(host), host.layers)
    assert len(set(sites.values())) == len(sites) == 4 * len(host.layers)
    assert set(dictionary.sites) == set(sites.values())
    assert set(dictionary.rest) == set(shapes_of(host)) - set(sites)


# ---------------------------------------------------------------------------------------------------------- the update


@given(
    d_in=st.integers(1, 12),
    d_out=st.integers(1, 12),
    rank=st.integers(1, 16),
    alpha=st.none() | st.floats(0.1, 32),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]),
    seed=st.integers(0, 100),
)
def test_atoms_are_the_update_rotated(
    d_in: int, d_out: int, rank: int, alpha: float | None, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((rank, d_in), (d_out, rank)))
    parts = {"down": down, "up": up} | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
    delta = (1 if alpha is None else alpha / rank) * up.float().double() @ down.float().double()
    update = low_rank(parts, (d_out, d_in))
    atoms = orthogonal_atoms(update)
    scale = delta.norm()
    assert torch.allclose(atoms.directions.double().T @ atoms.encoder.double(), delta, atol=float(1e-5 * scale))
    assert update.squared_norm == pytest.approx(float(scale**2), rel=1e-4)
    assert float(atoms.importance.double().square().sum()) == pytest.approx(float(scale**2), rel=1e-4)
    assert torch.equal(atoms.importance, atoms.importance.sort(descending=True).values)
    assert torch.allclose(atoms.directions @ atoms.directions.T, torch.eye(len(atoms)), atol=1e-5)
    assert torch.allclose(atoms.encoder.norm(dim=1), atoms.importance, rtol=1e-4)
    assert len(atoms) <= min(d_in, d_out, rank) and not atoms.normalise and not atoms.threshold.any()


def test_convolutions_with_a_middle_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*s, generator=generator) for s in ((2, 5, 1, 1), (3, 2, 3, 3), (4, 3, 1, 1)))
    update = low_rank({"down": down, "mid": mid, "up": up, "alpha": torch.tensor(1.0)}, (4, 5, 3, 3))
    x = torch.randn(1, 5, 6, 6, generator=generator)
    conv = torch.nn.functional.conv2d
    expected = conv(conv(conv(x, down), mid, padding=1), up) / 2
    assert torch.allclose(conv(conv(x, update.down, padding=1), update.up.T[..., None, None]), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3, 3)])
def test_hadamard_products(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.Size(shape[1:]).numel()
    parts = {role: torch.randn(7, 2, generator=generator) for role in ("w1_a", "w2_a")}
    parts |= {role: torch.randn(2, columns, generator=generator) for role in ("w1_b", "w2_b")}
    update = low_rank(parts | {"alpha": torch.tensor(3.0)}, shape)
    expected = 1.5 * (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    assert torch.allclose(update.up.T @ update.down.flatten(1), expected, atol=1e-5)


# -------------------------------------------------------------------------------------------- strengths in the header

ADAPTERS = {
    "alpha above the rank": {"lora_alpha": 10},
    "alpha below the rank": {"lora_alpha": 1},
    "root of the rank": {"lora_alpha": 10, "use_rslora": True},
    "patterns": {
        "lora_alpha": 10,
        "rank_pattern": {"to_q": 2, "conv1": 3},
        "alpha_pattern": {"attn1.to_v": 3, r"^(down|up)_blocks.*attn2\.to_q": 5, "to_q": 7, "ff.net.0.proj": 100},
    },
    "root with patterns": {
        "lora_alpha": 3,
        "use_rslora": True,
        "rank_pattern": {"to_v": 9},
        "alpha_pattern": {"to_k": 6},
    },
}
WHERE = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "conv1", "time_emb_proj"]
FILE = "pytorch_lora_weights.safetensors"
"""What diffusers calls it."""


def adapted(host: DiffusersHost, **said: object) -> UNet2DConditionModel:
    """The UNet with a random adapter of rank 4."""
    unet = copy.deepcopy(host.unet)
    torch.manual_seed(0)
    unet.add_adapter(LoraConfig(r=4, target_modules=WHERE, init_lora_weights=False, **said))
    return unet


def save_whole(unet: UNet2DConditionModel, folder: Path) -> Path:
    """As diffusers' training scripts save it, for a pipeline."""
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    return folder / FILE


def save_part(unet: UNet2DConditionModel, folder: Path) -> Path:
    """As the UNet saves its own."""
    unet.save_lora_adapter(folder, weight_name=FILE)
    return folder / FILE


def updates_of(dictionary: SparseDictionary, host: DiffusersHost) -> dict[str, Tensor]:
    """Module's name to the (d_out, d_in) update of its weight."""
    sites = {site: name for name, site in projection_sites(shapes_of(host), host.layers).items()}
    rest = {name: update.up.T @ update.down.flatten(1) for name, update in dictionary.rest.items()}
    return {sites[site]: atoms.directions.T @ atoms.encoder for site, atoms in dictionary.sites.items()} | rest


@pytest.mark.parametrize(("save", "prefix"), [(save_whole, "unet"), (save_part, None)])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_strength_is_what_diffusers_applies(
    adapter: str,
    save: Callable[[UNet2DConditionModel, Path], Path],
    prefix: str | None,
    host: DiffusersHost,
    tmp_path: Path,
) -> None:
    path = save(adapted(host, **ADAPTERS[adapter]), tmp_path)
    loaded = copy.deepcopy(host.unet)
    loaded.load_lora_adapter(tmp_path, prefix=prefix, weight_name=FILE, adapter_name="it")
    expected = {n: m.get_delta_weight("it") for n, m in loaded.named_modules() if hasattr(m, "get_delta_weight")}
    found = updates_of(host.import_lora(path).dictionary, host)
    assert found.keys() == expected.keys()
    for name, update in expected.items():
        torch.testing.assert_close(found[name], update.detach().flatten(1), rtol=1e-4, atol=1e-5, msg=name)


def with_header(tensors: dict[str, Tensor], settings: object, path: Path) -> Path:
    said = settings if isinstance(settings, str) else json.dumps(settings)
    save_file({key: t.contiguous() for key, t in tensors.items()}, path, {"lora_adapter_metadata": said})
    return path


@pytest.mark.parametrize(
    "settings",
    ["", {}, {"unet.r": 3, "unet.lora_alpha": 3}, {"unet.r": 3}, {"text_encoder.lora_alpha": 30}],
    ids=["empty", "nothing", "alpha of the rank", "no alpha", "of the text encoder"],
)
def test_a_header_that_says_no_other_strength_changes_no_bit(
    settings: object, host: DiffusersHost, dictionary: SparseDictionary, tmp_path: Path
) -> None:
    path = with_header(peft(random_pairs(host)), settings, tmp_path / "some.safetensors")
    assert same(host.import_lora(path).dictionary, dictionary)


def test_alpha_tensors_come_before_the_header(host: DiffusersHost, tmp_path: Path) -> None:
    tensors = peft(random_pairs(host))
    tensors |= {key.replace(".lora_A.weight", ".alpha"): torch.tensor(2.0) for key in tensors if "lora_A" in key}
    expected = import_file(host, tensors, tmp_path).dictionary
    path = with_header(tensors, {"unet.lora_alpha": 30}, tmp_path / "other.safetensors")
    assert same(host.import_lora(path).dictionary, expected)


def test_the_text_encoders_part_brings_its_strength_along(host: DiffusersHost, tmp_path: Path) -> None:
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    text = {f"{layer}.{name}.lora_A.weight": torch.ones(2, 4) for name in ("q_proj", "v_proj")}
    settings = {"text_encoder.lora_alpha": 6, "text_encoder.alpha_pattern": {"v_proj": 5}, "unet.lora_alpha": 3}
    lora = host.import_lora(with_header(peft(random_pairs(host)) | text, settings, tmp_path / "some.safetensors"))
    assert {key: float(t) for key, t in lora.text.items() if key.endswith("alpha")} == {
        f"{layer}.q_proj.alpha": 6,
        f"{layer}.v_proj.alpha": 5,
    }


@pytest.mark.parametrize(
    "settings",
    [
        "{",
        "[" * 100_000,
        [1],
        {"unet.lora_alpha": "strong"},
        {"unet.lora_alpha": float("nan")},
        {"unet.lora_alpha": 4, "unet.alpha_pattern": ["to_q"]},
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 1}},
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {r"(\w+)+!": 1}},
        {"unet.lora_alpha": 4, "unet.alpha_pattern": {".*.*.*.*!": 1}},
    ],
    ids=["cut off", "too deep", "a list", "a word", "not finite", "patterns in a list", "no pattern", "nested", "long"],
)
def test_a_damaged_header_is_refused(settings: object, host: DiffusersHost, tmp_path: Path) -> None:
    path = with_header(peft(random_pairs(host)), settings, tmp_path / "some.safetensors")
    with pytest.raises(LoraFileError, match=r"some\.safetensors.*lora_adapter_metadata is damaged"):
        host.import_lora(path)


def test_a_dora_of_diffusers_is_refused(host: DiffusersHost, tmp_path: Path) -> None:
    with pytest.raises(LoraFileError, match="DoRA"):
        host.import_lora(save_whole(adapted(host, use_dora=True), tmp_path))


# ------------------------------------------------------------------------------------------------------- whole models


def output(host: DiffusersHost, *adapters: SparseAdapter, size: tuple[int, int] = (8, 8), kind: str) -> Tensor:
    noise = torch.randn(2, CHANNELS, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), host.patched(list(adapters)):
        return host.denoise(noise, torch.tensor([0.3, 0.3]), random_condition(2, kind))


def controlled(dictionary: SparseDictionary, *controls: Control) -> SparseAdapter:
    return SparseAdapter(dictionary).with_controls(*controls)


def merged(host: DiffusersHost, pairs: Pairs, scale: float = 1.0) -> DiffusersHost:
    """The model with a LoRA in its weights."""
    other = copy.copy(host)
    other.unet = copy.deepcopy(host.unet)
    modules = dict(other.unet.named_modules())
    for name, (down, up) in pairs.items():
        weight = modules[name].weight
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return other


@pytest.mark.parametrize("size", [(8, 8), (10, 14)])
def test_equals_the_lora_in_the_weights(
    host: DiffusersHost, dictionary: SparseDictionary, kind: str, size: tuple[int, int]
) -> None:
    expected = output(merged(host, random_pairs(host)), size=size, kind=kind)
    found, plain = output(host, controlled(dictionary), size=size, kind=kind), output(host, size=size, kind=kind)
    assert float((expected - plain).norm() / plain.norm()) > 0.1
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_two_loras_add_up(host: DiffusersHost, dictionary: SparseDictionary, kind: str, folder: Path) -> None:
    second = random_pairs(host, rank=2, seed=5)
    expected = output(merged(merged(host, random_pairs(host)), second, -0.5), kind=kind)
    adapters = controlled(dictionary), controlled(import_file(host, kohya(second), folder).dictionary).at_strength(-0.5)
    assert torch.allclose(output(host, *adapters, kind=kind), expected, atol=1e-4 * float(expected.abs().max()))


NOTHING = {
    "mask of zeros": [Mask(torch.zeros(8, 8))],
    "strength 0": [Weight(ALL, 0.0, "scale")],
    "density 0": [Keep(0.0)],
    "on no prompt": [Conditioning("positive"), Conditioning("negative")],
}
EVERYTHING = {
    "mask of ones": [Mask(torch.ones(8, 8))],
    "strength 1": [Weight(ALL, 1.0, "scale")],
    "density 1": [Keep(1.0)],
    "all solo": [Solo(ALL)],
    "always": [Schedule(Curve())],
}


@pytest.mark.parametrize("control", NOTHING)
def test_nothing_left_is_the_plain_model(
    control: str, host: DiffusersHost, dictionary: SparseDictionary, kind: str
) -> None:
    assert torch.equal(output(host, controlled(dictionary, *NOTHING[control]), kind=kind), output(host, kind=kind))


@pytest.mark.parametrize("control", EVERYTHING)
def test_neutral_controls_change_nothing(
    control: str, host: DiffusersHost, dictionary: SparseDictionary, kind: str
) -> None:
    found = output(host, controlled(dictionary, *EVERYTHING[control]), kind=kind)
    assert torch.equal(found, output(host, controlled(dictionary), kind=kind))


def test_controls_of_some_atoms_leave_the_rest(dictionary: SparseDictionary) -> None:
    some = parse_selection("L0")
    untouched = controlled(
        dictionary, Weight(some, 0.5), Mask(torch.zeros(2, 2), some), Conditioning("positive", some), Keep(0.3)
    ).state.rest
    assert float(untouched.weight) == 1 and not untouched.masks.any() and bool(untouched.negative)
    assert float(controlled(dictionary, Weight(ALL, 0.5), Weight(ALL, 3.0, "scale")).state.rest.weight) == 1.5
    assert float(controlled(dictionary, Solo(some)).state.rest.weight) == 0


def test_a_file_of_convolutions_alone(host: DiffusersHost, kind: str, folder: Path) -> None:
    pairs = random_pairs(host, only=lambda name: "conv" in name)
    lora = import_file(host, kohya(pairs), folder)
    assert not lora.dictionary.sites and lora.shares["convolutions"] == pytest.approx(1)
    expected = output(merged(host, pairs, 0.5), kind=kind)
    found = output(host, controlled(lora.dictionary, Weight(ALL, 0.5)), kind=kind)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_dictionary_files_keep_the_rest(dictionary: SparseDictionary, tmp_path: Path) -> None:
    path = save_dictionary(dictionary, tmp_path / "one.safetensors", torch.float32)
    assert same(load_dictionary(path), dictionary)


# ---------------------------------------------------------------------------------------------------- masks on modules

GRID = (3, 4)
ROWS = Rows((0, 1), (False, True), (Crop((6, 8), 0, 0, 6, 8),) * 2)
MODULES = {"linear": (5, 6), "conv": (5, 6, 3, 3)}


def module_plan(*adapters: SparseAdapter) -> Plan:
    return compile_plan(adapters, ())


def module_dictionary(name: str, seed: int, rank: int = 2) -> SparseDictionary:
    generator = torch.Generator().manual_seed(seed)
    d_out, *tail = MODULES[name]
    down, up = torch.randn(rank, *tail, generator=generator), torch.randn(rank, d_out, generator=generator)
    return SparseDictionary((), {}, {}, {name: LowRank(down, up)})


def run_module(name: str, plan: Plan) -> tuple[Tensor, Tensor]:
    """(plain output, updated output), both (rows, places, features)."""
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(MODULES[name], generator=generator)
    if name == "linear":
        x = torch.randn(2, GRID[0] * GRID[1], 6, generator=generator)

        def project(weight: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, weight)
    else:
        x = torch.randn(2, 6, *GRID, generator=generator)

        def project(weight: Tensor) -> Tensor:
            return torch.nn.functional.conv2d(x, weight, padding=1)

    y = project(weight)
    updated = Run(plan, ROWS, 0.25, [None] * 9).module(name, y, project, GRID)
    return (y, updated) if name == "linear" else (y.flatten(2).mT, updated.flatten(2).mT)


@pytest.mark.parametrize("name", MODULES)
def test_outside_its_mask_a_module_gives_what_it_gave(name: str) -> None:
    mask = torch.zeros(*GRID)
    mask[:, 1] = 0.5
    mask[:, 2] = 1
    dictionary = module_dictionary(name, 0)
    plain, everywhere = run_module(name, module_plan(controlled(dictionary)))
    _, found = run_module(name, module_plan(controlled(dictionary, Mask(mask))))
    weight = mask.flatten()
    assert torch.equal(found[:, weight == 0], plain[:, weight == 0])
    assert torch.allclose(found, plain + weight[:, None] * (everywhere - plain), atol=1e-5)


@given(data=st.data())
@pytest.mark.parametrize("name", MODULES)
def test_several_loras_on_one_module_are_their_sum(name: str, data: st.DataObject) -> None:
    left = torch.zeros(*GRID)
    left[:, :2] = 1
    controls = [
        Mask(left),
        Mask(1 - left),
        Mask(torch.full(GRID, 0.5)),
        Weight(ALL, -2.0),
        Weight(ALL, 0.0),
        Schedule(Curve(0, 1, (1.0, 0.0))),
        Conditioning("positive"),
        Conditioning("negative"),
    ]
    control = st.sampled_from(controls)
    chains = data.draw(st.lists(st.lists(control, max_size=3), min_size=1, max_size=4))
    adapters = [controlled(module_dictionary(name, n, rank=1 + n % 3), *chain) for n, chain in enumerate(chains)]
    plan = module_plan(*adapters)
    plain, _ = run_module(name, module_plan(controlled(module_dictionary(name, 0))))
    expected = plain.clone()
    for adapter in adapters:
        alone = module_plan(adapter)
        if alone.modules:
            expected += run_module(name, alone)[1] - plain
    found = run_module(name, plan)[1] if plan.modules else plain
    assert torch.allclose(found, expected, atol=1e-4)


def test_features_without_a_place_take_no_masked_update() -> None:
    masked, free = module_dictionary("linear", 0), module_dictionary("linear", 1)
    x, y = torch.randn(2, 6), torch.randn(2, 5)

    def run(*adapters: SparseAdapter) -> Tensor:
        plan = module_plan(*adapters)
        return Run(plan, ROWS, 0.0, [None] * 2).module("linear", y, lambda w: torch.nn.functional.linear(x, w), None)

    half = torch.zeros(2, 2)
    half[0] = 1
    assert torch.equal(run(controlled(masked, Mask(half))), y)
    assert torch.allclose(run(controlled(masked, Mask(half)), controlled(free)), run(controlled(free)))


def test_tokens_that_are_not_the_grid_are_refused() -> None:
    half = torch.zeros(2, 2)
    half[0] = 1
    plan = module_plan(controlled(module_dictionary("linear", 0), Mask(half)))
    with pytest.raises(MaskPlacementError, match="another patch"):
        Run(plan, ROWS, 0.0, [None]).module("linear", torch.zeros(2, 7, 5), lambda w: torch.zeros(2, 7, len(w)), GRID)


# -------------------------------------------------------------------------------------------------------------- errors

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
REFUSED = {
    "DoRA": {f"{NAME}.dora_scale": torch.ones(1)},
    "LoKr": {f"{NAME}.lokr_w1": torch.ones(2, 2), f"{NAME}.lokr_w2": torch.ones(2, 2)},
    "OFT": {f"{NAME}.oft_blocks": torch.ones(2, 2)},
    "BOFT": {f"{NAME}.boft_b": torch.ones(2, 2)},
    "GLoRA": {f"{NAME}.a1.weight": torch.ones(2, 2)},
    "full weight differences": {f"{NAME}.diff": torch.ones(2, 2)},
    "LoHa in Tucker form": {
        f"{NAME}.hada_{role}": torch.ones(2, 2) for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    },
    "LoHa of rank 17": {f"{NAME}.hada_{role}": torch.ones(17, 17) for role in ("w1_a", "w1_b", "w2_a", "w2_b")},
    "NaN or infinite": {
        f"{NAME}.lora_down.weight": torch.full((1, 16), torch.nan),
        f"{NAME}.lora_up.weight": torch.ones(16, 1),
    },
    "don't go together: alpha": {  # rank 0
        f"{NAME}.alpha": torch.tensor(4.0),
        f"{NAME}.lora_down.weight": torch.ones(0, 16),
        f"{NAME}.lora_up.weight": torch.ones(16, 0),
    },
    "don't go together: down": {
        f"{NAME}.lora_down.weight": torch.ones(1, 16),
        f"{NAME}.lora_up.weight": torch.ones(16),
    },
    "don't go together.*mid": {
        f"{NAME}.lora_down.weight": torch.ones(1, 16),
        f"{NAME}.lora_up.weight": torch.ones(16, 1),
        f"{NAME}.lora_mid.weight": torch.ones(3, 3),
    },
    "don't go together.*w2_a": {
        f"{NAME}.hada_{role}": torch.ones(3 if role == "w2_a" else 2, 2) for role in ("w1_a", "w1_b", "w2_a", "w2_b")
    },
    "match nothing": {"lora_unet_down_blocks_9_conv.lora_down.weight": torch.ones(2, 2)},
    "has only down": {f"{NAME}.lora_down.weight": torch.ones(1, 16)},
    "changes nothing": {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 2)},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_name_the_cause(message: str, host: DiffusersHost, folder: Path) -> None:
    with pytest.raises(LoraFileError, match=message) as error:
        import_file(host, REFUSED[message], folder)
    assert "some.safetensors" in str(error.value)


def test_another_family_is_named(host: DiffusersHost, folder: Path) -> None:
    wide = {
        f"{NAME.replace('attn1_to_q', 'attn2_to_k')}.lora_{part}.weight": t
        for part, t in (("down", torch.ones(1, 2048)), ("up", torch.ones(16, 1)))
    }
    with pytest.raises(LoraFileError, match="SDXL"):
        import_file(host, wide, folder)


def test_files_that_are_no_lora(host: DiffusersHost, tmp_path: Path, dictionary: SparseDictionary) -> None:
    with pytest.raises(LoraFileError, match="Load Sparse Dictionary"):
        host.import_lora(save_dictionary(dictionary, tmp_path / "dictionary.safetensors"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(LoraFileError, match="never read"):
        host.import_lora(broken)
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(LoraFileError, match=f"^There is no file {missing}. Check the path.$"):
        host.import_lora(missing)
    missing.mkdir()
    with pytest.raises(LoraFileError, match=f"^{missing} is a folder; expected a LoRA."):
        host.import_lora(missing)


def test_report_says_what_the_controls_reach(host: DiffusersHost, folder: Path) -> None:
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(1, 2)}
    lora = import_file(host, kohya(random_pairs(host)) | text, folder)
    assert sum(lora.shares.values()) == pytest.approx(1)
    report = lora.report()
    for words in (f"{lora.shares['attention']:.0%}", "feed-forward", "convolutions", "time_emb", "text encoder"):
        assert words in report
    assert list(lora.text) == list(text)
