"""Numbered pictures, labelled or not: in memory, in files, or some rows of other pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lookalike.data.images.arrays import ArrayPictures
from lookalike.data.images.contract import Fit, Pairs, Pictures, Roles
from lookalike.data.images.encoded import Encoded, Rows
from lookalike.data.images.files import FilePictures, file_states

__all__ = ["ArrayPictures", "FilePictures", "Fit", "Pairs", "Pictures", "Roles", "file_states", "subset"]


def subset(pictures: Pictures, ids: Sequence[int] | Tensor) -> Pictures:
    """The rows `ids`, in that order, labels and classes as they are; a subset of an array is an array."""
    ids_N = torch.as_tensor(ids, dtype=torch.int64)
    if isinstance(pictures, Encoded):
        return Rows(pictures, ids_N)
    if isinstance(pictures, ArrayPictures):
        return pictures.rows(ids_N)
    raise TypeError(f"{type(pictures).__name__} is neither ArrayPictures nor Encoded")
