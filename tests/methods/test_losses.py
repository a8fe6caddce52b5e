"""Every method's loss: the paper's formula in loops, on any number of ranks, in any order, at any
size.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lookalike import comm
from lookalike.methods.barlow_twins import barlow_twins_loss
from lookalike.methods.byol import byol_loss
from lookalike.methods.dcl import dcl_loss
from lookalike.methods.dino import dino_loss
from lookalike.methods.moco_v2 import moco_v2_loss
from lookalike.methods.moco_v3 import moco_v3_loss
from lookalike.methods.nnclr import nnclr_loss
from lookalike.methods.simclr import simclr_loss
from lookalike.methods.simsiam import simsiam_loss
from lookalike.methods.supcon import supcon_loss
from lookalike.methods.swav import sinkhorn, swav_loss
from lookalike.methods.tico import tico_loss
from lookalike.methods.vicreg import vicreg_loss
from lookalike.methods.w_mse import w_mse_loss, whiten
from lookalike.nn.contrast import log_sum_exp, nearest

T = 0.3


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(n: int, d: int, count: int = 2) -> list[Tensor]:
    """`count` correlated (n, d) embeddings, not centred."""
    common = draws(0, n, d)
    return [common * (1 + 0.3 * v) + 0.7 * draws(1 + v, n, d) + 0.3 for v in range(count)]


def units(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


QUEUE = units(draws(99, 7, 5))
PAST = draws(98, 5, 5) @ draws(98, 5, 5).T / 5
CENTRE = draws(97, 5) / 3


def labels(n: int) -> Tensor:
    return torch.arange(n) * 7 % 3


def cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def naive_barlow(za: Tensor, zb: Tensor) -> float:
    (n, d), total = za.shape, 0.0
    sa, sb = (((z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()) for z in (za, zb))
    for i in range(d):
        for j in range(d):
            c = float(sa[:, i] @ sb[:, j]) / n
            total += (1 - c) ** 2 if i == j else 0.1 * c**2
    return total


def naive_vicreg(za: Tensor, zb: Tensor) -> float:
    n, d = za.shape
    total = (
        25 * sum(float((za[i, j] - zb[i, j]) ** 2) for i in range(n) for j in range(d)) / (n * d)
    )
    for z in (za, zb):
        c = z - z.mean(0)
        for j in range(d):
            spread = math.sqrt(float(c[:, j] @ c[:, j]) / (n - 1) + 1e-4)
            total += 25 * max(0.0, 1 - spread) / d / 2
            total += sum((float(c[:, j] @ c[:, k]) / (n - 1)) ** 2 for k in range(d) if k != j) / d
    return total


def naive_simclr(za: Tensor, zb: Tensor) -> float:
    z, n = torch.cat([za, zb]), len(za)
    total = 0.0
    for i in range(2 * n):
        others = [math.exp(cos(z[i], z[j]) / T) for j in range(2 * n) if j != i]
        total -= math.log(math.exp(cos(z[i], z[(i + n) % (2 * n)]) / T) / sum(others))
    return total / (2 * n)


def naive_dcl(za: Tensor, zb: Tensor, sigma: float = 0.0) -> float:
    z, n = torch.cat([za, zb]), len(za)
    mean = sum(math.exp(cos(za[i], zb[i]) / sigma) for i in range(n)) / n if sigma else 1.0
    total = 0.0
    for i in range(2 * n):
        twin = (i + n) % (2 * n)
        weight = 2 - math.exp(cos(z[i], z[twin]) / sigma) / mean if sigma else 1.0
        others = [math.exp(cos(z[i], z[j]) / T) for j in range(2 * n) if j not in (i, twin)]
        total += math.log(sum(others)) - weight * cos(z[i], z[twin]) / T
    return total / (2 * n)


def naive_supcon(za: Tensor, zb: Tensor) -> float:
    z, n = torch.cat([za, zb]), len(za)
    y, total = labels(n).repeat(2), 0.0
    for i in range(2 * n):
        others = sum(math.exp(cos(z[i], z[j]) / T) for j in range(2 * n) if j != i)
        positives = [j for j in range(2 * n) if j != i and y[j] == y[i]]
        total -= sum(math.log(math.exp(cos(z[i], z[j]) / T) / others) for j in positives) / len(
            positives
        )
    return total / (2 * n)


def naive_moco_v2(q: Tensor, k: Tensor) -> float:
    total = 0.0
    for i in range(len(q)):
        positive = math.exp(cos(q[i], k[i]) / T)
        total -= math.log(
            positive / (positive + sum(math.exp(cos(q[i], row) / T) for row in QUEUE))
        )
    return total / len(q)


def naive_moco_v3(q: Tensor, k: Tensor) -> float:
    n = len(q)
    shares = [
        math.exp(cos(q[i], k[i]) / T) / sum(math.exp(cos(q[i], k[j]) / T) for j in range(n))
        for i in range(n)
    ]
    return -2 * T * sum(map(math.log, shares)) / n


def naive_byol(q: Tensor, k: Tensor) -> float:
    return sum(
        float((q[i] / q[i].norm() - k[i] / k[i].norm()).square().sum()) for i in range(len(q))
    ) / len(q)


def naive_simsiam(p: Tensor, z: Tensor) -> float:
    return -sum(cos(p[i], z[i]) for i in range(len(p))) / len(p) / 2


def naive_nnclr(z: Tensor, p: Tensor) -> float:
    n, total = len(z), 0.0
    for i in range(n):
        friend = max(QUEUE, key=lambda row: cos(row, z[i]))
        all_of_them = sum(math.exp(cos(friend, p[j]) / T) for j in range(n))
        total -= math.log(math.exp(cos(friend, p[i]) / T) / all_of_them)
    return total / n


def naive_swav(*scores: Tensor) -> float:
    """Sinkhorn's algorithm as the paper's listing has it, on the K × N matrix."""
    n, k, total = *scores[0].shape, 0.0
    for large in (0, 1):
        q = (scores[large] / 0.5).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(dim=1, keepdim=True) / k
            q = q / q.sum(dim=0, keepdim=True) / n
        code = (q * n).T
        for other in range(len(scores)):
            if other != large:
                logits = scores[other] / T
                for i in range(n):
                    norm = math.log(sum(math.exp(v) for v in logits[i]))
                    total -= (
                        sum(float(code[i, j]) * (float(logits[i, j]) - norm) for j in range(k)) / n
                    )
    return total / (2 * (len(scores) - 1))


def naive_dino(*students: Tensor) -> float:
    teachers = [s * 1.5 for s in students[:2]]
    n, total = len(students[0]), 0.0
    pairs = [(s, t) for t in range(2) for s in range(len(students)) if s != t]
    for s, t in pairs:
        for row, target in zip(students[s].tolist(), teachers[t].tolist(), strict=True):
            raised = [math.exp((v - c) / 0.5) for v, c in zip(target, CENTRE.tolist(), strict=True)]
            norm = math.log(sum(math.exp(v / T) for v in row))
            total -= sum(r / sum(raised) * (v / T - norm) for r, v in zip(raised, row, strict=True))
    return total / n / len(pairs)


def naive_w_mse(za: Tensor, zb: Tensor) -> float:
    """Whitened by the inverse Cholesky factor, as the authors have it; no shrinkage."""
    total, n = 0.0, len(za)
    white = []
    for z in (za, zb):
        c = z - z.mean(0)
        factor = torch.linalg.inv(torch.linalg.cholesky(c.T @ c / (n - 1)))
        white.append(c @ factor.T)
    for a, b in zip(*white, strict=True):
        total += 2 - 2 * cos(a, b)
    return total / n


def naive_tico(z: Tensor, k: Tensor) -> float:
    za, zb, n = units(z), units(k), len(z)
    c = 0.8 * PAST + 0.2 * sum(torch.outer(row, row) for row in za) / n
    return float(
        sum(8.0 * (row @ c @ row) - row @ twin for row, twin in zip(za, zb, strict=True)) / n
    )


def whole_order(n: int) -> list[Tensor]:
    return [torch.arange(n)]


class Case(NamedTuple):
    """`ours` of this rank's rows of each tensor, at row `start` of n; `naive` of all rows; how many
    tensors.
    """

    ours: Callable[..., Any]
    naive: Callable[..., float]
    tensors: int = 2
    symmetric: bool = False


def start_of(z: Tensor) -> slice:
    return slice(comm.offset(z), comm.offset(z) + len(z))


CASES = {
    "barlow_twins": Case(lambda a, b: barlow_twins_loss(a, b, 0.1), naive_barlow, symmetric=True),
    "vicreg": Case(lambda a, b: vicreg_loss(a, b, 25.0, 25.0, 1.0), naive_vicreg, symmetric=True),
    "simclr": Case(lambda a, b: simclr_loss(a, b, T), naive_simclr, symmetric=True),
    "dcl": Case(lambda a, b: dcl_loss(a, b, T), naive_dcl, symmetric=True),
    "dclw": Case(
        lambda a, b: dcl_loss(a, b, T, 0.5), lambda a, b: naive_dcl(a, b, 0.5), symmetric=True
    ),
    "supcon": Case(
        lambda a, b: supcon_loss(a, b, labels(comm.count(a))[start_of(a)], T),
        naive_supcon,
        symmetric=True,
    ),
    "moco_v2": Case(lambda q, k: moco_v2_loss(q, k, QUEUE, T), naive_moco_v2),
    "moco_v3": Case(lambda q, k: moco_v3_loss(q, k, T), naive_moco_v3),
    "byol": Case(byol_loss, naive_byol),
    "simsiam": Case(simsiam_loss, naive_simsiam),
    "nnclr": Case(lambda z, p: nnclr_loss(z, p, QUEUE, T), naive_nnclr),
    "swav": Case(lambda *s: swav_loss(s, T, 0.5, 3), naive_swav, tensors=4),
    "dino": Case(
        lambda *s: dino_loss(s, [1.5 * t for t in s[:2]], CENTRE, T, 0.5), naive_dino, tensors=4
    ),
    "w_mse": Case(
        lambda a, b: w_mse_loss(a, b, whole_order(comm.count(a)), 1, 0.0),
        naive_w_mse,
        symmetric=True,
    ),
    "tico": Case(lambda z, k: tico_loss(z, k, PAST, 0.8, 8.0)[0], naive_tico),
}
every_case = pytest.mark.parametrize("name", CASES)


def gradients(name: str, n: int, cut: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The loss on this rank's rows, and their gradient as the engine averages it."""
    case = CASES[name]
    parts = [r.split(cut)[comm.rank()].clone().requires_grad_() for r in rows(n, 5, case.tensors)]
    loss = case.ours(*parts).value
    loss.backward()
    return loss.detach(), [
        torch.zeros_like(p) if p.grad is None else p.grad / comm.world_size() for p in parts
    ]


