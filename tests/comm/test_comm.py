"""comm: what crosses ranks has the value and the gradient of one process on the whole batch."""

import torch
from torch import Tensor

from lookalike import comm

CUTS = {2: [3, 5], 1: [8]}


def whole() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    w_ND = torch.randn(8, 4, generator=generator, dtype=torch.float64)
    return x_ND, w_ND


def mine(x_ND: Tensor) -> Tensor:
    return x_ND.split(CUTS[comm.world_size()])[comm.rank()].clone().requires_grad_()


def by_cat() -> tuple[Tensor, Tensor]:
    """A loss of all rows in order; the gradient as the engine would average it."""
    x_ND, w_ND = whole()
    x_BD = mine(x_ND)
    loss = (comm.cat(x_BD).sin() * w_ND).sum()
    loss.backward()
    return loss.detach(), x_BD.grad / comm.world_size()


def by_sum() -> tuple[Tensor, Tensor]:
    x_BD = mine(whole()[0])
    loss = comm.sum(x_BD.square().sum(dim=0)).exp().mul(1e-9).sum()
    loss.backward()
    return loss.detach(), x_BD.grad / comm.world_size()


def by_mean() -> tuple[Tensor, Tensor]:
    x_BD = mine(whole()[0])
    loss = comm.mean(x_BD).pow(3).sum()
    loss.backward()
    return loss.detach(), x_BD.grad / comm.world_size()


def agrees(ranks, function) -> None:
    (value, gradient), parts = function(), ranks.run(function)
    torch.testing.assert_close([v for v, _ in parts], [value, value], rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([g for _, g in parts]), gradient, rtol=1e-12, atol=1e-15)


def test_cat_has_the_value_and_gradient_of_the_whole_batch_for_uneven_rows(ranks):
    agrees(ranks, by_cat)


def test_sum_has_the_value_and_gradient_of_the_whole_batch(ranks):
    agrees(ranks, by_sum)


def test_mean_weighs_rows_not_ranks(ranks):
    agrees(ranks, by_mean)
    torch.testing.assert_close(by_mean()[0], whole()[0].mean(dim=0).pow(3).sum())


def facts() -> tuple[int, int, int, object]:
    count = comm.count(torch.zeros(comm.rank() + 1, 2))
    return comm.rank(), comm.world_size(), count, comm.broadcast_object({"said by": comm.rank()})


def test_every_rank_knows_itself_and_hears_the_first(ranks):
    assert ranks.run(facts) == [(0, 2, 3, {"said by": 0}), (1, 2, 3, {"said by": 0})]


def spread() -> tuple[Tensor, Tensor]:
    torch.manual_seed(comm.rank())
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module[1].running_mean.fill_(comm.rank() + 1)
    comm.broadcast_module(module)
    return module[0].weight.detach(), module[1].running_mean


def test_spread_gives_every_rank_the_first_ones_parameters_and_buffers(ranks):
    (weight_0, mean_0), (weight_1, mean_1) = ranks.run(spread)
    assert torch.equal(weight_0, weight_1)
    assert torch.equal(mean_0, torch.ones(3))
    assert torch.equal(mean_1, torch.ones(3))


def test_alone_everything_is_the_identity():
    x = torch.randn(3, 2)
    assert comm.sum(x) is x
    assert comm.cat(x) is x
    torch.testing.assert_close(comm.mean(x), x.mean(dim=0))
    assert comm.broadcast_object(7) == 7
