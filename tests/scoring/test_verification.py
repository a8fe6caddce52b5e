"""Laws of verification, against scikit-learn, brute force and lists made by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from lookalike.errors import Error
from lookalike.geometry import DISTANCES
from lookalike.scoring import verification as v


def pairs(count=400, seed=0, ties=False, gap=1.0):
    generator = torch.Generator().manual_seed(seed)
    same_P = torch.rand(count, generator=generator) < 0.4
    scores_P = torch.randn(count, generator=generator) + gap * same_P
    return (scores_P * 2).round() if ties else scores_P, same_P


def lfw(seed=0):
    """10 folds of 300 same and 300 different pairs, in the order of the data set's file."""
    generator = torch.Generator().manual_seed(seed)
    same_P = (torch.arange(6000) % 600) < 300
    scores_P = torch.randn(6000, generator=generator) + 2 * same_P
    return (50 * scores_P).round() / 50, same_P, torch.arange(6000) // 600


@pytest.mark.parametrize("data", [pairs(), pairs(seed=1, ties=True), pairs(seed=2, gap=-1.0)])
def test_the_area_is_scikit_learns(data):
    scores_P, same_P = data
    assert v.auc(v.roc(scores_P, same_P)) == pytest.approx(
        roc_auc_score(same_P, scores_P), abs=1e-12
    )


@pytest.mark.parametrize("data", [pairs(), pairs(seed=1, ties=True)])
def test_the_curve_is_scikit_learns(data):
    scores_P, same_P = data
    found = v.roc(scores_P, same_P)
    far, tar, threshold = roc_curve(same_P, scores_P, drop_intermediate=False)
    assert np.allclose(found.threshold_T, threshold)
    assert np.allclose(found.false_T / found.negatives, far)
    assert np.allclose(found.true_T / found.positives, tar)


@pytest.mark.parametrize("data", [pairs(60), pairs(60, seed=1, ties=True)])
def test_the_area_is_the_chance_to_outscore(data):
    scores_P, same_P = data
    wins = [
        1.0 if good > bad else 0.5 if good == bad else 0.0
        for good in scores_P[same_P].tolist()
        for bad in scores_P[~same_P].tolist()
    ]
    assert v.auc(v.roc(*data)) == pytest.approx(sum(wins) / len(wins), abs=1e-12)


def test_alike_is_high():
    """With the two kinds swapped a perfect score would be the worst one."""
    perfect = v.roc(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 0, 1, 1]))
    assert (v.auc(perfect), v.eer(perfect), v.best_accuracy(perfect)) == (1, 0, 1)
    assert v.tar_at_far(perfect, 0.5) == 1
    worst = v.roc(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([1, 1, 0, 0]))
    assert (v.auc(worst), v.eer(worst), v.best_accuracy(worst)) == (0, 1, 0.5)
    assert v.tar_at_far(worst, 0.5) == 0


def test_collapse_is_chance():
    same_P = torch.arange(10) < 5
    found = v.roc(torch.zeros(10), same_P)
    assert (v.auc(found), v.eer(found), v.best_accuracy(found), v.tar_at_far(found, 0.2)) == (
        0.5,
        0.5,
        0.5,
        0,
    )


@pytest.mark.parametrize("data", [pairs(), pairs(seed=1, ties=True), pairs(seed=5)])
def test_the_equal_error_lies_on_the_curve_where_the_errors_meet(data):
    found = v.roc(*data)
    far, tar = (found.false_T / found.negatives).numpy(), (found.true_T / found.positives).numpy()
    fine = np.linspace(0, 1, len(far))
    dense = np.linspace(0, 1, 200_001)
    far_fine, frr_fine = np.interp(dense, fine, far), 1 - np.interp(dense, fine, tar)
    at = np.abs(far_fine - frr_fine).argmin()
    assert v.eer(found) == pytest.approx(far_fine[at], abs=1e-3)
    assert v.eer(found) == pytest.approx(frr_fine[at], abs=1e-3)


def test_the_equal_error_of_a_list_made_by_hand():
    # Accepted from the top: same, different, same, different: FAR = 1 - TAR = 1/2 after two.
    assert v.eer(v.roc(torch.tensor([4.0, 3, 2, 1]), torch.tensor([1, 0, 1, 0]))) == pytest.approx(
        1 / 2
    )


