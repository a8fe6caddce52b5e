"""Laws of backbones and their folders: bit-exact round trips (ours and timm's), honest pooling,
loud refusals.
"""

import errno
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save
from torch import nn

import toy
from lookalike import folder as folders
from lookalike.errors import BackboneError, RunError
from lookalike.folder import MANIFEST, recover, verify, write_file, write_folder
from lookalike.geometry import sides
from lookalike.models import (
    CIFAR_STEMS,
    Architecture,
    Backbone,
    GeM,
    folder_files,
    load_backbone,
    make_backbone,
    open_backbone,
    register_cifar_stems,
)
from lookalike.models.backbone import IMAGENET_MEAN, IMAGENET_STD

OWN_KEYS = "size, channels and pool have keys of their own"
RESNET = Architecture("resnet18", 32, args={"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]})
VIT = Architecture(
    "vit_tiny_patch16_224", 16, args={"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
)
CONVNEXT = Architecture("convnext_atto", 32, args={"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]})
SWIN = Architecture(
    "swin_tiny_patch4_window7_224",
    32,
    args={"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
)
FAMILIES = {
    "resnet": RESNET,
    "cifar": replace(RESNET, stem="cifar"),
    "vit": VIT,
    "convnext": CONVNEXT,
    "swin": SWIN,
}
POOLS = {
    **{
        f"{name} {pool}": replace(a, pool=pool)
        for name, a in FAMILIES.items()
        for pool in (None, "avg", "max", "gem")
    },
    "vit token": replace(VIT, pool="token"),
    "vit cls_gem": replace(VIT, pool="cls_gem"),
    "grey resnet": replace(RESNET, channels=1),
    "grey vit": replace(VIT, channels=1, mean=(0.3,), std=(0.2,)),
    "tall vit": replace(VIT, size=(24, 12)),
    "tall resnet": replace(RESNET, size=(64, 32)),
}


def made(architecture, seed=0):
    """A backbone whose every tensor is its own: norms and their running statistics are not left at
    0 and 1.
    """
    torch.manual_seed(seed)
    backbone = Backbone(architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return backbone.eval()


def images(architecture, batch=3):
    shape = (batch, architecture.channels, *sides(architecture.size))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def written(tmp_path):
    """A folder of a tiny ResNet, to be spoilt."""
    write_folder(tmp_path / "folder", folder_files(made(RESNET)))
    return tmp_path / "folder"


def rewrite(folder, **files):
    """Replaces files and writes a manifest that vouches for them."""
    kept = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}
    write_folder(
        folder, {**kept, **{name.replace("__", "."): content for name, content in files.items()}}
    )


def reconfigure(folder, /, **ours):
    config = json.loads((folder / "config.json").read_bytes())
    config["lookalike"].update(ours)
    rewrite(folder, config__json=json.dumps(config).encode())


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLS)
def test_a_folder_gives_back_the_backbone_bit_for_bit(name, tmp_path):
    architecture = POOLS[name]
    backbone = made(architecture)
    write_folder(tmp_path / "folder", folder_files(backbone))
    loaded = load_backbone(tmp_path / "folder")
    x = images(architecture)
    assert not loaded.training
    assert toy.same_weights(loaded, backbone)
    assert loaded.dim == backbone.dim
    assert loaded.architecture == replace(
        architecture, mean=architecture.normalisation()[0], std=architecture.normalisation()[1]
    )
    with torch.no_grad():
        h_BD = loaded(x)
        assert h_BD.equal(backbone(x))
    assert h_BD.shape == (3, backbone.dim)
    assert h_BD.isfinite().all()


@pytest.mark.parametrize("name", POOLS)
def test_timm_loads_the_folder_and_computes_the_same_bits(name, tmp_path):
    architecture = POOLS[name]
    backbone = made(architecture)
    write_folder(tmp_path / "folder", folder_files(backbone))
    register_cifar_stems()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    x = images(architecture)
    assert toy.same_weights(theirs, backbone.model)
    with torch.no_grad():
        if architecture.pool in ("gem", "cls_gem"):
            unpooled = theirs(x)
            assert unpooled.dim() > 2
            assert unpooled.equal(backbone.model(x))
        else:
            assert theirs(x).equal(backbone(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_may_give_the_folder_a_fresh_classifier(name, tmp_path):
    backbone = made(FAMILIES[name])
    write_folder(tmp_path / "folder", folder_files(backbone))
    theirs = timm.create_model(
        f"local-dir:{tmp_path / 'folder'}", pretrained=True, num_classes=7
    ).eval()
    x = images(FAMILIES[name])
    with torch.no_grad():
        assert theirs(x).shape == (3, 7)
        assert theirs.forward_features(x).equal(backbone.model.forward_features(x))


def test_the_folder_tells_timm_how_to_prepare_images(tmp_path):
    architecture = replace(VIT, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=0.875)
    write_folder(tmp_path / "folder", folder_files(made(architecture)))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
    data = timm.data.resolve_data_config(model=theirs)
    assert (data["input_size"], data["crop_pct"]) == ((3, 16, 16), 0.875)
    assert (tuple(data["mean"]), tuple(data["std"])) == (architecture.mean, architecture.std)


def test_writing_a_loaded_folder_again_writes_the_same_bytes(written):
    files = folder_files(load_backbone(written))
    assert {name: (written / name).read_bytes() for name in files} == files


def test_a_folder_loads_after_it_was_moved(written, tmp_path):
    expected = load_backbone(written)
    assert toy.same_weights(load_backbone(written.rename(tmp_path / "elsewhere")), expected)


def test_an_architecture_may_be_a_folder(written):
    assert toy.same_weights(make_backbone(Architecture(folder=str(written))), made(RESNET))


def test_open_backbone_takes_a_backbone_or_a_folder(written):
    backbone = made(RESNET)
    assert open_backbone(backbone, VIT) is backbone
    assert toy.same_weights(open_backbone(written, VIT), backbone)
    with pytest.raises(BackboneError, match=r"nowhere: no such folder: pretrain first"):
        open_backbone(written.parent / "nowhere", VIT)


def test_building_again_from_one_seed_gives_the_same_weights_and_training_mode():
    torch.manual_seed(5)
    first = RESNET.build()
    torch.manual_seed(5)
    assert toy.same_weights(RESNET.build(), first)
    assert first.training


def test_the_dry_run_leaves_running_statistics_alone():
    backbone = RESNET.build()
    assert backbone.model.bn1.running_mean.equal(torch.zeros(64))
    assert int(backbone.model.bn1.num_batches_tracked) == 0


def test_grey_and_colour_have_their_own_normalisation():
    assert RESNET.normalisation() == (IMAGENET_MEAN, IMAGENET_STD)
    assert replace(RESNET, channels=1).normalisation() == ((0.5,), (0.5,))
    assert replace(VIT, mean=(0.1, 0.2, 0.3)).normalisation() == ((0.1, 0.2, 0.3), IMAGENET_STD)


# --- CIFAR stem -----------------------------------------------------------------------------------


def test_cifar_stem_keeps_the_resolution_that_timm_s_divides_by_four():
    x = images(RESNET)
    with torch.no_grad():
        ours = made(FAMILIES["cifar"]).model.forward_features(x)
        theirs = made(RESNET).model.forward_features(x)
    assert ours.shape == (3, 32, 4, 4)
    assert theirs.shape == (3, 32, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_cifar_stem_is_a_three_by_three_convolution_and_no_pooling(channels):
    model = made(replace(FAMILIES["cifar"], channels=channels)).model
    assert model.conv1.weight.shape == (64, channels, 3, 3)
    assert model.conv1.stride == (1, 1)
    assert model.conv1.bias is None
    assert isinstance(model.maxpool, nn.Identity)


def test_cifar_stems_are_registered_once_and_have_no_published_weights():
    register_cifar_stems()
    register_cifar_stems()
    assert all(timm.is_model(f"{name}_cifar") for name in CIFAR_STEMS)
    with pytest.raises(
        BackboneError, match=r"no published weights exist for a CIFAR stem: set pretrained: false"
    ):
        Backbone(replace(FAMILIES["cifar"], pretrained=True))


# --- pooling --------------------------------------------------------------------------------------


def gem_loop(x_BND, p):
    return [
        [(sum(row[d] ** p for row in x) / len(x)) ** (1 / p) for d in range(len(x[0]))]
        for x in x_BND.tolist()
    ]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 7.5])
def test_gem_is_the_power_mean_of_a_loop(p):
    x_BND = (
        torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.01
    )
    expected = torch.tensor(gem_loop(x_BND, p), dtype=torch.float64)
    torch.testing.assert_close(GeM(p).double()(x_BND), expected, rtol=1e-9, atol=0)


def test_gem_is_the_mean_at_power_one_and_nears_the_maximum_at_large_powers():
    x_BND = (
        torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    )
    with torch.no_grad():
        torch.testing.assert_close(GeM(1.0).double()(x_BND), x_BND.mean(1))
        gaps = [
            float((x_BND.amax(1) - GeM(p).double()(x_BND)).max()) for p in (1.0, 3.0, 10.0, 100.0)
        ]
    assert gaps == sorted(gaps, reverse=True)
    # The power mean of N numbers is at least N^(-1/p) of their maximum.
    assert gaps[-1] <= float(x_BND.max()) * (1 - 5 ** (-1 / 100))


def test_gem_learns_its_power_and_survives_zeros_and_negatives():
    gem = GeM()
    x_BND = torch.tensor([[[0.0, -1.0], [2.0, -3.0]]], requires_grad=True)
    gem(x_BND).sum().backward()
    assert gem.p.grad.isfinite()
    assert gem.p.grad != 0
    assert x_BND.grad.isfinite().all()


@pytest.mark.parametrize("name", ["resnet", "cifar", "convnext", "swin", "vit"])
def test_gem_pools_the_places_of_the_last_feature_map(name):
    backbone = made(replace(FAMILIES[name], pool="gem"))
    with torch.no_grad():
        backbone.gem.p.fill_(2.0)
        x = images(backbone.architecture)
        h = backbone.model(x)
        rows = {
            "vit": lambda: h[:, 1:],  # the class token stands first
            "swin": lambda: h.reshape(3, -1, backbone.dim),  # channels last
        }.get(name, lambda: torch.stack([m.reshape(len(m), -1).T for m in h]))()
        expected = torch.tensor(gem_loop(rows.clamp(min=1e-6).double(), 2.0))
        torch.testing.assert_close(backbone(x).double(), expected.double(), rtol=1e-5, atol=1e-7)


def test_average_pooling_of_a_vit_leaves_the_class_token_out():
    backbone = made(replace(VIT, pool="avg"))
    with torch.no_grad():
        tokens_BND = backbone.model.forward_features(images(VIT))
        assert tokens_BND.shape == (3, 1 + 16, 48)
        expected = backbone.model.fc_norm(tokens_BND[:, 1:].mean(1))
        torch.testing.assert_close(backbone(images(VIT)), expected)


def test_token_pooling_of_a_vit_is_the_class_token():
    backbone = made(replace(VIT, pool="token"))
    with torch.no_grad():
        assert backbone(images(VIT)).equal(backbone.model.forward_features(images(VIT))[:, 0])


# --- refusals of an architecture ------------------------------------------------------------------

REFUSED = {
    "unknown name": (
        {"name": "resnet81"},
        r'timm has no model "resnet81", did you mean "resnet\d+\w*"\?',
    ),
    "hopeless name": ({"name": "????"}, r'timm has no model "\?\?\?\?": see timm\.list_models\(\)'),
    "neither": ({}, r"give either a timm `name` or a `folder` written by lookalike"),
    "both": (
        {"name": "resnet18", "folder": "x"},
        r"give either a timm `name` or a `folder` written by lookalike",
    ),
    "mean": ({"name": "resnet18", "mean": (0.5,)}, r"mean has 1 values for 3 channels"),
    "std": (
        {"name": "resnet18", "channels": 1, "std": (1.0, 1.0, 1.0)},
        r"std has 3 values for 1 channels",
    ),
    "size of a folder": ({"folder": "x", "size": 32}, r"size: the folder says it: delete it"),
    "weights of a folder": (
        {"folder": "x", "pretrained": True},
        r"pretrained: the folder says it: delete it",
    ),
    "zero std": ({"name": "resnet18", "std": (1.0, 0.0, 1.0)}, r"std must be positive"),
    "cifar vit": (
        {"name": VIT.name, "stem": "cifar"},
        rf"stem: cifar exists for resnet18, .*, not for {VIT.name}",
    ),
    **{
        key: (
            {"name": "resnet18", "args": {key: "x"}},
            rf"args\.{key} is not allowed here: {OWN_KEYS}",
        )
        for key in (
            "checkpoint_path",
            "pretrained",
            "pretrained_cfg",
            "pretrained_cfg_overlay",
            "pretrained_strict",
            "cache_dir",
            "num_classes",
            "features_only",
            "scriptable",
            "exportable",
        )
    },
}


@pytest.mark.parametrize("what", REFUSED)
def test_architecture_refuses(what):
    arguments, message = REFUSED[what]
    with pytest.raises(ValueError, match=f"^{message}$"):
        Architecture(**arguments)


@pytest.mark.parametrize(
    "name", ["hf_hub:timm/resnet18.a1_in1k", "local-dir:.", "http://example.org/x", "../x"]
)
def test_a_name_never_reaches_a_file_or_the_network(name):
    with pytest.raises(ValueError, match=r"^timm has no model"):
        Architecture(name)


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            replace(VIT, size=18),
            "cuts patches of 4 pixels, which do not divide size 18: take size 16 or 20",
        ),
        (
            replace(VIT, size=3),
            "cuts patches of 4 pixels, which do not divide size 3: take size 4, or args.patch_size",
        ),
        (
            replace(RESNET, pool="token"),
            r"\.pool: token: timm does not pool resnet18 so: take avg or max or gem, ",
        ),
        (replace(RESNET, args={"no_such_thing": 1}), "resnet18 at size 32, args .*no_such_thing"),
        (replace(RESNET, args={"layers": "many"}), "resnet18 at size 32, args .*many"),
        (
            replace(VIT, args={**VIT.args, "num_heads": 5}),
            "vit_tiny_patch16_224 at size 16, args .*",
        ),
    ],
)
def test_a_backbone_that_cannot_be_made_is_refused_with_its_name(architecture, message):
    with pytest.raises(BackboneError, match=f"^backbone.*{message}"):
        architecture.build()


# --- refusals of a folder -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_bit_is_refused(written, name, place):
    content = bytearray((written / name).read_bytes())
    content[int(place * len(content)) if place == 0.5 else place] ^= 1
    (written / name).write_bytes(content)
    with pytest.raises(
        BackboneError, match=rf"{name}: its content changed since it was written \(sha256 differs\)"
    ):
        load_backbone(written)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_truncated_file_is_refused(written, name):
    size = (written / name).stat().st_size
    os.truncate(written / name, size - 1)
    with pytest.raises(
        BackboneError, match=rf"{name}: {size - 1} bytes instead of {size}: restore it or write"
    ):
        load_backbone(written)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_refused(written, name):
    (written / name).unlink()
    with pytest.raises(
        BackboneError, match=rf"{name}: missing, or a link: restore it or write the folder again"
    ):
        load_backbone(written)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_no_manifest_vouches_for_is_refused(written, name):
    manifest = json.loads((written / MANIFEST).read_bytes())
    del manifest["files"][name]
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BackboneError, match=rf"{name}: the manifest does not name it"):
        load_backbone(written)


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", b'{"files": []}', b'{"files": {"x": 3}}', b"\xff"]
)
def test_a_folder_without_a_readable_manifest_is_refused(written, content):
    (written / MANIFEST).unlink()
    if content is not None:
        (written / MANIFEST).write_bytes(content)
    with pytest.raises(
        BackboneError,
        match=r"manifest\.json: missing or unreadable: .* is not a folder that lookalike",
    ):
        load_backbone(written)


@pytest.mark.parametrize("number", [folders.FORMAT + 1, None, "1"])
def test_a_manifest_of_another_format_is_refused(written, number):
    manifest = json.loads((written / MANIFEST).read_bytes())
    (written / MANIFEST).write_text(json.dumps({**manifest, "format": number}))
    with pytest.raises(
        BackboneError,
        match=rf"format {number}, this version reads {folders.FORMAT}: update lookalike",
    ):
        load_backbone(written)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/b", "./config.json"])
def test_a_manifest_that_leaves_its_folder_is_refused(written, name):
    manifest = json.loads((written / MANIFEST).read_bytes())
    manifest["files"][name] = manifest["files"]["config.json"]
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BackboneError, match=r"names a file outside its folder"):
        load_backbone(written)


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_a_manifest_that_names_a_folder_is_refused(written, name):
    manifest = json.loads((written / MANIFEST).read_bytes())
    manifest["files"][name] = manifest["files"]["config.json"]
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BackboneError, match=r"missing|outside"):
        load_backbone(written)


