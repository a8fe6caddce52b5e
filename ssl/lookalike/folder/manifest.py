"""The manifest of a folder: the bytes and sha256 of every file, checked before use."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lookalike.errors import Error, NewerError, RunError, printable
from lookalike.folder.regular import read_regular
from lookalike.folder.shared import patiently

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_LARGEST = 16 * 2**20


def manifest(files: Mapping[str, bytes], about: Mapping[str, Any]) -> bytes:
    """The manifest of these files, which also holds `about`."""
    entries = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    return json.dumps({"format": FORMAT, **about, "files": entries}, indent=2).encode()


def verify(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, after every file it names was found whole. Raises `kind` naming the file and
    the remedy.
    """
    manifest = read_manifest(folder, kind)
    for name, entry in manifest["files"].items():
        for problem in _found(folder / name, entry):
            raise kind(
                f"{printable(folder / name)}: {problem}: restore it or write the folder again"
            )
    return manifest


def read_manifest(folder: Path, kind: type[Error] = RunError) -> dict[str, Any]:
    """The manifest, before any file it names is looked at. Raises `kind` when it is none, or a
    later format's.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise kind(f"{printable(folder)}: no such folder: pretrain first, or name another")
    try:
        if path.is_symlink():
            raise ValueError("not a manifest")
        manifest = json.loads(read_regular(path, _LARGEST))
        if not isinstance(manifest, dict) or not all(
            isinstance(e, dict) for e in manifest["files"].values()
        ):
            raise ValueError("not a manifest")
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise kind(
            f"{printable(path)}: missing or unreadable: {printable(folder)} is not a folder that "
            "lookalike wrote"
        ) from error
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT and kind is RunError:
        kind = NewerError
    if manifest.get("format") != FORMAT:
        raise kind(
            f"{printable(path)}: format {manifest.get('format')}, this version reads {FORMAT}: "
            "update lookalike"
        )
    if not all(_NAME.fullmatch(name) for name in manifest["files"]):
        raise kind(
            f"{printable(path)}: names a file outside its folder, or one with odd characters"
        )
    return manifest


def _found(path: Path, entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with a file of the manifest; also that it cannot be read."""
    try:
        return patiently(lambda: list(_problems(path, entry)))
    except OSError as error:
        return [f"cannot be read ({error.strerror or error})"]


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
