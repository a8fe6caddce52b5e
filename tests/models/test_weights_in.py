"""Weights of others: every official layout gives the network that it holds, bit for bit; what does
not fit is refused in one line, and nothing of a file is executed.
"""

import argparse
import io
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

import toy
from lookalike.errors import BackboneError
from lookalike.models import Architecture, Backbone, load_backbone, make_backbone, open_backbone
from lookalike.models.torchfile import tensors_of

RESNET = Architecture("resnet18", 32, args={"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]})
VIT = Architecture(
    "vit_tiny_patch16_224", 16, args={"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8}
)
State = dict[str, Tensor]


def source(architecture: Architecture, seed: int = 0, **more: Any) -> nn.Module:
    """Somebody's network with a classifier, every tensor its own."""
    torch.manual_seed(seed)
    given = {**architecture.timm_args(), "num_classes": 5, **more}
    model = timm.create_model(architecture.name, **given).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model


def images(channels: int = 3, side: int = 32) -> Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))


def below(prefix: str, state: Mapping[str, Tensor], head: str = "") -> State:
    """The state under a prefix, its head under another name, or gone."""
    named = {n: t for n, t in state.items() if not n.startswith(("fc.", "head."))}
    heads = {f"{head}weight": torch.randn(5, 7), f"{head}bias": torch.randn(5)} if head else {}
    return {f"{prefix}{name}": tensor for name, tensor in {**named, **heads}.items()}


def optimizer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    moments = {i: {"exp_avg": t.clone(), "step": 3} for i, t in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": list(moments)}]}


def dino(s: State, other: State) -> Any:
    return {
        "student": below("module.backbone.", other, "module.head.mlp.0."),
        "teacher": {**below("backbone.", s), "head.last_layer.weight_v": torch.randn(3, 3)},
        "optimizer": optimizer(other),
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", lr=0.1, hidden=[1, 2]),
        "dino_loss": {"center": torch.zeros(1, 3)},
    }


def moco(s: State, other: State) -> Any:
    state = {
        **below("module.encoder_q.", s, "fc.0."),
        **below("module.encoder_k.", other, "fc.0."),
        "module.queue": torch.randn(4, 8),
        "module.queue_ptr": torch.zeros(1).long(),
    }
    kept = {"epoch": 200, "arch": "resnet50", "optimizer": optimizer(s)}
    return {**kept, "state_dict": OrderedDict(state)}


def moco_v3(s: State, other: State) -> Any:
    state = {
        **below("module.base_encoder.", s, "head.0."),
        **below("module.momentum_encoder.", other, "head.0."),
        "module.predictor.0.weight": torch.randn(3, 3),
    }
    return {"epoch": 300, "arch": "vit_small", "state_dict": state, "scaler": {"scale": 2.0}}


def joint_embedding(s: State, other: State) -> Any:
    """Barlow Twins and VICReg."""
    state = below("module.backbone.", s)
    heads = {"module.projector.0.weight": torch.randn(4, 4), "module.bn.running_var": torch.ones(4)}
    return {"epoch": 10, "model": {**state, **heads}, "optimizer": optimizer(s)}


def swav(s: State, other: State) -> Any:
    heads = {"module.projection_head.0.weight": torch.randn(4, 4)}
    return {**below("module.", s), **heads, "module.prototypes.weight": torch.randn(4, 4)}


def simsiam(s: State, other: State) -> Any:
    heads = {"module.predictor.0.weight": torch.randn(3, 3)}
    return {"state_dict": {**below("module.encoder.", s, "fc.0."), **heads}, "epoch": 1}


def byol(s: State, other: State) -> Any:
    return {
        "online_network": below("module.encoder.", s),
        "target_network": below("module.encoder.", other),
        "predictor": {"net.0.weight": torch.randn(3, 3)},
    }


def mae(s: State, other: State) -> Any:
    decoder = {
        "mask_token": torch.randn(1, 1, 8),
        "decoder_pos_embed": torch.randn(1, 5, 8),
        "decoder_blocks.0.attn.qkv.weight": torch.randn(24, 8),
        "decoder_norm.weight": torch.randn(8),
    }
    return {"model": {**below("", s), **decoder}}


def ibot(s: State, other: State) -> Any:
    return {"state_dict": {**below("", s), "masked_embed": torch.randn(1, 24)}}


def solo(s: State, other: State) -> Any:
    state = {**below("backbone.", s), **below("momentum_backbone.", other)}
    return {"state_dict": {**state, "classifier.weight": torch.randn(5, 5)}, "loops": {}}


def vissl(s: State, other: State) -> Any:
    trunk = below("_feature_blocks.", s)
    return {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}}


def dinov2(s: State, other: State) -> Any:
    return {"teacher": below("backbone.", s), "student": below("backbone.", other)}


def ema(s: State, other: State) -> Any:
    return {"state_dict": other, "state_dict_ema": s, "arch": "x", "args": argparse.Namespace(a=1)}


LAYOUTS: dict[str, tuple[Architecture, Callable[[State, State], Any]]] = {
    "torchvision, timm": (RESNET, lambda s, _: s),
    "DINO": (VIT, dino),
    "DINO, backbone only": (VIT, lambda s, _: below("", s)),
    "DINO, ResNet": (RESNET, lambda s, _: below("", s)),
    "MoCo v1, v2": (RESNET, moco),
    "MoCo v3": (VIT, moco_v3),
    "MoCo v3, ResNet": (RESNET, moco_v3),
    "Barlow Twins, VICReg": (RESNET, joint_embedding),
    "SwAV": (RESNET, swav),
    "SimSiam": (RESNET, simsiam),
    "BYOL": (RESNET, byol),
    "SimCLR, converted": (RESNET, lambda s, _: {"state_dict": s}),
    "MAE": (VIT, mae),
    "iBOT": (VIT, ibot),
    "DINOv2, whole": (VIT, dinov2),
    "solo-learn": (RESNET, solo),
    "VISSL": (RESNET, vissl),
    "timm with EMA": (RESNET, ema),
    "compiled": (RESNET, lambda s, _: {"model": below("_orig_mod.module.", s)}),
    "compiled within": (RESNET, lambda s, _: {"model": below("module._orig_mod.", s)}),
    "CLIP's": (RESNET, lambda s, _: {"state_dict": below("visual.trunk.", s)}),
}


def saved(path: Path, tree: Any, *, old: bool = False) -> Path:
    torch.save(tree, path, _use_new_zipfile_serialization=not old)
    return path


def from_file(architecture: Architecture, path: Path) -> Backbone:
    return make_backbone(replace(architecture, weights=str(path))).eval()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_official_layout_gives_its_network_bit_for_bit(name, old, tmp_path):
    architecture, layout = LAYOUTS[name]
    model, other = source(architecture), source(architecture, 1)
    tree = layout(model.state_dict(), other.state_dict())
    backbone = from_file(architecture, saved(tmp_path / "theirs.pth.tar", tree, old=old))
    x = images(side=architecture.size)
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(x), pre_logits=True)
        assert backbone(x).equal(wanted)
    assert backbone.taken is not None
    assert backbone.taken.count == len(backbone.model.state_dict())