@every_case
@pytest.mark.parametrize("n", [7, 12])
def test_the_loss_equals_the_papers_formula_in_loops(name, n):
    case = CASES[name]
    parts = rows(n, 5, case.tensors)
    assert float(case.ours(*parts).value) == pytest.approx(case.naive(*parts), rel=1e-10)


@every_case
def test_the_gradient_is_that_of_finite_differences(name):
    """Along random directions; targets that carry no gradient by the paper are held where they
    are.
    """
    case = CASES[name]
    parts = [p.requires_grad_() for p in rows(8, 5, case.tensors)]
    found = torch.autograd.grad(case.ours(*parts).value, parts, allow_unused=True)
    for i, gradient in enumerate(found):
        if gradient is None or name in STOPPED:
            continue
        step = 1e-6 * draws(50 + i, 8, 5)
        with torch.no_grad():
            ahead, behind = (
                float(
                    case.ours(*[p + s * step if j == i else p for j, p in enumerate(parts)]).value
                )
                for s in (1, -1)
            )
        assert float((gradient * step).sum()) * 2 == pytest.approx(
            ahead - behind, rel=1e-5, abs=1e-13
        )


# Their gradient leaves out what the paper calls a target, so no difference of losses shows it.
STOPPED = {"dclw", "swav", "dino"}


