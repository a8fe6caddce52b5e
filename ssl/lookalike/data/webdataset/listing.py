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
from lookalike.data.folders.allfiles import LeaveOut, files_below
from lookalike.data.folders.index import os_errors_as
from lookalike.data.tables.split_words import WORDS
from lookalike.errors import DataError, printable
from lookalike.folder import at_home, read_regular

LISTING = "index.json"
FORMAT = 1
_MOST_SHARDS = 1_000_000
_LARGEST = 1 << 24
_COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4|z)|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class Shard(NamedTuple):
    """A tar file: its path or URL and, where `lookalike pack` wrote it down, its bytes and
    crc32.
    """

    place: str
    size: int | None = None
    crc: int | None = None


def read_listing(path: str) -> dict[str, tuple[list[Shard], tuple[str, ...]]] | None:
    """Shards and classes of each split of a folder that `lookalike pack` finished, else None."""
    is_shard = path.lower().endswith(".tar") or _COMPRESSED.search(path)
    if is_shard or glob.has_magic(path) or "{" in path:
        return None
    home = path if remote.is_remote(path) else str(at_home(path, DataError))
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


def expanded(path: str, leave_out: LeaveOut = lambda why, name: None) -> list[Shard]:
    """The shards that a folder (or one below), a glob or braces name; other files of a folder are
    left out. Raises DataError when there are none, and for compressed ones.
    """
    home = path if remote.is_remote(path) else str(at_home(path, DataError))
    places = braces(home)
    if not remote.is_remote(home):
        with os_errors_as(home):
            places = (
                _below(home.rstrip("/") or "/", leave_out)
                if Path(home).is_dir()
                else [
                    p
                    for place in places
                    for p in (sorted(glob.glob(place)) if glob.has_magic(place) else [place])  # noqa: PTH207
                ]
            )
    if packed := next((place for place in places if _COMPRESSED.search(place)), None):
        raise DataError(
            f"{remote.redacted(packed)}: compressed, which cannot be read at random: unpack it to "
            "plain .tar (gunzip, unxz, unzstd), or move it out of the folder"
        )
    if not places:
        raise DataError(f"{printable(path)}: no .tar files there: check the path")
    return [Shard(place) for place in places]


def _below(folder: str, leave_out: LeaveOut) -> list[str]:
    """The .tar files in a folder and below, sorted, and compressed ones too. What stands beside a
    shard as a part of it (its index, img2dataset's table and statistics) is not left out.
    """
    names = [os.fsdecode(name) for name in files_below(folder, leave_out)]
    tars = sorted(name for name in names if name.lower().endswith(".tar"))
    parts = {part for name in tars for part in _parts(name)}
    for name in names:
        if not name.lower().endswith(".tar") and name not in parts:
            if _COMPRESSED.search(name):
                tars.append(name)
            leave_out(Path(name).suffix.lower() or "no suffix", f"{folder}/{name}")
    return [f"{folder}/{name}" for name in tars]


def _parts(shard: str) -> list[str]:
    stem = shard[: -len(".tar")]
    return [f"{shard}.idx", f"{stem}.idx", f"{stem}.parquet", f"{stem}_stats.json", f"{stem}.json"]


def split_folders(home: str, leave_out: LeaveOut) -> dict[str, str]:
    """Folders in `home` that are named by a set, by that; empty where none is of the train set.
    What stands beside is left out. Raises DataError where two mean one set.
    """
    with os_errors_as(home):
        if not Path(home).is_dir():
            return {}
        beside = sorted(os.listdir(home))  # noqa: PTH208 (names of any bytes)
        named = [(WORDS.get(name.lower()), name) for name in beside if Path(home, name).is_dir()]
    found: dict[str, str] = {}
    for split, name in named:
        if split and split in found:
            both = f"{printable(found[split])} and {printable(name)} both hold the {split} set"
            raise DataError(f"{printable(home)}: {both}: rename one, or give path and test")
        if split:
            found[split] = name
    if "train" not in found:
        return {}
    if "test" in found:
        found.pop("val", None)
    for name in beside:
        if name not in found.values() and not name.startswith("."):
            leave_out("beside the train and test folders", f"{home.rstrip('/')}/{name}")
    return {split: f"{home.rstrip('/')}/{name}" for split, name in found.items()}


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
