"""P × K batches: what a batch holds, how evenly an epoch goes, cameras; a loop of one's own goes on
exactly.
"""

import itertools
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lookalike
import toy
from lookalike.data.images import Annotations, ArrayImages, subset
from lookalike.data.order import share
from lookalike.data.sources import Digits
from lookalike.errors import DataError, RunError
from lookalike.experiment import Finetune
from lookalike.metric.sampler import PKOrder, PKSampler, spread
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.finetune import make_order

WORLDS = (1, 2, 3, 4, 8)


def labelled(*sizes: int, seed: int = 0, first: int = 0) -> Tensor:
    """Classes `first`, `first` + 1, … of these sizes, shuffled."""
    labels = torch.arange(first, first + len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def batches(order: PKOrder, first: int, last: int) -> list[list[int]]:
    return [ids.tolist() for _, ids in order.micro_batches(first, last)]


SHAPES = {
    "even": (labelled(*[12] * 6), 3, 4),
    "uneven": (labelled(9, 5, 2, 30, 4, 7, 3), 3, 4),
    "all at once": (labelled(9, 5, 2, 30, 4), 5, 4),
    "one of many": (labelled(*range(2, 31)), 2, 2),
    "one a class": (labelled(5, 1, 9, 1, 3, 2), 4, 1),
    "far labels": (labelled(8, 9, 7, 3, first=2**24), 3, 3),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


@every_shape
def test_a_batch_holds_exactly_k_images_of_p_classes_and_repeats_only_what_is_too_few(shape):
    labels, p, k = SHAPES[shape]
    sizes = Counter(labels.tolist())
    for ids in batches(PKOrder(labels, p, k, seed=0), 0, 60):
        counts = Counter(labels[ids].tolist())
        assert list(counts.values()) == [k] * p
        for c in counts:
            of_class = Counter(i for i in ids if labels[i] == c)
            assert len(of_class) == min(k, sizes[c])
            assert max(of_class.values()) - min(of_class.values()) <= 1


@every_shape
def test_after_any_round_no_class_has_come_more_than_once_more_than_another(shape):
    labels, p, k = SHAPES[shape]
    order, classes = PKOrder(labels, p, k, seed=1), len(labels.unique())
    rounds, seen = classes // p, Counter()
    for number in range(3 * classes):
        of_round = [
            labels[order.ids(2, number * rounds + b)].unique().tolist() for b in range(rounds)
        ]
        chosen = list(itertools.chain(*of_round))
        assert len(set(chosen)) == len(chosen) == rounds * p
        seen.update(chosen)
        assert max(seen.values()) - min(seen[c] for c in labels.unique().tolist()) <= 1
    assert len(set(seen.values())) == 1


@every_shape
def test_in_an_epoch_no_image_comes_twice_before_its_class_is_used_up(shape):
    labels, p, k = SHAPES[shape]
    order, seen = PKOrder(labels, p, k, seed=1), Counter()
    for step in range(80):
        seen.update(order.ids(3, step).tolist())
        for c in labels.unique().tolist():
            of_class = [seen[i] for i in torch.nonzero(labels == c).flatten().tolist()]
            assert max(of_class) - min(of_class) <= 1


@every_shape
def test_batches_are_a_pure_function_of_seed_epoch_and_step(shape):
    labels, p, k = SHAPES[shape]
    whole = batches(PKOrder(labels, p, k, seed=0), 0, 40)
    for start in range(0, 40, 3):
        assert batches(PKOrder(labels, p, k, seed=0), start, 40) == whole[start:]
    assert whole != batches(PKOrder(labels, p, k, seed=1), 0, 40)
    order = PKOrder(labels, p, k, seed=0)
    assert [epoch for epoch, _ in order.micro_batches(0, 40)] == [
        s // order.steps_per_epoch for s in range(40)
    ]
    assert order.ids(0, 0).tolist() != order.ids(1, 0).tolist()


def test_every_round_of_every_epoch_puts_other_classes_together():
    order = PKOrder(labelled(*[4] * 12), 3, 2, seed=0)
    labels = order.labels_N
    met = [
        [frozenset(labels[order.ids(e, 4 * r + b)].tolist()) for b in range(4)]
        for e in range(3)
        for r in range(3)
    ]
    assert len({frozenset(of_round) for of_round in met}) == 9


def test_every_class_sits_out_as_often_and_every_image_comes_as_often_over_epochs():
    labels = labelled(20, 10, 10, 10, 10)
    order, seen = PKOrder(labels, 3, 2, seed=0), Counter()
    for _, ids in order.micro_batches(0, 300 * order.steps_per_epoch):
        seen.update(ids.tolist())
    of_class = {c: [seen[i] for i in range(len(labels)) if labels[i] == c] for c in range(5)}
    mean = {c: sum(counts) / len(counts) for c, counts in of_class.items()}
    assert mean[0] == pytest.approx(mean[1] / 2, rel=0.04)
    assert mean[2] == pytest.approx(mean[1], rel=0.04)
    for c, counts in of_class.items():
        assert max(counts) < 1.3 * mean[c]
        assert min(counts) > 0.7 * mean[c]


@pytest.mark.parametrize("world", WORLDS)
def test_ranks_share_the_same_global_batch(world):
    labels, p, k = SHAPES["uneven"]
    for _, ids in PKOrder(labels, p, k, seed=0).micro_batches(0, 9):
        parts = [share(ids, rank, world) for rank in range(world)]
        assert torch.cat(parts).tolist() == ids.tolist()
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_class_of_one_image_is_left_out_and_its_images_make_no_step():
    labels = labelled(6, 1, 6, 1, 1, 6)
    order = PKOrder(labels, 3, 2, seed=0)
    assert (order.left_out, order.steps_per_epoch) == (3, 3)
    assert set(labels[torch.cat([order.ids(0, s) for s in range(20)])].tolist()) == {0, 2, 5}
    with pytest.raises(
        DataError, match=r"classes_per_batch: 4 classes a batch, but only 3 have two images: lower"
    ):
        PKOrder(labels, 4, 2, seed=0)
    assert PKOrder(labels, 6, 1, seed=0).left_out == 0


def test_labels_beyond_two_to_the_24_are_classes_of_their_own():
    near = labelled(8, 9, 7, 3)
    far = near + 2**24
    assert len(set(far.float().tolist())) < 4
    for labels in (far, near + 2**62, near - 2**62):
        assert batches(PKOrder(labels, 3, 3, seed=0), 0, 9) == batches(
            PKOrder(near, 3, 3, seed=0), 0, 9
        )
        assert list(PKSampler(labels.tolist(), 3, 3)) == list(PKSampler(near, 3, 3))


# Cameras


SIZES = [(3, 2, 4), (1, 1, 1), (5,), (1, 9), (2, 7, 1, 1), (4, 4), (1, 1, 1, 1, 1, 6)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 12])
def test_cameras_are_as_even_as_any_choice_without_a_image_twice(sizes, k):
    """Against all ways to take images; and in turn: over many turns nothing is favoured within a
    camera.
    """
    of = [c for c, size in enumerate(sizes) for _ in range(size)]
    whole, rest = divmod(k, len(of))
    possible = itertools.product(*[range(size + 1) for size in sizes])
    best = min(sorted(t, reverse=True) for t in possible if sum(t) == rest)
    seen: Counter[int] = Counter()
    for turn in range(40):
        places = spread(sizes, k, turn)
        assert len(places) == k
        times = Counter(places)
        assert set(times.values()) <= {whole, whole + 1}
        taken = [
            sum(times[i] - whole for i in range(len(of)) if of[i] == c) for c in range(len(sizes))
        ]
        assert sorted(taken, reverse=True) == best
        if k <= len(sizes):
            assert max(Counter(of[i] for i in places).values()) == 1
        seen.update(places)
        for c in range(len(sizes)):
            of_camera = [seen[i] for i in range(len(of)) if of[i] == c]
            assert max(of_camera) - min(of_camera) <= 1


def test_cameras_of_the_same_size_come_as_often():
    for sizes, k in [((2, 2, 2), 2), ((3, 3, 3, 3), 6), ((1, 5, 5), 4)]:
        seen: Counter[int] = Counter()
        for turn in range(60):
            seen.update(spread(sizes, k, turn))
        ends = list(itertools.accumulate(sizes, initial=0))
        sums = [sum(seen[i] for i in range(a, b)) for a, b in itertools.pairwise(ends)]
        assert sums[-1] == sums[-2]


def test_no_two_images_of_one_class_and_camera_come_in_a_batch():
    labels = labelled(9, 12, 8, 10, 3)
    cameras = 2**40 + torch.arange(len(labels)) % 4
    order = PKOrder(labels, 3, 3, seed=0, cameras_N=cameras)
    for ids in batches(order, 0, 80):
        for c in labels[ids].unique().tolist():
            there = len(cameras[labels == c].unique())
            of = [int(cameras[i]) for i in ids if labels[i] == c]
            assert len(of) == 3
            assert len(set(of)) == min(3, there)
    plain = batches(PKOrder(labels, 3, 3, seed=0), 0, 80)
    assert sum(len({(int(labels[i]), int(cameras[i])) for i in ids}) < 9 for ids in plain) > 40
    for start in range(0, 80, 11):
        assert (
            batches(PKOrder(labels, 3, 3, 0, cameras_N=cameras), start, 80)
            == batches(order, 0, 80)[start:]
        )


@every_shape
def test_a_camera_a_image_is_no_rule_at_all(shape):
    labels, p, k = SHAPES[shape]
    order = PKOrder(labels, p, k, seed=1, cameras_N=torch.arange(len(labels)))
    plain = PKOrder(labels, p, k, seed=1)
    seen: Counter[int] = Counter()
    for step in range(60):
        ids = order.ids(0, step)
        assert labels[ids].tolist() == labels[plain.ids(0, step)].tolist()
        seen.update(ids.tolist())
        for c in labels.unique().tolist():
            of_class = [seen[i] for i in torch.nonzero(labels == c).flatten().tolist()]
            assert max(of_class) - min(of_class) <= 1


def test_rows_of_images_keep_their_cameras():
    known = Annotations(torch.arange(6) % 2, ("a", "b"), torch.arange(6) * 10)
    images = ArrayImages(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), known)
    assert subset(subset(images, [5, 1, 3]), [2, 0]).cameras.tolist() == [30, 50]


