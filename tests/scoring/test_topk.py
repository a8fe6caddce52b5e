"""Laws of the exact top-k: that of the float64 definition, whatever the blocks, on sets made to
break it.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.errors import Error
from lookalike.geometry import DISTANCES
from lookalike.scoring import knn, retrieval, similarity, topk
from lookalike.scoring.similarity import Bank
from lookalike.scoring.topk import Top


def noise(rows, width=24, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def duplicates():
    return noise(40)[torch.arange(1100) % 40]


def near_ties():
    """Rows that are 1e-7 apart, a tenth of a step."""
    return noise(25)[torch.arange(1100) % 25] + 1e-7 * noise(1100, seed=1)


def zero_rows():
    x_ND = noise(1100)
    x_ND[::3] = 0
    return x_ND


def long_and_short():
    """Lengths from 1e-30 to 1e30, which float32 can square in part only."""
    return noise(1100) * torch.logspace(-30, 30, 1100)[:, None]


SETS = {
    "plain": lambda: noise(1100),
    "narrow": lambda: noise(1100, 3),
    "duplicates": duplicates,
    "near ties": near_ties,
    "zero rows": zero_rows,
    "constant": lambda: torch.full((1100, 24), 0.3),
    "collapsed": lambda: 1 + 1e-5 * noise(1100),
    "float16": lambda: noise(1100).half(),
    "float64": lambda: noise(1100).double(),
    "far from the origin": lambda: noise(1100).double() + 1e6,
    "near the origin": lambda: noise(1100) * 1e-9,
    "lengths": long_and_short,
    "one far row": lambda: torch.cat((noise(1099), torch.full((1, 24), 1e4))),
}


def brute_force(query_QD, x_ND, k, distance, kind=None):
    """Every pair by itself in float64."""
    from_QD, to_ND = query_QD.double(), x_ND.double()
    if distance == "cosine":
        from_QD = from_QD / from_QD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        to_ND = to_ND / to_ND.norm(dim=1, keepdim=True).clamp_min(1e-12)
        near_QN = (from_QD[:, None] * to_ND).sum(2)
    else:
        mean_D = to_ND.mean(0)
        unit = (to_ND - mean_D).square().sum(1).mean().sqrt()
        near_QN = -(from_QD[:, None] - to_ND).norm(dim=2) / unit.where(unit > 0, 1)
    steps_QN = (near_QN / 1e-6).round().clamp_min(-(2**30) + 2).long()
    kind_QN = torch.zeros_like(steps_QN) if kind is None else kind
    rows, out = range(len(x_ND)), []
    for steps, kinds in zip(steps_QN.tolist(), kind_QN.tolist(), strict=True):
        listed = [n for n in rows if kinds[n] >= 0]
        first = sorted(listed, key=lambda n: (-steps[n], -kinds[n], n))[:k]
        first += [-1] * (min(k, len(x_ND)) - len(first))
        out.append([(n, steps[n], kinds[n]) if n >= 0 else (-1, 0, 0) for n in first])
    return [[item[0] for item in row] for row in out], [[item[1] for item in row] for row in out]


def found(query_QD, x_ND, k, distance, **how) -> Top:
    return topk.topk(query_QD, Bank(x_ND, distance), k, **how)


@pytest.fixture
def wide(monkeypatch):
    """Of how many queries the float32 answer was not certain."""
    counts, real = [], topk._wide
    monkeypatch.setattr(
        topk,
        "_wide",
        lambda ask, from_BD, n: (counts.append(len(from_BD)), real(ask, from_BD, n))[1],
    )
    return counts


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", SETS)
def test_the_first_are_those_of_the_definition(name, distance):
    x_ND = SETS[name]()
    query_QD = torch.cat((x_ND[::200], noise(4, x_ND.shape[1], seed=9).to(x_ND.dtype)))
    before = x_ND.clone()
    for k in (1, 7, 30):
        top = found(query_QD, x_ND, k, distance)
        row_Qk, steps_Qk = brute_force(query_QD, x_ND, k, distance)
        assert top.row_Qk.tolist() == row_Qk
        assert top.steps_Qk.tolist() == steps_Qk
    assert torch.equal(x_ND, before)


@pytest.mark.parametrize("distance", DISTANCES)
def test_plain_rows_are_certain_and_a_collapse_is_done_again(distance, wide):
    found(noise(9, seed=3), noise(1100), 7, distance)
    assert wide == []
    found(torch.ones(9, 24), torch.ones(1100, 24), 7, distance)
    assert wide == [9]


def test_only_the_queries_that_are_not_certain_are_done_again(wide):
    x_ND = noise(1100)
    x_ND[500:600] = x_ND[3]
    query_QD = torch.cat((noise(5, seed=3), x_ND[3:4], noise(5, seed=4)))
    top = found(query_QD, x_ND, 7, "cosine")
    assert wide == [1]
    assert top.row_Qk.tolist() == brute_force(query_QD, x_ND, 7, "cosine")[0]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["plain", "near ties", "zero rows", "float16"])
def test_blocks_change_no_bit(name, distance, monkeypatch):
    x_ND = SETS[name]()[:700]
    query_QD = x_ND[5:].float()[:20] + 0.1 * noise(20, seed=5)
    wanted = found(query_QD, x_ND, 9, distance)
    for queries, product, copied, wide in ((7, 700, 2400, 999), (20, 20 * 300, 10**6, 24 * 50)):
        monkeypatch.setattr(topk, "QUERIES", queries)
        monkeypatch.setattr(topk, "PRODUCT", product)
        monkeypatch.setattr(topk, "COPIED", copied)
        monkeypatch.setattr(topk, "WIDE", wide)
        monkeypatch.setattr(similarity, "WIDE", wide)
        for got, same in zip(found(query_QD, x_ND, 9, distance), wanted, strict=True):
            assert torch.equal(got, same)


@pytest.mark.parametrize("distance", DISTANCES)
def test_both_ways_are_one(distance, monkeypatch):
    x_ND = noise(2000, 700)
    narrow = found(x_ND[:20], x_ND, 9, distance)
    monkeypatch.setattr(topk, "DIRECT", 10**9)
    assert all(
        torch.equal(a, b) for a, b in zip(narrow, found(x_ND[:20], x_ND, 9, distance), strict=True)
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("rows", [12, 1100])
@pytest.mark.parametrize("name", ["plain", "duplicates", "constant"])
def test_kinds_come_between_nearness_and_row_and_what_is_absent_is_not_listed(name, rows, distance):
    x_ND = SETS[name]()[:rows]
    generator = torch.Generator().manual_seed(0)
    kind_QN = torch.randint(4, (8, rows), generator=generator)
    for q in range(0, 8, 2):
        kind_QN[q, q] = -1
    for k in (5, 20):
        top = found(x_ND[:8], x_ND, k, distance, kind=lambda b, n: kind_QN[b].gather(1, n))
        row_Qk, steps_Qk = brute_force(x_ND[:8], x_ND, k, distance, kind_QN)
        assert top.row_Qk.tolist() == row_Qk
        seen = top.row_Qk >= 0
        assert torch.equal(top.steps_Qk[seen], torch.tensor(steps_Qk)[seen])
        assert torch.equal(top.kind_Qk[seen], kind_QN.gather(1, top.row_Qk.clamp_min(0))[seen])


def test_the_bound_holds_for_the_worst_of_sums():
    # Numbers of one sign, whose roundings all go one way, are where a bound by luck would fail.
    generator = torch.Generator().manual_seed(0)
    for width in (8, 512, 3000):
        x_ND = torch.rand(2000, width, generator=generator).add_(1).double()
        bank = Bank(x_ND, "cosine")
        from_BD = bank.placed(x_ND[:50] + 1)
        upper_BK, row_BK = topk._candidates(from_BD.clone(), bank, 40)
        unit_ND = x_ND / x_ND.norm(dim=1, keepdim=True)
        true_BK = (from_BD[:, None] * unit_ND[row_BK]).sum(2)
        gap = (upper_BK.double() - true_BK).abs().max()
        assert gap < topk._error(width)
        assert topk._error(width) < 4e-5


def test_the_process_may_have_chosen_less_precision():
    x_ND = noise(3000, 64)
    wanted = found(x_ND[:50], x_ND, 5, "cosine")
    torch.set_float32_matmul_precision("medium")
    try:
        assert all(
            torch.equal(a, b)
            for a, b in zip(found(x_ND[:50], x_ND, 5, "cosine"), wanted, strict=True)
        )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numberless_rows_are_refused(value, distance):
    x_ND = noise(1100)
    x_ND[777, 3] = value
    with pytest.raises(Error, match="gallery features: NaN or Inf in row 777"):
        found(noise(1), x_ND, 3, distance)
    with pytest.raises(Error, match="at least 1"):
        found(noise(1), noise(9), 0, distance)


class Largest(TorchDispatchMode):
    """The bytes of the largest storage that an operation made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in inputs:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_tensor_is_larger_than_the_budget(dtype, distance):
    x_ND = noise(60_000, 16).to(dtype)  # 3.8 MB in float32
    with Largest() as seen:
        found(noise(1000, 16, seed=1), x_ND, 10, distance)
    assert seen.bytes <= max(4 * topk.PRODUCT, 8 * topk.WIDE, 4 * topk.COPIED, 8 * len(x_ND))
    assert 4 * 1000 * len(x_ND) > 10 * seen.bytes


def test_nor_does_knn_or_the_top_of_retrieval_make_one():
    x_ND, labels_N = noise(60_000, 16).half(), torch.arange(60_000) // 5
    budget = max(4 * topk.PRODUCT, 8 * topk.WIDE, 4 * topk.COPIED, 24 * len(x_ND))
    with Largest() as seen:
        knn.accuracies(
            x_ND, labels_N % 10, noise(300, 16), torch.arange(300) % 10, temperature=0.07
        )
    assert seen.bytes <= budget
    with Largest() as seen:
        sets = (x_ND[:300], labels_N[:300], x_ND, labels_N)
        retrieval.scores(*sets, own_N=torch.arange(300), whole=False)
    assert seen.bytes <= budget
