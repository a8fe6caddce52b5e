"""Which shards there are: a listing that `lookalike pack` wrote, a folder, a glob, or braces
written out.
"""

import glob
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.data import remote
from lookalike.data.index import os_errors_as
from lookalike.errors import DataError, printable
from lookalike.folder import read_regular

LISTING = "index.json"
FORMAT = 1
_MOST_SHARDS = 1_000_000
_LARGEST = 1 << 24


class Shard(NamedTuple):
    """A tar file: its path or URL and, where `lookalike pack` wrote it down, its bytes and
    crc32.
    """

    place: str
    size: int | None = None
    crc: int | None = None


def read_listing(path: str) -> dict[str, tuple[list[Shard], tuple[str, ...]]] | None:
    """Shards and classes of each split of a folder that `lookalike pack` finished, else None."""
    if path.endswith(".tar") or glob.has_magic(path) or "{" in path:
        return None
    home = path if remote.is_remote(path) else os.path.expanduser(path)  # noqa: PTH111
    place = f"{home.rstrip('/')}/{LISTING}"
    try:
        if remote.is_remote(path):
            data = remote.read(place, _LARGEST)
        else:
            data = _local(place)
        if data is None:
            return None
        # A list or an object takes far more memory than the two bytes that it may be written in.
        if data.count(b"[") + data.count(b"{") > 100 + len(data) // 16:
            raise ValueError("more brackets than shards need")
        found = json.loads(data)
        if found["format"] != FORMAT:
            raise ValueError("another format")
        splits = {
            split: (_shards(home, listed), _names(found["classes"][split]))
            for split, listed in found["splits"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"not a listing that `lookalike pack` wrote ({type(error).__name__})"
        raise DataError(f"{remote.redacted(place)}: {reason}: pack again") from error
    if "train" in splits and "test" in splits:
        tell_overlap(path, splits["train"][0], splits["test"][0])
    return splits


def _local(place: str) -> bytes | None:
    with os_errors_as(place):
        return (
            read_regular(place, _LARGEST)
            if Path(place).exists() and not Path(place).is_dir()
            else None
        )


def tell_overlap(path: str, train: Sequence[Shard], test: Sequence[Shard]) -> None:
    """Warns of shards that are in both sets, as `path` and `test` of one glob, or a link, make
    them.
    """
    known = {_same(shard) for shard in train}
    both = [shard.place for shard in test if _same(shard) in known]
    if both:
        first = f"both the train and the test set, first {remote.redacted(both[0])}"
        warnings.warn(
            f"{remote.redacted(path)}: {len(both)} of its shards are in {first}: "
            "name each for one of them",
            stacklevel=4,
        )


def _same(shard: Shard) -> str:
    return shard.place if remote.is_remote(shard.place) else os.path.realpath(shard.place)


def _shards(home: str, listed: Sequence[Mapping[str, Any]]) -> list[Shard]:
    folder = home.rstrip("/")
    return [
        Shard(f"{folder}/{_plain(entry['name'])}", int(entry["bytes"]), int(entry["crc32"]))
        for entry in listed
    ]


def _names(listed: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(name) for name in listed)


def _plain(name: object) -> str:
    """The name of a shard beside its listing. Raises ValueError for any other."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError("a shard out of its folder")
    return name


def expanded(path: str) -> list[Shard]:
    """The shards that a folder, a glob or braces name. Raises DataError when there are none."""
    home = path if remote.is_remote(path) else os.path.expanduser(path)  # noqa: PTH111
    places = braces(home)
    if not remote.is_remote(home):
        with os_errors_as(home):
            if Path(home).is_dir():
                places = [f"{glob.escape(home.rstrip('/'))}/*.tar"]
            places = [
                p
                for place in places
                for p in (sorted(glob.glob(place)) if glob.has_magic(place) else [place])  # noqa: PTH207
            ]
    if not places:
        raise DataError(f"{printable(path)}: no .tar files there: check the path")
    return [Shard(place) for place in places]


def braces(pattern: str) -> list[str]:
    """`{000..146}` and `{a,b}` written out, as a shell would. Raises DataError beyond a million."""
    match = re.search(r"\{(?:(\d{1,9})\.\.(\d{1,9})|([^{}]*,[^{}]*))\}", pattern)
    if not match:
        return [pattern]
    low, high, words = match.groups()
    count = len(words.split(",")) if words else abs(int(high) - int(low)) + 1
    rest = braces(pattern[match.end() :])
    if count * len(rest) > _MOST_SHARDS:
        raise DataError(
            f"{remote.redacted(pattern)}: more than {_MOST_SHARDS:,} shards: name fewer"
        )
    if words:
        names = words.split(",")
    else:
        width = (
            max(len(low), len(high))
            if "0" in (low[0], high[0]) and max(len(low), len(high)) > 1
            else 0
        )
        step = 1 if int(low) <= int(high) else -1
        names = [f"{k:0{width}d}" for k in range(int(low), int(high) + step, step)]
    return [pattern[: match.start()] + name + tail for name in names for tail in rest]