@every_case
@pytest.mark.parametrize(
    "cut",
    [
        pytest.param([6, 6], marks=pytest.mark.slow),
        [2, 10],
        pytest.param([3, 3, 3, 3], marks=pytest.mark.slow),
        [1, 4, 2, 5],
    ],
    ids=str,
)
def test_any_number_of_ranks_has_the_gradient_of_one_process(ranks, name, cut):
    loss, whole = gradients(name, 12, [12])
    parts = ranks.run(gradients, name, 12, cut, world=len(cut))
    for other, _ in parts:
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=0)
    for i, gradient in enumerate(whole):
        split = torch.cat([found[i] for _, found in parts])
        torch.testing.assert_close(
            split, gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max())
        )
        if gradient.abs().max() > 0:
            assert float(split.norm() / gradient.norm()) == pytest.approx(1, rel=1e-9)
            assert float(
                (split * gradient).sum() / split.norm() / gradient.norm()
            ) == pytest.approx(1, rel=1e-9)


@every_case
def test_the_order_of_the_batch_does_not_matter(name):
    case, order = (
        CASES[name],
        torch.tensor([3, 0, 6, 9, 8, 5, 4, 7, 2, 1, 10, 11]),
    )  # keeps the classes of SupCon
    order = order if name != "supcon" else torch.tensor([3, 1, 2, 0, 4, 8, 9, 10, 5, 6, 7, 11])
    parts = rows(12, 5, case.tensors)
    wanted = case.ours(*parts).value
    torch.testing.assert_close(
        case.ours(*[p[order] for p in parts]).value, wanted, rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.symmetric])
def test_the_order_of_the_views_does_not_matter(name):
    a, b = rows(12, 5)
    torch.testing.assert_close(
        CASES[name].ours(b, a).value, CASES[name].ours(a, b).value, rtol=1e-12, atol=0
    )


# Scores are cosines over a temperature; VICReg's value is the fourth power of its embeddings.
HUGE = {"swav": 1e2, "dino": 1e2, "vicreg": 1e8}


