"""What the ranks of a machine would each find out for themselves, found by one of them: the others
map what it found.

Of ranks on several machines one a machine lists; every file is asked for its size by the first rank
alone, where the others list the same folders on the same file system. Nothing is believed of a rank
that looks from elsewhere: another container, working folder, home or recipe lists for itself.
"""

import contextlib
import io
import os
import pickle
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lookalike import comm
from lookalike.data.images import FileImages, Images, MaskedImages
from lookalike.data.images.encoded import Subset
from lookalike.data.mapped import mapped, places
from lookalike.data.passport import portable
from lookalike.errors import Error

T = TypeVar("T")

_ALIGNED = 64


class Handed(NamedTuple):
    """What was found, but for its arrays; the file that holds these, by its device and inode, and
    where they lie in it. No file says what is made of it: that comes from a rank.
    """

    rest: bytes
    path: str
    identity: tuple[int, int]
    spans: list[tuple[int, int]]


class Answer(NamedTuple):
    """What a rank got: found by itself or by another, and why not, empty where all went well."""

    found: Any
    why: str


def found_once(find: Callable[[], T], sets: Callable[[T], Sequence[Images]], what: str) -> Answer:
    """What `find` gives, on every rank, called by one rank of each machine; None where a rank has
    to find it itself. `sets` are the images in it, which are asked for their `passport`; `what`:
    what is looked for, as the recipe says it.

    All ranks call it. An error of `find` is not raised, since whoever asks again meets it.
    """
    seats = comm.gather_objects(_seat(what))
    leaders = [seats.index(seat) for seat in seats]
    leads = leaders[comm.rank()] == comm.rank()
    found = _tried(find) if leads else None
    if comm.rank() == 0 and found is not None:
        _ask(sets(found))
    comm.barrier(patient=True)
    told = comm.broadcast_object(_told(sets(found)) if comm.rank() == 0 and found else {})
    if leads and comm.rank() and found is not None:
        _believe(sets(found), told)
        _ask(sets(found))
    followed = leads and leaders.count(comm.rank()) > 1
    handed, why = _handed(found) if followed and found is not None else (None, "")
    comm.barrier(patient=True)
    every: list[tuple[Handed | None, str]] = comm.gather_objects((handed, why))
    if not leads:
        handed, why = every[leaders[comm.rank()]]
        found, why = _taken(handed) if handed else (None, why)
    whys = comm.gather_objects(why)
    if handed and leads:
        Path(handed.path).unlink(missing_ok=True)
    return Answer(found, next(filter(None, whys), ""))


def _seat(what: str) -> tuple[Any, ...]:
    """The same for ranks that see the same files by the same names."""
    here = os.stat(".")  # noqa: PTH116 (the folder itself, whatever it is called)
    kernel = [socket.gethostname()]
    for place in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/mnt"):
        with contextlib.suppress(OSError):
            kernel.append(os.readlink(place) if "/ns/" in place else Path(place).read_text())  # noqa: PTH115
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    return (*kernel, here.st_dev, here.st_ino, os.environ.get("HOME"), user, what)


def _tried(find: Callable[[], T]) -> T | None:
    try:
        return find()
    except Error:
        return None


def _ask(sets: Sequence[Images]) -> None:
    """Finds out what every rank will want to know of the images, while others wait."""
    for images in sets:
        with contextlib.suppress(Error, OSError):
            portable(images)


def _files(sets: Sequence[Images]) -> Iterator[FileImages]:
    for images in sets:
        whole = images.whole if isinstance(images, Subset) else images
        if isinstance(whole, FileImages) and not isinstance(whole, MaskedImages):
            yield whole


def _told(sets: Sequence[Images]) -> dict[str, tuple[str, str]]:
    return {files.mark: files.digests for files in _files(sets) if files.mark}


def _believe(sets: Sequence[Images], told: dict[str, tuple[str, str]]) -> None:
    for files in _files(sets):
        if files.mark in told:
            files.believe(told[files.mark])


class _Pickler(pickle.Pickler):
    """Tensors on the host are told as arrays, whose bytes stay outside."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type == "cpu":
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return NotImplemented


def _handed(found: Any) -> tuple[Handed | None, str]:
    """Writes it for the other ranks of the machine; or says why not."""
    outside: list[pickle.PickleBuffer] = []
    inside = io.BytesIO()
    try:
        _Pickler(inside, 5, buffer_callback=outside.append).dump(found)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        return None, f"{type(found).__name__}: {error}"
    why = "no folder for temporary files"
    for place in places():
        try:
            return Handed(inside.getvalue(), *_written(place, [each.raw() for each in outside])), ""
        except OSError as error:
            why = f"{place}: {error.strerror or error}"
    return None, why


def _written(
    place: Path, parts: Sequence[memoryview]
) -> tuple[str, tuple[int, int], list[tuple[int, int]]]:
    """Path, identity and spans. Raises OSError, and leaves nothing, where the place has no room."""
    handle, path = tempfile.mkstemp(prefix="lookalike-found-", dir=place)
    spans, at = [], 0
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                at += file.write(bytes(-at % _ALIGNED))
                spans.append((at, part.nbytes))
                at += file.write(part)
            status = os.fstat(file.fileno())
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise
    return path, (status.st_dev, status.st_ino), spans


def _taken(handed: Handed) -> tuple[Any, str]:
    """What another rank of this machine wrote; or why it cannot be had."""
    try:
        with open(handed.path, "rb", opener=_unlinked) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != handed.identity or _foreign(status):
                return None, f"{handed.path}: another file"
            whole = mapped(file)
    except (OSError, ValueError) as error:
        return None, f"{handed.path}: {getattr(error, 'strerror', None) or error}"
    arrays = [_piece(whole, span) for span in handed.spans]
    return pickle.loads(handed.rest, buffers=arrays), ""


def _unlinked(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _foreign(status: os.stat_result) -> bool:
    return hasattr(os, "geteuid") and status.st_uid != os.geteuid()


def _piece(whole: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    return whole[span[0] : span[0] + span[1]]