@pytest.mark.parametrize("far", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("data", [pairs(), pairs(seed=1, ties=True)])
def test_the_rate_at_a_false_rate_equals_a_search(data, far):
    scores_P, same_P = data
    best = max(
        float((scores_P[same_P] >= level).double().mean())
        for level in [*scores_P.tolist(), math.inf]
        if float((scores_P[~same_P] >= level).double().mean()) <= far
    )
    assert v.tar_at_far(v.roc(*data), far) == pytest.approx(best, abs=1e-12)


def test_a_false_rate_that_so_few_pairs_cannot_measure_is_refused():
    found = v.roc(torch.arange(2000.0), torch.arange(2000) >= 1000)
    assert v.tar_at_far(found, 1 / 1000) == 1
    for far in (1 / 1001, 1e-4, 0.0, -1.0, 1.0, math.nan):
        with pytest.raises(
            Error, match=r"with 1000 different pairs; from 1/1000 = 0.001 to below 1"
        ):
            v.tar_at_far(found, far)


@pytest.mark.parametrize(
    "data", [pairs(100), pairs(100, seed=1, ties=True), pairs(100, seed=2, gap=-3.0)]
)
def test_the_best_accuracy_equals_a_search(data):
    scores_P, same_P = data
    best = max(
        float(((scores_P >= level) == same_P).double().mean())
        for level in [*scores_P.tolist(), -math.inf, math.inf]
    )
    assert v.best_accuracy(v.roc(*data)) == pytest.approx(best, abs=1e-12)


def test_folds_equal_the_protocol_in_loops():
    scores_P, same_P, folds_P = lfw()
    found = v.over_folds(scores_P, same_P, folds_P)
    for fold in range(10):
        train, test = folds_P != fold, folds_P == fold
        levels = [*scores_P[train].unique(), math.inf]
        best = max(int(((scores_P[train] >= level) == same_P[train]).sum()) for level in levels)
        threshold = float(found.threshold_F[fold])
        assert int(((scores_P[train] >= threshold) == same_P[train]).sum()) == best
        right = ((scores_P[test] >= threshold) == same_P[test]).double().mean()
        assert float(found.accuracy_F[fold]) == pytest.approx(float(right), abs=1e-12)
    accuracies = found.accuracy_F.tolist()
    mean = sum(accuracies) / 10
    assert found.mean == pytest.approx(mean, abs=1e-12)
    spread = math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 9)
    assert found.error == pytest.approx(spread / math.sqrt(10), abs=1e-12)


def test_a_folds_own_pairs_have_no_say_in_its_threshold():
    scores_P, same_P, folds_P = lfw()
    before = v.over_folds(scores_P, same_P, folds_P).threshold_F
    moved_P = scores_P.where(folds_P != 3, scores_P * 7 - 40)
    assert v.over_folds(moved_P, same_P, folds_P).threshold_F[3] == before[3]
    # Each fold is perfect by itself, at a threshold that is wrong for the other: on its own pairs
    # it would be 100 %.
    apart_P, same_P = torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0, 1, 0, 1])
    assert v.over_folds(apart_P, same_P, torch.tensor([0, 0, 1, 1])).mean == 0.5


def test_a_score_at_the_threshold_is_accepted():
    scores_P, same_P = torch.tensor([0.0, 2.0, 1.0, 1.0]), torch.tensor([0, 1, 1, 0])
    found = v.over_folds(scores_P[:3], same_P[:3], torch.tensor([0, 0, 1]))
    assert found.threshold_F[1] == 1
    assert found.accuracy_F[1] == 1
    assert (
        v.over_folds(scores_P[[0, 1, 3]], same_P[[0, 1, 3]], torch.tensor([0, 0, 1])).accuracy_F[1]
        == 0
    )


def test_scores_without_meaning_are_no_better_than_chance_over_folds():
    generator = torch.Generator().manual_seed(0)
    scores_P, same_P = torch.randn(60, generator=generator), torch.arange(60) % 2 == 0
    folds = [
        v.over_folds(
            scores_P[torch.randperm(60, generator=generator)], same_P, torch.arange(60) // 6
        ).mean
    ]
    folds += [
        v.over_folds(
            scores_P[torch.randperm(60, generator=generator)], same_P, torch.arange(60) // 6
        ).mean
        for _ in range(200)
    ]
    assert abs(sum(folds) / len(folds) - 0.5) < 0.05
    assert v.best_accuracy(v.roc(scores_P, same_P)) > 0.55


