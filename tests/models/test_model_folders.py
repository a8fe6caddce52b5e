"""Attacks on model folders: weights that torch would cast, configs that would fill the machine,
text that would not stay text. Every manifest is right: what is refused is refused for what it says.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load, save
from torch import nn

import toy
from lookalike.errors import BackboneError, RunError
from lookalike.folder import MANIFEST, write_folder
from lookalike.models import Architecture, Backbone, card, folder_files, load_backbone
from lookalike.models import sketch as sketches
from lookalike.models.embedding import Embedding, embedding_files, load_model
from lookalike.scoring.ivf import InvertedLists
from lookalike.search.index import CELLS, SearchIndex, Seen, open_index, write_index

RESNET = Architecture("resnet18", 32, args={"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]})
VIT = Architecture(
    "vit_tiny_patch16_224", 16, args={"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
)
SWIN = Architecture(
    "swin_tiny_patch4_window7_224",
    32,
    args={"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
)
SEQUENCER = Architecture(
    "sequencer2d_s", 28, args={"layers": [1] * 4, "embed_dims": [16] * 4, "hidden_sizes": [4] * 4}
)


def written(folder: Path, architecture: Architecture = RESNET) -> Path:
    torch.manual_seed(0)
    write_folder(folder, folder_files(architecture.build()))
    return folder


def rewrite(folder: Path, **files: bytes) -> None:
    """Replaces files and writes a manifest that vouches for them."""
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}
    write_folder(
        folder, {**kept, **{name.replace("__", "."): content for name, content in files.items()}}
    )


def reconfigure(folder: Path, **ours: Any) -> Path:
    config = json.loads((folder / "config.json").read_bytes())
    config["lookalike"].update(ours)
    rewrite(folder, config__json=json.dumps(config).encode())
    return folder


def spoil(folder: Path, name: str, change: Any, file: str = "model.safetensors") -> None:
    """Replaces one tensor of a file by what `change` makes of it."""
    tensors = load((folder / file).read_bytes())
    tensors[name] = change(tensors[name])
    rewrite(folder, **{file.replace(".", "__"): save(tensors)})


# --- weights --------------------------------------------------------------------------------------

KINDS = [
    torch.int8,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_weights_of_another_dtype_are_refused_by_name_and_never_cast(kind, tmp_path):
    folder = written(tmp_path / "x")
    spoil(folder, "layer2.0.conv1.weight", lambda tensor: tensor.to(kind))
    found = rf"layer2\.0\.conv1\.weight: {str(kind)[6:]} instead of float32"
    text = rf"model\.safetensors: .*: {found}: export it again$"
    with pytest.raises(BackboneError, match=text):
        load_backbone(folder)


def test_a_counter_of_another_dtype_is_refused(tmp_path):
    folder = written(tmp_path / "x")
    spoil(folder, "bn1.num_batches_tracked", lambda tensor: tensor.float())
    with pytest.raises(BackboneError, match=r"bn1\.num_batches_tracked: float32 instead of int64"):
        load_backbone(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "name", ["layer4.0.conv2.weight", "bn1.bias", "bn1.running_mean", "layer1.0.bn1.running_var"]
)
def test_numbers_that_are_not_finite_are_refused_by_name(name, value, tmp_path):
    folder = written(tmp_path / "x")

    def poisoned(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    spoil(folder, name, poisoned)
    with pytest.raises(
        BackboneError, match=rf"config\.json: {name}: holds NaN or infinity: export it again$"
    ):
        load_backbone(folder)


def test_a_negative_variance_whose_root_would_be_nan_is_refused(tmp_path):
    folder = written(tmp_path / "x")
    spoil(folder, "bn1.running_var", lambda tensor: -tensor)
    with pytest.raises(BackboneError, match=r"bn1\.running_var: holds a negative variance"):
        load_backbone(folder)


@pytest.mark.parametrize("shape", [(0,), (0, 3, 7, 7), (64, 3, 7, 7, 1), ()])
def test_weights_of_another_shape_are_refused_by_name(shape, tmp_path):
    folder = written(tmp_path / "x")
    spoil(folder, "conv1.weight", lambda tensor: torch.zeros(shape))
    with pytest.raises(
        BackboneError, match=r"conv1\.weight: shape \(.*\) instead of \(64, 3, 7, 7\): export"
    ):
        load_backbone(folder)


POWERS = {
    "half": ({"p": torch.ones(1).half()}, "p: float16 instead of float32"),
    "nan": ({"p": torch.tensor([torch.nan])}, "p: holds NaN or infinity"),
    "many": ({"p": torch.ones(10**6)}, r"p: shape \(1000000,\) instead of \(1,\)"),
    "none": ({}, "p is missing"),
    "odd name": (
        {"p": torch.ones(1), "\x1b[31m\u202e": torch.ones(1)},
        r"\\x1b\[31m\\u202e is not the model's",
    ),
}


@pytest.mark.parametrize("what", POWERS)
def test_a_power_that_does_not_fit_is_refused(what, tmp_path):
    folder = written(tmp_path / "x", replace(RESNET, pool="gem"))
    tensors, text = POWERS[what]
    rewrite(folder, pool__safetensors=save(tensors))
    with pytest.raises(BackboneError, match=rf"pool\.safetensors: .*: {text}: export it again$"):
        load_backbone(folder)


def test_a_header_or_a_number_of_tensors_beyond_any_model_s_is_refused(tmp_path):
    folder = written(tmp_path / "x")
    rewrite(folder, model__safetensors=(2**23).to_bytes(8, "little") + b" " * 2**23)
    with pytest.raises(
        BackboneError, match=r"not a safetensors file \(a header of 8388608 bytes, more than"
    ):
        load_backbone(folder)
    rewrite(folder, model__safetensors=save({str(n): torch.zeros(0) for n in range(5001)}))
    with pytest.raises(
        BackboneError, match=r"model\.safetensors: 5001 tensors, more than the 5000 allowed: export"
    ):
        load_backbone(folder)


def test_a_folder_of_many_files_is_refused(tmp_path):
    folder = written(tmp_path / "x")
    rewrite(folder, **{f"file{n}": b"" for n in range(200)})
    with pytest.raises(
        BackboneError, match=r"x: 202 files, more than a model's 100: export it again$"
    ):
        load_backbone(folder)


def test_a_head_is_loaded_without_drawing_a_number(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Embedding(RESNET.build(), 12).eval()
    write_folder(tmp_path / "x", embedding_files(model))
    monkeypatch.setattr(nn.init, "orthogonal_", None)
    torch.manual_seed(1)
    plain = Backbone(RESNET, model.backbone.dim)
    expected = torch.rand(3)
    torch.manual_seed(1)
    loaded = load_model(tmp_path / "x")
    assert torch.equal(torch.rand(3), expected)
    assert loaded.backbone.dim == plain.dim
    assert toy.same_weights(loaded, model)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda cells: cells._replace(centre_CD=cells.centre_CD * torch.nan),
            "a centre of cells is not finite",
        ),
        (lambda cells: cells._replace(centre_CD=cells.centre_CD.half()), "cells of another matrix"),
        (lambda cells: cells._replace(row_N=cells.row_N.to(torch.int8)), "cells of another matrix"),
    ],
)
def test_cells_of_other_numbers_are_refused(change, reason, tmp_path):
    model = RESNET.build().eval()
    cells = InvertedLists(torch.ones(1, model.dim), torch.arange(2), torch.tensor([0, 2]))
    index = SearchIndex(model, torch.ones(2, model.dim), ["a", "b"], canvas=(32, 32), cells=cells)
    write_index(tmp_path / "x", index, Seen(["1", "2"], {}))
    assert open_index(tmp_path / "x").cells is not None
    about = json.loads((tmp_path / "x" / MANIFEST).read_bytes())["index"]
    kept = {p.name: p.read_bytes() for p in (tmp_path / "x").iterdir() if p.name != MANIFEST}
    write_folder(tmp_path / "x", {**kept, CELLS: save(change(cells)._asdict())}, {"index": about})
    with pytest.raises(RunError, match=rf"not a whole index \(ValueError: {reason}\)"):
        open_index(tmp_path / "x")


# --- bombs ----------------------------------------------------------------------------------------

TOO_MUCH = (
    r"model\.safetensors: the weights do not fit config\.json, "
    r"which asks for {} than they explain: export it a"
)
ODD = r"config\.json: not a backbone of lookalike \({}\): export it again"
SUM = ODD.format("ValueError: its numbers are not finite, or add up to more than 50000")
BOMBS: dict[str, tuple[Architecture, dict[str, Any], str]] = {
    "wide": (
        RESNET,
        {"args": {"channels": [64, 64, 4096, 8192]}},
        TOO_MUCH.format("larger tensors"),
    ),
    "deep": (
        RESNET,
        {"args": {**RESNET.args, "layers": [40_000, 1, 1, 1]}},
        TOO_MUCH.format("more parameters"),
    ),
    "deeper": (RESNET, {"args": {**RESNET.args, "layers": [100_000, 1, 1, 1]}}, SUM),
    "size": (RESNET, {"size": 4096}, ODD.format("size 4096: at most 3584 pixels a side: lower it")),
    "one side": (
        RESNET,
        {"size": [32, 3585]},
        ODD.format(r"size \(32, 3585\): at most 3584 pixels a side: lower it"),
    ),
    "embed_dim": (VIT, {"args": {**VIT.args, "embed_dim": 10**9}}, SUM),
    "embed_dim 30,000": (
        VIT,
        {"args": {**VIT.args, "embed_dim": 30_000}},
        TOO_MUCH.format("larger tensors"),
    ),
    "depth": (VIT, {"args": {**VIT.args, "depth": 10**9}}, SUM),
    "depth 49,000": (
        VIT,
        {"args": {**VIT.args, "depth": 49_000}},
        TOO_MUCH.format("more parameters"),
    ),
    "tokens": (VIT, {"size": 3584}, TOO_MUCH.format("larger tensors")),
    "window": (
        SWIN,
        {"size": 512, "args": {**SWIN.args, "window_size": 64}},
        TOO_MUCH.format("larger tensors"),
    ),
    "infinite": (VIT, {"args": {**VIT.args, "init_values": float("inf")}}, SUM),
    "not a number": (RESNET, {"mean": [float("nan")] * 3}, SUM),
    "digits": (VIT, {"args": {**VIT.args, "embed_dim": 10**400}}, SUM),
    "negative": (VIT, {"args": {**VIT.args, "depth": -(10**9)}}, SUM),
    "list": (
        RESNET,
        {"args": {"channels": [8] * 10_000}},
        ODD.format("ValueError: more than 2000 values"),
    ),
    "nested": (
        RESNET,
        {"args": {"channels": [[[[[[8]]]]]]}},
        ODD.format("ValueError: nested too deep"),
    ),
    "text": (
        RESNET,
        {"args": {"block": "x" * 10_000}},
        ODD.format("ValueError: a text of more than 200 characters.*"),
    ),
    "control": (
        RESNET,
        {"args": {"\x1b[31m": 1}},
        ODD.format("ValueError: .* characters that cannot be shown"),
    ),
}


def peak() -> int:
    """The largest resident memory in bytes since `forget_peak`."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not say how much memory was used")


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_before_it_takes_time_or_memory(what, device, tmp_path, monkeypatch):
    """On `cpu`: where a model cannot be built without memory."""
    architecture, ours, text = BOMBS[what]
    folder = reconfigure(written(tmp_path / "x", architecture), **ours)
    if device == "cpu":
        no_meta(monkeypatch)
    forget_peak()
    before, begun = peak(), time.process_time()
    with pytest.raises(BackboneError, match=text):
        load_backbone(folder)
    assert time.process_time() - begun < 2
    assert peak() - before < 200 * 2**20


