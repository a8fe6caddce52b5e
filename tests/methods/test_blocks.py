"""blocks: statistics over all ranks are those of one process on the whole batch."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from lookalike import comm
from lookalike.nn.batchnorm import GlobalBatchNorm, global_batchnorm, standardize, standardized
from lookalike.nn.heads import mlp

CUTS = {2: [3, 5], 1: [8]}


def images() -> Tensor:
    return (
        torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
        + 5
    )


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=0.2), nn.ReLU(), BatchNormAct2d(6)
    ).double()


def one_step(replace: bool = True) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Output rows, the parameters' gradients as the engine averages them, and the state after one
    training step.
    """
    module = network()
    module = global_batchnorm(module) if replace else module
    x = images().split(CUTS[comm.world_size()])[comm.rank()]
    y = module(x)
    comm.cat(y.sin()).square().sum().backward()
    gradients = []
    for parameter in module.parameters():
        gradients.append(comm.all_sum(parameter.grad) / comm.world_size())
    return y.detach(), gradients, {k: v.detach() for k, v in module.state_dict().items()}


def test_batch_statistics_over_uneven_ranks_are_those_of_the_whole_batch(ranks):
    y, gradients, state = one_step(replace=False)
    parts = ranks.run(one_step)
    torch.testing.assert_close(torch.cat([p[0] for p in parts]), y, rtol=1e-10, atol=1e-12)
    for part in parts:
        torch.testing.assert_close(part[1], gradients, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(part[2], state, rtol=1e-10, atol=1e-12)


def test_a_global_batchnorm_alone_is_torchs_own_in_training_and_evaluation():
    theirs = network()
    norm = GlobalBatchNorm(network()[1])
    ours = nn.Sequential(network()[0], norm)
    for _ in range(3):
        torch.testing.assert_close(ours(images()), theirs[:2](images()), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(norm.running_var, theirs[1].running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(images()), theirs[:2](images()), rtol=1e-12, atol=0)


def test_a_global_batchnorm_keeps_the_names_of_what_it_replaces(ranks):
    before = set(timm.create_model("resnetv2_18", num_classes=0).state_dict())
    assert set(ranks.run(names)[0]) == before


def names() -> list[str]:
    return list(global_batchnorm(timm.create_model("resnetv2_18", num_classes=0)).state_dict())


def test_nothing_is_replaced_on_one_rank():
    assert not any(isinstance(m, GlobalBatchNorm) for m in global_batchnorm(network()).modules())


def test_standardize_is_a_batchnorm_without_parameters():
    x = torch.randn(16, 5, dtype=torch.float64) * 7 + 3
    torch.testing.assert_close(standardize(x), nn.BatchNorm1d(5, affine=False).double()(x))


def test_the_variance_of_a_large_mean_does_not_cancel():
    x = 1e4 + torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    _, _, var, _ = standardized(x, [0], 1e-5)
    exact = x.double().var(dim=0, unbiased=False)
    torch.testing.assert_close(var[0].double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("widths", [[4, 8], [4, 8, 16], [4, 8, 8, 2]])
def test_an_mlp_normalises_between_its_layers_and_ends_linear(widths):
    layers = [type(layer).__name__ for layer in mlp(widths)]
    hidden = len(widths) - 2
    assert layers == ["Linear", "BatchNorm1d", "ReLU"] * hidden + ["Linear"]
    assert mlp(widths)(torch.randn(6, 4)).shape == (6, widths[-1])
