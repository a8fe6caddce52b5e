"""Folders and files that appear whole or not at all."""

import contextlib
import errno
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lookalike.errors import RunError, printable
from lookalike.folder.leftovers import remove, sweep_beside
from lookalike.folder.manifest import MANIFEST, manifest, read_manifest
from lookalike.folder.shared import move, sync, sync_folder

# Of the macOS Finder, KDE and NFS.
_NOBODYS = (".DS_Store", "._", ".directory", ".nfs")
# No process has such a number: what bears it was left behind.
_NO_PROCESS = 2_000_000_000


def nearest(folder: Path) -> Path:
    """The folder, or the closest of its parents that is there, as far as this user can see."""
    places = (folder.absolute(), *folder.absolute().parents)
    return next(p for p in places if os.path.exists(p))  # noqa: PTH110 (Path.exists may raise)


def refuse_unwritable(folder: Path) -> None:
    """Raises RunError unless something can be made in `folder`, or where it would be made; leaves
    nothing there.
    """
    place = nearest(folder)
    try:
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{printable(place)} is a file")
        Path(tempfile.mkdtemp(prefix=".tmp-", dir=place)).rmdir()
    except OSError as error:
        raise RunError(
            f"{printable(folder)}: cannot be written ({error.strerror}): choose another place"
        ) from error


def write_folder(
    target: Path,
    files: Mapping[str, bytes],
    about: Mapping[str, Any] | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Makes or replaces the folder `target` with these files and a manifest that also holds
    `about`.

    `check` is called with the finished folder before it is moved into place, and may refuse it by
    an error. Raises RunError when the disk is full, the place cannot be written, or `target` holds
    what lookalike did not write; what was there before stays whole.
    """
    refuse_strangers(target)
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_beside(target, {*files, MANIFEST})
        remove(temporary)
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _write(temporary / MANIFEST, manifest(files, about or {}))
        sync_folder(temporary)
        if check is not None:
            check(temporary)
        _swap(temporary, target)
    except OSError as error:
        remove(temporary)
        raise RunError(
            f"{target}: cannot be written: {error.strerror or error}: free space or choose another "
            "place"
        ) from error
    except BaseException:
        remove(temporary)
        raise


def refuse_strangers(target: Path) -> None:
    """Raises RunError where `target` is something that lookalike did not write, or holds something
    that it did not.

    What file managers leave of themselves is nobody's.
    """
    if not target.exists():
        return
    try:
        names = {entry.name for entry in target.iterdir() if not entry.name.startswith(_NOBODYS)}
    except OSError as error:
        raise RunError(
            f"{target}: cannot be replaced: {error.strerror or error}: choose another place"
        ) from error
    known = {MANIFEST, *read_manifest(target)["files"]} if MANIFEST in names else set()
    if strange := sorted(names - known):
        raise RunError(
            f"{printable(target)}: holds {printable(strange[0])}, which lookalike did not write "
            "there: move it away, "
            "or choose another place"
        )


def write_file(target: Path, content: bytes) -> None:
    """Makes or replaces one file, whole or not at all. Raises RunError when it cannot be
    written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as file:
            file.write(content)
        sync_folder(target.parent)
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def atomic_write(target: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """A file to be written that is `target` once all went well, and nothing otherwise; `flush`: on
    disk before that.
    """
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            yield file
            if flush:
                file.flush()
                sync(file.fileno())
        move(temporary, target, replace=True)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())


def _free_name(target: Path) -> Path:
    """Where an older folder steps aside to. NFS removes no folder of which a file is still open: an
    earlier one may be there yet.
    """
    numbers = itertools.chain([os.getpid()], itertools.count(_NO_PROCESS))
    names = (target.parent / f".old-{target.name}-{number}" for number in numbers)
    return next(name for name in names if remove(name))


def _swap(temporary: Path, target: Path) -> None:
    """Renames into place; an older folder steps aside first and goes last."""
    old = _free_name(target)
    if replaced := target.exists():
        move(target, old)
    try:
        move(temporary, target)
    except BaseException:
        if replaced:
            move(old, target)
        raise
    sync_folder(target.parent)
    remove(old)