# In a loop of one's own


LABELS = labelled(9, 12, 8, 10, 3, 5)


def sampler(rank: int = 0, world: int = 1, **how: Any) -> PKSampler:
    return PKSampler(LABELS, 4, 3, 7, rank, world, **how)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_each_rank_gives_its_part_of_the_global_batch(world, workers):
    wanted = [PKOrder(LABELS, 4, 3, 7).ids(2, step).tolist() for step in range(3)]
    parts = []
    for rank in range(world):
        own = sampler(rank, world)
        own.set_epoch(2)
        with warnings.catch_warnings(action="ignore"):
            loader = DataLoader(list(range(len(LABELS))), batch_sampler=own, num_workers=workers)
        assert len(loader) == 3
        parts.append([batch.tolist() for batch in loader])
    assert [list(itertools.chain(*together)) for together in zip(*parts, strict=True)] == wanted


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
@pytest.mark.parametrize("sets", [True, False], ids=["set_epoch", "alone"])
def test_a_loop_goes_on_in_mid_epoch_on_another_number_of_ranks(stop, sets):
    whole = sampler()
    wanted = [ids for _ in range(3) for ids in whole]
    first, seen = sampler(), []
    for epoch in range(2):
        if sets:
            first.set_epoch(epoch)
        steps = iter(first)
        seen += [next(steps) for _ in range(3 if epoch == 0 else stop)]
        if epoch == 0:
            assert next(steps, None) is None
    state = first.state_dict()
    for world in (1, 2):
        parts = []
        for rank in range(world):
            again, rest = sampler(rank, world), []
            again.load_state_dict(state)
            for epoch in range(1, 3):
                if sets:
                    again.set_epoch(epoch)
                rest += list(again)
            parts.append(rest)
        assert (
            seen + [list(itertools.chain(*together)) for together in zip(*parts, strict=True)]
            == wanted
        )