@pytest.mark.parametrize("same", [0, 1])
def test_a_threshold_may_lie_beyond_all_scores(same):
    scores_P, same_P = torch.arange(20.0), torch.full((20,), same)
    same_P[0] = 1 - same
    folds_P = torch.tensor([0, 0] + [1] * 9 + [2] * 9)
    found = v.over_folds(scores_P, same_P, folds_P)
    assert found.accuracy_F.tolist() == [0.5, 1, 1]


@pytest.mark.parametrize("distance", DISTANCES)
def test_similarity_of_pairs_is_that_of_ranked_lists(distance):
    rows_ND = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    pairs_P2 = torch.combinations(torch.arange(20))
    found = v.similarity(rows_ND, pairs_P2, distance=distance)
    a, b = rows_ND[pairs_P2[:, 0]].double(), rows_ND[pairs_P2[:, 1]].double()
    spread = (rows_ND.double() - rows_ND.double().mean(0)).square().sum(1).mean().sqrt()
    wanted = (
        torch.cosine_similarity(a, b) if distance == "cosine" else -(a - b).norm(dim=1) / spread
    )
    assert torch.allclose(found, wanted, atol=6e-7, rtol=0)


def test_noise_does_not_tell_a_collapsed_pair_from_another():
    generator = torch.Generator().manual_seed(0)
    rows_ND = torch.full((40, 8), 0.3) + 1e-8 * torch.randn(40, 8, generator=generator)
    pairs_P2 = torch.combinations(torch.arange(40))
    same_P = (pairs_P2[:, 0] % 4) == (pairs_P2[:, 1] % 4)
    assert v.auc(v.roc(v.similarity(rows_ND, pairs_P2), same_P)) == 0.5


def test_scores_names_what_was_asked():
    data = lfw()
    found = v.scores(*data, fars=(0.1, 1e-3))
    assert list(found) == [
        "auc",
        "eer",
        "best_accuracy",
        "tar@far=0.1",
        "tar@far=0.001",
        "accuracy",
        "accuracy_error",
    ]
    assert found["accuracy"] <= found["best_accuracy"]
    assert list(v.scores(*data[:2])) == ["auc", "eer", "best_accuracy"]


@pytest.mark.parametrize(
    ("scores_P", "same_P", "message"),
    [
        (torch.ones(3), torch.ones(3).bool(), "of one kind only"),
        (torch.ones(3), torch.zeros(3).bool(), "of one kind only"),
        (torch.ones(3), torch.ones(2).bool(), r"scores \(3,\), same \(2,\)"),
        (torch.ones(0), torch.ones(0).bool(), "one of each per pair"),
        (torch.tensor([1.0, math.nan]), torch.tensor([0, 1]), "NaN or Inf in 1 scores"),
        (torch.ones(2), torch.tensor([1, 2]), "must be true"),
        (torch.ones(2), torch.tensor([1, -1]), "must be true"),
        (torch.ones(2), torch.tensor([1.0, 0.0]), "must be true"),
    ],
)
def test_pairs_that_cannot_be_scored_are_refused(scores_P, same_P, message):
    with pytest.raises(Error, match=message):
        v.scores(scores_P, same_P)


@pytest.mark.parametrize("folds_P", [torch.zeros(400).long(), torch.arange(3), torch.rand(400)])
def test_folds_that_are_none_are_refused(folds_P):
    with pytest.raises(Error, match="pass the fold of every pair, two or more"):
        v.over_folds(*pairs(), folds_P)


@pytest.mark.parametrize(
    ("pairs_P2", "message"),
    [
        (torch.tensor([[0, 2]]), "rows 0 to 2 of 2"),
        (torch.tensor([[-1, 0]]), "rows -1 to 0 of 2"),
        (torch.tensor([0, 1]), "pass int64 row numbers"),
        (torch.ones(1, 2), "pass int64 row numbers"),
        (torch.ones(0, 2).long(), "pass int64 row numbers"),
    ],
)
def test_pairs_of_no_rows_are_refused(pairs_P2, message):
    with pytest.raises(Error, match=message):
        v.similarity(torch.ones(2, 3), pairs_P2)
