"""Convolutions in bf16 on a CPU: no column of a kernel takes its gradient from memory that nobody
wrote; what is not concerned computes as ever, and afterwards all is as before.
"""

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lookalike
import toy
from lookalike.nn.convolution import idle, padded

# Channels as of blocked and of channels-last kernels; widths of which a kernel sees little.
NARROW = [
    (nn.Conv1d, (1,), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv1d, (3,), {"kernel_size": 3, "stride": 4, "padding": 1}),
    (nn.Conv2d, (1, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (nn.Conv2d, (5, 1), {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 16}),
    (nn.Conv2d, (2, 2), {"kernel_size": 3, "stride": 4, "padding": 1, "bias": False}),
    (nn.Conv2d, (3, 2), {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 2)}),
    (nn.Conv2d, (2, 1), {"kernel_size": 7, "stride": 2, "padding": 3}),
    (nn.Conv3d, (1, 1, 1), {"kernel_size": 3, "stride": 2, "padding": 1}),
]


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Of the input and of each parameter."""
    x = x.detach().requires_grad_()
    y = network(x)
    signs = torch.linspace(-1, 2, y.numel()).view(y.shape).to(y)
    return list(torch.autograd.grad(y, [x, *network.parameters()], signs))


def litter() -> None:
    """Leaves NaN in memory of many sizes for the next to find."""
    for size in (2**power for power in range(6, 20)):
        pieces = [torch.full((size,), torch.nan) for _ in range(4)]
        del pieces


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("kind", "size", "how"), NARROW)
def test_gradients_of_narrow_maps_in_bf16(
    kind: Any, size: tuple[int, ...], how: dict[str, Any], last: bool
):
    torch.manual_seed(0)
    network = kind(16, 16, **how)
    x = torch.randn(4, 16, *size).bfloat16().float()
    if last and kind is nn.Conv2d:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network.weight.copy_(network.weight.bfloat16())
    want = gradients(copy.deepcopy(network).double(), x.double())
    for _ in range(3):
        litter()
        with padded(network), torch.autocast("cpu", torch.bfloat16):
            found = gradients(network, x)
        for one, other in zip(found, want, strict=True):
            assert torch.isfinite(one).all()
            assert (one - other).abs().max() <= 0.02 * other.abs().max()


def test_idle_columns_are_those_without_a_gradient():
    sizes = itertools.product((1, 2, 3, 4, 5), (1, 2, 3, 5), (1, 2, 3, 4), (0, 1, 2), (1, 2))
    for width, kernel, stride, padding, dilation in sizes:
        if width + 2 * padding < dilation * (kernel - 1) + 1:
            continue
        weight = torch.ones(1, 1, kernel, dtype=torch.float64, requires_grad=True)
        x = torch.ones(1, 1, width, dtype=torch.float64)
        y = torch.conv1d(x, weight, None, stride, padding, dilation)
        found = torch.autograd.grad(y.sum(), weight)[0].flatten()
        without = (found == 0).nonzero().flatten().tolist()
        assert idle(width, kernel, stride, padding, dilation) == without


class Own(nn.Conv2d):
    """One that convolves in a way of its own."""

    def _conv_forward(self, *args: Any) -> Tensor:
        return 2 * super()._conv_forward(*args)


def test_the_rest_computes_as_ever_and_afterwards_all_is_as_before():
    torch.manual_seed(0)
    strided = {"kernel_size": 3, "stride": 2, "padding": 1}
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 16, **strided),
        nn.Conv2d(16, 16, 3, padding="same"),
        nn.Conv2d(16, 16, **strided, padding_mode="reflect"),
        Own(16, 16, **strided),
    )
    keys = [set(vars(part)) for part in network.modules()]
    for size in (16, 32):
        x = torch.randn(2, 3, size, size)
        want = gradients(network, x)
        with padded(network):
            assert sum("_conv_forward" in vars(part) for part in network.modules()) == 1
            for made in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
                for one, other in zip(gradients(made, x), want, strict=True):
                    assert torch.equal(one, other)
        assert [set(vars(part)) for part in network.modules()] == keys


def test_a_copy_computes_with_its_own_weights():
    x = torch.randn(2, 16, 1, 1)
    network = nn.Conv2d(16, 16, 3, stride=2, padding=1)
    with padded(network):
        other = copy.deepcopy(network)
        nn.init.zeros_(other.weight)
        nn.init.zeros_(other.bias)
        assert not other(x).any()
        assert network(x).any()


def test_the_same_recipe_in_bf16_trains_the_same(tmp_path: Path):
    recipe = toy.recipe("pretrain.precision=bf16", "pretrain.epochs=1")
    first, second = (
        load_file(lookalike.pretrain(recipe, tmp_path / name) / "model.safetensors")
        for name in ("first", "second")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.isfinite(value).all() for value in first.values())
