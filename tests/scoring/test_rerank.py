"""Laws of k-reciprocal re-ranking, against the paper in loops and sets."""

import math

import pytest
import torch
import torch.nn.functional as F

from lookalike.errors import Error
from lookalike.geometry import DISTANCES
from lookalike.scoring import rerank
from lookalike.scoring.rerank import distances


def people(queries=12, gallery=60, width=5, classes=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre_CD = 2 * torch.randn(classes, width, generator=generator)
    rows = [
        centre_CD[torch.randint(classes, (count,), generator=generator)]
        + torch.randn(count, width, generator=generator)
        for count in (queries, gallery)
    ]
    return rows[0], rows[1]


def naive(query_QD, gallery_ND, k1, k2, weight, distance):
    """Section 3 of the paper with the authors' squared, row-scaled Euclidean distances: sets, dicts
    and loops.
    """
    x = torch.cat([query_QD, gallery_ND]).double()
    x = F.normalize(x) if distance == "cosine" else x
    n, queries = len(x), len(query_QD)
    d = [[float((x[i] - x[j]).square().sum()) for j in range(n)] for i in range(n)]
    d = [[value / max(row) for value in row] for row in d]
    order = [sorted(range(n), key=lambda j, i=i: (j != i, d[i][j])) for i in range(n)]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    v = []
    for i in range(n):
        core = reciprocal(i, k1)
        grown = set(core)
        for j in core:
            candidate = reciprocal(j, round(k1 / 2))
            if len(candidate & core) > 2 / 3 * len(candidate):
                grown |= candidate
        total = sum(math.exp(-d[i][j]) for j in grown)
        v.append({j: math.exp(-d[i][j]) / total for j in grown})
    if k2 > 1:
        v = [
            {j: sum(v[m].get(j, 0.0) for m in order[i][:k2]) / len(order[i][:k2]) for j in range(n)}
            for i in range(n)
        ]
    final = []
    for i in range(queries):
        row = []
        for j in range(queries, n):
            both = range(n)
            low = sum(min(v[i].get(m, 0.0), v[j].get(m, 0.0)) for m in both)
            high = sum(max(v[i].get(m, 0.0), v[j].get(m, 0.0)) for m in both)
            row.append((1 - weight) * (1 - low / high) + weight * d[i][j])
        final.append(row)
    return torch.tensor(final)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("k1", "k2", "weight"),
    [
        (20, 6, 0.3),
        (5, 2, 0.3),
        (7, 3, 0.0),
        (10, 1, 0.5),
        (1, 1, 0.1),
        (3, 9, 0.2),
        (500, 500, 0.3),
    ],
)
def test_re_ranking_equals_the_paper_in_loops(k1, k2, weight, distance):
    rows = people()
    wanted = naive(*rows, k1, k2, weight, distance)
    found = distances(*rows, k1=k1, k2=k2, weight=weight, distance=distance)
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx(row, abs=2e-7) for row in wanted.tolist()]


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_weight_of_one_keeps_the_order(distance):
    query_QD, gallery_ND = people()
    found = distances(query_QD, gallery_ND, weight=1, distance=distance).argsort(1)
    if distance == "cosine":
        query_QD, gallery_ND = F.normalize(query_QD), F.normalize(gallery_ND)
    assert found.equal(torch.cdist(query_QD.double(), gallery_ND.double()).argsort(1))


def test_a_weight_below_one_does_not():
    rows = people()
    assert not distances(*rows).argsort(1).equal(distances(*rows, weight=1).argsort(1))


@pytest.mark.parametrize("entries", [1, 1000])
def test_the_size_of_the_chunks_does_not_matter(entries, monkeypatch):
    rows = people()
    wanted = distances(*rows)
    monkeypatch.setattr("lookalike.scoring.rerank.ENTRIES", entries)
    assert distances(*rows).tolist() == [pytest.approx(row, abs=1e-6) for row in wanted.tolist()]


def test_the_order_of_the_gallery_does_not_matter():
    query_QD, gallery_ND = people()
    order_N = torch.randperm(len(gallery_ND), generator=torch.Generator().manual_seed(2))
    moved = distances(query_QD, gallery_ND[order_N])
    assert torch.allclose(moved, distances(query_QD, gallery_ND)[:, order_N], atol=1e-6)


def test_a_rotation_changes_nothing():
    query_QD, gallery_ND = (rows.double() for rows in people())
    turn_DD = torch.linalg.qr(
        torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    assert torch.allclose(
        distances(query_QD @ turn_DD, gallery_ND @ turn_DD),
        distances(query_QD, gallery_ND),
        atol=1e-6,
    )


def test_copies_and_a_collapse_give_numbers():
    for rows in ((torch.ones(3, 4), torch.ones(30, 4)), (torch.eye(4), torch.eye(4).repeat(9, 1))):
        for distance in DISTANCES:
            found = distances(*rows, k1=5, k2=3, distance=distance)
            assert found.isfinite().all()
            assert found.min() >= 0
            assert found.max() <= 1


def test_a_row_is_its_own_first_neighbour_among_copies():
    near_NK, _ = rerank._neighbours(torch.ones(9, 2, dtype=torch.float64), 3)
    assert near_NK[:, 0].equal(torch.arange(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k1": 0}, "k1 0"),
        ({"k2": 0}, "k2 0"),
        ({"weight": 1.5}, "weight from 0 to 1"),
        ({"query_QD": torch.ones(2, 3)}, "width 3 of the queries, 1 of the gallery"),
        ({"gallery_ND": torch.tensor([[math.inf]])}, "NaN or Inf in 1 rows"),
        ({"gallery_ND": torch.ones(0, 1)}, "gallery features: shape"),
    ],
)
def test_what_cannot_be_re_ranked_is_refused(change, message):
    with pytest.raises(Error, match=message):
        distances(**({"query_QD": torch.ones(2, 1), "gallery_ND": torch.ones(2, 1)} | change))


def test_equal_rows_are_no_nearer_than_0():
    query_QD, gallery_ND = people()
    found_QN = distances(
        query_QD, torch.cat([gallery_ND, gallery_ND, query_QD, query_QD]), weight=0.0
    )
    assert float(found_QN.min()) == 0
    assert float(found_QN.max()) <= 1
