"""The finished fits of a sweep over l2, kept in a folder, so that a killed probe goes on after the
last one.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike import comm
from lookalike.checkpoint.kept import keep, kept
from lookalike.scoring.linear.problem import Linear
from lookalike.scoring.linear.rows import Rows

VERSION = 1
"""Of the solver: other ones would go on from other fits."""

NAMES = ("weight_CD", "bias_C", "mean_D", "std_D")


class Kept:
    """Fits by l2, under a name that stands for the features, the labels and `words`; nothing where
    `folder` is None.
    """

    def __init__(
        self, folder: Path | None, features_ND: Tensor, labels_N: Tensor, words: Sequence[Any]
    ) -> None:
        self._folder = folder
        self._device = features_ND.device
        self._key = "" if folder is None else digest(features_ND, labels_N, words)

    def _path(self, l2: float) -> Path | None:
        return self._folder and self._folder / f"linear-{self._key[:32]}-{l2!r}.safetensors"

    def read(self, l2: float) -> Linear | None:
        """The fit of this l2, on every rank, None where there is none that is whole."""
        found = kept(self._path(l2))
        if found is None:
            return None
        w_CD, b_C, mean_D, std_D = (found.tensors[name].to(self._device) for name in NAMES)
        return Linear(w_CD, b_C, mean_D, std_D, found.about["converged"])

    def write(self, l2: float, head: Linear) -> Linear:
        """Keeps a fit, and gives it back."""
        tensors = {name: getattr(head, name) for name in NAMES}
        keep(self._path(l2), tensors, {"converged": head.converged})
        return head

    def clear(self) -> None:
        """Removes the fits, the probe being done; those of other probes stay."""
        if self._folder is not None and comm.rank() == 0:
            for path in self._folder.glob(f"linear-{self._key[:32]}-*.safetensors"):
                path.unlink(missing_ok=True)


def digest(features_ND: Tensor, labels_N: Tensor, words: Sequence[Any]) -> str:
    """A name of all that a fit depends on; ranks share the reading."""
    rows, whole = Rows(features_ND), hashlib.sha256()
    sums = [_bytes_sum(rows.part(block)) for block in comm.consecutive(rows.blocks())]
    for each in comm.gather_objects(sums):
        whole.update("".join(each).encode())
    about = (VERSION, tuple(features_ND.shape), str(features_ND.dtype), *words)
    whole.update(repr(about).encode() + _bytes_sum(labels_N).encode())
    return whole.hexdigest()


def _bytes_sum(x: Tensor) -> str:
    flat = x.cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()
