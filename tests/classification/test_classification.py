"""Losses, weights and scores of classifiers: against torch's and scikit-learn's own, on one rank
and on two.
"""

import math

import numpy as np
import pytest
import sklearn.metrics
import sklearn.utils.class_weight
import torch
import torch.nn.functional as F
from torch import Tensor

import toy
from lookalike import comm
from lookalike.classification.module import ClassifyModule, losses
from lookalike.classification.scores import Answers, scores_of
from lookalike.classification.targets import Targets, class_weights, one_hot, targets_of
from lookalike.data.images import Annotations, ArrayImages
from lookalike.data.tables.classes import several
from lookalike.errors import DataError, Error
from lookalike.models.classifier import Classifier
from lookalike.optim import LrScale
from lookalike.scoring import classification as room
from lookalike.scoring.calibration import best_temperature, calibration

CLASSES = 7


def logits(n: int = 200, seed: int = 0, classes: int = CLASSES) -> Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def labels(n: int = 200, classes: int = CLASSES) -> Tensor:
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(9))
    return (classes * drawn**2).long()


def tags(n: int = 200) -> Tensor:
    return torch.rand(n, CLASSES, generator=torch.Generator().manual_seed(3)) < 0.3


# --- losses ---------------------------------------------------------------------------------------


def by_hand(z_C: list[float], shares: list[float], weights: list[float], smoothing: float) -> float:
    """One image, from the definition."""
    largest = max(z_C)
    norm = largest + math.log(sum(math.exp(z - largest) for z in z_C))
    soft = [(1 - smoothing) * t + smoothing / len(z_C) for t in shares]
    return -sum(w * t * (z - norm) for w, t, z in zip(weights, soft, z_C, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_classes_and_of_their_shares_is_the_definition(smoothing, weighted):
    z, y = logits(12), labels(12)
    weight_C = torch.arange(1.0, CLASSES + 1) / 3 if weighted else None
    shares = 0.6 * one_hot(y, CLASSES) + 0.4 * one_hot(y.flip(0), CLASSES)
    plain = [1.0] * CLASSES if weight_C is None else weight_C.tolist()
    for targets, known in ((y, one_hot(y, CLASSES)), (shares, shares)):
        found = losses(z, targets, label_smoothing=smoothing, weight_C=weight_C)
        wanted = [
            by_hand(a, b, plain, smoothing) for a, b in zip(z.tolist(), known.tolist(), strict=True)
        ]
        assert found.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_labels_are_torchs_binary_cross_entropy(smoothing):
    z, t = logits(9), tags(9)
    weight_C = torch.arange(1.0, CLASSES + 1)
    found = losses(z, t, multi_label=True, label_smoothing=smoothing, weight_C=weight_C)
    soft = torch.where(t, 1 - smoothing / 2, smoothing / 2)
    p = z.double().sigmoid()
    each = -(weight_C * soft * p.log() + (1 - soft) * (1 - p).log())
    torch.testing.assert_close(found, each.mean(dim=1).float(), rtol=1e-4, atol=1e-6)


def module(**keys) -> ClassifyModule:
    torch.manual_seed(0)
    model = Classifier(toy.architecture("vit").build(), list("abcdefg"), **keys)
    with torch.no_grad():
        model.head.weight.mul_(30)
    return ClassifyModule(model, label_smoothing=0.1, weight_C=torch.arange(1.0, 8.0)).train()


def gradient(kind: str, world: int) -> dict[str, Tensor]:
    """Of a batch of 11 that the ranks share."""
    x, y = torch.randn(11, 1, 16, 16, generator=torch.Generator().manual_seed(1)), labels(11)
    targets = {"classes": y, "shares": logits(11).softmax(dim=1), "several": tags(11)}[kind]
    made = module(multi_label=kind == "several")
    rank, world = comm.rank(), comm.world_size()
    loss = made(x.tensor_split(world)[rank], targets.tensor_split(world)[rank])
    loss.value.backward()
    found = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
    mean = {n: comm.all_sum(g) / world for n, g in found.items()}
    return {**mean, "loss": loss.value.detach(), "accuracy": loss.terms["accuracy"]}


@pytest.mark.parametrize("kind", ["classes", "shares", "several"])
def test_the_gradient_is_the_same_on_two_ranks(ranks, kind):
    one = gradient(kind, 1)
    assert len(one) > 10
    for other in ranks.run(gradient, kind, 2):
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_layer_has_its_own_rate_and_the_backbone_its_depths():
    torch.manual_seed(0)
    backbone = toy.architecture("vit").build()
    made = ClassifyModule(Classifier(backbone, "ab"), layer_decay=0.5, head_lr_factor=3.0)
    scales = made.lr_scales()
    assert scales["model.head.weight"] == scales["model.head.bias"] == LrScale(3.0)
    assert scales["model.backbone.model.patch_embed.proj.weight"].scale == 0.25
    assert scales["model.backbone.model.blocks.0.mlp.fc1.weight"].scale == 0.5


# --- targets --------------------------------------------------------------------------------------


def test_balanced_weights_are_scikit_learns():
    y = labels(500)
    found = class_weights("balanced", Targets(torch.arange(500), y), CLASSES + 1)
    wanted = sklearn.utils.class_weight.compute_class_weight(
        "balanced", classes=np.unique(y), y=y.numpy()
    )
    assert found.tolist() == pytest.approx([*wanted, 1.0], rel=1e-6)
    several_labels = Targets(torch.arange(200), torch.zeros(200).long(), tags())
    positives = class_weights("balanced", several_labels, CLASSES) * tags().sum(dim=0)
    torch.testing.assert_close(positives, (~tags()).sum(dim=0).float())


def test_a_list_of_weights_has_one_number_a_class():
    with pytest.raises(DataError, match=r"classify\.class_weights: 2 numbers for 3 classes"):
        class_weights([1.0, 2.0], Targets(torch.arange(3), torch.arange(3)), 3)


def pictures(known: Annotations) -> ArrayImages:
    return ArrayImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), known)


