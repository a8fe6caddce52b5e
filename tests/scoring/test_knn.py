"""Laws of the weighted kNN vote, against a loop over neighbours."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from lookalike.errors import Error
from lookalike.scoring import knn


def made(rows=80, tests=30, width=6, classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(classes, (rows + tests,), generator=generator)
    labels_N[:classes] = torch.arange(classes)
    centre_CD = torch.randn(classes, width, generator=generator)
    x_ND = centre_CD[labels_N] + torch.randn(rows + tests, width, generator=generator)
    return x_ND[:rows], labels_N[:rows], x_ND[rows:], labels_N[rows:]


def loop(train_ND, labels_N, test_MD, k, temperature, classes):
    rows, table = train_ND.double().tolist(), []
    for x in test_MD.double().tolist():
        cosine = [
            sum(a * b for a, b in zip(x, row, strict=True)) / (math.hypot(*x) * math.hypot(*row))
            for row in rows
        ]
        nearest = sorted(range(len(rows)), key=lambda j: (-round(cosine[j] / 1e-6), j))[:k]
        vote = [0.0] * classes
        for j in nearest:
            vote[labels_N[j]] += math.exp((cosine[j] - cosine[nearest[0]]) / temperature)
        table.append(vote)
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5, 20, 80])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_equal_a_loop_over_neighbours(k, temperature):
    train_ND, labels_N, test_MD, _ = made()
    votes_MC = knn.votes(train_ND, labels_N, test_MD, k=k, temperature=temperature)
    two_steps = 2 * knn.STEP / temperature
    expected_MC = loop(train_ND, labels_N.tolist(), test_MD, k, temperature, 7)
    torch.testing.assert_close(votes_MC, expected_MC, rtol=two_steps, atol=1e-12)
    assert knn.predict(train_ND, labels_N, test_MD, k=k, temperature=temperature).equal(
        expected_MC.argmax(1)
    )


def test_accuracy_counts_the_classes_with_most_votes():
    train_ND, labels_N, test_MD, true_M = made()
    table = loop(train_ND, labels_N.tolist(), test_MD, 20, 0.07, 7).tolist()
    first = [
        sorted((c for c in range(7) if row[c] > 0), key=lambda c: (-row[c], c)) for row in table
    ]
    for name, k in (("top1", 1), ("top5", 5)):
        right = [label in ranked[:k] for label, ranked in zip(true_M.tolist(), first, strict=True)]
        assert knn.accuracy(train_ND, labels_N, test_MD, true_M)[name] == pytest.approx(
            sum(right) / len(right)
        )


def test_top5_needs_more_than_five_classes():
    assert set(knn.accuracy(*made(classes=5))) == {"top1"}
    assert set(knn.accuracy(*made(classes=6))) == {"top1", "top5"}


def test_accuracy_on_digits_equals_scikit_learn():
    x, y = load_digits(return_X_y=True)
    x_ND, y_N = torch.tensor(x), torch.tensor(y)

    def weights(distance):
        return torch.tensor(1 - distance).div(0.07).exp().numpy()

    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    top1 = peer.fit(x[:600], y[:600]).score(x[600:900], y[600:900])
    assert knn.accuracy(x_ND[:600], y_N[:600], x_ND[600:900], y_N[600:900])[
        "top1"
    ] == pytest.approx(top1)
    assert top1 > 0.9


def test_k_above_the_rows_is_all_rows():
    train_ND, labels_N, test_MD, _ = made()
    assert knn.votes(train_ND, labels_N, test_MD, k=999).equal(
        knn.votes(train_ND, labels_N, test_MD, k=80)
    )


def test_a_tie_of_classes_goes_to_the_lowest():
    train_ND = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]])
    query_MD = torch.tensor([[1.0, 0.0]])
    assert knn.predict(train_ND, torch.tensor([2, 1, 0]), query_MD, k=2).tolist() == [1]
    assert knn.predict(train_ND, torch.tensor([1, 2, 0]), query_MD, k=2).tolist() == [1]


def test_a_tie_at_the_cut_goes_to_the_earlier_row():
    train_ND = torch.ones(50, 3)
    assert knn.votes(train_ND, torch.arange(50), torch.ones(1, 3), k=3)[0].nonzero()[
        :, 0
    ].tolist() == [
        0,
        1,
        2,
    ]


def test_a_class_without_a_vote_is_no_hit():
    train_ND, labels_N = torch.eye(8), torch.arange(8)
    assert knn.accuracy(train_ND, labels_N, train_ND, labels_N, k=1) == {"top1": 1, "top5": 1}
    assert knn.accuracy(train_ND, labels_N, train_ND, (labels_N + 1) % 8, k=1) == {
        "top1": 0,
        "top5": 0,
    }


def test_length_of_the_features_does_not_matter():
    train_ND, labels_N, test_MD, _ = made()
    scaled_ND = train_ND * torch.tensor([2.0, 0.5]).repeat(40)[:, None]
    assert knn.votes(scaled_ND, labels_N, test_MD * 8).equal(knn.votes(train_ND, labels_N, test_MD))


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
def test_no_temperature_overflows(temperature):
    train_ND, labels_N, test_MD, _ = made()
    votes_MC = knn.votes(train_ND, labels_N, test_MD, k=80, temperature=temperature)
    assert votes_MC.isfinite().all()
    assert (votes_MC.amax(1) >= 1).all()


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_the_chunk_does_not_matter(chunk, monkeypatch):
    train_ND, labels_N, test_MD, true_M = made()
    wanted = knn.votes(train_ND, labels_N, test_MD)
    assert knn.votes(train_ND, labels_N, test_MD, chunk=chunk).equal(wanted)
    one = knn.accuracy(train_ND, labels_N, test_MD, true_M, chunk=chunk)
    assert one == knn.accuracy(train_ND, labels_N, test_MD, true_M)
    monkeypatch.setattr(knn, "VOTES", 7 * chunk)
    assert knn.votes(train_ND, labels_N, test_MD).equal(wanted)


def test_many_classes_are_voted_for_by_fewer_rows_at_once(monkeypatch):
    seen, real = [], knn._votes

    def watched(steps_Qk, *rest):
        seen.append(len(steps_Qk))
        return real(steps_Qk, *rest)

    monkeypatch.setattr(knn, "_votes", watched)
    monkeypatch.setattr(knn, "VOTES", 60)
    knn.accuracy(*made())
    assert seen == [8, 8, 8, 6]


@pytest.mark.parametrize("rows", [80, 4000])
def test_several_k_are_answered_as_each_alone(rows):
    sets = made(rows=rows, tests=300)
    found = knn.accuracies(*sets, ks=(10, 1, 20, 100), temperature=0.07)
    assert list(found) == [10, 1, 20, 100]
    assert found == {k: knn.accuracy(*sets, k=k) for k in found}
    assert len({each["top1"] for each in found.values()}) > 2


def test_accuracies_equal_scikit_learns_where_no_two_are_equally_near():
    train_ND, labels_N, test_MD, true_M = made(rows=4000, tests=200, width=32)
    found = knn.accuracies(train_ND, labels_N, test_MD, true_M, ks=(5, 20), temperature=0.2)
    for k in (5, 20):
        peer = KNeighborsClassifier(
            k,
            metric="cosine",
            algorithm="brute",
            weights=lambda far: torch.tensor(1 - far).div(0.2).exp().numpy(),
        ).fit(train_ND.double(), labels_N)
        assert found[k]["top1"] == pytest.approx(peer.score(test_MD.double(), true_M))


def everything(sets):
    return knn.accuracies(*sets, ks=(1, 20))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_rows_and_get_the_same_numbers(ranks, world):
    sets = made(rows=900, tests=700)
    assert ranks.run(everything, sets, world=world) == world * [everything(sets)]
    few = made(rows=900, tests=3)  # fewer blocks than ranks
    assert ranks.run(everything, few, world=world) == world * [everything(few)]


def test_a_mapped_half_precision_matrix_is_never_copied(tmp_path):
    rows = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float16, (3000, 8))
    rows[:] = made(rows=3000, width=8)[0].half().numpy()
    train_ND, (_, labels_N, test_MD, true_M) = torch.from_numpy(rows), made(rows=3000, width=8)
    wanted = knn.accuracy(train_ND.clone().float(), labels_N, test_MD, true_M)
    assert knn.accuracy(train_ND, labels_N, test_MD, true_M) == wanted


def test_labels_may_be_any_whole_numbers():
    train_ND, labels_N, test_MD, true_M = made()
    plain = knn.accuracy(train_ND, labels_N, test_MD, true_M)
    assert knn.accuracy(train_ND, labels_N * 3 + 2**40, test_MD, true_M * 3 + 2**40) == plain
    assert knn.accuracy(train_ND, labels_N - 100, test_MD, true_M - 100) == plain
    assert knn.accuracy(train_ND, labels_N.int(), test_MD, true_M.int()) == plain


def test_a_test_class_that_train_lacks_is_a_miss():
    train_ND, labels_N, test_MD, true_M = made()
    for strange in (-5, 7, 2**40):
        assert knn.accuracy(train_ND, labels_N, test_MD, true_M.new_full((30,), strange)) == {
            "top1": 0,
            "top5": 0,
        }


def test_half_precision_features_are_scored_in_float32():
    train_ND, labels_N, test_MD, _ = made()
    half, exact = train_ND.half(), train_ND.half().float()
    assert knn.votes(half, labels_N, test_MD).equal(knn.votes(exact, labels_N, test_MD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_ND": torch.full((2, 2), float("nan"))}, "train features: NaN or Inf in 2 rows"),
        ({"test_MD": torch.full((1, 2), float("inf"))}, "test features: NaN or Inf in 1 rows"),
        ({"train_labels_N": torch.tensor([0])}, r"train labels: shape \(1,\) for 2 rows"),
        ({"test_labels_M": torch.tensor([0, 1])}, r"test labels: shape \(2,\) for 1 rows"),
        ({"train_labels_N": torch.tensor([3, 3])}, "train labels: one class only"),
        ({"train_labels_N": torch.tensor([0.0, 1.0])}, "train labels: dtype torch.float32"),
        ({"test_MD": torch.ones(1, 3)}, "width 2 in train, 3 in test"),
        ({"k": 0}, "above 0"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(change, message):
    good = {
        "train_ND": torch.eye(2),
        "train_labels_N": torch.tensor([0, 1]),
        "test_MD": torch.ones(1, 2),
        "test_labels_M": torch.tensor([0]),
    }
    assert knn.accuracy(**good) == {"top1": 1}
    with pytest.raises(Error, match=message):
        knn.accuracy(**(good | change))


def test_votes_refuse_labels_outside_the_classes():
    for labels_N in (torch.tensor([-1, 0]), torch.tensor([0, 2])):
        with pytest.raises(Error, match="number the 2 classes from 0"):
            knn.votes(torch.eye(2), labels_N, torch.eye(2), classes=2)


def test_autocast_is_refused():
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="leave it first"):
        knn.accuracy(*made())
