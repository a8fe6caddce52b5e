"""The samples of one tar shard in the WebDataset layout: where each image lies, its crc32 and its
label. Found in one pass (members.py), then kept: in `SHARD.idx` beside it by `lookalike pack`, else
in the user's cache.
"""

import contextlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lookalike.data import cache
from lookalike.data.folders.index import os_errors_as
from lookalike.data.outside import opened
from lookalike.data.webdataset.keys import MOST_CLASSES, NO_LABEL, Keys
from lookalike.data.webdataset.members import Samples, read_samples
from lookalike.errors import printable
from lookalike.folder import read_regular

__all__ = ["NO_LABEL", "Samples", "parse", "parts", "read_samples", "samples_of", "unsealed"]

_SETTLED = 2_000_000_000
_CHUNK = 1 << 20
_LARGEST_INDEX = 1 << 28  # as `remote.read` takes


def samples_of(path: str, place: str = "", keys: Keys = Keys()) -> Samples:  # noqa: B008 (a tuple)
    """The shard's samples: from the index beside it, if that is asked for nothing else than it
    holds, else as kept, else by reading the shard (and then kept).

    `place`: how people know the shard, where that is not its path. Raises DataError for a shard
    that is not whole.
    """
    place = place or printable(path)
    with os_errors_as(place):
        status = os.stat(path)  # noqa: PTH116 (a shard's name may hold any bytes)
    if plain(keys):
        with contextlib.suppress(OSError):
            if found := _beside(path, status.st_size):
                return found
            warnings.warn(
                f"{place}.idx: not of this shard, the shard is read: pack it again", stacklevel=2
            )
    state = {
        "bytes": status.st_size,
        "inode": status.st_ino,
        "mtime": status.st_mtime_ns,
        "ctime": status.st_ctime_ns,
    }
    # Another name than 0.1.0 kept its own under, which knew less.
    key = f"shard 2\0{keys}\0{os.path.realpath(path)}"
    with cache.locked(key):  # the ranks of a machine read a shard once
        if (kept := cache.load(key)) and (found := parse(kept, state)):
            return found
        with opened(path, place, _CHUNK) as file:
            found = read_samples(file, place, keys)
        if time.time_ns() - status.st_ctime_ns > _SETTLED:
            cache.store(key, parts(found, state))
    return found


def plain(keys: Keys) -> bool:
    """Whether an index that `lookalike pack` wrote answers to these keys: it holds one image and
    one label a sample.
    """
    return keys._replace(dots=0) == Keys()


def _beside(path: str, size: int) -> Samples | None:
    """What the index beside a shard of this size says; it cannot be larger, names and all. Raises
    OSError for none.
    """
    try:
        return unsealed(
            read_regular(f"{path}.idx", min(size + _CHUNK, _LARGEST_INDEX)), {"bytes": size}
        )
    except ValueError:
        return None


def parts(samples: Samples, about: Mapping[str, Any]) -> list[bytes]:
    """The samples as the parts of a sealed file, with `about` (JSON data) to know them by. Those of
    what `lookalike pack` writes are what 0.1.0 wrote and read.
    """
    arrays = (a.astype("<i8").tobytes() for a in samples[1:5])
    more = {
        "examples": samples.examples,
        "texts": list(samples.texts),
        "doubt": samples.doubt,
    }
    about = {**about, "ignored": samples.ignored, **{key: v for key, v in more.items() if v}}
    head = json.dumps(about, sort_keys=True).encode()
    return [head, *arrays, b"\0".join(samples.names)]


def parse(data: list[bytes], state: Mapping[str, Any]) -> Samples | None:
    """The inverse, if it is of a shard in this state and holds nothing impossible."""
    try:
        head, *numbers, names = data
        about = json.loads(head)
        offsets, sizes, crcs, labels_N = (np.frombuffer(part, "<i8") for part in numbers)
        listed = names.split(b"\0") if names else []
        ignored = {str(why): int(count) for why, count in about["ignored"].items()}
        examples = {str(why): str(name) for why, name in about.get("examples", {}).items()}
        more = (
            examples,
            [str(text) for text in about.get("texts", [])],
            str(about.get("doubt", "")),
        )
        found = Samples(listed, offsets, sizes, crcs, labels_N, ignored, about, *more)
        sane = len({len(column) for column in found[:5]}) == 1 and all(
            about[key] == state[key] for key in state
        )
        ends_N = found.offsets_N + found.sizes_N
        inside = bool(
            (found.offsets_N >= 0).all()
            and (found.sizes_N >= 0).all()
            and (ends_N <= about["bytes"]).all()
        )
        most = len(found.texts) or MOST_CLASSES
        labels = bool((found.labels_N >= NO_LABEL).all() and (found.labels_N < most).all())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found if sane and inside and labels else None


def unsealed(data: bytes, state: Mapping[str, Any]) -> Samples | None:
    """The samples in a sealed file, if it is whole and `parse` takes its parts."""
    try:
        return parse(cache.unseal(data), state)
    except ValueError:
        return None