def test_of_teacher_and_student_the_teacher_is_taken_and_said(tmp_path):
    model, other = source(VIT), source(VIT, 1)
    backbone = from_file(
        VIT, saved(tmp_path / "dino.pth", dino(model.state_dict(), other.state_dict()))
    )
    said = backbone.taken.line()
    assert said.startswith("dino.pth: 30 tensors, teacher.backbone.*; not looked at: ")
    assert "student (32)" in said
    assert "teacher.head (1)" in said
    assert "optimizer (32)" in said


def test_heads_are_left_out_by_name(tmp_path):
    model = source(RESNET)
    backbone = from_file(RESNET, saved(tmp_path / "theirs.pth", model.state_dict()))
    assert "left out: fc.bias, fc.weight (a head)" in backbone.taken.line()
    assert backbone.taken.plain()["heads"] == ("fc.bias", "fc.weight")


def test_the_weights_are_those_of_the_file_whatever_its_suffix(tmp_path):
    model = source(RESNET)
    save_file(model.state_dict(), tmp_path / "weights.pth")
    saved(tmp_path / "weights.safetensors", model.state_dict())
    one, other = (from_file(RESNET, tmp_path / f"weights.{e}") for e in ("pth", "safetensors"))
    assert toy.same_weights(one, other)


def test_loading_draws_no_number(tmp_path):
    path = saved(tmp_path / "theirs.pth", source(RESNET).state_dict())
    torch.manual_seed(3)
    RESNET.build()
    wanted = torch.rand(3)
    torch.manual_seed(3)
    from_file(RESNET, path)
    assert torch.rand(3).equal(wanted)


