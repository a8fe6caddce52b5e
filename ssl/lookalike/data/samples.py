"""The samples of one tar shard in the WebDataset layout: where each image lies, its crc32 and its
label.

Members whose names agree up to the first dot of the last part are one sample. Its image is the
first member with an image's suffix, its label the ASCII digits of `.cls`, or else `label` in
`.json`. All other members, links, devices, absolute names and `..` are passed over and counted; a
second member of one name too. Found in one pass, then kept: in `SHARD.idx` beside it by `lookalike
pack`, else in the user's cache.
"""

import contextlib
import json
import os
import re
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lookalike.data import cache
from lookalike.data.index import SUFFIXES, os_errors_as
from lookalike.data.outside import opened
from lookalike.data.tar import LONGEST_NAME, Damaged, Entry, entries
from lookalike.errors import DataError, printable
from lookalike.folder import read_regular

NO_LABEL = -1
MOST_CLASSES = 1_000_000
_MOST = 1 << 20  # members of one shard
_IMAGES = {suffix[1:] for suffix in SUFFIXES}
_LONGEST_LABEL = 1 << 16
_SETTLED = 2_000_000_000
_CHUNK = 1 << 20
_LARGEST_INDEX = 1 << 28  # as `remote.read` takes
# Key, then suffix: as webdataset splits a name (its `base_plus_ext`), hidden names apart.
_SPLIT = re.compile(rb"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)


class Samples(NamedTuple):
    """N samples in the order of their images: member names, offset, size, crc32, label (or
    NO_LABEL), int64.
    """

    names: list[bytes]
    offsets_N: np.ndarray
    sizes_N: np.ndarray
    crcs_N: np.ndarray
    labels_N: np.ndarray
    ignored: Mapping[str, int]
    about: Mapping[str, Any]


def samples_of(path: str, place: str = "") -> Samples:
    """The shard's samples: from the index beside it, else as kept, else by reading the shard (and
    then kept).

    `place`: how people know the shard, where that is not its path. Raises DataError for a shard
    that is not whole.
    """
    place = place or printable(path)
    with os_errors_as(place):
        status = os.stat(path)  # noqa: PTH116 (a shard's name may hold any bytes)
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
    key = f"shard\0{os.path.realpath(path)}"
    with cache.locked(key):  # the ranks of a machine read a shard once
        if (kept := cache.load(key)) and (found := parse(kept, state)):
            return found
        with opened(path, place, _CHUNK) as file:
            found = read_samples(file, place)
        if time.time_ns() - status.st_ctime_ns > _SETTLED:
            cache.store(key, parts(found, state))
    return found


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
    """The samples as the parts of a sealed file, with `about` (JSON data) to know them by."""
    arrays = (a.astype("<i8").tobytes() for a in samples[1:5])
    head = json.dumps({**about, "ignored": samples.ignored}, sort_keys=True).encode()
    return [head, *arrays, b"\0".join(samples.names)]


def parse(data: list[bytes], state: Mapping[str, Any]) -> Samples | None:
    """The inverse, if it is of a shard in this state and holds nothing impossible."""
    try:
        head, *numbers, names = data
        about = json.loads(head)
        offsets, sizes, crcs, labels_N = (np.frombuffer(part, "<i8") for part in numbers)
        listed = names.split(b"\0") if names else []
        found = Samples(listed, offsets, sizes, crcs, labels_N, about["ignored"], about)
        sane = len({len(column) for column in found[:5]}) == 1 and all(
            about[key] == state[key] for key in state
        )
        ends_N = found.offsets_N + found.sizes_N
        inside = bool(
            (found.offsets_N >= 0).all()
            and (found.sizes_N >= 0).all()
            and (ends_N <= about["bytes"]).all()
        )
        labels = bool((found.labels_N >= NO_LABEL).all() and (found.labels_N < MOST_CLASSES).all())
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if sane and inside and labels else None


def unsealed(data: bytes, state: Mapping[str, Any]) -> Samples | None:
    """The samples in a sealed file, if it is whole and `parse` takes its parts."""
    try:
        return parse(cache.unseal(data), state)
    except ValueError:
        return None


def read_samples(file: BinaryIO, place: str) -> Samples:
    """One pass over the shard. Raises DataError naming the shard and the byte where it is
    damaged.
    """
    rows: dict[bytes, int] = {}
    names: list[bytes] = []
    numbers: list[tuple[int, int, int]] = []
    labels: dict[tuple[bytes, bytes], int] = {}
    ignored: Counter[str] = Counter()
    try:
        for count, entry in enumerate(entries(file)):
            if count >= _MOST:
                raise Damaged(entry.offset, f"more than {_MOST} members: make smaller shards")
            key, suffix, why = _sorted_out(entry)
            if not why and suffix in _IMAGES:
                why = (
                    ""
                    if key not in rows
                    else "names again"
                    if names[rows[key]] == entry.name
                    else "more images"
                )
                if not why:
                    rows[key] = len(names)
                    names.append(entry.name)
                    numbers.append((entry.offset, entry.size, _crc(file, entry)))
            elif not why and suffix in (b"cls", b"json"):
                why = _note_label(labels, key, suffix, file, entry)
            elif not why:
                why = f".{printable(os.fsdecode(suffix))[:20]}" if len(ignored) < 50 else "others"
            ignored[why] += 1
    except Damaged as damage:
        raise DataError(f"{place}: {damage}: fetch or pack the shard again") from damage
    del ignored[""], ignored["folder"]
    found = [labels.get((key, b"cls"), labels.get((key, b"json"), NO_LABEL)) for key in rows]
    offsets, sizes, crcs = np.array(numbers, np.int64).reshape(-1, 3).T
    return Samples(names, offsets, sizes, crcs, np.array(found, np.int64), dict(ignored), {})


def _sorted_out(entry: Entry) -> tuple[bytes, bytes, str]:
    """Key, lower-case suffix, and why the member is passed over, if it is."""
    name = entry.name
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    if entry.kind != "file":
        return b"", b"", entry.kind
    if (
        name.startswith(b"/")
        or b".." in name.split(b"/")
        or b"\0" in name
        or len(name) > LONGEST_NAME
    ):
        return b"", b"", "name out of the shard"
    split = _SPLIT.fullmatch(name)
    return (split[1], split[2].lower(), "") if split else (b"", b"", "name without a key")


def _crc(file: BinaryIO, entry: Entry) -> int:
    file.seek(entry.offset)
    left, crc = entry.size, 0
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc


def _note_label(
    labels: dict[tuple[bytes, bytes], int], key: bytes, suffix: bytes, file: BinaryIO, entry: Entry
) -> str:
    """Keeps the member's label; why it was passed over otherwise."""
    if (key, suffix) in labels:
        return "names again"
    if entry.size > _LONGEST_LABEL:
        return f".{suffix.decode()} too long"
    file.seek(entry.offset)
    text = file.read(entry.size).strip()
    try:
        value = (
            json.loads(text).get("label")
            if suffix == b"json"
            else int(text)
            if text.isdigit()
            else None
        )
    except (ValueError, AttributeError, RecursionError):
        value = None
    if type(value) is not int or not 0 <= value < MOST_CLASSES:
        return f".{suffix.decode()} without a label"
    labels[key, suffix] = value
    return ""
