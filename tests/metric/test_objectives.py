"""Our metric-learning objectives: the papers' formulas in loops, on ordinary and on edge batches;
their identities.
"""

import math
from itertools import product
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from lookalike.errors import DataError, RecipeError, RunError
from lookalike.methods.barlow_twins import barlow_twins_loss
from lookalike.metric import sizes
from lookalike.metric.constellation import random_negatives
from lookalike.metric.csml import csml
from lookalike.metric.hinges import quadruplet_hinges, triplet_hinges
from lookalike.metric.n_pair import n_pair, pairs
from lookalike.metric.objectives import MINER, OBJECTIVE, OWN, SINGLE, Objective, required
from lookalike.metric.pair_masks import classes, masks
from lookalike.metric.quadruplet import QuadrupletLoss, adaptive_margins
from lookalike.metric.sentence import alike
from lookalike.nn.hooks import Deferred, Follower

D = 5
LABELS = {
    "ordinary": [0, 1, 2, 0, 1, 2, 3, 3, 0, 2, 1, 3],
    "one class": [4, 4, 4, 4],
    "singletons": [0, 1, 2, 3, 4],
    "some singletons": [0, 0, 1, 2, 2, 3],
    "two classes": [1, 0, 1, 0, 0],
    "two rows": [7, 7],
    "two rows of two": [7, 8],
    "uneven": [0, 0, 0, 0, 0, 0, 0, 1, 2, 2],
}


