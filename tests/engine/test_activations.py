"""Activation checkpoints are one a block: what is kept is little, what is drawn again is the same,
and the gradient has the same bits.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lookalike.engine.activations import checkpoint_activations
from lookalike.models import Architecture, Backbone
from lookalike.nn.batchnorm import freeze_running_stats

VIT = {"patch_size": 8, "embed_dim": 24, "num_heads": 2, "proj_drop_rate": 0.1}
RESNET = {"channels": [32, 32, 32, 32], "layers": [5, 4, 1, 1]}
# Name, arguments, how many blocks, and how much of the bytes is still kept.
NETWORKS: list[tuple[str, dict[str, Any], int, float]] = [
    ("vit_tiny_patch16_224", {**VIT, "depth": 6, "drop_path_rate": 0.2}, 6, 0.15),
    ("resnet50", {**RESNET, "drop_path_rate": 0.2}, 11, 0.5),
    ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 8, 16, 16]}, 5, 0.5),
]


def made(name: str, args: dict[str, Any]) -> Backbone:
    torch.manual_seed(0)
    return Architecture(name=name, size=32, args=args).build().train()


def kept(backbone: Backbone) -> tuple[int, dict[str, Tensor]]:
    """Bytes that a forward keeps for backward beside the weights, each once; and the gradient."""
    own = {p.untyped_storage().data_ptr() for p in backbone.state_dict().values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return x

    torch.manual_seed(1)
    x_BCHW = torch.randn(8, 3, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = backbone(x_BCHW).square().sum()
    found = sum(storage.nbytes() for storage in storages.values())
    with freeze_running_stats(backbone):
        value.backward()
    gradient = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None}
    return found, {**gradient, **dict(backbone.named_buffers())}


@pytest.mark.parametrize(("name", "args", "blocks", "share"), NETWORKS)
def test_what_is_kept_is_a_few_maps_a_block_and_the_gradient_is_the_same(
    name, args, blocks, share, monkeypatch
):
    plain, calls = made(name, args), []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["use_reentrant"])
        return checkpoint(*args, **kwargs)

    other = copy.deepcopy(plain)
    checkpoint_activations(other)
    usual, gradient = kept(plain)
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    found, after = kept(other)
    assert calls == [False] * blocks
    assert found < share * usual
    assert gradient.keys() == after.keys()
    assert all(torch.equal(gradient[n], after[n]) for n in gradient)
