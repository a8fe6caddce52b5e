"""Views of several sizes: a backbone takes them, or is made to by timm, bit for bit the same where
it took them already; one that cannot is refused by `check`, with models that can.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import toy
from lookalike import pipeline
from lookalike.errors import BackboneError
from lookalike.models import Architecture, Backbone, for_sizes
from lookalike.runs import Run
from lookalike.stages.pretrain import build_method, pretrain

THEMSELVES: dict[str, dict[str, Any]] = {
    "resnet18": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]},
    "convnext_atto": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "mobilenetv3_small_050": {},
    "efficientvit_b0": {},
    "efficientvit_m0": {},
    "xcit_nano_12_p16_224": {"depth": 1},
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "regnety_002": {},
}
ONE_BLOCK = {"depth": 1, "embed_dim": 48, "num_heads": 3}
WINDOWS = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 7}
ASKED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": ONE_BLOCK,
    "deit3_small_patch16_224": ONE_BLOCK,
    "vit_small_patch14_dinov2": ONE_BLOCK,
    "eva02_tiny_patch14_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": WINDOWS,
    "swinv2_tiny_window8_256": WINDOWS,
}
REFUSED: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": ONE_BLOCK,
    "cait_xxs24_224": {"depth": 1},
    "levit_128s": {},
    "coatnet_pico_rw_224": {},
    "mixer_s32_224": {},
    "vit_relpos_small_patch16_224": ONE_BLOCK,
}


def of(name: str, args: dict[str, Any]) -> tuple[Backbone, int, int]:
    """A backbone of few weights, its size and another that its patches divide."""
    size, small = (112, 56) if "14" in name or "swin" in name else (224, 96)
    torch.manual_seed(0)
    return Backbone(Architecture(name, size, args=args)).eval(), size, small


@pytest.mark.parametrize("name", THEMSELVES)
def test_a_backbone_that_takes_every_size_is_left_alone(name):
    backbone, size, small = of(name, THEMSELVES[name])
    assert for_sizes(backbone, [size, small]) is backbone


@pytest.mark.parametrize("name", ASKED)
def test_timm_is_asked_to_follow_the_size_and_computes_the_same_bits_at_its_own(name):
    backbone, size, small = of(name, ASKED[name])
    torch.manual_seed(1)
    following = torch.rand(3)
    torch.manual_seed(1)
    made = for_sizes(backbone, [size, small])
    assert torch.rand(3).equal(following)
    assert made.architecture == replace(
        backbone.architecture, args={"dynamic_img_size": True, **backbone.architecture.args}
    )
    assert toy.same_weights(made, backbone)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert made(x).equal(backbone(x))
    h_BD = made.train()(torch.randn(2, 3, small, small))
    h_BD.sum().backward()
    assert h_BD.shape == (2, backbone.dim)


@pytest.mark.parametrize("name", REFUSED)
def test_a_backbone_of_one_size_is_refused_with_models_of_any(name):
    backbone, size, small = of(name, REFUSED[name])
    with pytest.raises(BackboneError, match=rf"{name} at size 96, .*; resnet50, convnext_tiny, "):
        for_sizes(backbone, [size, small])


def test_the_models_that_the_message_names_do_take_them(monkeypatch):
    for name in ("vit_small_patch16_224", "swin_tiny_patch4_window7_224"):
        with torch.device("meta"):
            made = Backbone(Architecture(name, args={"dynamic_img_size": True}))
            assert made.dry_run(96) == made.dim


def test_a_patch_that_does_not_divide_a_view_is_named():
    backbone = Backbone(Architecture("vit_tiny_patch16_224", 32, args=ONE_BLOCK))
    text = r"cuts patches of 16 pixels, which do not divide size 40: take size 32 or 48, or args"
    with pytest.raises(BackboneError, match=text):
        for_sizes(backbone, [32, 40])


def test_a_patch_may_be_padded():
    args = {**ONE_BLOCK, "dynamic_img_size": True, "dynamic_img_pad": True}
    backbone = Backbone(Architecture("vit_tiny_patch16_224", 32, args=args))
    assert for_sizes(backbone, [32, 40]) is backbone


class One(nn.Module):
    """A network of one's own, for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layer(x_BCHW.flatten(1))


def test_a_network_of_ones_own_is_asked_too():
    backbone = Backbone.of(One(), size=16)
    with pytest.raises(BackboneError, match="One at size 8, "):
        for_sizes(backbone, [16, 8])


# --- recipes --------------------------------------------------------------------------------------

CROPS = (
    "pretrain.views={name: multi_crop, small: 2, small_size: 8}",
    "pretrain.method={name: dino, hidden: 16, bottleneck: 8, prototypes: 32}",
)


def test_dino_on_a_vit_is_the_same_whether_or_not_the_recipe_asks(tmp_path):
    one = toy.recipe(*CROPS, backbone=toy.VIT)
    args = "backbone.args={patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2, "
    other = toy.recipe(*CROPS, args + "dynamic_img_size: true}", backbone=toy.VIT)
    assert toy.same_weights(build_method(one), build_method(other))
    assert build_method(one).backbone.architecture == other.backbone


def test_dino_on_a_vit_trains(tmp_path):
    pipeline.check(Run(toy.recipe(*CROPS, backbone=toy.VIT), tmp_path / "x", ranks=1))
    few = toy.recipe(*CROPS, "pretrain.epochs=1", "pretrain.batch=718", backbone=toy.VIT)
    assert (pretrain(few, tmp_path / "run") / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("pretrain.views.small_size=12",), r"toy\.yaml: pretrain\.views: .*do not divide size 12"),
        (
            (
                "backbone={name: mixer_s32_224, size: 64, channels: 1}",
                "pretrain.views.small_size=32",
            ),
            r"toy\.yaml: pretrain\.views: .*mixer_s32_224 .*; resnet50, ",
        ),
    ],
)
def test_check_refuses_views_that_the_backbone_cannot_take(words, text, tmp_path):
    recipe = toy.recipe(*CROPS, *words, backbone=toy.VIT)
    with pytest.raises(BackboneError, match=text):
        pipeline.check(Run(recipe, tmp_path / "run", ranks=1))


# --- pooling --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "works"), [("efficientvit_b0", "avg or max"), ("coat_tiny", "token or avg")]
)
def test_a_pooling_that_a_model_has_not_is_refused_with_those_it_has(name, works):
    text = rf"backbone\.pool: gem: timm does not pool {name} so: take {works}, or leave pool out$"
    with pytest.raises(BackboneError, match=text):
        Architecture(name, pool="gem").build()
