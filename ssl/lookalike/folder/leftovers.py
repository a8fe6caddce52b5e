"""What a kill left half-done: known by its exact name and owner, put back or removed, and nothing
of anybody else's.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from lookalike.errors import Error
from lookalike.folder.manifest import verify

_LEFTOVER = re.compile(r"\.(tmp|old)-(.+)-([0-9]{1,10})", re.DOTALL)


_OUR_PARTS = {
    "manifest.json",
    "config.json",
    "card.json",
    "README.md",
    "model.onnx",
    "names.json",
    "seen.json",
}
_OUR_PARTS |= {
    "embeddings.npy",
    *(f"{name}.safetensors" for name in ("model", "optim", "pool", "head", "cells")),
}
_OUR_FILES = re.compile(
    r"recipe\.yaml|(metrics|bad_samples)\.jsonl|(latest|probe|evaluate|pack|index)\.json|evaluate\.html"
    r"|(train|test)-\d{6}\.tar(\.idx)?|[0-9a-f]{32}\.safetensors|[0-9a-f]{40}"
    r"|(rows|ids)\.npy|blocks\.jsonl"
)


class Leftover(NamedTuple):
    """`.tmp-NAME-PID` or `.old-NAME-PID` of a process that has ended."""

    path: Path
    kind: str
    name: str


def leftovers(folder: Path) -> list[Leftover]:
    """What processes that have ended left in `folder` while they wrote there, newest first.

    Of another machine no process is known: its leftovers are taken for those of ended ones, which
    is why a folder's lock is held first. A number that is this process's own was an earlier one's,
    as in a container.
    """
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _LEFTOVER.fullmatch(entry.name)
            if match and not _lives(int(match[3])):
                with contextlib.suppress(OSError):
                    changed = entry.stat(follow_symlinks=False).st_mtime_ns
                    found.append((changed, Leftover(Path(folder, entry.name), match[1], match[2])))
    return [left for _, left in sorted(found, key=lambda one: one[0], reverse=True)]


def _lives(pid: int) -> bool:
    """Whether another Python process of this machine has this number; on Windows, where to ask is
    to end it, each does.

    Where the system says what a process runs, one that is no Python is a later bearer of the
    number.
    """
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return pid != os.getpid() and _may_be_ours(pid)


def _may_be_ours(pid: int) -> bool:
    try:
        runs = Path(f"/proc/{pid}/cmdline").read_bytes()
        # Without words: one that is just being started, or one that has ended and was not yet asked
        # how.
        ended = (
            not runs and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        )
    except (OSError, IndexError):
        return True
    return not ended if not runs else b"python" in runs or b"lookalike" in runs


def sweep(folder: Path) -> None:
    """Removes, from a folder whose lock is held, what processes that have ended left there
    half-done.

    An old folder whose successor never came is put back first. What is not of a name, or does not
    hold only files of names, that lookalike writes is somebody else's, and stays.
    """
    for left in leftovers(folder):
        if not _is_ours(left):
            continue
        target = folder / left.name
        if left.kind == "old":
            recover(target)
        if left.kind == "tmp" or target.exists():
            remove(left.path)


def _is_ours(left: Leftover) -> bool:
    if left.path.is_dir():
        return _holds_only(left.path, _OUR_PARTS)
    return not left.path.is_symlink() and bool(_OUR_FILES.fullmatch(left.name))


def sweep_beside(target: Path, names: Collection[str]) -> None:
    """The same of `target` alone, in a folder that others use too: only folders of these files, and
    of nothing else.
    """
    for left in leftovers(target.parent):
        if (
            left.name == target.name
            and (left.kind == "tmp" or target.exists())
            and _holds_only(left.path, names)
        ):
            remove(left.path)


def _holds_only(folder: Path, names: Collection[str]) -> bool:
    """And what NFS makes of a file that was removed while somebody had it open."""
    try:
        return not folder.is_symlink() and all(
            (p.name in names or p.name.startswith(".nfs")) and p.is_file() for p in folder.iterdir()
        )
    except OSError:
        return False


def recover(target: Path) -> None:
    """Puts the old folder back where a kill fell between the two renames of its replacement: the
    newest whole one.
    """
    if os.path.lexists(target):
        return
    for left in leftovers(target.parent):
        if left.kind == "old" and left.name == target.name:
            with contextlib.suppress(Error, OSError):  # another rank may have put it back
                verify(left.path)
                left.path.rename(target)
                return


def remove(path: Path) -> bool:
    """Best effort, whatever it is; what a link leads to stays. Returns whether it is gone."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not os.path.lexists(path)
