"""Laws of the linear probe at any size: blocks, ranks, stores and kills change nothing."""

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.errors import Error
from lookalike.scoring import linear
from lookalike.scoring.linear.problem import Linear, Problem, places, problem
from lookalike.scoring.linear.rows import Exact, Rows

NO_TURN = {"WIDEST": (linear.turn, 4)}
FOLDED = {"KEPT": (linear.turn, 0)}
READ_ANEW = {"KEPT": (linear.table, 0)}
SMALL = dict.fromkeys(("FEWEST", "MOST"), (linear.rows, 64)) | {"CHUNK": (linear.table, 2**9)}
FORMS = {
    "kept": {},
    "folded": FOLDED,
    "no turn": NO_TURN,
    "small blocks": SMALL,
    "read anew": {**SMALL, "TURNED": (linear.turn, 0), **READ_ANEW},
}


@contextmanager
def form(name):
    """One of the ways in which a problem is held."""
    with pytest.MonkeyPatch.context() as patch:
        for key, (module, value) in FORMS[name].items():
            patch.setattr(module, "KEPT" if key == "TURNED" else key, value)
        yield


def made(rows=700, tests=150, width=12, classes=5, seed=0, dtype=torch.float32):
    """Features that overlap, of lengths that differ, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(classes, (rows + tests,), generator=generator)
    labels_N[:classes] = torch.arange(classes)
    centre_CD = torch.randn(classes, width, generator=generator)
    x_ND = 0.5 * centre_CD[labels_N] + torch.randn(rows + tests, width, generator=generator)
    turn_DD = torch.randn(width, width, generator=generator)
    x_ND = ((x_ND / torch.arange(1, width + 1).sqrt()) @ turn_DD).to(dtype)
    return x_ND[:rows], labels_N[:rows], x_ND[rows:], labels_N[rows:]


def loss(fitted, x_ND, labels_N, l2):
    """The stated loss in float64."""
    z_ND = (x_ND.double() - fitted.mean_D.double()) / fitted.std_D.double()
    logits_NC = z_ND @ fitted.weight_CD.double().T + fitted.bias_C.double()
    penalty = fitted.weight_CD.double().square().sum() * l2 / 2
    return float(F.cross_entropy(logits_NC, labels_N) + penalty)


def peer(fitted, x_ND, labels_N, l2):
    """scikit-learn's minimum on the same standardised features, as one of ours."""
    z_ND = (x_ND.double() - fitted.mean_D.double()) / fitted.std_D.double()
    found = LogisticRegression(C=1 / (len(labels_N) * l2), tol=1e-9, max_iter=20000)
    found.fit(z_ND.numpy(), labels_N.numpy())
    weights = torch.tensor(found.coef_), torch.tensor(found.intercept_)
    return Linear(*weights, fitted.mean_D.double(), fitted.std_D.double(), converged=True)


def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x).float(), torch.tensor(y)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_minimum_is_scikit_learn_s(name, l2):
    x_ND, labels_N = digits()
    with form(name):
        fitted = linear.fit(x_ND[:900], labels_N[:900], l2, classes=10, tolerance=3e-6)
    other = peer(fitted, x_ND[:900], labels_N[:900], l2)
    ours, theirs = (loss(one, x_ND[:900], labels_N[:900], l2) for one in (fitted, other))
    assert fitted.converged
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert fitted.predict(x_ND[900:]).equal(other.predict(x_ND[900:].double()))


def test_of_fewer_rows_than_dimensions_the_minimum_is_scikit_learn_s():
    x_ND, labels_N, test_MD, _ = made(60, 200, 150)
    fitted = linear.fit(x_ND, labels_N, 1e-2, classes=5, tolerance=3e-6)
    other = peer(fitted, x_ND, labels_N, 1e-2)
    ours, theirs = (loss(one, x_ND, labels_N, 1e-2) for one in (fitted, other))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert fitted.predict(test_MD).equal(other.predict(test_MD.double()))


