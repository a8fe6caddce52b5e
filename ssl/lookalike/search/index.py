"""Images embedded once, to be searched: a folder with their embeddings, their names and the model
itself.

`embeddings.npy`, float32 (N, D), is mapped and not loaded; `lengths.safetensors` holds what a
search needs to know of every row; `names.json` and `seen.json` say whose rows they are and of which
state of the images; `cells.safetensors` is there for approximate search. The other files are the
model's own, so that queries go through the very weights of the images: the folder is a model's
folder as well.
"""

import io
import json
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from lookalike import comm
from lookalike.data.decode import BadImage, contents, decode
from lookalike.data.images import Fit
from lookalike.errors import BackboneError, DataError, NewerError, RunError, printable
from lookalike.evaluation.features import embedder
from lookalike.folder import read_manifest, recover, write_folder
from lookalike.geometry import Distance
from lookalike.models import Backbone
from lookalike.models.card import weights_digest
from lookalike.models.embedding import Embedding, open_model
from lookalike.models.stored import mapped
from lookalike.scoring.ivf import InvertedLists, nearest_in_lists, train_ivf
from lookalike.scoring.search import nearest
from lookalike.scoring.similarity import Frame, frame

FORMAT = 1
ROWS, NAMES, SEEN, CELLS = "embeddings.npy", "names.json", "seen.json", "cells.safetensors"
LENGTHS = "lengths.safetensors"
"""Not in an index of before version 0.2, which is measured when it is first searched."""

Model = Backbone | Embedding


class Seen(NamedTuple):
    """What the images were when they were embedded: the state of each row's, and those that could
    not be read.

    A state is a word that changes when an image does; `bad` has state and reason of each name.
    """

    states: list[str]
    bad: dict[str, tuple[str, str]]


