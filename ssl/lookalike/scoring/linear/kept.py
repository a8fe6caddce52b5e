"""The finished fits of a sweep over l2, kept in a folder, so that a killed probe goes on after the
last one.
"""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lookalike import comm
from lookalike.errors import RunError
from lookalike.folder import write_file
from lookalike.scoring.linear.problem import Linear
from lookalike.scoring.linear.rows import Rows

VERSION = 1
"""Of the solver: other ones would go on from other fits."""

NAMES = ("weight_CD", "bias_C", "mean_D", "std_D")


class Kept:
    """Fits by l2, under a name that stands for the features, the labels and `words`; nothing where
    `folder` is None.

    Rank 0 writes and reads, and tells the others: no file need be seen by two machines.
    """

    def __init__(
        self, folder: Path | None, features_ND: Tensor, labels_N: Tensor, words: Sequence[Any]
    ) -> None:
        self._folder = folder
        self._device, self._dtype = features_ND.device, Rows(features_ND).dtype
        self._shape = int(labels_N.max()) + 1, features_ND.shape[1]
        self._key = "" if folder is None else digest(features_ND, labels_N, words)

    def _path(self, l2: float) -> Path:
        assert self._folder is not None
        return self._folder / f"linear-{self._key[:32]}-{l2!r}.safetensors"

    def read(self, l2: float) -> Linear | None:
        """The fit of this l2, on every rank, None where there is none that is whole."""
        if self._folder is None:
            return None
        found = _load(self._path(l2)) if comm.rank() == 0 else None
        about = found is not None, bool(found and found.converged)
        there, converged = comm.broadcast_object(about)
        if not there:
            return None
        classes, width = self._shape
        shapes = ((classes, width), (classes,), (width,), (width,))
        tensors = found[:4] if found else (torch.zeros(s, dtype=self._dtype) for s in shapes)
        device = Rows(torch.empty(0, device=self._device)).device
        w_CD, b_C, mean_D, std_D = (comm.all_sum(x.to(device)).to(self._device) for x in tensors)
        return Linear(w_CD, b_C, mean_D, std_D, converged)

    def write(self, l2: float, head: Linear) -> Linear:
        """Keeps a fit, and gives it back. Where it cannot be kept, as on a full disk, that is said,
        and nothing is lost.
        """
        if self._folder is not None and comm.rank() == 0:
            tensors = {name: getattr(head, name).cpu().contiguous() for name in NAMES}
            about = {"converged": str(head.converged), "sha256": _sum(tensors)}
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_file(self._path(l2), save(tensors, about))
            except (RunError, OSError) as error:
                warnings.warn(f"{error}: this fit of the probe is not kept", stacklevel=2)
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


def _sum(tensors: dict[str, Tensor]) -> str:
    return hashlib.sha256("".join(_bytes_sum(tensors[name]) for name in NAMES).encode()).hexdigest()


def _load(path: Path) -> Linear | None:
    """A fit as it was written; None where it is not whole: it is then made again."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in NAMES}
    except Exception:  # absent, cut short, no safetensors: all the same
        return None
    if about.get("sha256") != _sum(tensors):
        return None
    w_CD, b_C, mean_D, std_D = (tensors[name] for name in NAMES)
    return Linear(w_CD, b_C, mean_D, std_D, about.get("converged") == "True")