def newton(z_ND, labels_N, classes, l2):
    """The minimum by Newton's method on the whole Hessian, from autograd."""
    y_NC = F.one_hot(labels_N, classes).double()

    def value(flat):
        w_CE = flat.view(classes, -1)
        logits_NC = z_ND @ w_CE[:, :-1].T + w_CE[:, -1]
        return (
            -(y_NC * logits_NC.log_softmax(1)).sum(1).mean() + l2 / 2 * w_CE[:, :-1].square().sum()
        )

    flat = torch.zeros(classes * (z_ND.shape[1] + 1), dtype=torch.float64)
    for _ in range(12):
        gradient = torch.autograd.functional.jacobian(value, flat)
        hessian = torch.autograd.functional.hessian(value, flat)
        flat = flat - torch.linalg.pinv(hessian) @ gradient
    return flat.view(classes, -1)


@pytest.mark.parametrize("name", FORMS)
def test_the_minimum_is_newton_s(name):
    x_ND, labels_N, *_ = made(300, 1, 6, 3, dtype=torch.float64)
    with form(name):
        fitted = linear.fit(x_ND, labels_N, 1e-3, classes=3, tolerance=1e-9, max_iterations=2000)
    z_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0, correction=0)
    w_CE = newton(z_ND, labels_N, 3, 1e-3)
    torch.testing.assert_close(fitted.weight_CD, w_CE[:, :-1], rtol=0, atol=1e-6)
    # A common shift of all classes is free.
    torch.testing.assert_close(
        fitted.bias_C - fitted.bias_C.mean(), w_CE[:, -1] - w_CE[:, -1].mean(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("size", [0.3, 300.0])
def test_the_slope_is_the_loss_s_even_where_probabilities_are_nothing(name, size):
    x_ND, labels_N, *_ = made(200, 1, 6, 4, dtype=torch.float64)
    with form(name), torch.no_grad():
        posed = problem(Rows(x_ND), labels_N, 4)
        l2_E = torch.full_like(posed.spectrum_E, 1e-2)
        w_CE = size * torch.randn(4, 7, dtype=torch.float64)
        value, gradient_CE, spread = posed.slope(w_CE, l2_E)
        weight_CD = posed.turn.back(w_CE[:, :-1])
    z_ND = (x_ND - x_ND.mean(0)) / x_ND.std(0, correction=0)
    at = [weight_CD.clone().requires_grad_(), w_CE[:, -1].clone().requires_grad_()]
    logits_NC = z_ND @ at[0].T + at[1]
    expected = F.cross_entropy(logits_NC, labels_N) + w_CE.square().sum() * 1e-2 / 2
    p_NC = logits_NC.softmax(1)
    grads = torch.autograd.grad(F.cross_entropy(logits_NC, labels_N), at)
    own_CE = torch.cat([posed.turn.into(grads[0]), grads[1][:, None]], 1) + w_CE * 1e-2
    assert value == pytest.approx(float(expected.detach()), rel=1e-9)
    assert spread == pytest.approx(
        float((p_NC - p_NC.square()).mean().detach()), rel=1e-6, abs=1e-12
    )
    torch.testing.assert_close(gradient_CE, own_CE, rtol=1e-9, atol=1e-9)


def test_an_exact_sum_has_no_order_and_loses_nothing_that_counts():
    parts = [torch.randn(50, dtype=torch.float64) * 10.0 ** (i % 7 - 3) for i in range(40)]
    bound = torch.stack(parts).abs().sum(0)
    sums = []
    for seed in range(6):
        exact = Exact(torch.zeros(50, dtype=torch.float64), bound)
        for i in torch.randperm(40, generator=torch.Generator().manual_seed(seed)):
            exact.add(parts[int(i)])
        sums.append(exact.total)
    assert all(each.equal(sums[0]) for each in sums)
    columns = torch.stack(parts).T
    true = torch.tensor([float(sum(map(np.longdouble, column))) for column in columns])
    assert ((sums[0] - true).abs() <= 40 * 2.0**-49 * bound + 1e-7 * true.abs()).all()


@pytest.mark.parametrize("name", ["small blocks", "read anew", "folded"])
def test_blocks_of_any_size_give_the_same(name):
    data = made(900, 300, dtype=torch.float64)
    whole = linear.chosen(*data, grid=(1e-2, 1e-4))
    with form(name):
        parts = linear.chosen(*data, grid=(1e-2, 1e-4))
    assert parts[0] == whole[0]
    for one, other in zip(parts[1][:4], whole[1][:4], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def shared(name, data, folder):
    """What every rank finds, and a fit of few rows in many dimensions."""
    with form(name):
        found, head = linear.chosen(*data, grid=(1e-1, 1e-3, 1e-5), folder=folder)
        few = linear.fit(data[0][:9].repeat(1, 3), data[1][:9], 1e-2, classes=5)
        far = linear.fit(data[0], data[1], 1e-2, classes=7)
    return found, [*head[:4], *few[:4], *far[:4]]


@pytest.mark.parametrize(
    ("name", "world"), [("small blocks", 2), ("small blocks", 4), ("read anew", 4)]
)
def test_ranks_share_the_rows_and_find_the_same_bits(ranks, tmp_path, name, world):
    data = made()
    found, tensors = shared(name, data, None)
    for theirs, other in ranks.run(shared, name, data, tmp_path, world=world):
        assert theirs == found
        assert all(one.equal(two) for one, two in zip(tensors, other, strict=True))
    assert not list(tmp_path.iterdir())


def refused(data):
    with form("small blocks"), pytest.raises(Error) as caught:
        linear.chosen(*data)
    return str(caught.value)


def test_a_row_that_is_no_number_is_refused_by_all_ranks_alike(ranks):
    data = made()
    data[0][650, 3], data[0][3, 1] = float("nan"), float("inf")
    said = refused(data)
    assert "NaN or Inf in 2 rows" in said
    assert ranks.run(refused, data, world=2) == [said, said]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_mapped_store_is_as_good_as_memory(tmp_path, dtype):
    train_ND, *others = made()
    path = tmp_path / "x.npy"
    np.save(path, train_ND.to(dtype).numpy())
    before = path.read_bytes()
    mapped_ND = torch.from_numpy(np.load(path, mmap_mode="c"))
    with form("read anew"):
        found = linear.chosen(mapped_ND, *others)
        expected = linear.chosen(train_ND.to(dtype).float(), *others)
    assert found[0] == expected[0]
    assert all(one.equal(two) for one, two in zip(found[1][:4], expected[1][:4], strict=True))
    assert path.read_bytes() == before


class Largest(TorchDispatchMode):
    """The most numbers that an operator gave at once, views of what was there apart."""

    numbers = 0

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    size = storage.nbytes() // tensor.itemsize
                    self.numbers = max(self.numbers, size)
        return out


@pytest.mark.parametrize("name", ["folded", "no turn"])
def test_nothing_is_held_for_all_rows(name, monkeypatch):
    """Neither features nor logits of all rows: of 30,000 a block's 2,048 are held at once."""
    data = made(30_000, 3000, 32, 40)
    largest = Largest(*data)
    monkeypatch.setattr(linear.table, "KEPT", 0)
    with form(name), largest:
        found = linear.probe(*data, grid=(1e-1, 1e-2), max_iterations=2)
    assert 0 < found["top1"] < 1
    assert 2048 * 40 <= largest.numbers < 30_000 * 4


def test_blocks_are_kept_within_the_budget_and_others_read_anew(monkeypatch):
    x_ND, *_ = made(1000)
    monkeypatch.setattr(linear.table, "KEPT", 3 * 64 * 13 * 4 + 1)
    with form("small blocks"):
        table = linear.table.Table(Rows(x_ND), x_ND.mean(0), x_ND.std(0).reciprocal())
        passes = []
        for _ in range(2):
            passes.append([])
            for block in table:
                assert sum(at.stop - at.start for at in block.chunks) == len(block.rows)
                passes[-1].append(block.x_BE.clone())
    kept = list(table._kept.values())
    assert [len(x_BE) for x_BE in kept] == [64] * 3
    expected_NE = F.pad((x_ND - x_ND.mean(0)) * x_ND.std(0).reciprocal(), (0, 1), value=1)
    assert all(torch.cat(found).equal(expected_NE) for found in passes)


def test_of_many_dimensions_nothing_square_is_held(monkeypatch):
    monkeypatch.setattr(linear.turn, "WIDEST", 64)
    data = made(300, 30, 500)
    largest = Largest(*data)
    with largest:
        fitted = linear.fit(*data[:2], 1e-1, classes=5)
    assert fitted.converged
    assert largest.numbers < 500 * 500


@pytest.mark.parametrize("name", FORMS)
def test_constant_and_repeated_columns_do_no_harm(name):
    x_ND, labels_N, test_MD, _ = made(dtype=torch.float64)
    both = (
        torch.cat([x, torch.full_like(x[:, :1], 1e4), x[:, :3], 0 * x[:, :1]], 1)
        for x in (x_ND, test_MD)
    )
    wide_ND, wide_MD = both
    with form(name):
        fitted = linear.fit(wide_ND.float(), labels_N, 1e-2, classes=5, tolerance=1e-6)
    assert fitted.converged
    assert not fitted.weight_CD[:, [12, 16]].any()
    twice = torch.tensor([2.0] * 3 + [1.0] * 9).sqrt()
    plain = newton((x_ND - x_ND.mean(0)) / x_ND.std(0, correction=0) * twice, labels_N, 5, 1e-2)
    z_MD = (test_MD - x_ND.mean(0)) / x_ND.std(0, correction=0) * twice
    expected_MC = (z_MD @ plain[:, :-1].T + plain[:, -1]).softmax(1)
    found_MC = fitted.logits(wide_MD.float()).softmax(1).double()
    torch.testing.assert_close(found_MC, expected_MC, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_features_far_from_zero_are_fitted_as_those_near_it(name):
    x_ND, labels_N, test_MD, _ = made()
    with form(name):
        near, far = (
            linear.fit(x_ND + shift, labels_N, 1e-2, classes=5).logits(test_MD + shift)
            for shift in (0, 1000)
        )
    torch.testing.assert_close(near, far, rtol=0, atol=2e-2)


def test_a_class_without_rows_is_never_said():
    x_ND, labels_N, test_MD, _ = made(classes=3)
    fitted = linear.fit(x_ND, 2 * labels_N, 1e-2, classes=6)
    assert fitted.converged
    assert set(fitted.predict(test_MD).tolist()) == {0, 2, 4}


def test_places_are_those_of_the_logits():
    x_ND, labels_N, test_MD, true_M = made()
    fitted = linear.fit(x_ND, labels_N, 1e-2, classes=5)
    expected = (fitted.logits(test_MD).argsort(1, descending=True) == true_M[:, None]).int()
    with form("small blocks"), torch.no_grad():
        assert places(fitted, Rows(test_MD), true_M).equal(expected.argmax(1))


def test_the_sweep_ends_after_two_in_a_row_below_the_best(monkeypatch):
    data = made()
    real = linear.sweep.hits
    for said, tried in {
        (0.5, 0.7, 0.6, 0.65, 0.9): 4,
        (0.5, 0.7, 0.6, 0.7, 0.6): 5,
        (0.9, 0.8, 0.8, 1.0, 1.0): 3,
        (0.1, 0.2, 0.3, 0.4, 0.3): 5,
        (0.1, 1.0, 1.0, 1.0, 1.0): 4,
    }.items():
        scores = iter(said)
        monkeypatch.setattr(
            linear.sweep,
            "hits",
            lambda *a, s=scores: {"top1": next(s)} if a[1] == 1 else real(*a),
        )
        grid = [10.0**-i for i in range(5)]
        found = linear.probe(*data, grid=grid, max_iterations=1)
        assert found["grid"] == dict(zip(grid[:tried], said, strict=False))
        assert found.get("untried", []) == grid[tried:]
        assert found["l2"] == max(found["grid"], key=lambda l2: (found["grid"][l2], l2))
        assert found["grid_edge"] == (found["l2"] in (grid[0], grid[-1]))


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_grid_chooses_as_the_shortened(seed):
    data = made(400, 100, 20, 4, seed)
    whole = linear.probe(*data, patience=None)
    short = linear.probe(*data)
    assert len(whole["grid"]) == 8
    assert "untried" not in whole
    assert short["grid"] == {l2: whole["grid"][l2] for l2 in short["grid"]}
    assert {**short, "grid": 0, "untried": 0} == {**whole, "grid": 0, "untried": 0}
    assert set(short["grid"]) | set(short.get("untried", [])) == set(whole["grid"])


class Killed(Exception):
    pass


@contextmanager
def killed_after(fits):
    """Solves so many problems; counts them."""
    count, real = itertools.count(), Problem.solve

    def solve(self, *args):
        if next(count) == fits:
            raise Killed
        return real(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "solve", solve)
        yield count


GRID = (1e-1, 1e-2, 1e-3)


def test_a_killed_probe_goes_on_and_ends_with_the_same_bits(tmp_path):
    data = made()
    expected = linear.chosen(*data, grid=GRID)
    with killed_after(2), pytest.raises(Killed):
        linear.chosen(*data, grid=GRID, folder=tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 2
    with killed_after(99) as count:
        found = linear.chosen(*data, grid=GRID, folder=tmp_path / "new")
    assert next(count) == 2  # the third, and the one on all rows
    assert found[0] == expected[0]
    assert all(one.equal(two) for one, two in zip(found[1][:4], expected[1][:4], strict=True))
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("harm", [lambda b: b[:-1], lambda b: b[:-9] + bytes([b[-9] ^ 1]) + b[-8:]])
def test_a_damaged_fit_is_made_again(tmp_path, harm):
    data = made()
    expected = linear.probe(*data, grid=GRID)
    with killed_after(2), pytest.raises(Killed):
        linear.probe(*data, grid=GRID, folder=tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(harm(path.read_bytes()))
    with killed_after(99) as count:
        assert linear.probe(*data, grid=GRID, folder=tmp_path) == expected
    assert next(count) == 4


def test_a_fit_that_cannot_be_kept_is_told_and_no_loss(tmp_path):
    data = made()
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="what is done so far is not kept"):
        found = linear.probe(*data, grid=GRID, folder=tmp_path / "file" / "in")
    assert found == linear.probe(*data, grid=GRID)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: ((x + 1, y), {}),
        lambda x, y: ((x, y.roll(1)), {}),
        lambda x, y: ((x, y), {"seed": 1}),
        lambda x, y: ((x, y), {"max_iterations": 7}),
    ],
)
def test_fits_of_another_problem_are_not_gone_on_from(tmp_path, change):
    x_ND, labels_N, *test = made()
    with killed_after(2), pytest.raises(Killed):
        linear.probe(x_ND, labels_N, *test, grid=GRID, folder=tmp_path)
    train, words = change(x_ND, labels_N)
    with killed_after(99) as count:
        linear.probe(*train, *test, grid=GRID, folder=tmp_path, **words)
    assert next(count) == 4
    assert len(list(tmp_path.iterdir())) == 2


def go_on(data, folder):
    with form("small blocks"), killed_after(99) as count:
        found = linear.chosen(*data, grid=GRID, folder=folder)
        return found[0], list(found[1][:4]), next(count)


def test_other_ranks_go_on_from_what_one_process_left(ranks, tmp_path):
    data = made()
    with form("small blocks"):
        expected = linear.chosen(*data, grid=GRID)
        with killed_after(2), pytest.raises(Killed):
            linear.probe(*data, grid=GRID, folder=tmp_path)
    for found, tensors, fits in ranks.run(go_on, data, tmp_path, world=2):
        assert (found, fits) == (expected[0], 2)
        assert all(one.equal(two) for one, two in zip(tensors, expected[1][:4], strict=True))


def test_the_precision_of_products_is_as_before():
    torch.set_float32_matmul_precision("high")
    try:
        linear.probe(*made(), grid=(1e-2,))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
