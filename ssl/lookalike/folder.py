"""Folders that appear whole or not at all, with a manifest of every file's sha256 that is checked before use.

Write into `.tmp-NAME-PID` beside the target, flush every file to disk, write the manifest, flush, rename, flush the
parent: a kill at any moment leaves the old folder or the new one, never half of one. Only where a folder is
replaced can a kill between two renames leave the old one as `.old-NAME-PID`: `recover` puts it back. What a process
that has ended left under such a name, and nothing of another name, goes when its folder is next written: `sweep`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lookalike.errors import Error, NewerError, RunError, printable

try:
    import fcntl
except ImportError:  # Windows has no flock: two runs in one folder go unnoticed there
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LARGEST = 16 * 2**20
_LEFTOVER = re.compile(r"\.(tmp|old)-(.+)-([0-9]{1,10})", re.DOTALL)
_LOCK = ".lock"
# How flock says that another process holds the file; all else says that there are no locks to be had.
_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES}


def nearest(folder: Path) -> Path:
    """The folder, or the closest of its parents that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def refuse_unwritable(folder: Path) -> None:
    """Raises RunError unless something can be made in `folder`, or where it would be made; leaves nothing there."""
    place = nearest(folder)
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{printable(place)} is a file")
        Path(tempfile.mkdtemp(prefix=".tmp-", dir=place)).rmdir()
    except OSError as error:
        raise RunError(f"{printable(folder)}: cannot be written ({error.strerror}): choose another place") from error


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a regular file, itself or through links, of at most `most` bytes; a named pipe is not waited for.

    Raises OSError where it cannot be read, ValueError where it is a folder, a pipe or a device, or larger.
    """
    with open(path, "rb", opener=without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"{status.st_size} bytes, more than the {most} allowed")
        return file.read(status.st_size)


def without_waiting(path: str, flags: int) -> int:
    """An opener for `open`: a named pipe without a writer would be waited for for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def write_folder(
    target: Path,
    files: Mapping[str, bytes],
    about: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Makes or replaces the folder `target` with these files and a manifest that also holds `about`.

    `check` is called with the finished folder before it is moved into place, and may refuse it by an error. Raises
    RunError when the disk is full, the place cannot be written, or `target` holds what lookalike did not write; what
    was there before stays whole.
    """
    refuse_strangers(target)
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(target, {*files, MANIFEST})
        _remove(temporary)
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _write(temporary / MANIFEST, _manifest(files, about or {}))
        _flush(temporary)
        if check is not None:
            check(temporary)
        _swap(temporary, target)
    except OSError as error:
        _remove(temporary)
        raise RunError(
            f"{target}: cannot be written: {error.strerror or error}: free space or choose another place"
        ) from error
    except BaseException:
        _remove(temporary)
        raise


def refuse_strangers(target: Path) -> None:
    """Raises RunError where `target` is something that lookalike did not write, or holds something that it did not.

    Hidden files, as file managers leave them, are nobody's.
    """
    if not target.exists():
        return
    try:
        names = {entry.name for entry in target.iterdir() if not entry.name.startswith(".")}
    except OSError as error:
        raise RunError(f"{target}: cannot be replaced: {error.strerror or error}: choose another place") from error
    known = {MANIFEST, *read_manifest(target)["files"]} if MANIFEST in names else set()
    if strange := sorted(names - known):
        raise RunError(
            f"{printable(target)}: holds {printable(strange[0])}, which lookalike did not write there: move it away, "
            "or choose another place"
        )


def write_file(target: Path, content: bytes) -> None:
    """Makes or replaces one file, whole or not at all. Raises RunError when it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with appearing(target) as file:
            file.write(content)
        _flush(target.parent)
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def appearing(target: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to be written that is `target` once all went well, and nothing otherwise; `flush`: on disk before that."""
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, target: Path) -> None:
    """Renames into place; an older folder steps aside first and goes last."""
    old = target.parent / f".old-{target.name}-{os.getpid()}"
    if replaced := target.exists():
        _remove(old)
        target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if replaced:
            old.rename(target)
        raise
    _flush(target.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """Best effort, whatever it is; what a link leads to stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Leftover(NamedTuple):
    """`.tmp-NAME-PID` or `.old-NAME-PID` of a process that has ended."""

    path: Path
    kind: str
    name: str


def leftovers(folder: Path) -> list[Leftover]:
    """What processes that have ended left in `folder` while they wrote there, newest first.

    Of another machine no process is known: its leftovers are taken for those of ended ones, which is why a folder's
    lock is held first. A number that is this process's own was an earlier one's, as in a container.
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
    """Whether another Python process of this machine has this number; on Windows, where to ask is to end it, each does.

    Where the system says what a process runs, one that is no Python is a later bearer of the number.
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
        # Without words: one that is just being started, or one that has ended and was not yet asked how.
        ended = not runs and Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, IndexError):
        return True
    return not ended if not runs else b"python" in runs or b"lookalike" in runs


def sweep(folder: Path) -> None:
    """Removes, from a folder of ours whose lock is held, what processes that have ended left there half-done.

    An old folder whose successor never came is put back first.
    """
    for left in leftovers(folder):
        target = folder / left.name
        if left.kind == "old":
            recover(target)
        if left.kind == "tmp" or target.exists():
            _remove(left.path)


def sweep_beside(target: Path, names: Collection[str]) -> None:
    """The same of `target` alone, in a folder that others use too: only folders of these files, and of nothing else."""
    for left in leftovers(target.parent):
        if left.name == target.name and (left.kind == "tmp" or target.exists()) and _holds_only(left.path, names):
            _remove(left.path)


def _holds_only(folder: Path, names: Collection[str]) -> bool:
    try:
        return not folder.is_symlink() and all(p.name in names and p.is_file() for p in folder.iterdir())
    except OSError:
        return False


def recover(target: Path) -> None:
    """Puts the old folder back where a kill fell between the two renames of its replacement: the newest whole one."""
    if os.path.lexists(target):
        return
    for left in leftovers(target.parent):
        if left.kind == "old" and left.name == target.name:
            with contextlib.suppress(Error, OSError):  # another rank may have put it back
                verify(left.path)
                left.path.rename(target)
                return


_LOCKS: dict[Path, int] = {}


def lock(folder: Path) -> None:
    """Keeps `folder` for this process until it ends. Raises RunError while another process holds it.

    Where the file system has no locks, as some Lustre mounts, a warning says so and the work goes on.
    """
    if fcntl is None or held(folder):
        return
    try:
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}): choose another --out") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in _BUSY:
            raise RunError(f"{folder}: another run writes here: wait for it, or choose another --out") from error
        warnings.warn(f"{folder}: no lock can be had here ({error.strerror}): start no second run in it", stacklevel=3)
        return
    _LOCKS[folder.resolve()] = file


