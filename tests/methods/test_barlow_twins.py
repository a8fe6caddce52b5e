"""Barlow Twins: equation 1 of arXiv 2103.03230, whatever the form, the split, the order or the
precision.
"""

import pytest
import torch
from torch import Tensor

from lookalike import comm
from lookalike.methods import METHODS
from lookalike.methods.barlow_twins import barlow_twins_loss
from lookalike.models import Architecture
from lookalike.nn.correlation import cross_energy

LAMBDA = 0.3


def embeddings(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    return common + 0.5 * noise[0] + 1, 2 * common - noise[1]


def by_the_paper(ha: Tensor, hb: Tensor, off_diagonal: float) -> float:
    """Loops over the dimensions, with batch means and standard deviations as in the paper's
    algorithm 1.
    """
    n, d = ha.shape
    za = (ha - ha.mean(0)) / (ha.var(0, unbiased=False) + 1e-5).sqrt()
    zb = (hb - hb.mean(0)) / (hb.var(0, unbiased=False) + 1e-5).sqrt()
    total = 0.0
    for i in range(d):
        for j in range(d):
            c = sum(float(za[b, i]) * float(zb[b, j]) for b in range(n)) / n
            total += (1 - c) ** 2 if i == j else off_diagonal * c**2
    return total


def gradients(n: int, d: int, cut: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The loss on this rank's rows, and their gradient as the engine averages it."""
    rows = (
        part.split(cut or [n])[comm.rank()].clone().requires_grad_() for part in embeddings(n, d)
    )
    ha, hb = rows
    loss = barlow_twins_loss(ha, hb, LAMBDA).value
    loss.backward()
    return loss.detach(), torch.stack([ha.grad, hb.grad], dim=1) / comm.world_size()


@pytest.mark.parametrize(("n", "d"), [(6, 4), (4, 12), (3, 6), (5, 5)])
def test_the_loss_equals_a_loop_over_the_papers_equation(n, d):
    ha, hb = embeddings(n, d)
    assert float(barlow_twins_loss(ha, hb, LAMBDA).value) == pytest.approx(
        by_the_paper(ha, hb, LAMBDA), rel=1e-12
    )


@pytest.mark.parametrize(("n", "d"), [(4, 12), (6, 12), (7, 12), (20, 3)])
def test_both_forms_of_the_energy_are_one_number_with_one_gradient(n, d):
    za, zb = (z.requires_grad_() for z in embeddings(n, d))
    energy = cross_energy(za, zb)
    plain = (za.T @ zb).square().sum()
    torch.testing.assert_close(energy, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(energy, (za, zb)),
        torch.autograd.grad(plain, (za, zb)),
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 3)])
def test_the_gradient_passes_finite_differences(n, d):
    ha, hb = (h.requires_grad_() for h in embeddings(n, d))
    assert torch.autograd.gradcheck(lambda a, b: barlow_twins_loss(a, b, LAMBDA).value, (ha, hb))


@pytest.mark.parametrize(
    ("n", "d", "cut"),
    [(8, 5, [4, 4]), (8, 40, [4, 4]), (8, 40, [3, 5]), (9, 4, [2, 7]), (8, 20, [1, 7])],
)
def test_two_ranks_have_the_gradient_of_one_process(ranks, n, d, cut):
    loss, gradient = gradients(n, d)
    parts = ranks.run(gradients, n, d, cut)
    torch.testing.assert_close([p[0] for p in parts], [loss, loss], rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [5, 40])
def test_three_uneven_ranks_have_the_gradient_of_one_process(ranks, d):
    loss, gradient = gradients(9, d)
    parts = ranks.run(gradients, 9, d, [2, 3, 4], world=3)
    torch.testing.assert_close([p[0] for p in parts], [loss] * 3, rtol=1e-9, atol=0)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [4, 40])
def test_the_order_of_the_batch_and_of_the_views_does_not_matter(d):
    ha, hb = embeddings(8, d)
    loss = barlow_twins_loss(ha, hb, LAMBDA).value
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        barlow_twins_loss(ha[order], hb[order], LAMBDA).value, loss, rtol=1e-12, atol=0
    )
    torch.testing.assert_close(barlow_twins_loss(hb, ha, LAMBDA).value, loss, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
@pytest.mark.parametrize("d", [4, 40])
def test_constant_tiny_and_huge_embeddings_give_finite_losses_and_gradients(d, scale):
    ha, hb = ((h.float() * scale).requires_grad_() for h in embeddings(8, d))
    loss = barlow_twins_loss(ha, hb, LAMBDA).value
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(ha.grad).all()
    assert torch.isfinite(hb.grad).all()


def test_perfectly_decorrelated_equal_views_have_no_loss():
    z = torch.linalg.qr(torch.randn(64, 5, dtype=torch.float64) - 0.0)[0]
    z = torch.linalg.qr(z - z.mean(0))[0]
    assert float(barlow_twins_loss(z * 1e3, z * 1e3, LAMBDA).value) == pytest.approx(0, abs=1e-8)


def test_the_correlation_is_fp32_under_bf16():
    ha, hb = (h.float() for h in embeddings(8, 40))
    exact = barlow_twins_loss(ha, hb, LAMBDA).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = barlow_twins_loss(ha, hb, LAMBDA).value
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


def method(**changes):
    torch.manual_seed(0)
    tiny = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    backbone = Architecture("resnet18", size=16, channels=1, args=tiny).build()
    return METHODS["barlow_twins"](backbone, **{"projector": (32, 32), **changes}).train()


def test_thirty_steps_reduce_the_loss():
    module = method()
    views = [torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(1))] * 2
    views = [view + 0.1 * torch.randn_like(view) for view in views]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        loss = module(views).value
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_scale_multiplies_the_loss_and_not_its_terms():
    views = [torch.randn(8, 1, 16, 16), torch.randn(8, 1, 16, 16)]
    once, thrice = method(scale=1.0)(views), method(scale=3.0)(views)
    torch.testing.assert_close(thrice.value, 3 * once.value)
    torch.testing.assert_close(dict(thrice.terms), dict(once.terms))


def test_a_method_comes_back_from_its_state():
    module, other = method(), method()
    for parameter in other.parameters():
        parameter.data.add_(1)
    other.load_state_dict(module.state_dict())
    views = [torch.randn(8, 1, 16, 16), torch.randn(8, 1, 16, 16)]
    assert torch.equal(module(views).value, other(views).value)