def test_labels_of_another_kind_are_refused_in_one_line():
    one = pictures(Annotations(torch.tensor([0, 1, -1, 5, 1]), ("a", "b")))
    found = targets_of(one, 2, multi_label=False)
    assert (found.rows_K.tolist(), found.labels_K.tolist()) == ([0, 1, 4], [0, 1, 1])
    many = pictures(Annotations(classes=("a", "b"), several=torch.ones(5, 2, dtype=torch.bool)))
    assert len(targets_of(many, 2, multi_label=True)) == 5
    for images, multi_label, text in (
        (one, True, r"data\.separator"),
        (many, False, r"multi_label: true"),
        (pictures(Annotations()), False, r"data: no labels"),
    ):
        with pytest.raises(DataError, match=text):
            targets_of(images, 2, multi_label=multi_label)


def test_a_column_of_several_labels_a_row_is_told_by_its_separator():
    found, names = several(["b|a", "", " c | a", "10", "a||a"], "|")
    assert names == ("10", "a", "b", "c")
    assert [[names[c] for c in row.nonzero()[:, 0]] for row in found] == [
        ["a", "b"],
        [],
        ["a", "c"],
        ["10"],
        ["a"],
    ]


# --- scores ---------------------------------------------------------------------------------------


def test_top_k_and_classes_are_scikit_learns():
    z, y = logits(), labels()
    for k, right_N in room.right(z, y, (1, 2, 5)).items():
        wanted = sklearn.metrics.top_k_accuracy_score(y, z, k=k, labels=range(CLASSES))
        assert float(right_N.mean()) == pytest.approx(wanted, abs=1e-12)
    said = room.predictions(z)
    assert said.tolist() == z.argmax(dim=1).tolist()
    matrix = sklearn.metrics.confusion_matrix(y, said, labels=range(CLASSES))
    assert room.confusion(said, y, CLASSES).tolist() == matrix.tolist()
    columns = sklearn.metrics.precision_recall_fscore_support(y, said, labels=range(CLASSES))
    found = room.per_class(said, y, CLASSES)
    for name, column in zip(("precision", "recall", "f1", "images"), columns, strict=True):
        assert found[name] == pytest.approx(column.tolist(), abs=1e-12)


def test_equal_logits_do_not_count_for_the_model():
    right = room.right(torch.zeros(4, 3), torch.arange(4) % 3, (1, 2, 3))
    assert [float(r.sum()) for r in right.values()] == [0, 0, 4]