def held(folder: Path) -> bool:
    """Whether this process holds the lock file that is there now: a folder may have been deleted under a run."""
    file = _LOCKS.get(folder.resolve())
    if file is None:
        return False
    with contextlib.suppress(OSError):
        if os.path.samestat(os.fstat(file), (folder / _LOCK).stat()):
            return True
    os.close(_LOCKS.pop(folder.resolve()))
    return False


def unlock(folder: Path) -> None:
    """Gives the lock back, if this process holds it."""
    file = _LOCKS.pop(folder.resolve(), None)
    if file is not None:
        os.close(file)


def _manifest(files: Mapping[str, bytes], about: Mapping[str, Any]) -> bytes:
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return json.dumps({"format": FORMAT, **about, "files": entries}, indent=2).encode()


def verify(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, after every file it names was found whole. Raises `kind` naming the file and the remedy."""
    manifest = read_manifest(folder, kind)
    for name, entry in manifest["files"].items():
        for problem in _problems(folder / name, entry):
            raise kind(f"{printable(folder / name)}: {problem}: restore it or write the folder again")
    return manifest


def read_manifest(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, before any file it names is looked at. Raises `kind` when it is none, or a later format's."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise kind(f"{printable(folder)}: no such folder: pretrain first, or name another")
    try:
        if path.is_symlink():
            raise ValueError("not a manifest")
        manifest = json.loads(read_regular(path, _LARGEST))
        if not isinstance(manifest, dict) or not all(isinstance(e, dict) for e in manifest["files"].values()):
            raise ValueError("not a manifest")
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise kind(
            f"{printable(path)}: missing or unreadable: {printable(folder)} is not a folder that lookalike wrote"
        ) from error
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT and kind is RunError:
        kind = NewerError
    if manifest.get("format") != FORMAT:
        raise kind(f"{printable(path)}: format {manifest.get('format')}, this version reads {FORMAT}: update lookalike")
    if not all(_NAME.fullmatch(name) for name in manifest["files"]):
        raise kind(f"{printable(path)}: names a file outside its folder, or one with odd characters")
    return manifest


def _problems(path: Path, entry: Mapping[str, Any]) -> Iterator[str]:
    if path.is_symlink() or not path.is_file():
        yield "missing, or a link"
        return
    if path.stat().st_size != entry.get("bytes"):
        yield f"{path.stat().st_size} bytes instead of {entry.get('bytes')}"
        return
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.get("sha256"):
            yield "its content changed since it was written (sha256 differs)"
