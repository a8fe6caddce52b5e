"""Numbered images, labelled or not: in memory, in files, in clips, or some rows of other images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike.data.images.arrays import ArrayImages
from lookalike.data.images.contract import (
    NOTHING,
    Annotations,
    Fit,
    Images,
    Pairs,
    QueryGallery,
    Reading,
)
from lookalike.data.images.encoded import EncodedImages, Subset
from lookalike.data.images.files import FileImages, file_states
from lookalike.data.images.masked import LayeredImages, MaskedImages
from lookalike.data.images.video import VideoImages

__all__ = [
    "NOTHING",
    "Annotations",
    "ArrayImages",
    "FileImages",
    "Fit",
    "Images",
    "LayeredImages",
    "MaskedImages",
    "Pairs",
    "QueryGallery",
    "Reading",
    "file_states",
    "subset",
]


def subset(images: Images, ids: Sequence[int] | Tensor) -> Images:
    """The rows `ids`, in that order, with their annotations; a subset of an array is an
    array.
    """
    ids_N = torch.as_tensor(ids, dtype=torch.int64)
    if isinstance(images, MaskedImages | LayeredImages):
        return images.rows(ids_N)
    if isinstance(images, EncodedImages):
        return Subset(images, ids_N)
    if isinstance(images, ArrayImages | VideoImages):
        return images.rows(ids_N)
    raise TypeError(f"{type(images).__name__} is none of ours")