class SearchIndex:
    """Embedded images: x_ND float32 (N, D) with N names, and the model, in eval mode, that made
    them of canvases.

    `canvas`: their height and width, `fit`: how images became them; `root`: the folder below which
    the names are, or empty; `digest`: stands for the model it was built with.
    """

    def __init__(
        self,
        model: Model,
        x_ND: Tensor,
        names: Sequence[str],
        *,
        canvas: tuple[int, int],
        fit: Fit = "crop",
        root: str = "",
        digest: str = "",
        cells: InvertedLists | None = None,
        frame: Frame | None = None,
    ) -> None:
        self.model, self.x_ND, self.names, self.cells = model, x_ND, names, cells
        self._frame = frame
        self.canvas, self.fit = canvas, fit
        self.root, self.digest = root, digest or weights_digest(model)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def distance(self) -> Distance:
        """How its embeddings are compared."""
        return self.model.distance

    @property
    def frame(self) -> Frame:
        """The lengths of its rows, as they were kept or are found now. Raises Error where one is
        NaN or Inf.
        """
        if self._frame is None:
            self._frame = frame(self.x_ND, self.distance)
        return self._frame

    def path(self, row: int) -> str:
        """Where the image of this row lies, or lay."""
        return f"{self.root}/{self.names[row]}" if self.root else self.names[row]

    @torch.inference_mode()
    def embed(self, paths: Sequence[str]) -> Tensor:
        """Image files (Q of them) -> (Q, D), by the test-time view. Raises DataError for what is no
        image.
        """
        device = comm.exact_device()
        try:
            how: dict[str, Any] = {
                "size": self.canvas,
                "form": self.model.architecture.form,
                "whole": self.fit == "squash",
            }
            canvases = [decode(contents(path), path, **how) for path in paths]
        except BadImage as error:
            raise DataError(f"{error}: a query is an image file") from error
        function = embedder(self.model.to(device), self.model.architecture)
        return function(torch.stack(canvases).to(device)).float().cpu()

    def nearest(
        self, query_QD: Tensor, k: int = 10, *, approximate: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Rows (Q, k) and cosine similarity, or Euclidean distance; see
        `scoring.search.nearest`.
        """
        how: dict[str, Any] = {"distance": self.distance, "known": self.frame}
        if not approximate:
            return nearest(query_QD, self.x_ND, k, **how)
        if self.cells is None:
            self.cells = train_ivf(self.x_ND, self.distance)
        return nearest_in_lists(query_QD, self.x_ND, k, self.cells, **how)


def write_index(folder: Path, index: SearchIndex, seen: Seen) -> None:
    """The folder of an index, whole or not at all. Raises RunError as write_folder does."""
    rows = io.BytesIO()
    np.save(rows, index.x_ND.numpy(), allow_pickle=False)
    files = index.model.files() | {
        ROWS: rows.getvalue(),
        NAMES: json.dumps(index.names).encode(),
        SEEN: json.dumps(seen._asdict()).encode(),
        LENGTHS: save(index.frame._asdict()),
    }
    if index.cells is not None:
        files[CELLS] = save(index.cells._asdict())
    about = {
        "format": FORMAT,
        "canvas": list(index.canvas),
        "fit": index.fit,
        "root": index.root,
        "model": index.digest,
    }
    write_folder(folder, files, {"index": about})


def open_index(folder: str | Path) -> SearchIndex:
    """The index in a folder, after every file was found whole.

    Raises RunError when it is none, of a later format or inconsistent, BackboneError when a file is
    not as written.
    """
    folder = Path(folder)
    recover(folder)
    if not folder.exists():
        raise RunError(
            f"{printable(folder)}: no such index: --from FOLDER --model FOLDER|NAME would make it"
        )
    manifest = read_manifest(folder)
    about, files = manifest.get("index"), manifest["files"]
    if not isinstance(about, dict) or not {ROWS, NAMES, SEEN} <= files.keys():
        raise RunError(
            f"{printable(folder)}: not an index that `lookalike search` wrote: name another folder"
        )
    if about.get("format") != FORMAT:
        written = printable(str(about.get("format"))[:20])
        raise NewerError(
            f"{printable(folder)}: index format {written}, this version reads {FORMAT}: update "
            "lookalike"
        )
    model = open_model(folder, None)
    try:
        index = SearchIndex(
            model,
            _mapped(folder / ROWS),
            json.loads((folder / NAMES).read_bytes()),
            canvas=(*(_checked(side, int) for side in _checked(about["canvas"], list)),),
            fit=_checked(about["fit"], str),
            root=_checked(about["root"], str),
            digest=_checked(about["model"], str),
            cells=InvertedLists(**mapped(folder / CELLS)) if CELLS in files else None,
            frame=Frame(**mapped(folder / LENGTHS)) if LENGTHS in files else None,
        )
        _check(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, BackboneError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        raise RunError(
            f"{printable(folder)}: not a whole index ({reason}): build it again"
        ) from error
    return index


def read_seen(folder: Path, count: int) -> Seen:
    """Of which state of its `count` images an opened index is. Raises RunError when that is not to
    be understood.
    """
    try:
        found = json.loads((folder / SEEN).read_bytes())
        bad = {
            str(name): (str(state), str(reason)) for name, (state, reason) in found["bad"].items()
        }
        states = [_checked(state, str) for state in found["states"]]
        if len(states) != count:
            raise ValueError(f"{len(states)} states")
        return Seen(states, bad)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{printable(folder / SEEN)}: not as `lookalike search` writes it: build the index "
            "again"
        ) from error


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} wanted, not {type(value).__name__}")
    return value


def _mapped(path: Path) -> Tensor:
    """A matrix of float32 in a file, of which only what is looked at is read; changing it does not
    change the file.
    """
    try:
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
    except (
        EOFError,
        SyntaxError,
        tokenize.TokenError,
    ) as error:  # numpy reads the header as Python text
        raise ValueError(f"{path.name} has a damaged header") from error
    if (
        rows.dtype != np.dtype("<f4")
        or rows.ndim != 2
        or 0 in rows.shape
        or not rows.flags.c_contiguous
    ):
        raise ValueError(f"{path.name} is no matrix of float32")
    return torch.from_numpy(rows)


def _check(index: SearchIndex) -> None:
    """Raises ValueError or TypeError unless the parts fit each other."""
    count, width = index.x_ND.shape
    if _checked(index.names, list) and not all(type(name) is str for name in index.names):
        raise TypeError("a name is no text")
    if len(index.names) != count or index.model.dim != width:
        raise ValueError(
            f"{len(index.names)} names, {index.model.dim} features for a matrix of {count} x "
            f"{width}"
        )
    if (
        len(index.canvas) != 2
        or not all(1 <= side <= 4096 for side in index.canvas)
        or index.fit not in get_args(Fit)
    ):
        raise ValueError(f"canvas {index.canvas}, fit {index.fit!r}")
    if index._frame is not None:
        _check_frame(index._frame, count, width)
    if index.cells is None:
        return
    centre_CD, row_N, start_C1 = index.cells
    whole = row_N.dtype == start_C1.dtype == torch.int64 and centre_CD.dtype == torch.float32
    if (
        not whole
        or centre_CD.ndim != 2
        or centre_CD.shape[1] != width
        or start_C1.shape != (len(centre_CD) + 1,)
    ):
        raise ValueError("cells of another matrix")
    if not bool(centre_CD.isfinite().all()):
        raise ValueError("a centre of cells is not finite")
    if row_N.shape != (count,) or not torch.equal(row_N.sort().values, torch.arange(count)):
        raise ValueError("cells do not hold every row once")
    if int(start_C1[0]) != 0 or int(start_C1[-1]) != count or bool((start_C1.diff() < 0).any()):
        raise ValueError("cells do not follow one another")


def _check_frame(kept: Frame, count: int, width: int) -> None:
    """Raises ValueError unless these are lengths of so many rows."""
    shapes = [tuple(part.shape) for part in kept]
    if shapes != [(count,), (width,), ()] or any(part.dtype != torch.float64 for part in kept):
        raise ValueError("lengths of another matrix")
    whole = all(bool(part.isfinite().all()) for part in kept)
    if not whole or bool((kept.length_N < 0).any()) or float(kept.unit) <= 0:
        raise ValueError("a length is no number of at least 0")