def other_shape(tensors):
    return {**tensors, "conv1.weight": torch.zeros(9, 3, 7, 7)}


def one_less(tensors):
    return {k: v for k, v in tensors.items() if k != "bn1.bias"}


def one_more(tensors):
    return {**tensors, "fc.weight": torch.zeros(3, 3)}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (other_shape, r"conv1\.weight: shape \(9, 3, 7, 7\) instead of \(64, 3, 7, 7\)"),
        (one_less, r"bn1\.bias is missing"),
        (one_more, r"fc\.weight is not the model's"),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_weights_that_do_not_fit_are_refused_though_the_manifest_is_right(written, spoil, reason):
    tensors = load((written / "model.safetensors").read_bytes())
    rewrite(written, model__safetensors=save(spoil(tensors)))
    with pytest.raises(
        BackboneError,
        match=rf"model\.safetensors: the weights do not fit config\.json: {reason}: exp",
    ):
        load_backbone(written)


def test_weights_that_are_not_safetensors_are_refused_though_the_manifest_is_right(written):
    rewrite(written, model__safetensors=pickle.dumps({"conv1.weight": [0.0]}))
    with pytest.raises(
        BackboneError, match=r"model\.safetensors: not a safetensors file \(.*\): export it again"
    ):
        load_backbone(written)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"lookalike": 3}',
        b'{"lookalike": {"mean": null, "std": null}}',
        b'{"architecture": "x"}',
    ],
)
def test_a_config_of_another_program_is_refused(written, content):
    rewrite(written, config__json=content)
    with pytest.raises(BackboneError, match=r"config\.json: not a backbone of lookalike"):
        load_backbone(written)