def draws(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(n: int, duplicates: bool = False) -> Tensor:
    z = draws(n, n, D) + 0.2
    if duplicates and n > 3:
        z[1], z[3] = z[0], z[2]
    return z


def make(name: str, **args: Any) -> Any:
    """The loss itself, in fp64, for 9 classes and D dimensions."""
    torch.manual_seed(0)
    return (
        Objective(OBJECTIVE.spec(name, **args), None, num_classes=9, embedding_size=D)
        .double()
        .terms[0]
        .loss
    )


# The formulas in loops


def units(z: Tensor) -> Tensor:
    return z / z.norm(dim=1, keepdim=True)


def d2(z: Tensor, i: int, j: int) -> float:
    u = units(z)
    return float((u[i] - u[j]).square().sum())


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def positives(y: list[int]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in product(range(len(y)), repeat=2) if i != j and y[i] == y[j]]


def negatives(y: list[int]) -> list[tuple[int, int]]:
    return [(i, j) for i, j in product(range(len(y)), repeat=2) if y[i] != y[j]]


def naive_quadruplet_all(z: Tensor, y: list[int], a1: float = 1.0, a2: float = 0.5) -> float:
    first = [
        max(0, d2(z, i, j) - d2(z, i, k) + a1)
        for i, j in positives(y)
        for k in range(len(y))
        if y[k] != y[i]
    ]
    second = [
        max(0, d2(z, i, j) - d2(z, left, k) + a2)
        for i, j in positives(y)
        for left, k in negatives(y)
        if y[i] not in (y[left], y[k])
    ]
    return mean(first) + mean(second)


def naive_quadruplet_hard(z: Tensor, y: list[int], a1: float = 1.0, a2: float = 0.5) -> float:
    first, second = [], []
    for i in range(len(y)):
        near = [d2(z, i, j) for j in range(len(y)) if j != i and y[j] == y[i]]
        far = [d2(z, i, k) for k in range(len(y)) if y[k] != y[i]]
        if near and far:
            others = [d2(z, left, k) for left, k in negatives(y) if y[i] not in (y[left], y[k])]
            first.append(max(0, max(near) - min(far) + a1))
            second.append(max(0, max(near) - min(others) + a2) if others else 0.0)
    return mean(first) + mean(second)


def naive_constellation(z: Tensor, y: list[int], k: int | None) -> float:
    found = []
    for a, p in positives(y):
        nearest = [
            max(float(z[a] @ z[n]) for n in range(len(y)) if y[n] == c) for c in set(y) - {y[a]}
        ]
        chosen = sorted(nearest, reverse=True)[:k]
        if k is None:
            chosen = [float(z[a] @ z[n]) for n in range(len(y)) if y[n] != y[a]]
        if chosen:
            found.append(math.log(1 + sum(math.exp(s - float(z[a] @ z[p])) for s in chosen)))
    return mean(found)


def naive_n_pair(z: Tensor, y: list[int], l2: float) -> float:
    seats: dict[int, list[int]] = {}
    for i, c in enumerate(y):
        seats.setdefault(c, []).append(i)
    found = []
    for r in range(len(y)):
        of_round = [(s[2 * r], s[2 * r + 1]) for s in seats.values() if len(s) > 2 * r + 1]
        for a, p in of_round:
            others = [math.exp(float(z[a] @ z[q] - z[a] @ z[p])) for b, q in of_round if b != a]
            found.append(math.log(1 + sum(others)))
    return mean(found) + l2 * float(z.square().sum(dim=1).mean())


def cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def naive_csml(z: Tensor, y: list[int], a: Tensor, a0: Tensor, beta: float, form: str) -> float:
    near = [cos(a @ z[i], a @ z[j]) for i, j in positives(y) if i < j]
    far = [cos(a @ z[i], a @ z[j]) for i, j in negatives(y) if i < j]
    value = 0.0
    if near and far:
        value = sum(near) - len(near) / len(far) * sum(far)
        value /= len(near) if form == "mean" else 1
    return -value + beta * sum(float(v) ** 2 for v in (a - a0).flatten())


def naive_classification(z: Tensor, y: list[int], weight: Tensor) -> float:
    def cross_entropy(i: int, j: int, target: int) -> float:
        logits = (weight @ torch.cat([z[i], z[j], (z[i] - z[j]).abs()])).tolist()
        return math.log(sum(math.exp(v) for v in logits)) - logits[target]

    return mean([cross_entropy(i, j, 1) for i, j in positives(y)]) + mean(
        [cross_entropy(i, j, 0) for i, j in negatives(y)]
    )


def naive_regression(z: Tensor, y: list[int]) -> float:
    near = mean([(cos(z[i], z[j]) - 1) ** 2 for i, j in positives(y)])
    return near + mean([cos(z[i], z[j]) ** 2 for i, j in negatives(y)])


def naive_triplet(z: Tensor, y: list[int], margin: float) -> float:
    def d(i: int, j: int) -> float:
        return float((z[i] - z[j]).norm())

    return mean(
        [
            max(0, d(a, p) - d(a, n) + margin)
            for a, p in positives(y)
            for b, n in negatives(y)
            if b == a
        ]
    )


def naive_facenet(z: Tensor, y: list[int], margin: float) -> float:
    return mean(
        [
            d2(z, a, p) - d2(z, a, n) + margin
            for a, p in positives(y)
            for b, n in negatives(y)
            if b == a and d2(z, a, p) + 1e-12 < d2(z, a, n) < d2(z, a, p) + margin
        ]
    )


def naive_cross_entropy(
    z: Tensor, y: list[int], weight: Tensor, smoothing: float, neck: bool
) -> float:
    if neck:
        z = (z - z.mean(0)) / ((z - z.mean(0)).square().mean(0) + 1e-5).sqrt()
    count, total = len(weight), 0.0
    for row, c in zip(z, y, strict=True):
        logits = [float(row @ w) for w in weight]
        norm = math.log(sum(math.exp(v) for v in logits))
        target = [smoothing / count + (1 - smoothing) * (k == c) for k in range(count)]
        total -= sum(t * (v - norm) for t, v in zip(target, logits, strict=True))
    return total / len(y)


def csml_case(form: str) -> Any:
    loss = make("CSMLLoss", initial=(draws(77, 3, D)).tolist(), beta=0.3, form=form)
    torch.nn.init.normal_(loss.a_KD, generator=torch.Generator().manual_seed(1))
    return loss, lambda z, y: naive_csml(z, y, loss.a_KD.detach(), loss.initial_KD, 0.3, form)


def classification_case() -> Any:
    loss = make("SentenceClassificationLoss")
    return loss, lambda z, y: naive_classification(z, y, loss.weight_2E.detach())


def cross_entropy_case(neck: bool) -> Any:
    loss = make("CrossEntropyLoss", smoothing=0.1, neck=neck)
    torch.nn.init.normal_(loss.weight_CD, generator=torch.Generator().manual_seed(1))
    return loss, lambda z, y: naive_cross_entropy(z, y, loss.weight_CD.detach(), 0.1, neck)


def naive_barlow_twins(z: Tensor, y: list[int], weight: float) -> float:
    """Equation 1 on the listed pairs, as they stand in two batches of views."""
    pairs, d = positives(y), z.shape[1]
    if not pairs:
        return 0.0

    def standardized(rows: list[Tensor]) -> list[list[float]]:
        columns = [[float(row[k]) for row in rows] for k in range(d)]
        means = [mean(column) for column in columns]
        stds = [
            math.sqrt(mean([(v - m) ** 2 for v in column]) + 1e-5)
            for column, m in zip(columns, means, strict=True)
        ]
        return [
            [(v - m) / s for v in column] for column, m, s in zip(columns, means, stds, strict=True)
        ]

    left, right = standardized([z[a] for a, _ in pairs]), standardized([z[p] for _, p in pairs])
    c = [
        [mean([a * b for a, b in zip(left[i], right[j], strict=True)]) for j in range(d)]
        for i in range(d)
    ]
    return sum(
        (1 - c[i][i]) ** 2 if i == j else weight * c[i][j] ** 2
        for i, j in product(range(d), repeat=2)
    )


CASES: dict[str, Any] = {
    "quadruplet all": lambda: (make("QuadrupletLoss", form="all"), naive_quadruplet_all),
    "quadruplet hard": lambda: (make("QuadrupletLoss", form="hard"), naive_quadruplet_hard),
    "constellation hard 1": lambda: (
        make("ConstellationLoss", k=1),
        lambda z, y: naive_constellation(z, y, 1),
    ),
    "constellation hard 2": lambda: (
        make("ConstellationLoss", k=2),
        lambda z, y: naive_constellation(z, y, 2),
    ),
    "constellation hard 99": lambda: (
        make("ConstellationLoss", k=99),
        lambda z, y: naive_constellation(z, y, 99),
    ),
    "constellation all": lambda: (
        make("ConstellationLoss", negatives="all"),
        lambda z, y: naive_constellation(z, y, None),
    ),
    "n-pair": lambda: (make("MultiClassNPairLoss", l2=0.1), lambda z, y: naive_n_pair(z, y, 0.1)),
    "csml mean": lambda: csml_case("mean"),
    "csml sum": lambda: csml_case("sum"),
    "sentence classification": classification_case,
    "sentence regression": lambda: (make("SentenceRegressionLoss"), naive_regression),
    "sentence triplet": lambda: (
        make("SentenceTripletLoss", margin=0.7),
        lambda z, y: naive_triplet(z, y, 0.7),
    ),
    "facenet": lambda: (make("FaceNetLoss", margin=0.5), lambda z, y: naive_facenet(z, y, 0.5)),
    "cross-entropy": lambda: cross_entropy_case(False),
    "bnneck": lambda: cross_entropy_case(True),
    "barlow twins": lambda: (
        make("BarlowTwinsLoss", off_diagonal=0.3),
        lambda z, y: naive_barlow_twins(z, y, 0.3),
    ),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
@pytest.mark.parametrize("batch", LABELS)
@pytest.mark.parametrize("duplicates", [False, True], ids=["", "duplicates"])
def test_a_loss_equals_its_formula_in_loops(case, batch, duplicates):
    loss, naive = CASES[case]()
    y = LABELS[batch]
    z = rows(len(y), duplicates).requires_grad_()
    value = loss(z, torch.tensor(y))
    assert float(value.detach()) == pytest.approx(naive(z.detach(), y), rel=1e-7, abs=1e-9)
    value.backward()
    assert torch.isfinite(z.grad).all()


@every_case
def test_its_gradient_is_that_of_finite_differences(case):
    """Of the embeddings and of what the loss owns."""
    loss, _ = CASES[case]()
    labels = torch.tensor(LABELS["ordinary"])
    leaves = [rows(12).requires_grad_(), *loss.parameters()]
    found = torch.autograd.grad(loss(leaves[0], labels), leaves)
    for i, (leaf, gradient) in enumerate(zip(leaves, found, strict=True)):
        step, values = 1e-6 * draws(50 + i, *leaf.shape), []
        for sign in (1, -1):
            with torch.no_grad():
                leaf += sign * step
                values.append(float(loss(leaves[0], labels)))
                leaf -= sign * step
        assert gradient.abs().max() > 0
        assert float((gradient * step).sum()) * 2 == pytest.approx(
            values[0] - values[1], rel=1e-5, abs=1e-13
        )


@every_case
def test_the_order_of_the_batch_does_not_matter(case):
    """N-pair loss takes roles from the order within a class, so there only classes change
    places.
    """
    loss, _ = CASES[case]()
    z, labels = rows(12).requires_grad_(), torch.tensor(LABELS["ordinary"])
    order = torch.tensor([6, 9, 1, 5, 8, 3, 0, 11, 4, 2, 7, 10])
    if case == "n-pair":
        order = torch.argsort((labels * 3) % 4, stable=True)
    value, moved = loss(z, labels), loss(z[order], labels[order])
    torch.testing.assert_close(moved, value, rtol=1e-9, atol=1e-12)
    one, other = (torch.autograd.grad(v, z)[0] for v in (value, moved))
    torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


# Squares of raw rows of 1e18 do not fit fp32; unit rows do not care.
SCALES = {"zero": 0.0, "tiny": 1e-20, "huge": 1e15}


@pytest.mark.parametrize("name", [kind.__name__ for kind in OWN])
@pytest.mark.parametrize("scale", SCALES)
def test_degenerate_embeddings_give_finite_losses_and_gradients(name, scale):
    objective = Objective(OBJECTIVE.spec(name), None, num_classes=4, embedding_size=D)
    z = (SCALES[scale] * rows(12)).float().requires_grad_()
    value = objective(z, torch.tensor(LABELS["ordinary"])).value
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


# Identities


def test_constellation_with_one_negative_is_the_smooth_triplet_without_margin():
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    found = make("ConstellationLoss", k=1)
    d = distances.DotProductSimilarity(normalize_embeddings=False)
    smooth = losses.TripletMarginLoss(
        margin=0, smooth_loss=True, distance=d, reducer=reducers.MeanReducer()
    )
    a, p = torch.nonzero(masks(None, labels, labels).positive_BR, as_tuple=True)
    n = (z @ z.T).masked_fill(labels[:, None] == labels, -torch.inf).argmax(dim=1)[a]
    torch.testing.assert_close(found(z, labels), smooth(z, labels, (a, p, n)), rtol=1e-12, atol=0)


@pytest.mark.parametrize("negatives", ["hard", "random", "all"])
def test_constellation_on_an_n_pair_batch_is_the_n_pair_loss(negatives):
    """Anchors against a reference set that holds one positive of each class."""
    anchors, others, labels = rows(6), draws(5, 6, D), torch.arange(6)
    found = make("ConstellationLoss", negatives=negatives, k=99)(
        anchors, labels, None, others, labels.clone()
    )
    wanted = make("MultiClassNPairLoss", l2=0.0)(torch.cat([anchors, others]), labels.repeat(2))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_mean_csml_is_a_contrastive_loss_on_cosine():
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    contrastive = losses.ContrastiveLoss(
        pos_margin=1,
        neg_margin=-1,
        distance=distances.CosineSimilarity(),
        reducer=reducers.MeanReducer(),
    )
    torch.testing.assert_close(
        make("CSMLLoss")(z, labels) + 2, contrastive(z, labels), rtol=1e-12, atol=0
    )


def test_descending_csml_brings_one_class_together_and_two_apart():
    """The sign that public codes have wrong."""
    loss, z, labels = make("CSMLLoss", beta=0.0), rows(12), torch.tensor(LABELS["ordinary"])

    def gap() -> float:
        x = units(z @ loss.a_KD.detach().T)
        chosen = masks(None, labels, labels)
        return float((x @ x.T)[chosen.positive_BR].mean() - (x @ x.T)[chosen.negative_BR].mean())

    before = gap()
    loss(z, labels).backward()
    with torch.no_grad():
        loss.a_KD -= 0.1 * loss.a_KD.grad
    assert gap() > before


def test_the_second_term_of_the_paper_is_alpha_times_all_negatives():
    cs, labels = draws(1, 4, 4), torch.tensor([0, 0, 0, 1])
    chosen = masks(None, labels, labels).once()
    wanted = -(cs[0, 1] + cs[0, 2] + cs[1, 2]) + 3 / 3 * (cs[0, 3] + cs[1, 3] + cs[2, 3])
    torch.testing.assert_close(csml(cs, *chosen[:2], form="sum"), wanted)


def test_facenet_is_the_librarys_triplet_with_its_semi_hard_miner_of_the_same_margin():
    z, labels = units(rows(12)), torch.tensor(LABELS["ordinary"])
    d = distances.LpDistance(power=2)
    theirs = losses.TripletMarginLoss(margin=0.3, distance=d)
    chosen = miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard", distance=d)(
        z, labels
    )
    ours = make("FaceNetLoss", margin=0.3)
    torch.testing.assert_close(ours(z, labels), theirs(z, labels, chosen), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        ours(z, labels, chosen), theirs(z, labels, chosen), rtol=1e-9, atol=0
    )


def test_n_pair_is_the_librarys_on_one_pair_a_class_when_that_does_not_normalise():
    z, labels = rows(12), torch.arange(6).repeat(2)
    theirs = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    torch.testing.assert_close(
        make("MultiClassNPairLoss", l2=0.0)(z, labels), theirs(z, labels), rtol=1e-12, atol=0
    )


# Parts


def test_supervised_barlow_twins_is_that_of_the_listed_pairs_as_two_views():
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    a, p = torch.tensor(positives(labels.tolist())).T
    views = barlow_twins_loss(z[a], z[p], 0.3).value
    torch.testing.assert_close(make("BarlowTwinsLoss", off_diagonal=0.3)(z, labels), views)
    a, p = torch.tensor([0, 3, 5, 2]), torch.tensor([3, 8, 2, 9])
    mined = make("BarlowTwinsLoss", off_diagonal=0.3)(
        z, labels, (a, p, torch.tensor([0]), torch.tensor([1]))
    )
    torch.testing.assert_close(mined, barlow_twins_loss(z[a], z[p], 0.3).value)


def test_adaptive_margins_are_the_gap_of_the_means_and_half_of_it():
    z, y = units(rows(12)), LABELS["ordinary"]
    labels = torch.tensor(y)
    d = torch.cdist(z, z).square()
    gap = mean([d2(z, *pair) for pair in negatives(y)]) - mean(
        [d2(z, *pair) for pair in positives(y)]
    )
    found = adaptive_margins(d, masks(None, labels, labels))
    torch.testing.assert_close(
        torch.stack(found), torch.tensor([gap, gap / 2], dtype=torch.float64)
    )
    for form, naive in (("all", naive_quadruplet_all), ("hard", naive_quadruplet_hard)):
        loss = make("QuadrupletLoss", form=form, adaptive=True)
        assert float(loss(z, labels)) == pytest.approx(naive(z, y, gap, gap / 2), rel=1e-7)


def test_margins_in_the_wrong_order_are_refused():
    with pytest.raises(
        RunError, match=r"QuadrupletLoss: ValueError: second_margin 1 is not below margin 0\.5"
    ):
        make("QuadrupletLoss", margin=0.5, second_margin=1.0)


@pytest.mark.parametrize("references", [False, True])
def test_hinges_counted_are_hinges_listed(references):
    """Also against references that hold other classes than the anchors."""
    y = torch.tensor(LABELS["uneven"])
    y_R = torch.tensor([0, 1, 2, 5, 5, 0]) if references else y
    z = rows(10)
    d = torch.cdist(z, rows(6) if references else z)
    chosen = masks(None, y, y_R)
    own, other = classes(y, y_R)
    triplets, semihard, fours = [], [], []
    for i, j in torch.nonzero(chosen.positive_BR).tolist():
        for k in range(len(y_R)):
            if y[i] != y_R[k]:
                triplets.append(float(d[i, j] - d[i, k] + 0.4))
                semihard += [triplets[-1]] if d[i, j] < d[i, k] else []
        for left, k in torch.nonzero(chosen.negative_BR).tolist():
            if y[i] not in (y[left], y_R[k]):
                fours.append(float(d[i, j] - d[left, k] + 0.4))
    for found, listed in (
        (triplet_hinges(d, chosen.positive_BR, chosen.negative_BR, 0.4), triplets),
        (triplet_hinges(d, chosen.positive_BR, chosen.negative_BR, 0.4, semihard=True), semihard),
        (quadruplet_hinges(d, own, other, chosen.positive_BR, chosen.negative_BR, 0.4), fours),
    ):
        assert float(found.total) == pytest.approx(sum(max(0, v) for v in listed), rel=1e-9)
        assert int(found.active) == sum(v > 0 for v in listed) > 0
        assert int(found.number) == (len(triplets) if listed is semihard else len(listed))


def test_a_miners_tuple_decides_which_pairs_count():
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    triplets = miners.BatchHardMiner()(z, labels)
    a, p, n = (part.tolist() for part in triplets)
    d = torch.cdist(units(z), units(z)).square()
    hard = make("QuadrupletLoss", form="hard")
    first = mean([max(0, float(d[i, j] - d[i, k] + 1)) for i, j, k in zip(a, p, n, strict=True)])
    mined = set(zip(a, n, strict=True))
    second = []
    for i, j in zip(a, p, strict=True):
        others = [float(d[v, w]) for v, w in mined if labels[i] not in (labels[v], labels[w])]
        second.append(max(0, float(d[i, j]) - min(others) + 0.5) if others else 0)
    assert float(hard(z, labels, triplets)) == pytest.approx(first + mean(second), rel=1e-9)
    constellation = make("ConstellationLoss", negatives="all")
    s = z @ z.T
    wanted = mean(
        [math.log(1 + math.exp(s[i, k] - s[i, j])) for i, j, k in zip(a, p, n, strict=True)]
    )
    assert float(constellation(z, labels, triplets)) == pytest.approx(wanted, rel=1e-9)


def test_a_miners_triplets_are_the_hinges_that_count():
    z, y = rows(12), LABELS["ordinary"]
    triplets = [(0, 3, 1), (0, 3, 7), (6, 11, 4), (2, 9, 10), (1, 10, 2)]
    chosen = tuple(torch.tensor(column) for column in zip(*triplets, strict=True))
    u = units(z)
    facenet = [
        float((u[a] - u[p]).square().sum() - (u[a] - u[n]).square().sum()) + 0.5
        for a, p, n in triplets
    ]
    sentence = [float((z[a] - z[p]).norm() - (z[a] - z[n]).norm()) + 0.5 for a, p, n in triplets]
    assert min(facenet) < 0
    assert min(sentence) < 0
    found = make("FaceNetLoss", margin=0.5)(u, torch.tensor(y), chosen)
    assert found.item() == pytest.approx(mean([v for v in facenet if v > 0]), rel=1e-9)
    found = make("SentenceTripletLoss", margin=0.5)(z, torch.tensor(y), chosen)
    assert found.item() == pytest.approx(mean([max(0.0, v) for v in sentence]), rel=1e-9)


def test_random_negatives_are_one_of_each_of_k_classes_and_change_with_the_seed():
    y = torch.tensor(LABELS["ordinary"])
    negative = masks(None, y, y).negative_BR
    drawn = [random_negatives(negative, y, 2, seed) for seed in range(200)]
    for found in drawn:
        for i in range(12):
            chosen = y[found[i]].tolist()
            assert len(set(chosen)) == len(chosen) == 2
            assert int(y[i]) not in chosen
    assert torch.equal(drawn[0], random_negatives(negative, y, 2, 0))
    share = torch.stack(drawn).double().mean(dim=0)[negative]
    assert (
        0.1 < share.min() < share.max() < 0.35
    )  # two of three classes, one of three images: 2 / 9 each
    assert (random_negatives(negative, y, 99, 0).sum(dim=1) == 3).all()


def test_the_order_within_a_class_says_who_is_anchor_and_a_rest_takes_no_part():
    a, p, r = pairs(torch.tensor([3, 1, 3, 1, 1, 3, 3, 9]))
    assert sorted(zip(a.tolist(), p.tolist(), r.tolist(), strict=True)) == [
        (0, 2, 0),
        (1, 3, 0),
        (5, 6, 1),
    ]
    torch.testing.assert_close(n_pair(torch.tensor([[0.3]]), torch.tensor([0])), torch.zeros(1))


def test_classification_never_forms_the_differences():
    u, v, w = draws(1, 3, D), draws(2, 4, D), draws(3, 2, 3 * D)
    logits = torch.stack(
        [torch.stack([w @ torch.cat([a, b, (a - b).abs()]) for b in v]) for a in u]
    )
    torch.testing.assert_close(alike(u, v, w), logits[..., 1] - logits[..., 0])


# Bad input


@pytest.mark.parametrize(
    "name", ["QuadrupletLoss", "ConstellationLoss", "FaceNetLoss", "CSMLLoss", "BarlowTwinsLoss"]
)
def test_labels_beyond_two_to_the_24_stay_apart_and_floats_are_refused(name):
    z, small = rows(12), torch.tensor(LABELS["ordinary"])
    loss = make(name)
    assert torch.equal(loss(z, small + 2**24), loss(z, small))
    assert torch.equal(loss(z, small + 2**62), loss(z, small))
    with pytest.raises(ValueError, match="whole numbers"):
        loss(z, small.float())


@pytest.mark.parametrize(
    "name", ["TripletMarginLoss", "ContrastiveLoss", "QuadrupletLoss", "CrossEntropyLoss"]
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_embedding_that_is_no_number_makes_the_loss_none(name, bad):
    """The library's triplet loss leaves NaN out of its mean: 0, as if all were well."""
    objective = Objective(OBJECTIVE.spec(name), None, num_classes=4, embedding_size=D)
    z = rows(12)
    z[4, 2] = bad
    assert objective(z.float(), torch.tensor(LABELS["ordinary"])).value.isnan()


@pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence", "ignore:__array_wrap__ must accept"
)  # the library's
@pytest.mark.parametrize("name", sorted(SINGLE))
def test_no_objective_takes_two_labels_that_are_one_in_fp32_for_one_class(name):
    """2²⁴ and 2²⁴ + 1; a loss with a row for each class refuses what it has no row for."""
    z, near = rows(12).float(), torch.tensor(LABELS["ordinary"])
    assert len((near + 2**24).float().unique()) < len(near.unique())
    given = {"margin": 0.4, "Tn": 1.0} if name == "RankedListLoss" else {}
    objective = Objective(OBJECTIVE.spec(name, **given), None, num_classes=4, embedding_size=D)
    if "num_classes" in required(SINGLE[name]):
        with pytest.raises(
            DataError, match="labels: 16777216 is none of the 4 classes, 0 to 3: number them so"
        ):
            objective(z, near + 2**24)
        return
    value = objective(z, near).value
    torch.testing.assert_close(objective(z, near + 2**24).value, value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "ArcFaceLoss", "ProxyAnchorLoss"])
