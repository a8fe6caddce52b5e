"""Class splits: published ones as they are, others by share, nothing in both; one rule for
training, scores, checks.
"""

from typing import Any

import pytest
import torch

import lookalike
import toy
from lookalike.data.images import Annotations, ArrayImages
from lookalike.data.sources import Digits
from lookalike.errors import DataError, RecipeError
from lookalike.metric.classes import first_unseen, of_classes, split_classes

NAMES = tuple("abcdefghij")


def images(labels: list[int] | None, names: tuple[str, ...] = NAMES) -> ArrayImages:
    """One pixel each, that says which image it is."""
    n = len(labels) if labels is not None else 3
    pixels = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ArrayImages(
        pixels, Annotations(labels if labels is None else torch.tensor(labels), names)
    )


def pixels(found: Any) -> list[int]:
    return found.read_many(range(len(found))).flatten().tolist()


@pytest.mark.parametrize(("held_out", "seen"), [(0.5, 5), (0.3, 7), (0.8, 2)])
def test_of_shared_classes_the_first_are_seen_and_the_last_are_not(held_out, seen):
    train, test = Digits().split("train"), Digits().split("test")
    found = split_classes(train, test, held_out)
    assert first_unseen(10, held_out) == found.classes == seen
    assert torch.equal(found.labels_N, train.labels[train.labels < seen])
    assert torch.equal(found.unseen.labels, test.labels[test.labels >= seen])
    assert found.seen.fingerprint == of_classes(train, range(seen))[0].fingerprint


def test_without_a_share_half_of_shared_classes_is_held_out():
    train, test = Digits().split("train"), Digits().split("test")
    one, other = split_classes(train, test), split_classes(train, test, 0.5)
    assert one.seen.fingerprint == other.seen.fingerprint
    assert one.unseen.fingerprint == other.unseen.fingerprint


@pytest.mark.parametrize(("count", "held_out"), [(10, 0.9), (10, 0.05), (3, 0.5), (0, 0.5)])
def test_a_split_that_leaves_one_class_on_a_side_is_refused(count, held_out):
    with pytest.raises(DataError, match="fewer than 2 on one side"):
        first_unseen(count, held_out)


def test_divided_classes_stay_divided_and_labels_are_numbered_without_gaps():
    """Market-1501's way: identities with gaps, train and test mixed in one numbering, junk -1 on
    both sides.
    """
    train, test = images([7, 2, 7, 5, -1, 2]), images([6, 1, -1, 9, 6])
    found = split_classes(train, test)
    assert pixels(found.seen) == [0, 1, 2, 3, 5]
    assert found.labels_N.tolist() == [2, 0, 2, 1, 0]
    assert found.labels_N.dtype == torch.int64
    assert found.classes == 3
    assert found.seen.labels.tolist() == [7, 2, 7, 5, 2]
    assert found.unseen is test


def test_shared_classes_without_images_leave_no_gap_and_those_of_test_alone_are_unseen():
    train, test = images([0, 3, 3, 4, 8, -1], NAMES[:9]), images([0, 3, 6, 8, 9, -1])
    found = split_classes(train, test)
    assert found.labels_N.tolist() == [0, 1, 1, 2]
    assert found.seen.labels.tolist() == [0, 3, 3, 4]
    assert found.unseen.labels.tolist() == [6, 8, 9]


@pytest.mark.parametrize(
    ("train", "test", "held_out", "pattern"),
    [
        (
            [0, 1, 2],
            [3, 4],
            0.5,
            r"finetune\.held_out: 0\.5, but train and test share no class: .* delete it",
        ),
        ([0, 0], [3, 4], None, "only one class to train on: fine-tuning needs two"),
        ([-1, -1], [3, 4], None, "no image of the classes"),
        (None, [1], None, "need labels"),
        ([0, 1], None, None, "need labels"),
    ],
)
def test_what_cannot_be_divided_is_refused_in_one_line(train, test, held_out, pattern):
    with pytest.raises(DataError, match=pattern) as caught:
        split_classes(images(train), images(test), held_out)
    assert "\n" not in str(caught.value)


# In a run

SPLIT = Digits.split


@pytest.fixture
def divided(monkeypatch) -> None:
    """Digits as a published set: 0, 3, 5, 6 and 8 in train, the others in test."""

    def split(self: Digits, name: str, size: int | None = None) -> Any:
        whole = SPLIT(self, name, size)
        mine = [0, 3, 5, 6, 8] if name == "train" else [1, 2, 4, 7, 9]
        rows = torch.isin(whole.labels, torch.tensor(mine)).nonzero().flatten()
        return whole.rows(rows)

    monkeypatch.setattr(Digits, "split", split)


def test_fine_tuning_preflight_and_scores_keep_to_the_published_split(tmp_path, divided):
    words = ("pretrain.epochs=1", "probe=null", "export=null", "finetune.objective=ProxyAnchorLoss")
    recipe = toy.recipe(*words, "finetune.classes_per_batch=5", backbone=toy.VIT)
    run = lookalike.run(recipe, tmp_path / "run")
    manifest = max((run / "finetune/checkpoints").glob("step_*")).name
    held = toy.tensors(run / "finetune", int(manifest.split("_")[1]))
    assert len(held["model:objective.terms.0.loss.proxies"]) == 5
    assert set(toy.scored(recipe).labels.tolist()) == {1, 2, 4, 7, 9}
    assert (
        len(toy.curve(run / "finetune"))
        == int((SPLIT(Digits(), "train").labels >= 0).sum()) // 2 // 40
    )


@pytest.mark.parametrize(
    "stage", [lookalike.run, lambda r, out: toy.scored(r), lambda r, out: tune(r, out)]
)
def test_a_share_of_a_divided_set_is_refused_by_every_stage(tmp_path, divided, stage):
    with pytest.raises(
        DataError, match=r"finetune\.held_out: 0\.3, but train and test share no class"
    ):
        stage(toy.recipe("finetune.held_out=0.3"), tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def tune(recipe: Any, out: Any) -> Any:
    return lookalike.finetune(toy.architecture().build(), recipe, out)


@pytest.mark.parametrize("test", [[0, 1, 2], [3, 4]])
def test_with_nothing_held_out_every_class_is_trained_on_and_all_of_test_is_scored(test):
    train = images([2, 0, 1, 1, 0])
    found = split_classes(train, images(test), 0.0)
    assert found.labels_N.tolist() == [2, 0, 1, 1, 0]
    assert found.unseen.labels.tolist() == test


@pytest.mark.parametrize("value", ["-0.1", "1", "half"])
def test_a_share_is_between_nothing_and_everything(value):
    with pytest.raises(RecipeError, match=r"finetune\.held_out"):
        toy.recipe(f"finetune.held_out={value}")