@pytest.mark.parametrize("rough", [False, True])
def test_average_precision_and_f1_are_scikit_learns(rough):
    """Of rough logits many are equal."""
    z, t = logits().round() if rough else logits(), tags()
    found = room.several_labels(z, t)
    each = sklearn.metrics.average_precision_score(t, z, average=None)
    assert found["per_class"]["ap"] == pytest.approx(each.tolist(), abs=1e-12)
    assert found["map"] == pytest.approx(each.mean(), abs=1e-12)
    for kind in ("micro", "macro"):
        wanted = sklearn.metrics.f1_score(t, z > 0, average=kind)
        assert found[f"f1_{kind}"] == pytest.approx(wanted, abs=1e-12)
    assert found["exact"] == pytest.approx(sklearn.metrics.accuracy_score(t, z > 0), abs=1e-12)


def test_a_class_that_no_image_has_is_left_out_of_the_mean():
    t = tags()
    t[:, 2] = False
    found = room.several_labels(logits(), t)
    assert found["per_class"]["ap"][2] is None
    rest = [ap for c, ap in enumerate(found["per_class"]["ap"]) if c != 2]
    assert found["map"] == pytest.approx(sum(rest) / 6)


def guo(z: Tensor, y: Tensor, bins: int) -> float:
    """Equation 3, image by image."""
    p = torch.softmax(z.double(), dim=1)
    held: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(p.tolist(), y.tolist(), strict=True):
        sure = max(row)
        bin_of = next(m for m in range(bins) if m / bins < sure <= (m + 1) / bins)
        held.setdefault(bin_of, []).append((sure, row.index(sure) == label))
    total = 0.0
    for rows in held.values():
        total += abs(sum(r for _, r in rows) - sum(s for s, _ in rows))
    return total / len(y)


def test_calibration_is_that_of_a_direct_computation():
    z, y = logits(), labels()
    found = calibration(z, y)
    assert found["ece"] == pytest.approx(guo(z, y, 15), abs=1e-9)
    assert found["nll"] == pytest.approx(sklearn.metrics.log_loss(y, z.double().softmax(dim=1)))
    p, t = z.double().softmax(dim=1), F.one_hot(y, CLASSES)
    assert found["brier"] == pytest.approx(float(((p - t) ** 2).sum(dim=1).mean()), rel=1e-9)
    several_labels = calibration(z, tags())
    wanted = F.binary_cross_entropy(z.double().sigmoid(), tags().double())
    assert several_labels["nll"] == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("targets", [labels(), tags()], ids=["one", "several"])
def test_the_temperature_has_the_least_nll_of_a_grid(targets):
    z = 4 * (logits() + 4 * one_hot(targets, CLASSES) - 3)
    found = best_temperature(z, targets)
    least = calibration(z, targets, found)["nll"]
    for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert calibration(z, targets, found * factor)["nll"] > least
    assert best_temperature(8 * z, targets) == pytest.approx(8 * found, rel=1e-6)


def test_a_temperature_that_no_image_limits_stays_within_its_bounds():
    y = labels()
    sure = 10 * one_hot(y, CLASSES)
    assert 1e-3 <= best_temperature(sure, y) < 1
    assert calibration(sure, y, best_temperature(sure, y))["nll"] < 1e-12
    assert best_temperature(-sure, y) == pytest.approx(1e3, rel=1e-6)
    with pytest.raises(Error, match="no finite logits"):
        best_temperature(torch.full((3, 2), float("nan")), torch.zeros(3).long())


def test_scores_are_of_readable_images_of_known_classes_and_say_how_many():
    answers = Answers(logits(), Targets(torch.arange(200), labels()), dropped=2, unknown=3)
    found = scores_of(answers, tuple("abcdefg"), 2.0, 0.95, 0)
    assert (found["images"], found["dropped"], found["unknown"]) == (200, 2, 3)
    low, high = found["intervals"]["top1"]
    assert low < found["top1"] < high
    recall = found["per_class"]["recall"]
    assert found["balanced"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels(), logits().argmax(dim=1))
    )
    assert len(recall) == 7
    assert "intervals" not in scores_of(answers, tuple("abcdefg"), 1.0, 0.0, 0)