@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_refused_in_one_line(name, label):
    """ProxyAnchorLoss would take it for none of the classes without a word."""
    objective = Objective(OBJECTIVE.spec(name), None, num_classes=4, embedding_size=D)
    labels = torch.tensor(LABELS["ordinary"])
    labels[5] = label
    with pytest.raises(
        DataError, match=rf"^labels: {label} is none of the 4 classes, 0 to 3: number them so$"
    ):
        objective(rows(12).float(), labels)


def test_what_does_not_fit_is_refused_with_its_name():
    with pytest.raises(
        RunError, match=r"CSMLLoss: ValueError: initial: shape \(2, 3\), not rows of 5 numbers"
    ):
        make("CSMLLoss", initial=[[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]])
    with pytest.raises(RunError, match="gives no single number: choose another reducer"):
        make("ContrastiveLoss", reducer="DoNothingReducer")
    with pytest.raises(RunError, match="WeightedSum: ValueError: parts: none given"):
        make("WeightedSum", parts=[])
    spec = OBJECTIVE.spec("WeightedSum", parts=[{"objective": "FaceNetLoss"}])
    with pytest.raises(RunError, match=r"finetune\.miner: a WeightedSum has none"):
        Objective(spec, MINER.spec("BatchHardMiner"), num_classes=4, embedding_size=D)
    with pytest.raises(RunError, match="two parts want to be folded"):
        make("WeightedSum", parts=[{"objective": "CSMLLoss"}, {"objective": "CrossEntropyLoss"}])
    with pytest.raises(RecipeError, match="parts"):
        OBJECTIVE.spec("WeightedSum")
    with pytest.raises(RecipeError, match=r"seed: set by the program"):
        OBJECTIVE.spec("ConstellationLoss", seed=3)


