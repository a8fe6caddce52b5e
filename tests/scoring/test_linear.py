"""Laws of the linear probe, against scikit-learn and autograd."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from lookalike.errors import Error
from lookalike.scoring import linear


def digits(rows=500):
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:rows]), torch.tensor(y[:rows])


def made(rows=120, tests=60, width=5, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(rows + tests) % classes
    centre_CD = torch.randn(classes, width, generator=generator)
    x_ND = centre_CD[labels_N] + torch.randn(rows + tests, width, generator=generator)
    return x_ND[:rows], labels_N[:rows], x_ND[rows:], labels_N[rows:]


def loss(fitted, features_ND, labels_N, l2, weight_CD, bias_C):
    """The stated loss, written a second time."""
    x_ND = (features_ND - features_ND.mean(0)) / fitted.std_D
    return (
        F.cross_entropy(x_ND @ weight_CD.T + bias_C, labels_N) + l2 / 2 * weight_CD.square().sum()
    )


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_fit_equals_scikit_learn(l2):
    x_ND, y_N = digits()
    fitted = linear.fit(x_ND, y_N, l2, classes=10, tolerance=1e-8)
    scaler = StandardScaler().fit(x_ND.numpy())
    torch.testing.assert_close(fitted.mean_D, torch.tensor(scaler.mean_))
    torch.testing.assert_close(fitted.std_D, torch.tensor(scaler.scale_))
    z = scaler.transform(x_ND.numpy())
    peer = LogisticRegression(C=1 / (len(y_N) * l2), tol=1e-8, max_iter=5000).fit(z, y_N.numpy())
    assert fitted.converged
    torch.testing.assert_close(fitted.weight_CD, torch.tensor(peer.coef_), rtol=0, atol=1e-3)
    mine_NC = fitted.logits(x_ND).softmax(1)
    torch.testing.assert_close(mine_NC, torch.tensor(peer.predict_proba(z)), rtol=0, atol=1e-3)
    assert fitted.predict(x_ND).equal(torch.tensor(peer.predict(z)))


def test_float32_finds_the_minimum_of_float64():
    x_ND, y_N = digits()
    exact, single = (linear.fit(x, y_N, 1e-3, classes=10) for x in (x_ND, x_ND.float()))
    assert single.weight_CD.dtype == torch.float32
    assert single.converged
    single_NC = single.logits(x_ND.float()).softmax(1).double()
    torch.testing.assert_close(single_NC, exact.logits(x_ND).softmax(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("l2", [1e0, 1e-2, 1e-4])
def test_autograd_finds_no_slope_at_the_minimum(l2):
    x_ND, y_N = digits(300)
    fitted = linear.fit(x_ND, y_N, l2, classes=10, tolerance=1e-9, max_iterations=2000)
    at = [fitted.weight_CD.clone().requires_grad_(), fitted.bias_C.clone().requires_grad_()]
    slopes = torch.autograd.grad(loss(fitted, x_ND, y_N, l2, *at), at)
    assert fitted.converged
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-7


def test_the_bias_is_not_regularised():
    x_ND, y_N = torch.zeros(10, 2), torch.tensor([0] * 9 + [1])
    fitted = linear.fit(x_ND, y_N, 10.0, classes=2)
    torch.testing.assert_close(
        fitted.logits(x_ND[:1]).softmax(1), torch.tensor([[0.9, 0.1]]), rtol=0, atol=1e-4
    )


def test_the_start_does_not_change_the_minimum():
    x_ND, y_N = digits(300)
    strong = linear.fit(x_ND, y_N, 1.0, classes=10)
    cold = linear.fit(x_ND, y_N, 1e-2, classes=10, tolerance=1e-9)
    warm = linear.fit(x_ND, y_N, 1e-2, classes=10, tolerance=1e-9, start=strong)
    torch.testing.assert_close(warm.weight_CD, cold.weight_CD, rtol=0, atol=1e-6)
    assert not cold.weight_CD.allclose(strong.weight_CD, atol=1e-2)


def test_a_fit_from_its_own_minimum_stays_there():
    x_ND, y_N = digits(300)
    first = linear.fit(x_ND, y_N, 1e-2, classes=10)
    again = linear.fit(x_ND, y_N, 1e-2, classes=10, start=first, max_iterations=1, tolerance=1e-4)
    assert again.converged
    torch.testing.assert_close(again.weight_CD, first.weight_CD, rtol=0, atol=1e-6)


def test_scale_and_shift_of_a_dimension_do_not_matter():
    x_ND, y_N, test_MD, _ = (t.double() if t.is_floating_point() else t for t in made())
    scale_D, shift_D = torch.tensor([1e-3, 1, 10, 1e3, -2]).double(), torch.arange(5) * 3.0
    plain = linear.fit(x_ND, y_N, 1e-2, classes=4).logits(test_MD)
    moved = linear.fit(x_ND * scale_D + shift_D, y_N, 1e-2, classes=4).logits(
        test_MD * scale_D + shift_D
    )
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_a_constant_dimension_changes_nothing(value):
    x_ND, y_N, test_MD, _ = made()
    padded = linear.fit(F.pad(x_ND, (0, 1), value=value), y_N, 1e-2, classes=4)
    plain_MC = linear.fit(x_ND, y_N, 1e-2, classes=4).logits(test_MD)
    torch.testing.assert_close(
        padded.logits(F.pad(test_MD, (0, 1), value=value)), plain_MC, rtol=0, atol=1e-3
    )


def test_more_dimensions_than_rows_fit():
    x_ND, y_N, _, _ = made(rows=20, width=64)
    fitted = linear.fit(x_ND, y_N, 1e-3, classes=4)
    assert fitted.converged
    assert fitted.predict(x_ND).equal(y_N)


def test_features_that_almost_collapsed_are_rotated_in_double_precision(monkeypatch):
    """Single precision gave up on such a matrix of a short pretraining: 512 features of rank
    188.
    """
    seen, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (seen.append(x.dtype), eigh(x))[1])
    x_ND, labels_N, *_ = made()
    flat_ND = torch.cat([x_ND, x_ND + 1e-7 * torch.randn(x_ND.shape)], dim=1).float()
    fitted = linear.fit(flat_ND, labels_N, 1e-2, classes=4)
    assert fitted.weight_CD.isfinite().all()
    assert fitted.weight_CD.dtype == torch.float32
    assert seen == [torch.float64]


def test_a_fit_cut_short_says_so():
    x_ND, y_N = digits()
    assert not linear.fit(x_ND, y_N, 1e-4, classes=10, max_iterations=3).converged
    assert not linear.probe(x_ND, y_N, x_ND, y_N, grid=[1e-4], max_iterations=3)["converged"]


@pytest.mark.parametrize("held_out", [0.1, 0.2, 0.5, 0.9])
def test_the_split_holds_out_the_stated_share_of_each_class(held_out):
    labels_N = torch.tensor([3] * 50 + [8] * 7 + [1] * 2 + [5])
    labels_N = labels_N[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    fitted, held = linear.split(labels_N, held_out, 0)
    assert torch.cat([fitted, held]).sort().values.equal(torch.arange(60))
    for label, size in ((3, 50), (8, 7), (1, 2)):
        expected = min(max(round(size * held_out), 1), size - 1)
        assert int((labels_N[held] == label).sum()) == expected
    assert 5 not in labels_N[held]


def test_the_split_is_drawn_by_the_seed_alone():
    labels_N = torch.arange(100) % 4
    torch.manual_seed(1)
    first = linear.split(labels_N, 0.2, 0)[1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert linear.split(labels_N, 0.2, 0)[1].equal(first)
    assert torch.get_rng_state().equal(state)
    assert not linear.split(labels_N, 0.2, 1)[1].equal(first)


def test_every_row_is_held_out_by_some_seed():
    labels_N = torch.arange(40) % 4
    assert (
        len(torch.cat([linear.split(labels_N, 0.2, seed)[1] for seed in range(60)]).unique()) == 40
    )


def test_test_labels_change_the_score_and_nothing_else():
    train_ND, labels_N, test_MD, true_M = made()
    one = linear.probe(train_ND, labels_N, test_MD, true_M)
    other = linear.probe(train_ND, labels_N, test_MD, (true_M + 1) % 4)
    assert one["top1"] > 0.5 > other["top1"]
    assert {**one, "top1": 0} == {**other, "top1": 0}


def test_test_features_change_the_score_and_nothing_else():
    train_ND, labels_N, test_MD, true_M = made()
    one = linear.probe(train_ND, labels_N, test_MD, true_M)
    other = linear.probe(train_ND, labels_N, -1000 * test_MD, true_M)
    assert {**one, "top1": 0} == {**other, "top1": 0}
    assert one["top1"] != other["top1"]


def test_the_probe_is_its_parts():
    train_ND, labels_N, test_MD, true_M = made()
    found = linear.probe(train_ND, labels_N, test_MD, true_M, grid=[1e-3, 1e-1, 1e1], seed=4)
    fit_rows, held = linear.split(labels_N, 0.2, 4)
    for l2, top1 in found["grid"].items():
        cold = linear.fit(train_ND[fit_rows], labels_N[fit_rows], l2, classes=4)
        assert top1 == pytest.approx(
            float((cold.predict(train_ND[held]) == labels_N[held]).double().mean())
        )
    assert found["held_out_top1"] == max(found["grid"].values()) == found["grid"][found["l2"]]
    final = linear.fit(train_ND, labels_N, found["l2"], classes=4)
    assert found["top1"] == pytest.approx(float((final.predict(test_MD) == true_M).double().mean()))


def test_the_strongest_of_equal_choices_wins_and_an_end_of_the_grid_is_told():
    labels_N = torch.arange(60) % 2
    easy_ND = F.one_hot(labels_N).float()
    args = (easy_ND, labels_N, easy_ND, labels_N)
    tied = linear.probe(*args, grid=[1e-3, 1e-2, 1e-1])
    assert tied["grid"] == {1e-3: 1, 1e-2: 1, 1e-1: 1}
    assert (tied["l2"], tied["grid_edge"]) == (1e-1, True)
    assert not linear.probe(*args, grid=[1e-2])["grid_edge"]


def test_a_choice_inside_the_grid_is_no_edge(monkeypatch):
    train = made()
    inside = {1e-3: 0.5, 1e-2: 0.9, 1e-1: 0.7}
    said = iter(sorted(inside, reverse=True))
    real = linear.sweep.hits
    monkeypatch.setattr(
        linear.sweep,
        "hits",
        lambda *a: {"top1": inside[l2]} if (l2 := next(said, None)) else real(*a),
    )
    found = linear.probe(*train, grid=list(inside))
    assert (found["l2"], found["held_out_top1"], found["grid_edge"]) == (1e-2, 0.9, False)
    assert found["grid"] == inside


def test_single_rows_and_strange_labels_are_handled():
    train_ND, labels_N, test_MD, true_M = made()
    plain = linear.probe(train_ND, labels_N, test_MD, true_M, grid=[1e-2])
    far = linear.probe(train_ND, labels_N * 7 - 2**40, test_MD, true_M * 7 - 2**40, grid=[1e-2])
    assert far == plain
    labels_N[0] = 99
    assert linear.probe(train_ND, labels_N, test_MD, true_M, grid=[1e-2])["converged"]
    assert linear.probe(train_ND, labels_N, test_MD, true_M + 1000, grid=[1e-2])["top1"] == 0


def test_top5_needs_more_than_five_classes():
    found = linear.probe(*made(classes=6), grid=[1e-2])
    assert found["top1"] < found["top5"] <= 1
    assert "top5" not in linear.probe(*made(classes=5), grid=[1e-2])


def test_inference_tensors_can_be_probed():
    with torch.inference_mode():
        frozen = tuple(t.clone() for t in made())
        inside = linear.probe(*frozen, grid=[1e-2])
    assert linear.probe(*frozen, grid=[1e-2]) == inside == linear.probe(*made(), grid=[1e-2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_ND": torch.full((4, 2), float("nan"))}, "train features: NaN or Inf in 4 rows"),
        ({"test_MD": torch.full((1, 2), float("inf"))}, "test features: NaN or Inf in 1 rows"),
        ({"test_MD": torch.ones(1, 3)}, "width 2 in train, 3 in test"),
        ({"train_labels_N": torch.tensor([0])}, r"train labels: shape \(1,\) for 4 rows"),
        ({"test_labels_M": torch.tensor([0, 1])}, r"test labels: shape \(2,\) for 1 rows"),
        ({"train_labels_N": torch.tensor([3, 3, 3, 3])}, "train labels: two or more"),
        ({"train_labels_N": torch.tensor([0, 1, 2, 3])}, "one row in every class"),
        ({"grid": []}, "one or more finite values above 0"),
        ({"grid": [1e-3, 0.0]}, "one or more finite values above 0"),
        ({"held_out": 1.0}, "held_out: 1.0; pass a share between 0 and 1"),
    ],
)
def test_what_cannot_be_probed_is_refused(change, message):
    good = {
        "train_ND": torch.eye(2).repeat(2, 1),
        "train_labels_N": torch.tensor([0, 1, 0, 1]),
        "test_MD": torch.tensor([[2.0, 1.0]]),
        "test_labels_M": torch.tensor([0]),
    }
    assert linear.probe(**good)["top1"] == 1
    with pytest.raises(Error, match=message):
        linear.probe(**(good | change))


def test_fit_refuses_labels_outside_the_classes():
    with pytest.raises(Error, match="classes 0 to 1"):
        linear.fit(torch.eye(3), torch.tensor([0, 1, 2]), 1e-2, classes=2)
