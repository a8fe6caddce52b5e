"""LARS is timm's to the bit, layer by layer, without a loop over layers; a skipped step of any
optimizer has not been.
"""

import pytest
import timm.optim
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.optim import OPTIMIZERS, Lars, put_back, skippable

SHAPES = [(3, 5), (64, 3, 7, 7), (10, 1), (1, 1), (128, 64), (7,), (4,)]
RATES = [(0.0, False), (0.9, False), (0.9, True)]


def parameters(seed: int, scale: bool = True) -> list[nn.Parameter]:
    """Of many sizes; the fourth is 0."""
    draw = torch.Generator().manual_seed(seed)
    found = [torch.randn(s, generator=draw) for s in SHAPES]
    if scale:
        found = [x * 10.0 ** int(torch.randint(-4, 3, (), generator=draw)) for x in found]
    found[3].zero_()
    return [nn.Parameter(x) for x in found]


def groups(own: list[nn.Parameter], decay: float) -> list[dict]:
    return [
        {"params": own[:5], "weight_decay": decay, "always_adapt": True, "vectors": False},
        {"params": own[5:], "weight_decay": 0.0, "always_adapt": False, "vectors": True},
    ]


def gradients(own: list[nn.Parameter], step: int, seed: int) -> None:
    """Of many sizes; 0 in the third step; none for one parameter in the first."""
    draw = torch.Generator().manual_seed(1000 * seed + step)
    for p in own:
        size = 10.0 ** int(torch.randint(-4, 3, (), generator=draw))
        p.grad = torch.randn(p.shape, generator=draw) * size * (step != 2)
    if step == 0:
        own[4].grad = None


@pytest.mark.parametrize("decay", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), RATES)
def test_lars_is_timms_to_the_bit(momentum, nesterov, decay):
    for seed in range(6):
        one, other = parameters(seed), parameters(seed)
        how = {"lr": 0.3, "momentum": momentum, "nesterov": nesterov}
        ours = Lars(groups(one, decay), trust=0.02, **how)
        timms = timm.optim.Lars(groups(other, decay), trust_coeff=0.02, **how)
        for step in range(5):
            gradients(one, step, seed)
            gradients(other, step, seed)
            ours.step()
            timms.step()
            for p, q in zip(one, other, strict=True):
                assert torch.equal(p, q)
                assert ours.state[p].keys() == timms.state[q].keys()
                for key, value in ours.state[p].items():
                    assert torch.equal(value, timms.state[q][key])


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def calls(layers: int, fused: bool) -> int:
    """Operators that Python calls in a later step of so many layers."""
    own = [nn.Parameter(torch.randn(3, 4)) for _ in range(layers)]
    made = Lars([{"params": own, "always_adapt": True}], lr=0.1, momentum=0.9, fused=fused)
    for p in own:
        p.grad = torch.randn(3, 4)
    made.step()
    with Counted() as counted:
        made.step()
    return counted.calls


@pytest.mark.parametrize("fused", [False, True])
def test_no_python_loop_runs_over_layers(fused):
    """A layer costs the host a view of its parameter, no operator of arithmetic."""
    few, many = calls(10, fused), calls(110, fused)
    assert many - few <= 200
    assert few < 50


@pytest.mark.parametrize("fused", [False, True], ids=["copied", "told"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_device_skips_has_not_been(name, fused):
    """The first one, before there are moments, and a later one; NaN in every gradient."""
    one, other = parameters(0, scale=False), parameters(0, scale=False)
    made = []
    for own in (one, other):
        group = [{"params": own, "vectors": False, "scale": 1.0, "name": "all", "constant": False}]
        made.append(OPTIMIZERS[name](group, lr=0.01))
        made[-1].param_groups[0]["fused"] = fused or None
    for step in range(1, 5):  # with a gradient each: torch's fused SGD takes no late comers
        gradients(one, step, 1)
        gradients(other, step, 1)
        for bad in (True, False):
            for p in one:
                p.grad = torch.full_like(p, torch.nan) if bad else p.grad
            with skippable(made[0], torch.tensor(bad)):
                made[0].step()
            gradients(one, step, 1)
        made[1].step()
        for p, q in zip(one, other, strict=True):
            assert torch.equal(p, q)
            for key, value in made[1].state[q].items():
                assert torch.equal(made[0].state[p][key], value), key
    assert not hasattr(made[0], "found_inf") or made[0].found_inf is None


@pytest.mark.parametrize(("momentum", "nesterov"), RATES)
def test_fused_lars_is_lars_but_for_rounding(momentum, nesterov):
    one, other = parameters(0, scale=False), parameters(0, scale=False)
    how = {"lr": 0.3, "momentum": momentum, "nesterov": nesterov, "trust": 0.02}
    fused, plain = Lars(groups(one, 0.1), fused=True, **how), Lars(groups(other, 0.1), **how)
    for step in range(4):
        for own, made in ((one, fused), (other, plain)):
            gradients(own, step, 0)
            made.step()
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_put_back_has_every_bit_of_before(skip):
    nan, inf = float("nan"), float("inf")
    now = [
        torch.tensor([1.0, -0.0, nan, inf, 1e-45]),
        torch.tensor(7),
        torch.tensor([True, False]),
        torch.randn(3).bfloat16(),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 3).T,
    ]
    before = [
        torch.tensor([nan, 3.0, -inf, -0.0, 3e38]),
        torch.tensor(-(2**62)),
        torch.tensor([False, True]),
        torch.full((3,), nan).bfloat16(),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.randn(4, 3).T,
    ]
    wanted = [repr(t.flatten().tolist()) for t in (before if skip else now)]
    put_back(now, before, torch.tensor(skip))
    assert [repr(t.flatten().tolist()) for t in now] == wanted