# --- brought to the model -------------------------------------------------------------------------


def test_positions_are_resampled_as_timm_does(tmp_path):
    model = source(VIT)
    path = saved(tmp_path / "theirs.pth", model.state_dict())
    backbone = from_file(replace(VIT, size=32), path)
    wanted = timm.layers.resample_abs_pos_embed(
        model.state_dict()["pos_embed"], (4, 4), num_prefix_tokens=1
    )
    assert backbone.model.pos_embed.equal(wanted)
    assert "pos_embed resampled from (1, 5, 24) to (1, 17, 24), as timm does" in (
        backbone.taken.line()
    )


@pytest.mark.parametrize("architecture", [RESNET, VIT], ids=["resnet", "vit"])
def test_the_first_convolution_is_adapted_as_timm_does(architecture, tmp_path):
    model = source(architecture)
    path = saved(tmp_path / "theirs.pth", model.state_dict())
    backbone = from_file(replace(architecture, channels=1), path)
    name = "conv1.weight" if architecture is RESNET else "patch_embed.proj.weight"
    wanted = model.state_dict()[name].sum(dim=1, keepdim=True)
    assert backbone.model.state_dict()[name].equal(wanted)
    assert "from 3 channels to 1, as timm does" in backbone.taken.line()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_width_become_fp32_and_it_is_said(kind, tmp_path):
    given = source(RESNET).state_dict()
    state = {n: t.to(kind) if t.is_floating_point() else t for n, t in given.items()}
    backbone = from_file(RESNET, saved(tmp_path / "half.pth", state))
    assert backbone.model.conv1.weight.equal(state["conv1.weight"].float())
    assert f"from {str(kind)[6:]} to float32" in backbone.taken.line()


def test_counters_may_be_missing(tmp_path):
    state = {n: t for n, t in source(RESNET).state_dict().items() if "tracked" not in n}
    assert from_file(RESNET, saved(tmp_path / "old.pth", state)).taken.count == len(state) - 2


def test_the_last_norm_moves_with_the_pooling(tmp_path):
    model = source(VIT)
    path = saved(tmp_path / "mae.pth", {"model": model.state_dict()})
    backbone = from_file(replace(VIT, pool="avg"), path)
    assert backbone.model.fc_norm.weight.equal(model.norm.weight)


