"""The nearest class mean is scikit-learn's, on any number of ranks."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from lookalike import comm
from lookalike.errors import Error
from lookalike.scoring import blocks, prototype


def clouds(rows: int = 400, width: int = 24, classes: int = 7):
    """Classes of unequal sizes that overlap, float32, and labels that are no 0 … C-1."""
    generator = torch.Generator().manual_seed(1)
    centres_CD = torch.randn(classes, width, generator=generator)
    class_N = (torch.rand(rows, generator=generator).square() * classes).long()
    noise_ND = 2.5 * torch.randn(rows, width, generator=generator)
    return centres_CD[class_N] + noise_ND + 0.5, class_N * 3 + 11


def halves():
    x_ND, labels_N = clouds()
    return x_ND[::2], labels_N[::2], x_ND[1::2], labels_N[1::2]


def test_euclidean_is_the_nearest_centroid_of_scikit_learn():
    train_ND, labels_N, test_MD, true_M = halves()
    peer = NearestCentroid().fit(train_ND.double().numpy(), labels_N.numpy())
    expected = peer.score(test_MD.double().numpy(), true_M.numpy())
    found = prototype.accuracy(train_ND, labels_N, test_MD, true_M, by="euclidean")
    assert 0.3 < expected < 0.95
    assert found["top1"] == pytest.approx(expected, abs=1e-12)


def test_cosine_is_that_of_means_of_unit_rows():
    train_ND, labels_N, test_MD, true_M = halves()
    unit_ND = train_ND.double().numpy()
    unit_ND = unit_ND / np.linalg.norm(unit_ND, axis=1, keepdims=True)
    classes = np.unique(labels_N.numpy())
    means = np.stack([unit_ND[labels_N.numpy() == c].mean(0) for c in classes])
    near = test_MD.double().numpy() @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    order = (-near).argsort(1)
    found = prototype.accuracy(train_ND, labels_N, test_MD, true_M)
    first = (classes[order[:, 0]] == true_M.numpy()).mean()
    fifth = (classes[order[:, :5]] == true_M.numpy()[:, None]).any(1).mean()
    assert found == pytest.approx({"top1": first, "top5": fifth}, abs=1e-12)


def test_a_class_that_train_lacks_is_a_miss_and_one_class_is_refused():
    x_ND, labels_N = clouds()
    few_N = labels_N == 11
    with pytest.raises(Error, match="one class only"):
        prototype.accuracy(x_ND[few_N], labels_N[few_N], x_ND, labels_N)
    strange_N = torch.full_like(labels_N, 999)
    assert prototype.accuracy(x_ND, labels_N, x_ND, strange_N) == {"top1": 0.0, "top5": 0.0}


def test_float16_features_are_scored_as_they_are():
    train_ND, labels_N, test_MD, true_M = halves()
    half = prototype.accuracy(train_ND.half(), labels_N, test_MD.half(), true_M)
    assert half == prototype.accuracy(
        train_ND.half().float(), labels_N, test_MD.half().float(), true_M
    )


def _on_a_rank(by):
    return prototype.accuracy(*halves(), by=by), [
        (part.start, part.stop) for part in blocks.dealt(10_000)
    ]


@pytest.mark.parametrize("by", ["cosine", "euclidean"])
def test_four_ranks_find_what_one_does(ranks, monkeypatch, by):
    alone = prototype.accuracy(*halves(), by=by)
    answers = ranks.run(_on_a_rank, by, world=4)
    assert all(found == pytest.approx(alone, abs=1e-12) for found, _ in answers)
    parts = sorted(part for _, mine in answers for part in mine)
    assert parts == [(0, 4096), (4096, 8192), (8192, 10_000)]
    assert comm.world_size() == 1