def test_a_loop_that_counts_its_own_steps_starts_where_it_says():
    own = sampler()
    wanted = [ids for _ in range(2) for ids in own]
    own.set_epoch(1, start=2)
    assert list(own) == wanted[5:]
    own.set_epoch(1, start=0)
    assert list(own) == wanted[3:]


def test_no_global_generator_is_touched():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(sampler())
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpy_before


def test_singles_are_warned_of_and_cameras_are_kept_apart():
    labels = [5, 5, 5, 7, 7, 7, 9]
    with pytest.warns(UserWarning, match="^1 classes have one image and are left out$"):
        own = PKSampler(labels, 2, 2, cameras=[0, 0, 1, 0, 1, 1, 0])
    for batch in (ids for _ in range(5) for ids in own):
        assert {2, 3} < set(batch)


@pytest.mark.parametrize(
    ("wrong", "pattern"),
    [
        (
            {"labels": [0.0, 1.0]},
            r"labels: torch\.float32 of shape \(2,\): give one whole number an image",
        ),
        (
            {"labels": torch.zeros(3, 2, dtype=torch.int64)},
            r"labels: torch\.int64 of shape \(3, 2\)",
        ),
        ({"labels": []}, "labels"),
        (
            {"labels": [0, 0, 1, 1], "classes": 3},
            "3 classes a batch, but only 2 are trained on: lower it",
        ),
        ({"classes": 0}, "0 classes × 2 images are no batch"),
        ({"cameras": [0, 1]}, "cameras: 2 for 4 labels"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"world": 9}, "rank 0 of 9, batches of 4: each rank needs an image"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(wrong, pattern):
    with pytest.raises((DataError, RunError), match=pattern) as caught:
        PKSampler(**{"labels": [0, 0, 1, 1], "classes": 2, "per_class": 2, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 1}, {"epoch": -1, "step": 0}, {"epoch": 0, "step": 4}]
)
def test_a_state_that_is_no_place_is_refused(state):
    with pytest.raises(RunError, match="no place in epochs of 3 steps"):
        sampler().load_state_dict(state)


# In a training


WORDS = (
    "finetune.epochs=2",
    "finetune.classes_per_batch=2",
    "finetune.per_class=40",
    "finetune.cameras=distinct",
    "finetune.warmup_epochs=0.2",
)


def filmed(self: Digits, name: str, size: int | None = None) -> Any:
    """Digits seen by five cameras."""
    images = SPLIT(self, name, size)
    cameras_N = torch.arange(len(images)) % 5
    images.annotations = images.annotations._replace(cameras=cameras_N)
    return images


SPLIT = Digits.split


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "split", filmed)
        return toy.tuned(tmp_path_factory.mktemp("whole"), *WORDS)