@pytest.mark.parametrize("architecture", [RESNET, SWIN, SEQUENCER], ids=lambda a: a.name)
def test_a_large_size_costs_nothing_before_an_image_comes(architecture, tmp_path):
    folder = reconfigure(written(tmp_path / "x", architecture), size=3584)
    forget_peak()
    before, begun = peak(), time.process_time()
    assert load_backbone(folder).architecture.size == 3584
    assert time.process_time() - begun < 2
    assert peak() - before < 200 * 2**20


def test_a_config_larger_than_any_is_not_read(tmp_path):
    folder = written(tmp_path / "x")
    rewrite(folder, config__json=(folder / "config.json").read_bytes() + b" " * 2**20)
    with pytest.raises(
        BackboneError,
        match=r"config\.json: not a backbone of lookalike \(ValueError: \d+ bytes, more",
    ):
        load_backbone(folder)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"lookalike":' * 50_000, b'{"lookalike": {"size": 1' + b"0" * 5000],
)
def test_a_config_that_no_parser_likes_is_refused(content, tmp_path):
    folder = written(tmp_path / "x")
    rewrite(folder, config__json=content)
    with pytest.raises(BackboneError, match=r"config\.json: not a backbone of lookalike"):
        load_backbone(folder)


@pytest.mark.parametrize(
    "ours",
    [
        {"name": "\x1b[31m\u202eresnet18"},
        {"\x9b31m": 1},
        {"stem": "\u202e"},
        {"args": {"cache_dir\n": "x"}},
    ],
    ids=ascii,
)
def test_what_a_config_says_reaches_no_terminal_raw(ours, tmp_path):
    with pytest.raises(BackboneError) as caught:
        load_backbone(reconfigure(written(tmp_path / "x"), **ours))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "how",
    [{"name": "\x1b[31m\u202e" + "x" * 10**6}, {"name": "resnet18", "args": {"\u202e": None}}],
)
def test_what_a_recipe_says_of_a_backbone_reaches_no_terminal_raw(how):
    with pytest.raises(ValueError) as caught:
        Architecture(**how)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


