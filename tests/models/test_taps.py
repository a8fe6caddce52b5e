"""Taps: features of a backbone's blocks are those that timm shows, pooled as asked for."""

import pytest
import timm
import torch
from torch import nn

from lookalike.errors import BackboneError
from lookalike.models import Architecture, Backbone
from lookalike.models.taps import (
    Tap,
    features,
    patches,
    refuse_patches,
    refuse_tap,
    tap_digest,
    tapped,
    untapped,
    widths,
)

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
RESNET = {"channels": (8, 8, 16, 24), "layers": (1, 1, 1, 1)}


def vit(pool=None, name="vit_tiny_patch16_224", **args) -> Backbone:
    torch.manual_seed(0)
    backbone = Architecture(name, size=32, pool=pool, args={**VIT, **args}).build().eval()
    for p in backbone.parameters():  # norms that do something
        nn.init.normal_(p, std=0.3)
    return backbone


def resnet(pool=None) -> Backbone:
    torch.manual_seed(0)
    return Architecture("resnet18", size=32, pool=pool, args=RESNET).build().eval()


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_class_tokens_and_means_are_those_of_timms_intermediate_layers():
    backbone, x = vit(), images()
    shown = backbone.model.get_intermediate_layers(x, 3, return_prefix_tokens=True, norm=True)
    tokens = [prefix[:, 0] for _, prefix in shown]
    means = [places.mean(1) for places, _ in shown]
    dinov2 = torch.cat([*tokens, means[-1]], 1)
    for tap, expected in (
        (Tap(-1, 3, "cls_mean"), dinov2),
        (Tap(-1, 3, "token"), torch.cat(tokens, 1)),
        (Tap(-2, 2, "mean"), torch.cat(means[:2], 1)),
        (Tap(-3, 1, "cls_mean"), torch.cat([tokens[0], means[0]], 1)),
    ):
        model = tapped(backbone, tap)
        assert torch.equal(model(x), expected)
        assert model.dim == expected.shape[1]
        assert (model.architecture, model.distance) == (backbone.architecture, "cosine")
        assert not model.training
    assert torch.equal(patches(backbone, x, Tap(-2)), shown[1][0])
    both = torch.stack([shown[1][0], shown[2][0]]).mean(0)
    torch.testing.assert_close(patches(backbone, x, Tap(-1, 2)), both)


@pytest.mark.parametrize(
    "backbone",
    [
        *(vit(pool) for pool in (None, "avg", "gem", "cls_gem")),
        vit(name="deit_tiny_distilled_patch16_224"),
        resnet(),
        resnet("gem"),
    ],
    ids=lambda b: f"{b.architecture.name}-{b.architecture.pool}",
)
def test_the_last_block_is_pooled_as_the_backbone_pools(backbone):
    x = images()
    assert tapped(backbone, Tap()) is backbone
    assert untapped(backbone) == (backbone, Tap())
    own, two = features(backbone, x, [Tap(), Tap(-1, 2)])
    assert torch.equal(own, backbone(x))
    assert torch.equal(two[:, -backbone.dim :], own)


def test_the_norm_after_pooling_follows_what_was_pooled():
    backbone, x = vit("avg"), images()
    raw = backbone.model.get_intermediate_layers(x, 3)[0]
    assert torch.equal(tapped(backbone, Tap(-3))(x), backbone.model.fc_norm(raw.mean(1)))
    assert torch.equal(tapped(backbone, Tap(-3, 1, "mean"))(x), tapped(backbone, Tap(-3))(x))


def test_stages_of_a_convolutional_network_are_averaged_over_their_places():
    backbone, x, seen = resnet(), images(), {}
    for name in ("layer2", "layer3", "layer4"):
        layer = getattr(backbone.model, name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    found = tapped(backbone, Tap(-2, 2))(x)
    expected = torch.cat([seen[name].mean((2, 3)) for name in ("layer2", "layer3")], 1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(patches(backbone, x, Tap()), seen["layer4"].flatten(2).mT)


def test_vit_small_at_224_pixels_without_memory():
    with torch.device("meta"):
        backbone = Architecture("vit_small_patch16_224").build()
        taps = [Tap(-1, n, kind) for n in (1, 4) for kind in ("token", "cls_mean")]
        assert widths(backbone, taps) == [384, 768, 1536, 1920]
        assert tapped(backbone, Tap(-4, 4, "cls_mean")).dim == 1920


def test_features_are_told_apart_by_weights_and_tap():
    backbone = vit()
    taps = [Tap(), Tap(-2), Tap(-1, 2), Tap(-1, 1, "mean")]
    assert len({tap_digest(backbone, tap) for tap in taps}) == 4
    assert tap_digest(vit(depth=2), taps[1]) != tap_digest(backbone, taps[1])


@pytest.mark.parametrize(
    ("name", "tap", "said"),
    [
        ("resnet18", Tap(-1, 1, "token"), "resnet18 has no class token: take mean or pool"),
        ("swin_tiny_patch4_window7_224", Tap(-1, 1, "cls_mean"), "has no class token"),
        ("vit_tiny_patch16_224", Tap(-9, 5), "layer -9 with blocks 5 reaches 13 blocks back, and "),
    ],
)
def test_what_a_network_does_not_have_is_refused(name, tap, said):
    with pytest.raises(BackboneError, match=said) as error:
        refuse_tap(Architecture(name), tap)
    assert str(error.value).startswith("probe")
    assert "\n" not in str(error.value)
    refuse_tap(Architecture(name), Tap())


def test_modules_of_ones_own_show_no_blocks():
    own = Backbone.of(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), size=2)
    for refuse in (refuse_tap, refuse_patches):
        with pytest.raises(BackboneError, match="is a module of your own: leave"):
            refuse(own.architecture, Tap(-2))
    with pytest.raises(BackboneError, match="is a module of your own: leave them out"):
        tapped(own, Tap(-2))


def test_a_network_whose_blocks_timm_does_not_show_is_refused(monkeypatch):
    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    with pytest.raises(BackboneError, match="timm's resnet18 does not show the features of its bl"):
        refuse_tap(Architecture("resnet18"), Tap(-2))
    with pytest.raises(BackboneError, match="resnet18 shows neither patches nor a feature map"):
        refuse_patches(Architecture("resnet18"), Tap())
