"""Folders that appear whole or not at all, with a manifest of every file's sha256 that is checked before use.

Write into `.tmp-…` beside the target, flush every file to disk, write the manifest, flush, rename, flush the
parent: a kill at any moment leaves the old folder or the new one, never half of one. Only where a folder is
replaced can a kill between two renames leave the old one under another name: `recover` puts it back.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lookalike.errors import Error, NewerError, RunError

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LARGEST = 16 * 2**20


def nearest(folder: Path) -> Path:
    """The folder, or the closest of its parents that is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def refuse_unwritable(folder: Path) -> None:
    """Raises RunError unless something can be made in `folder`, or where it would be made; leaves nothing there."""
    try:
        Path(tempfile.mkdtemp(prefix=".tmp-", dir=nearest(folder))).rmdir()
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}): choose another --out") from error


def write_folder(target: Path, files: Mapping[str, bytes], about: Mapping[str, Any] | None = None) -> None:
    """Makes or replaces the folder `target` with these files and a manifest that also holds `about`.

    Raises RunError when the disk is full or the place cannot be written; what was there before stays whole.
    """
    temporary = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        _write(temporary / MANIFEST, _manifest(files, about or {}))
        _flush(temporary)
        _swap(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"{target}: cannot be written: {error.strerror or error}: free space or choose another place"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    _flush(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Puts the old folder back where a kill fell between the two renames of its replacement."""
    if not target.exists():
        for old in sorted(target.parent.glob(f".old-{target.name}-*"))[:1]:
            old.rename(target)


def _manifest(files: Mapping[str, bytes], about: Mapping[str, Any]) -> bytes:
    entries = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    return json.dumps({"format": FORMAT, **about, "files": entries}, indent=2).encode()


def verify(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, after every file it names was found whole. Raises `kind` naming the file and the remedy."""
    manifest = read_manifest(folder, kind)
    for name, entry in manifest["files"].items():
        for problem in _problems(folder / name, entry):
            raise kind(f"{folder / name}: {problem}: restore it or write the folder again")
    return manifest


def read_manifest(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, before any file it names is looked at. Raises `kind` when it is none, or a later format's."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise kind(f"{folder}: no such folder: pretrain first, or name another")
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST:
            raise ValueError("not a manifest")
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or not all(isinstance(e, dict) for e in manifest["files"].values()):
            raise ValueError("not a manifest")
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise kind(f"{path}: missing or unreadable: {folder} is not a folder that lookalike wrote") from error
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT and kind is RunError:
        kind = NewerError
    if manifest.get("format") != FORMAT:
        raise kind(f"{path}: format {manifest.get('format')}, this version reads {FORMAT}: update lookalike")
    if not all(_NAME.fullmatch(name) for name in manifest["files"]):
        raise kind(f"{path}: names a file outside its folder, or one with odd characters")
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