@pytest.mark.parametrize("pool", [None, "token"])
def test_torchvisions_vit_computes_what_torchvision_does(pool, tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.VisionTransformer(16, 8, 2, 2, 24, 96, num_classes=5).eval()
    architecture = replace(VIT, pool=pool)
    backbone = from_file(architecture, saved(tmp_path / "tv.pth", theirs.state_dict()))
    theirs.heads = nn.Identity()
    x = images(side=16)
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert "left out: heads.head.bias, heads.head.weight (a head)" in backbone.taken.line()


# --- what does not fit ----------------------------------------------------------------------------


def refused(architecture: Architecture, path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(BackboneError) as caught:
        from_file(architecture, path)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    assert path.name in text
    return text


UNFIT: dict[str, tuple[Any, str]] = {
    "of another model": (lambda: source(VIT).state_dict(), "none of the 65 weights that resnet18"),
    "a head alone": (lambda: {"fc.weight": torch.ones(5, 5)}, "none of the 65 weights"),
    "a head below": (lambda: {"state_dict": {"encoder.fc.weight": torch.ones(1)}}, "none of the"),
    "nothing": (lambda: {"epoch": 3}, "the file has no tensors"),
    "one missing": (
        lambda: {n: t for n, t in source(RESNET).state_dict().items() if n != "conv1.weight"},
        r"1 of the 65 weights that resnet18 has are missing (conv1.weight)",
    ),
    "another width": (
        lambda: source(RESNET, channels=[8, 16, 24, 64]).state_dict(),
        "has shape (64, 24, 3, 3), the model's has (32, 24, 3, 3)",
    ),
    "deeper": (
        lambda: source(RESNET, layers=[1, 2, 1, 1]).state_dict(),
        "10 weights more than resnet18 has in its blocks (layer2.1.bn1.bias",
    ),
    "NaN": (
        lambda: {**source(RESNET).state_dict(), "bn1.weight": torch.full((64,), torch.nan)},
        "bn1.weight holds NaN or infinity",
    ),
    "integers": (
        lambda: {**source(RESNET).state_dict(), "bn1.weight": torch.ones(64).int()},
        "bn1.weight is of int32, not float32",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_refused_by_name(name, tmp_path):
    make, text = UNFIT[name]
    assert text in refused(RESNET, saved(tmp_path / "theirs.pth", make()))


def test_a_model_that_was_refused_is_as_it_was(tmp_path):
    model = RESNET.build()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    state = {**source(RESNET).state_dict(), "fc.weight": torch.ones(1), "layer4.0.bn2.bias": 0}
    state["layer4.0.bn2.bias"] = torch.full((32,), torch.nan)
    from lookalike.models.fitting import take_file

    with pytest.raises(BackboneError, match="NaN"):
        take_file(model.model, saved(tmp_path / "x.pth", state), 3)
    assert toy.same(model.model.state_dict(), before)


# --- nothing is executed, nothing fills the machine -----------------------------------------------


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], tuple(self.call[1:])


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_a_program_is_refused_by_name_and_not_run(old, tmp_path):
    mark = tmp_path / "ran"
    tree = {**source(RESNET).state_dict(), "epoch": Evil(os.mkdir, str(mark))}
    text = refused(RESNET, saved(tmp_path / "evil.pth", tree, old=old))
    assert "holds posix.mkdir, which is no weight" in text
    assert "weights_only=False" in text
    assert not mark.exists()


def test_bytes_that_grow_when_they_are_read_are_refused(tmp_path):
    import codecs

    value: Any = "a" * 64
    for _ in range(40):
        value = Evil(codecs.encode, value, "hex")
    assert "_codecs.encode" in refused(RESNET, saved(tmp_path / "grows.pth", {"x": value}))


def test_a_class_that_many_checkpoints_hold_is_named(tmp_path):
    import numpy as np

    text = refused(RESNET, saved(tmp_path / "x.pth", {"best": np.float64(1.0)}))
    assert "multiarray" in text


def repacked(path: Path, change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> Path:
    """The archive with members as `change` writes them."""
    made = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        change(old, new)
    return made


def test_members_that_inflate_are_refused(tmp_path):
    def deflated(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)

    path = repacked(saved(tmp_path / "x.pth", {"a": torch.zeros(10**6)}), deflated)
    assert "its members are compressed" in refused(RESNET, path)


def test_a_name_that_stands_twice_is_refused(tmp_path):
    def doubled(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
        for member in [*old.infolist(), old.infolist()[0]]:
            new.writestr(member.filename, old.read(member))

    path = saved(tmp_path / "x.pth", {"a": torch.zeros(3)})
    with pytest.warns(UserWarning, match="Duplicate name"):
        made = repacked(path, doubled)
    assert "not one of torch.save" in refused(RESNET, made)


def test_an_archive_of_too_many_members_is_refused_unread(tmp_path):
    path = tmp_path / "many.pth"
    end = b"PK\5\6" + bytes(6) + b"\xff\xff" + (2**31).to_bytes(4, "little") + bytes(6)
    path.write_bytes(b"PK\3\4" + bytes(100) + end)
    assert "an archive of 65535 members" in refused(RESNET, path)


def test_a_tensor_that_is_more_than_its_file_is_refused(tmp_path):
    path = saved(tmp_path / "x.pth", {"conv1.weight": torch.zeros(1).expand(10**9)})
    assert "conv1.weight is no plain tensor" in refused(RESNET, path)


def test_torchscript_is_refused(tmp_path):
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "x.pt")
    assert "a TorchScript archive, a program" in refused(RESNET, tmp_path / "x.pt")


def test_values_without_end_are_refused(tmp_path):
    tree: Any = {"a": torch.zeros(1)}
    for _ in range(7):
        tree = [tree] * 100
    assert "too many values" in refused(RESNET, saved(tmp_path / "x.pth", tree))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "neither safetensors nor of torch.save"),
        (b"GIF89a", "neither safetensors nor of torch.save"),
        (b"PK\3\4 cut short", "the archive is cut short"),
        (b"\x80\2", "cannot be read as weights"),
        (b"\x05\0\0\0\0\0\0\0{}", "not a safetensors file"),
    ],
)
def test_a_file_of_something_else_is_refused(content, text, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    assert text in refused(RESNET, tmp_path / "x.pth")


def test_a_folder_a_pipe_and_no_file_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(RESNET, tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "backbone.folder" in refused(RESNET, tmp_path / "folder")
    assert "No such file" in refused(RESNET, tmp_path / "none.pth")


def test_a_cut_file_is_refused(tmp_path):
    whole = io.BytesIO()
    torch.save(source(RESNET).state_dict(), whole, _use_new_zipfile_serialization=False)
    (tmp_path / "x.pth").write_bytes(whole.getvalue()[:-1000])
    assert "cannot be read as weights" in refused(RESNET, tmp_path / "x.pth")


def test_names_are_whole(tmp_path):
    path = saved(tmp_path / "x.pth", {"a": {"b": [torch.zeros(1), {"c": torch.ones(2)}]}})
    assert set(tensors_of(path)) == {"a.b.0", "a.b.1.c"}


# --- keys -----------------------------------------------------------------------------------------


def test_a_file_stands_beside_neither_pretrained_nor_a_folder():
    with pytest.raises(ValueError, match="weights: name a file, or leave it out for pretrained"):
        replace(RESNET, weights="x.pth", pretrained=True)
    with pytest.raises(ValueError, match="weights: the folder says it: delete it"):
        Architecture(folder="x", weights="x.pth")


def test_models_are_named_as_before():
    assert repr(replace(RESNET, weights="x.pth")) == repr(RESNET)


def test_a_file_is_opened_as_the_recipes_architecture(tmp_path):
    path = saved(tmp_path / "theirs.pth", source(RESNET).state_dict())
    opened = open_backbone(path, RESNET)
    assert toy.same_weights(opened, from_file(RESNET, path))
    assert not opened.training
    with pytest.raises(BackboneError, match=r"theirs\.pth: weights without an architecture: write"):
        open_backbone(path, None)


def test_fresh_weights_are_not_those_of_the_file(tmp_path):
    path = saved(tmp_path / "theirs.pth", source(RESNET).state_dict())
    backbone = from_file(RESNET, path)
    assert not toy.same_weights(backbone.fresh(), backbone)


def test_the_folder_stands_alone(tmp_path):
    from lookalike.folder import write_folder
    from lookalike.models import folder_files

    path = saved(tmp_path / "theirs.pth", source(RESNET).state_dict())
    backbone = from_file(RESNET, path)
    write_folder(tmp_path / "folder", folder_files(backbone))
    path.unlink()
    assert toy.same_weights(load_backbone(tmp_path / "folder"), backbone)
    assert b"theirs.pth" not in (tmp_path / "folder" / "config.json").read_bytes()