# Several at once, and what is exported


def test_a_weighted_sum_is_the_sum_of_its_parts_each_with_its_miner():
    parts = [
        {"objective": "CSMLLoss", "weight": 0.25},
        {
            "objective": {"name": "TripletMarginLoss", "margin": 0.3},
            "miner": "BatchHardMiner",
            "weight": 2.0,
        },
    ]
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    objective = Objective(
        OBJECTIVE.spec("WeightedSum", parts=parts), None, num_classes=4, embedding_size=D
    ).double()
    found = objective(z, labels)
    triplet = losses.TripletMarginLoss(margin=0.3)(
        units(z), labels, miners.BatchHardMiner()(units(z), labels)
    )
    of_csml = make("CSMLLoss")(z, labels)
    torch.testing.assert_close(found.value, 0.25 * of_csml + 2 * triplet)
    torch.testing.assert_close(
        found.terms, {"loss/0_CSMLLoss": of_csml, "loss/1_TripletMarginLoss": triplet}
    )


def test_lengths_reach_the_losses_that_ask_for_them():
    z, labels = 3 * rows(12), torch.tensor(LABELS["ordinary"])

    def value(name: str, **args: Any) -> Tensor:
        return (
            Objective(OBJECTIVE.spec(name, **args), None, num_classes=4, embedding_size=D)
            .double()(z, labels)
            .value
        )

    plain = {"name": "DotProductSimilarity", "normalize_embeddings": False}
    raw = losses.NTXentLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    torch.testing.assert_close(value("NTXentLoss", distance=plain), raw(z, labels))
    torch.testing.assert_close(value("NTXentLoss"), losses.NTXentLoss()(units(z), labels))


