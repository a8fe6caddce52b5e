"""Logistic regression on few rows is scikit-learn's, and chooses its L2 among them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from lookalike.scoring import scarce

GRID = (1e-3, 1e-1, 10.0)


def rows(count: int, width: int, classes: int = 5, spread: float = 1.5):
    generator = torch.Generator().manual_seed(2)
    label_N = torch.arange(count) % classes
    centres_CD = torch.randn(classes, width, generator=generator)
    x_ND = centres_CD[label_N] + spread * torch.randn(count, width, generator=generator)
    return (3 * x_ND + 1).float(), label_N


def loss(weight_CD, bias_C, x_KD, labels_K, l2):
    fit = F.cross_entropy(x_KD @ weight_CD.T + bias_C, labels_K)
    return float(fit + l2 / 2 * weight_CD.square().sum())


@pytest.mark.parametrize(("count", "width"), [(40, 12), (15, 60)])
@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_the_optimum_is_that_of_scikit_learn(count, width, l2):
    x_ND, labels_N = rows(count, width)
    of_all = scarce.standard(x_ND)
    x_KD = of_all.of(x_ND.double())
    peer = LogisticRegression(C=1 / (l2 * count), tol=1e-10, max_iter=10_000)
    peer.fit(x_KD.numpy(), labels_N.numpy())
    found = scarce.fit(x_KD, labels_N, 5, [l2] if count > 5 else [])
    own = loss(found.weight_CD, found.bias_C, x_KD, labels_N, l2)
    their = loss(torch.tensor(peer.coef_), torch.tensor(peer.intercept_), x_KD, labels_N, l2)
    assert own == pytest.approx(their, abs=1e-8)
    assert torch.allclose(found.weight_CD, torch.tensor(peer.coef_), atol=1e-3)


def test_rows_are_standardised_by_all_of_train_and_scored_as_by_scikit_learn():
    x_ND, labels_N = rows(600, 20)
    train_ND, test_MD = x_ND[:300], x_ND[300:]
    few_K = torch.arange(25)
    mean_D, std_D = train_ND.double().mean(0), train_ND.double().std(0, correction=0)
    x_KD, y_MD = ((part.double() - mean_D) / std_D for part in (train_ND[few_K], test_MD))
    found = scarce.accuracy(
        train_ND,
        labels_N[:300],
        few_K,
        test_MD,
        labels_N[300:],
        scarce.standard(train_ND),
        GRID,
    )
    peer = LogisticRegression(C=1 / (found["l2"] * 25), tol=1e-10, max_iter=10_000)
    peer.fit(x_KD.numpy(), labels_N[few_K].numpy())
    expected = peer.score(y_MD.numpy(), labels_N[300:].numpy())
    assert found["l2"] in GRID
    assert 0.4 < expected < 1
    assert found["top1"] == pytest.approx(expected, abs=1e-12)
    assert "top5" not in found


def test_a_constant_dimension_stays_and_says_nothing():
    x_ND, _ = rows(30, 4)
    x_ND[:, 2] = 7.0
    of_all = scarce.standard(x_ND)
    assert float(of_all.std_D[2]) == 1.0
    assert not bool(of_all.of(x_ND.double())[:, 2].any())


def test_each_fold_holds_out_the_same_number_of_each_class_once():
    labels_K = torch.tensor([2, 0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 1])
    parts = scarce.folds(labels_K)
    assert len(parts) == 3  # class 2 has three
    assert bool((torch.stack(parts).sum(0) == 1).all())
    for held_K in parts:
        assert torch.bincount(labels_K[held_K]).tolist()[2] == 1
        assert set(labels_K[~held_K].tolist()) == {0, 1, 2}


def test_one_image_a_class_has_a_fixed_strength():
    x_ND, labels_N = rows(5, 8)
    assert scarce.folds(labels_N) == []
    assert scarce.fit(x_ND.double(), labels_N, 5, GRID).l2 == scarce.L2_OF_ONE


def test_the_l2_is_the_one_that_cross_validation_by_scikit_learn_finds():
    x_ND, labels_N = rows(50, 40, spread=3.0)
    x_KD = scarce.standard(x_ND).of(x_ND.double())
    right = []
    for l2 in sorted(GRID, reverse=True):
        hits = 0
        for held_K in scarce.folds(labels_N):
            fit_K = ~held_K
            peer = LogisticRegression(C=1 / (l2 * int(fit_K.sum())), tol=1e-9, max_iter=10_000)
            peer.fit(x_KD[fit_K].numpy(), labels_N[fit_K].numpy())
            hits += int((peer.predict(x_KD[held_K].numpy()) == labels_N[held_K].numpy()).sum())
        right.append(hits)
    best = sorted(GRID, reverse=True)[int(np.argmax(right))]
    assert len(set(right)) > 1
    assert scarce.chosen(x_KD, labels_N, 5, GRID) == best


def test_of_strengths_that_tie_the_strongest_is_chosen():
    x_KD = 50 * torch.eye(3, dtype=torch.float64)[torch.arange(12) % 3]
    assert scarce.chosen(x_KD, torch.arange(12) % 3, 3, (1e-3, 1e-1, 1e-2)) == 1e-1