@pytest.mark.parametrize(
    "ours",
    [
        {"name": "no such model"},
        {"name": ""},
        {"name": "hf-hub:timm/resnet18.a1_in1k"},
        {"args": {"checkpoint_path": "x"}},
        {"args": {"pretrained_cfg": {"url": "x"}}},
        {"args": None},
        {"mean": [0.5]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_config_is_as_strictly_checked_as_a_recipe(written, ours):
    reconfigure(written, **ours)
    with pytest.raises(BackboneError, match=r"config\.json: not a backbone of lookalike"):
        load_backbone(written)


def test_a_config_cannot_ask_for_a_download_or_another_folder(written, monkeypatch):
    reconfigure(written, pretrained=True, folder="elsewhere")
    asked, create = [], timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda *a, **k: (
            asked.append(k.get("pretrained")) or create(*a, **{**k, "pretrained": False})
        ),
    )
    loaded = load_backbone(written)
    assert toy.same_weights(loaded, made(RESNET))
    assert not loaded.architecture.pretrained
    assert loaded.architecture.folder is None
    assert asked
    assert not any(asked)


class Trap:
    """Unpickling it touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_the_folder_is_never_read(written, tmp_path):
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    for name in ("pytorch_model.bin", "model.bin", "model.pt", "model.pth", "data.pkl"):
        (written / name).write_bytes(trap)
    assert toy.same_weights(load_backbone(written), made(RESNET))
    assert not sprung.exists()
    (written / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"model\.safetensors: missing"):
        load_backbone(written)
    assert not sprung.exists()
    pickle.loads(trap)  # and it is a trap
    assert sprung.exists()


# --- writing folders ------------------------------------------------------------------------------

OLD, NEW = {"a": b"old", "b": b"stays"}, {"a": b"new", "c": b"more"}


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != MANIFEST}


def test_a_folder_holds_its_files_and_a_manifest_of_them(tmp_path):
    write_folder(tmp_path / "deep" / "x", OLD, {"step": 3})
    assert content(tmp_path / "deep" / "x") == OLD
    manifest = verify(tmp_path / "deep" / "x")
    assert (manifest["step"], manifest["format"]) == (3, folders.FORMAT)
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"a": 3, "b": 5}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "x", OLD)
    write_folder(tmp_path / "x", NEW)
    assert content(tmp_path / "x") == NEW
    verify(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def failing(monkeypatch, owner, name, at, error):
    """Makes the `at`-th call (from 0) of owner.name raise `error`; returns the list of calls."""
    calls, true = [], getattr(owner, name)

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == at + 1:
            raise error
        return true(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return calls


# write_folder flushes each file, the manifest and the folder, renames the old folder away and the
# new one in place.
MOMENTS = {
    **{f"flush {n}": (os, "fsync", n) for n in range(4)},
    "rename old": (Path, "rename", 0),
    "rename new": (Path, "rename", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk_at_any_moment_leaves_the_old_folder_and_nothing_else(
    tmp_path, monkeypatch, moment
):
    write_folder(tmp_path / "x", OLD)
    with monkeypatch.context() as patch:
        calls = failing(patch, *MOMENTS[moment], OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(
            RunError,
            match=r"x: cannot be written: No space left on device: free space or choose anoth",
        ):
            write_folder(tmp_path / "x", NEW)
    assert len(calls) > MOMENTS[moment][2]
    assert content(tmp_path / "x") == OLD
    verify(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupt_at_any_moment_leaves_the_old_folder_and_nothing_else(
    tmp_path, monkeypatch, moment, error
):
    write_folder(tmp_path / "x", OLD)
    with monkeypatch.context() as patch:
        failing(patch, *MOMENTS[moment], error())
        with pytest.raises(error):
            write_folder(tmp_path / "x", NEW)
    assert content(tmp_path / "x") == OLD
    verify(tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_failed_first_write_leaves_nothing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, os, "fsync", 1, OSError(errno.EIO, "Input/output error"))
        with pytest.raises(RunError, match=r"cannot be written: Input/output error"):
            write_folder(tmp_path / "x", NEW)
    assert list(tmp_path.iterdir()) == []


def test_what_the_manifest_cannot_hold_leaves_the_old_folder(tmp_path):
    write_folder(tmp_path / "x", OLD)
    with pytest.raises(TypeError):
        write_folder(tmp_path / "x", NEW, {"about": object()})
    assert content(tmp_path / "x") == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_everything_is_on_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    done = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("flush") or fsync(handle))
    monkeypatch.setattr(
        Path, "rename", lambda one, other: done.append("rename") or rename(one, other)
    )
    write_folder(tmp_path / "x", OLD)
    assert done == ["flush"] * (len(OLD) + 2) + ["rename", "flush"]


def test_a_place_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot be written: (Not a directory|File exists)"):
        write_folder(tmp_path / "file" / "x", OLD)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_file(tmp_path / "x", b"old")
    with monkeypatch.context() as patch:
        failing(patch, os, "fsync", 0, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(RunError, match=r"x: cannot be written: No space left on device"):
            write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    write_file(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_the_error_is_of_the_kind_asked_for(tmp_path):
    for kind in (RunError, BackboneError):
        with pytest.raises(
            kind,
            match=rf"^{re.escape(str(tmp_path / 'none'))}: no such folder: "
            r"pretrain first, or name another$",
        ):
            verify(tmp_path / "none", kind)


def test_a_kill_between_the_two_renames_of_a_replacement_is_recovered(tmp_path):
    target = tmp_path / "model"
    write_folder(target, {"a": b"old"})
    target.rename(tmp_path / ".old-model-123")
    recover(target)
    verify(target)
    assert (target / "a").read_bytes() == b"old"
    recover(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