def test_the_neck_is_a_batchnorm_whose_running_statistics_move_only_after_good_steps():
    loss = make("CrossEntropyLoss")
    neck, z = loss.neck, rows(12)
    running = neck.running
    theirs = torch.nn.BatchNorm1d(D, momentum=1.0).double()
    torch.testing.assert_close(neck(z), theirs(z))
    assert not running.mean_D.any()
    running.discard()
    running.commit()
    assert not running.mean_D.any()
    neck(z)
    running.commit()
    weight, bias = neck.affine()
    torch.testing.assert_close(z @ weight.T + bias, theirs.eval()(z))


def test_what_follows_a_step_owns_no_parameter():
    """Else an engine that cuts parameters over ranks would gather them all for it, every step."""
    names = ["CrossEntropyLoss", "CSMLLoss", "DynamicSoftMarginLoss", "ProxyAnchorLoss"]
    parts = [
        part
        for name in names
        for part in make(name).modules()
        if isinstance(part, Deferred | Follower)
    ]
    assert len(parts) == 2
    assert all(not list(part.parameters()) for part in parts)


def test_the_librarys_dynamic_margin_forgets_a_skipped_step():
    loss, (z, labels) = make("DynamicSoftMarginLoss"), (rows(12), torch.tensor(LABELS["ordinary"]))
    assert not loss.hist_.any()
    loss(z, labels)
    loss.discard()
    assert not loss.hist_.any()
    loss(z, labels)
    loss.commit()
    kept = loss.state_dict()["hist_"].clone()
    assert kept.sum() == pytest.approx(1)
    loss(-z[:6], labels[:6])
    loss.discard()
    assert torch.equal(loss.hist_, kept)