@pytest.mark.parametrize("step", [2, 8, 12])
def test_a_training_stopped_in_mid_round_goes_on_bit_for_bit(tmp_path, monkeypatch, whole, step):
    """Nine steps an epoch, two a round of the five classes, one of which sits out."""
    monkeypatch.setattr(Digits, "split", filmed)
    with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped):
        toy.tuned(tmp_path, *WORDS)
    assert len(toy.curve(tmp_path / "finetune")) == step
    run, last = toy.tuned(tmp_path, *WORDS), len(toy.curve(whole))
    assert not (tmp_path / "finetune.1").exists()
    assert toy.curve(run) == toy.curve(whole)
    assert toy.same(toy.tensors(run, last), toy.tensors(whole, last))


def test_cameras_that_nobody_knows_cannot_be_distinct(tmp_path):
    with pytest.raises(
        DataError, match=r"finetune\.cameras: distinct, but these images name no cameras: remove it"
    ):
        lookalike.run(toy.recipe("finetune.cameras=distinct"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("word", "apart"), [("distinct", True), ("any", False)])
def test_a_recipe_says_whether_cameras_are_kept_apart(monkeypatch, word, apart):
    monkeypatch.setattr(Digits, "split", filmed)
    settings = toy.recipe(f"finetune.cameras={word}", "finetune.per_class=5").section(Finetune)
    images = Digits().split("train")
    ids = make_order(settings, images, images.labels, 0).ids(0, 0)
    assert all(len(of.unique()) == 5 for of in images.cameras[ids].view(4, 5)) is apart
