"""Features of patches: where they lie, and whose they are."""

import pytest
import torch
from torch import nn

from lookalike.errors import BackboneError
from lookalike.models import Architecture, Backbone
from lookalike.models.dense import dense, dense_shape, patches

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
RES = {"channels": (8, 8, 16, 24), "layers": (1, 1, 1, 1)}
SWIN = {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2, "patch_size": 4}
MODELS = {
    "vit": (Architecture("vit_tiny_patch16_224", size=(16, 40), args=VIT), (24, 2, 5)),
    "vit_avg": (Architecture("vit_tiny_patch16_224", size=16, pool="avg", args=VIT), (24, 2, 2)),
    "resnet": (Architecture("resnet18", size=(64, 128), args=RES), (24, 2, 4)),
    "swin": (Architecture("swin_tiny_patch4_window7_224", size=(16, 32), args=SWIN), (24, 2, 4)),
}


def made(name):
    torch.manual_seed(0)
    return MODELS[name][0].build().eval()


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_backbone_has_a_grid(name):
    backbone, shape = made(name), MODELS[name][1]
    assert dense_shape(backbone) == shape
    assert patches(MODELS[name][0]) == shape


def test_tokens_are_the_patches_in_rows_without_the_prefix():
    backbone = made("vit")
    x = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = backbone.model.forward_features(x)
        found = dense(backbone, x)
    assert tokens.shape == (2, 11, 24)
    assert torch.equal(found.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_maps_are_what_the_pool_sees():
    backbone = made("swin")
    x = torch.randn(2, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(dense(backbone, x).mean((2, 3)), backbone(x), atol=1e-6)


def test_several_blocks_lie_beside_one_another():
    vit, resnet = made("vit"), made("resnet")
    assert dense_shape(vit, 2) == (48, 2, 5)
    assert dense_shape(resnet, 2) == (40, 4, 8)
    x = torch.randn(1, 3, 16, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(dense(vit, x, 2)[:, 24:], dense(vit, x))


def test_what_has_no_patches_is_refused():
    class Plain(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    class Mapped(nn.Module):
        def forward_features(self, x):
            return x[:, :, ::4, ::8]

        def forward(self, x):
            return x.mean((2, 3))

    with pytest.raises(BackboneError, match="no features of patches"):
        dense_shape(Backbone.of(Plain(), size=16))
    assert dense_shape(Backbone.of(Mapped(), size=16)) == (3, 4, 2)
    broken = made("vit")
    broken.model.blocks[0].attn = None
    with pytest.raises(BackboneError, match=r"at size .16, 40.: no features of patches: "):
        dense_shape(broken)
    with pytest.raises(BackboneError, match="blocks"):
        dense_shape(made("vit"), 9)
    with pytest.raises(BackboneError, match="one patch"):
        dense_shape(Architecture("vit_tiny_patch16_224", size=8, args=VIT).build())
