"""Laws of the retrieval measures, against brute force and hand-made cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from lookalike.errors import Error
from lookalike.scoring.retrieval import scores


def made(rows=60, width=8, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(classes, (rows,), generator=generator)
    centre_CD = torch.randn(classes, width, generator=generator)
    return centre_CD[labels_N] + torch.randn(rows, width, generator=generator), labels_N


def with_ties(seed=0):
    """Small whole numbers: many equal rows and equal similarities, within and across classes."""
    generator = torch.Generator().manual_seed(seed)
    embeddings_ND = torch.randint(-1, 2, (50, 3), generator=generator).float() + 0.25
    return embeddings_ND, torch.randint(6, (50,), generator=generator)


def nearness(points, i, j, normalize):
    a, b = points[i], points[j]
    if normalize:
        return round(sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b)) / 1e-6)
    mean = [sum(column) / len(points) for column in zip(*points, strict=True)]
    spread = math.sqrt(sum(math.dist(p, mean) ** 2 for p in points) / len(points))
    return -round(math.dist(a, b) / spread / 1e-6)


def brute_force(embeddings_ND, labels_N, normalize=True):
    points, labels = embeddings_ND.double().tolist(), labels_N.tolist()
    found = []
    for i, own in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        near = {j: nearness(points, i, j, normalize) for j in others}
        others.sort(key=lambda j: (-near[j], labels[j] == own))
        right = [labels[j] == own for j in others]
        total = sum(right)
        if not total:
            continue
        precision = [sum(right[: n + 1]) / (n + 1) if right[n] else 0.0 for n in range(len(right))]
        found.append(
            {
                "recall@1": float(any(right[:1])),
                "recall@5": float(any(right[:5])),
                "r_precision": sum(right[:total]) / total,
                "map@r": sum(precision[:total]) / total,
                "map": sum(precision) / total,
            }
        )
    means = {name: sum(one[name] for one in found) / len(found) for name in found[0]}
    return means | {"queries": len(found), "dropped": len(labels) - len(found)}


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("data", [made(), made(seed=1), with_ties(), with_ties(seed=1)])
def test_scores_equal_brute_force_with_the_same_tie_rule(data, normalize):
    assert scores(*data, normalize=normalize, full=True) == pytest.approx(brute_force(*data, normalize), abs=1e-12)


def test_the_tied_data_has_ties_between_right_and_wrong():
    embeddings_ND, labels_N = with_ties()
    equal_NN = (embeddings_ND[:, None] == embeddings_ND).all(2)
    assert (equal_NN & (labels_N[:, None] != labels_N)).sum() > 100


def test_full_map_equals_scikit_learn_without_ties():
    embeddings_ND, labels_N = made()
    unit_ND = torch.nn.functional.normalize(embeddings_ND.double())
    similarity_NN = (unit_ND @ unit_ND.T).numpy()
    each = []
    for i in range(len(labels_N)):
        others = np.arange(len(labels_N)) != i
        right = (labels_N == labels_N[i]).numpy()[others]
        each.append(average_precision_score(right, similarity_NN[i, others]))
    assert scores(embeddings_ND, labels_N, full=True)["map"] == pytest.approx(np.mean(each), abs=1e-12)


def test_map_at_r_of_a_list_made_by_hand():
    degrees = torch.tensor([0.0, 10.0, 20.0, 30.0, 90.0]).deg2rad()
    embeddings_ND = torch.stack([degrees.cos(), degrees.sin()], 1)
    # ranked from row 0: right, wrong, right, wrong → (1/1 + 0) / 2; from row 1 a tie of rows 0 and 2, …
    found = scores(embeddings_ND, torch.tensor([0, 0, 1, 0, 2]))
    row_0, row_1, row_3 = (1 + 0) / 2, (0 + 1 / 2) / 2, (0 + 1 / 2) / 2
    assert found["map@r"] == pytest.approx((row_0 + row_1 + row_3) / 3, abs=1e-12)
    assert found["recall@1"] == pytest.approx(1 / 3)
    assert (found["queries"], found["dropped"]) == (3, 2)


@pytest.mark.parametrize(("normalize", "noise"), [(True, 0.0), (False, 0.0), (True, 1e-8)])
def test_collapse_scores_zero(normalize, noise):
    labels_N = torch.arange(40) % 4
    generator = torch.Generator().manual_seed(0)
    embeddings_ND = torch.full((40, 8), 0.3) + noise * torch.randn(40, 8, generator=generator)
    found = scores(embeddings_ND, labels_N, normalize=normalize, full=True)
    assert [found[name] for name in ("recall@1", "recall@5", "r_precision", "map@r")] == [0, 0, 0, 0]
    worst = sum(hit / (30 + hit) for hit in range(1, 10)) / 9
    assert found["map"] == pytest.approx(worst, abs=1e-12)


def test_zero_vectors_are_a_collapse():
    assert scores(torch.zeros(8, 4), torch.arange(8) % 2)["recall@1"] == 0


def test_collapse_within_one_class_is_perfect():
    assert scores(torch.ones(6, 3), torch.zeros(6, dtype=torch.int64), full=True)["map"] == 1


def test_a_copy_of_the_query_stays_in_the_gallery():
    embeddings_ND = torch.eye(4).repeat_interleave(2, 0)
    assert scores(embeddings_ND, torch.arange(8) // 2)["map@r"] == 1
    assert scores(embeddings_ND, torch.arange(8) % 4)["recall@1"] == 0


def test_copies_under_another_label_precede_the_right_one():
    embeddings_ND = torch.eye(3)[torch.tensor([0, 0, 0, 1])]
    assert scores(embeddings_ND, torch.tensor([5, 5, 9, 9]), ks=(1, 2))["recall@1"] == 0
    assert scores(embeddings_ND, torch.tensor([5, 5, 9, 9]), ks=(1, 2))["recall@2"] == 0.5


def test_rows_alone_in_their_class_are_dropped_but_stay_in_the_gallery():
    embeddings_ND, labels_N = made()
    alone_ND = torch.cat([embeddings_ND, embeddings_ND[:5]])
    alone_N = torch.cat([labels_N, torch.arange(100, 105)])
    found = scores(alone_ND, alone_N, full=True)
    assert (found["queries"], found["dropped"]) == (60, 5)
    assert found == pytest.approx(brute_force(alone_ND, alone_N), abs=1e-12)
    assert found["map"] < scores(embeddings_ND, labels_N, full=True)["map"]


def test_labels_beyond_float_precision_stay_apart():
    embeddings_ND = torch.eye(4).repeat_interleave(2, 0)
    labels_N = torch.arange(8) % 2 + 2**24
    assert scores(embeddings_ND, labels_N)["recall@1"] == 0
    assert scores(embeddings_ND, labels_N + 2**53)["recall@1"] == 0
    assert scores(embeddings_ND, torch.arange(8) // 2 + 2**53)["recall@1"] == 1


@pytest.mark.parametrize("data", [made(), with_ties()])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_order_of_the_rows_does_not_matter(data, normalize):
    embeddings_ND, labels_N = data
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(3))
    moved = scores(embeddings_ND[order_N], labels_N[order_N], normalize=normalize, full=True)
    assert moved == pytest.approx(scores(*data, normalize=normalize, full=True), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
@pytest.mark.parametrize("data", [made(), with_ties()])
def test_the_chunk_does_not_matter(data, chunk):
    assert scores(*data, chunk=chunk, full=True) == scores(*data, full=True)


def test_the_short_list_equals_the_full_one():
    short, long = scores(*with_ties()), scores(*with_ties(), full=True)
    assert "map" not in short
    assert short == {name: long[name] for name in short}


def test_cosine_ignores_length_and_euclidean_ignores_shift_and_scale():
    embeddings_ND, labels_N = made()
    longer_ND = embeddings_ND * torch.arange(1, 61)[:, None]
    assert scores(longer_ND, labels_N) == scores(embeddings_ND, labels_N)
    assert scores(longer_ND, labels_N, normalize=False) != scores(embeddings_ND, labels_N, normalize=False)
    moved = scores(embeddings_ND.double() * 1000 + 7, labels_N, normalize=False)
    assert moved == scores(embeddings_ND, labels_N, normalize=False)


def test_a_k_beyond_the_gallery_is_the_whole_gallery():
    assert scores(*made(rows=20, classes=3), ks=(500,))["recall@500"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"embeddings_ND": torch.tensor([[1.0], [float("nan")]])},
            "retrieval features: NaN or Inf in 1 rows",
        ),
        (
            {"embeddings_ND": torch.tensor([[1.0], [float("inf")]])},
            "retrieval features: NaN or Inf in 1 rows",
        ),
        ({"embeddings_ND": torch.ones(3, 1)}, "retrieval labels: shape .* for 3 rows"),
        ({"embeddings_ND": torch.ones(2)}, "retrieval features: shape"),
        ({"embeddings_ND": torch.ones(0, 2)}, "retrieval features: shape"),
        ({"labels_N": torch.tensor([0, 1])}, "no class has two rows"),
        ({"labels_N": torch.tensor([0.0, 0.0])}, "retrieval labels: dtype torch.float32"),
        ({"ks": ()}, "at least one k"),
        ({"ks": (0,)}, "above 0"),
        ({"chunk": 0}, "above 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    good = {"embeddings_ND": torch.ones(2, 1), "labels_N": torch.tensor([0, 0])}
    assert scores(**good)["recall@1"] == 1
    with pytest.raises(Error, match=message):
        scores(**(good | change))
