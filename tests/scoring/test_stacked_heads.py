"""Stacked linear heads: each as if it were trained alone, by torch.optim."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lookalike.scoring import heads as module
from lookalike.scoring.heads import Descent, Heads, Standard

CPU = torch.device("cpu")
RATES = (0.01, 0.3, 2.0)


def batches(count=12, rows=20, width=6, classes=7):
    generator = torch.Generator().manual_seed(5)
    for step in range(count):
        x_ND = torch.randn(rows, width, generator=generator)
        labels_N = torch.randint(classes, (rows,), generator=generator)
        share_KN = torch.rand(len(RATES), rows, generator=generator) / rows
        yield x_ND, labels_N, share_KN, 1 - step / count


def stacked(descent, rates=RATES, part=slice(None)):
    heads = Heads(6, 7, rates, descent, seed=3, device=CPU)
    for x_ND, labels_N, share_KN, factor in batches():
        heads.step(x_ND, labels_N, share_KN[part], factor)
    return heads


def alone(k, step):
    """Head k by autograd; `step` moves it."""
    linear = nn.Linear(6, 7)
    begun = Heads(6, 7, [1.0], Descent(), seed=3, device=CPU)
    linear.weight.data, linear.bias.data = begun.weight_KCD[0].clone(), begun.bias_KC[0].clone()
    for x_ND, labels_N, share_KN, factor in batches():
        linear.zero_grad()
        loss_N = F.cross_entropy(linear(x_ND), labels_N, reduction="none")
        (loss_N * share_KN[k]).sum().backward()
        step(linear, RATES[k] * factor)
    return linear


@pytest.mark.parametrize(
    "descent", [Descent(), Descent(0.5, 1e-2), Descent(0.9, 1e-3, nesterov=True), Descent(0.0)]
)
def test_each_head_is_trained_as_torchs_sgd_trains_it_alone(descent):
    heads = stacked(descent)
    for k in range(len(RATES)):
        optimizers = {}

        def step(linear, rate, optimizers=optimizers):
            how = {"momentum": descent.momentum, "nesterov": descent.nesterov}
            if not optimizers:
                optimizers[0] = torch.optim.SGD(
                    linear.parameters(), lr=1.0, weight_decay=descent.weight_decay, **how
                )
            optimizers[0].param_groups[0]["lr"] = rate
            optimizers[0].step()

        linear = alone(k, step)
        torch.testing.assert_close(heads.weight_KCD[k], linear.weight.data, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias_KC[k], linear.bias.data, rtol=1e-5, atol=1e-6)


def test_lars_follows_its_formula():
    descent = Descent(0.9, 1e-2, lars=True)
    heads = stacked(descent)
    for k in range(len(RATES)):
        speeds = {}

        def step(linear, rate, speeds=speeds):
            for name, p in linear.named_parameters():
                slope = p.grad
                if p.ndim > 1:
                    slope = slope + 1e-2 * p.data
                    slope = slope * 0.001 * p.data.norm() / slope.norm()
                speeds[name] = 0.9 * speeds.get(name, 0.0) + slope
                p.data -= rate * speeds[name]

        linear = alone(k, step)
        torch.testing.assert_close(heads.weight_KCD[k], linear.weight.data, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.bias_KC[k], linear.bias.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("descent", [Descent(), Descent(nesterov=True), Descent(lars=True)])
def test_a_head_does_not_depend_on_the_others(descent):
    every = stacked(descent)
    with patch.object(module, "LOGITS", 1):  # one at a time
        one_by_one = stacked(descent)
    single = stacked(descent, RATES[1:2], slice(1, 2))
    for name, tensor in every.state().items():
        torch.testing.assert_close(one_by_one.state()[name], tensor, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(single.state()[name], tensor[1:2], rtol=1e-5, atol=1e-7)
    x_ND = torch.randn(4, 6)
    for k, logits_NC in enumerate(every.logits(x_ND)):
        expected = F.linear(x_ND, every.weight_KCD[k], every.bias_KC[k])
        torch.testing.assert_close(logits_NC, expected)


def test_no_head_at_all_is_no_work():
    heads = Heads(6, 7, [], Descent(), seed=3, device=CPU)
    for x_ND, labels_N, share_KN, factor in batches():
        heads.step(x_ND, labels_N, share_KN[:0], factor)
        assert list(heads.logits(x_ND)) == []


def test_standard_is_batchnorm_without_scale_and_shift():
    ours, theirs = Standard(6, CPU), nn.BatchNorm1d(6, affine=False, eps=1e-6)
    for x_ND, *_ in batches():
        x_ND = 3 * x_ND + 5
        torch.testing.assert_close(ours.learn(x_ND), theirs(x_ND))
    torch.testing.assert_close(ours.apply(x_ND), theirs.eval()(x_ND))