@every_case
@pytest.mark.parametrize("kind", ["zero", "constant", "tiny", "huge"])
def test_degenerate_embeddings_give_finite_losses_and_gradients(name, kind):
    case = CASES[name]
    parts = [p.float() for p in rows(12, 5, case.tensors)]
    change = {
        "zero": lambda p: 0 * p,
        "constant": lambda p: torch.ones_like(p),
        "tiny": lambda p: 1e-20 * p,
        "huge": lambda p: HUGE.get(name, 1e18) * p,
    }[kind]
    parts = [change(p).requires_grad_() for p in parts]
    loss = case.ours(*parts).value
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in parts if p.grad is not None)


@pytest.mark.parametrize(
    "name", ["simclr", "supcon", "moco_v2", "moco_v3", "byol", "simsiam", "nnclr", "tico"]
)
def test_only_the_direction_of_an_embedding_counts(name):
    a, b = rows(9, 5)
    scaled = [x * (1 + torch.arange(9, dtype=torch.float64))[:, None] for x in (a, b)]
    torch.testing.assert_close(
        CASES[name].ours(*scaled).value, CASES[name].ours(a, b).value, rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("n", "m"), [(3, 4), (1500, 2500), (1024, 2048), (1025, 2049)])
def test_tiles_sum_to_the_logsumexp_of_the_whole_matrix(n, m):
    """Across the edges of tiles, with some keys left out, and one row that has none."""
    q, k = draws(1, n, 3).requires_grad_(), draws(2, m, 3).requires_grad_()
    without = torch.stack([torch.arange(n) % m, (torch.arange(n) * 5 + 2048) % m], dim=1)
    found = log_sum_exp(q, k, 0.2, without)
    logits = (q @ k.T / 0.2).scatter(1, without, -torch.inf)
    wanted = logits.logsumexp(dim=1)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = draws(3, n)
    ours = torch.autograd.grad((found * weights).sum(), (q, k))
    theirs = torch.autograd.grad((wanted * weights).sum(), (q, k))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_a_row_that_leaves_every_key_out_has_no_sum_and_no_gradient():
    q, k = draws(1, 2, 3).requires_grad_(), draws(2, 2, 3).requires_grad_()
    found = log_sum_exp(q, k, 1.0, torch.tensor([[0, 1], [0, 5]]))
    assert found[0] == -torch.inf
    torch.testing.assert_close(found[1], q[1] @ k[1])
    (gradient,) = torch.autograd.grad(found[1], q)
    torch.testing.assert_close(gradient, torch.stack([torch.zeros(3, dtype=torch.float64), k[1]]))


def test_the_nearest_key_is_that_of_the_whole_matrix():
    q, k = draws(1, 1300, 4), draws(2, 5000, 4)
    assert torch.equal(nearest(q, k), (q @ k.T).argmax(dim=1))


def test_sinkhorn_uses_every_prototype_alike():
    scores = draws(4, 60, 6)
    code = sinkhorn(scores, 0.5, 50)
    torch.testing.assert_close(code.sum(1), torch.ones(60, dtype=torch.float64))
    torch.testing.assert_close(
        code.sum(0), torch.full((6,), 10.0, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_whitened_rows_have_unit_covariance():
    white = whiten(rows(50, 5)[0] * torch.tensor([1e-6, 1.0, 1e3, 1.0, 1.0]), 0.0)
    torch.testing.assert_close(
        white.T @ white / 49, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(("n", "d"), [(6, 30), (30, 6), (29, 30)])
def test_vicreg_has_one_value_and_gradient_in_both_forms_of_its_covariance(n, d):
    """The Gram form below, the D × D form above n = d, against the matrix itself."""
    a, b = (r.requires_grad_() for r in rows(n, d))
    loss = vicreg_loss(a, b, 0.0, 0.0, 1.0).value
    plain = torch.zeros((), dtype=torch.float64)
    for z in (a, b):
        c = (z - z.mean(0)).T @ (z - z.mean(0)) / (n - 1)
        plain = plain + (c.square().sum() - c.diagonal().square().sum()) / d
    torch.testing.assert_close(loss, plain, rtol=1e-11, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(loss, (a, b)), torch.autograd.grad(plain, (a, b)), rtol=1e-9, atol=1e-11
    )


@every_case
def test_losses_are_fp32_under_bf16(name):
    case = CASES[name]
    parts = [p.float() for p in rows(12, 5, case.tensors)]
    exact = case.ours(*parts).value
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.ours(*parts).value
    assert inside.dtype == torch.float32
    assert torch.equal(inside, exact)


def test_a_batch_that_cannot_be_whitened_has_a_loss_that_is_no_number():
    """Such a step is skipped; an error would end the run."""
    z_BD = torch.randn(4, 8, dtype=torch.float64).requires_grad_()
    loss = w_mse_loss(z_BD, z_BD.detach(), whole_order(4), 1, 0.0).value
    assert loss.isnan()
    loss.backward()
    assert not z_BD.grad.isfinite().all()