# --- built without memory, then with --------------------------------------------------------------


def no_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no model could be built without memory."""
    true = sketches._sketch

    def refusing(architecture, stored, path, device):
        if device == "meta":
            raise BackboneError("backbone: on meta") from NotImplementedError(
                "Cannot copy out of meta tensor"
            )
        return true(architecture, stored, path, device)

    monkeypatch.setattr(sketches, "_sketch", refusing)


FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in timm.list_models("test_*")},
    "xcit_nano_12_p16_224": {},
    "pvt_v2_b0": {},
    "levit_128s": {},
    "mobilenetv4_conv_small_050": {},
    "efficientvit_b0": {},
    "regnety_002": {},
    "edgenext_xx_small": {},
    "coatnet_pico_rw_224": {},
    "hgnetv2_b0": {},
    "repvit_m0_9": {},
    "mobileone_s0": {},
    "fastvit_t8": {},
    "mambaout_femto": {},
    "cait_xxs24_224": {"depth": 2},
    "eva02_tiny_patch14_224": {"depth": 2},
    "deit3_small_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "beit_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "beitv2_base_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_dinov3": {"depth": 1, "embed_dim": 48, "num_heads": 3},
    "mixer_s32_224": {},
    "hiera_tiny_224": {"stages": [1, 1, 1, 1], "embed_dim": 24},
    "davit_tiny": {"depths": [1, 1, 1, 1], "embed_dims": [16] * 4, "num_heads": [2] * 4},
    "focalnet_tiny_srf": {},
    "poolformer_s12": {},
    "swin_tiny_patch4_window7_224": {"depths": [2, 2], "embed_dim": 16, "num_heads": [2, 2]},
    "swinv2_tiny_window8_256": {"depths": [2, 2], "embed_dim": 16, "num_heads": [2, 2]},
    "sequencer2d_s": SEQUENCER.args,
}


def tiny(name: str) -> Architecture:
    config = timm.get_pretrained_cfg(name)
    return Architecture(name, size=config.input_size[-1], args=FAMILIES[name])


def test_the_families_are_many():
    assert len(FAMILIES) > 35


# Every third of the families in the suite.
SOME = [
    n if k % 6 == 0 else pytest.param(n, marks=pytest.mark.slow) for k, n in enumerate(FAMILIES)
]


@pytest.mark.parametrize("name", SOME)
def test_a_backbone_is_built_without_memory_first_and_then_bit_for_bit(name, tmp_path, monkeypatch):
    devices, true = [], sketches._sketch
    monkeypatch.setattr(sketches, "_sketch", lambda *args: devices.append(args[-1]) or true(*args))
    architecture = tiny(name)
    torch.manual_seed(0)
    backbone = architecture.build().eval()
    write_folder(tmp_path / "x", folder_files(backbone))
    torch.manual_seed(1)
    Backbone(architecture, backbone.dim)
    following = torch.rand(3)
    torch.manual_seed(1)
    loaded = load_backbone(tmp_path / "x")
    assert torch.equal(torch.rand(3), following)
    assert devices == ["meta"]
    assert loaded.dim == backbone.dim
    assert toy.same(dict(loaded.named_buffers()), dict(backbone.named_buffers()))
    assert toy.same_weights(loaded, backbone)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    x = torch.rand(
        1, 3, architecture.size, architecture.size, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert torch.equal(loaded(x), backbone(x))


@pytest.mark.parametrize(
    "architecture", [RESNET, VIT, SWIN, replace(RESNET, stem="cifar", pool="gem")]
)
def test_where_nothing_can_be_built_without_memory_a_folder_loads_all_the_same(
    architecture, tmp_path, monkeypatch
):
    folder = written(tmp_path / "x", architecture)
    expected = load_backbone(folder)
    no_meta(monkeypatch)
    torch.manual_seed(1)
    Backbone(architecture, expected.dim)
    following = torch.rand(3)
    torch.manual_seed(1)
    loaded = load_backbone(folder)
    assert torch.equal(torch.rand(3), following)
    assert toy.same_weights(loaded, expected)
    assert loaded.dim == expected.dim


def test_the_bound_leaves_no_hook_behind(tmp_path):
    folder = reconfigure(written(tmp_path / "x"), args={**RESNET.args, "layers": [1000, 1, 1, 1]})
    with pytest.raises(BackboneError, match="more parameters"):
        load_backbone(folder)
    assert not nn.modules.module._global_parameter_registration_hooks
    assert len(list(nn.Sequential(*[nn.Linear(1, 1) for _ in range(500)]).parameters())) == 1000


# --- cards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 100_000, b" " * 2**20 + b"{}", b"\xff", b"[]", b"3"]
)
def test_a_card_that_cannot_be_read_is_no_card(content, tmp_path):
    (tmp_path / "card.json").write_bytes(content)
    assert card.read(tmp_path) == {}
    assert card.read_carried(tmp_path) == {}


def test_a_card_that_is_a_folder_is_no_card(tmp_path):
    (tmp_path / "card.json").mkdir()
    assert card.read(tmp_path) == {}