def test_a_single_row_behind_the_neck_is_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        make("CrossEntropyLoss")(rows(2)[:1], torch.tensor([0]))


@pytest.mark.parametrize("seen", [True, False])
def test_nothing_of_size_b_cubed_is_kept(seen, monkeypatch):
    """Every tensor that a forward makes, at B = 64: the largest holds B², a few of them at most;
    from lists, and from masks where the host would wait.
    """
    monkeypatch.setattr(sizes, "seen", lambda _: seen)
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.seen = max(
                [self.seen, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))]
            )
            return out

    z, labels = draws(0, 64, D), torch.arange(64) % 16
    for case in CASES:
        loss, _ = CASES[case]()
        with Largest() as mode:
            loss(z, labels % 9 if "entropy" in case or case == "bnneck" else labels)
        assert 0 < mode.seen <= 2 * 64**2, case


def test_quadruplet_is_inside_the_librarys_contract():
    z, labels = rows(12), torch.tensor(LABELS["ordinary"])
    loss = QuadrupletLoss(distance=distances.CosineSimilarity(), reducer=reducers.SumReducer())
    found = loss.compute_loss(z, labels, None, z, labels)
    assert found["triplet_loss"]["reduction_type"] == "triplet"
    assert found["pair_loss"]["reduction_type"] == "element"
    total = found["triplet_loss"]["losses"].sum() + found["pair_loss"]["losses"].sum()
    torch.testing.assert_close(loss(z, labels), total)
