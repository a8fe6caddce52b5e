"""What images say beside their pixels goes with them into every subset, whatever keeps them."""

import pickle

import pytest
import torch

from lookalike.data.images import (
    Annotations,
    ArrayImages,
    FileImages,
    Pairs,
    QueryGallery,
    Reading,
    subset,
)
from lookalike.geometry import PixelFormat

COUNT = 6


def known() -> Annotations:
    roles = QueryGallery(torch.arange(COUNT) < 2, torch.arange(COUNT) > 0)
    pairs = Pairs(
        torch.tensor([[0, 5], [1, 2], [5, 3]]), torch.tensor([1, 0, 1]).bool(), torch.arange(3)
    )
    return Annotations(
        torch.arange(COUNT) % 2,
        ("a", "b"),
        torch.arange(COUNT) * 10,
        roles,
        pairs,
        torch.arange(COUNT) // 2,
        torch.arange(COUNT)[:, None] % 3 == torch.arange(2),
    )


def array(annotations):
    pixels = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ArrayImages(pixels, annotations)


def files(annotations):
    paths = [f"{i}.png" for i in range(COUNT)]
    return FileImages("/nowhere", paths, Reading(8, PixelFormat(1)), annotations)


def plain(annotations):
    """The same as lists, which can be compared."""
    return [
        [part.tolist() for part in field]
        if isinstance(field, QueryGallery | Pairs)
        else field.tolist()
        if isinstance(field, torch.Tensor)
        else field
        for field in annotations
    ]


@pytest.mark.parametrize("make", [array, files])
def test_every_annotation_follows_the_rows_of_a_subset_of_a_subset(make):
    images = make(known())
    some = subset(subset(images, [5, 4, 3, 0]), [3, 0, 2])  # 0, 5, 3
    assert plain(some.annotations) == [
        [0, 1, 1],
        ("a", "b"),
        [0, 50, 30],
        [[True, False, False], [False, True, True]],
        [[[0, 1], [1, 2]], [True, True], [0, 2]],
        [0, 2, 1],
        [[True, False], [False, False], [True, False]],
    ]
    for name in Annotations._fields:
        assert getattr(some, name) is getattr(some.annotations, name)
    assert plain(pickle.loads(pickle.dumps(some)).annotations) == plain(some.annotations)
    assert plain(images.annotations) == plain(known())


@pytest.mark.parametrize("make", [array, files])
def test_of_what_says_nothing_a_subset_says_nothing(make):
    some = subset(make(Annotations()), [1, 0])
    assert some.annotations == (None, (), None, None, None, None, None)


def test_pairs_of_which_one_is_missing_go_and_none_that_stays_is_none():
    assert known().of(torch.tensor([0, 1])).pairs is None


def test_labels_of_an_array_are_int64_and_as_many_as_its_rows():
    images = array(Annotations(torch.zeros(COUNT, dtype=torch.uint8)))
    assert images.labels.dtype == torch.int64
    with pytest.raises(ValueError, match="5 labels for 6 images"):
        array(Annotations(torch.zeros(5)))
