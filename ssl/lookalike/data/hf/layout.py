"""Which files are which part of a data set: as `datasets` saves them, as it keeps them, and as they
lie on the Hub.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lookalike.data.folders.index import os_errors_as
from lookalike.data.hf.homes import homes
from lookalike.data.inventory import Inventory
from lookalike.data.tables.features import parsed
from lookalike.data.tables.split_words import part_of
from lookalike.errors import DataError, printable
from lookalike.folder import at_home, read_regular

Parts = dict[str, list[Path]]
SUFFIXES = (".parquet", ".arrow")
_LARGEST = 16 << 20
_MOST_FILES = 1_000_000
# `datasets` numbers the files of a part; on the Hub a hash may follow.
_NUMBERED = re.compile(r"(.*?)-?(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")


def parts_of(home: str | Path, config: str | None, inventory: Inventory) -> Parts:
    """The files of each part, in order: train, val, test, or as they are called; one of no name
    where nothing names it. Raises DataError where there are none.
    """
    folder = at_home(home, DataError)
    with os_errors_as(folder):
        if glob.has_magic(str(home)):
            found = sorted(map(Path, glob.glob(str(folder), recursive=True)))  # noqa: PTH207
            files = [file for file in found if file.suffix in SUFFIXES]
            root = Path(os.path.commonpath([file.parent for file in files])) if files else folder
            return _by_name(printable(home), root, files, inventory)
        if folder.is_file():
            return {"": [folder]}
        if not folder.is_dir():
            what = "no such folder or file, nor the name of a repository as user/name"
            raise DataError(f"{printable(home)}: {what}: check path")
        folder = (
            folder / _plain(folder, config) if config and (folder / config).is_dir() else folder
        )
        if (folder / "dataset_dict.json").is_file():
            names = _json(folder / "dataset_dict.json").get("splits")
            names = names if isinstance(names, list) else []
            return {part_of(str(n)) or str(n): _saved(folder / _plain(folder, n)) for n in names}
        if (folder / "state.json").is_file():
            return {"": _saved(folder)}
        return _by_name(printable(folder), folder, _walked(folder, inventory), inventory)


def places_in(place: str) -> list[Path]:
    """The folders in which files that rows name may lie: the data set's and Hugging Face's
    caches.
    """
    return [Path(place), *homes()]


def _saved(folder: Path) -> list[Path]:
    """The files of a folder that `save_to_disk` made."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        what = "a selection of rows of other files"
        raise DataError(f"{printable(folder)}: {what}: save it after flatten_indices()")
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [entry.get("filename") for entry in entries if isinstance(entry, dict)]
    if not names:
        raise DataError(f"{printable(folder)}: state.json lists no files: save it again")
    return [folder / _plain(folder, name) for name in names]


def _plain(folder: Path, name: object) -> str:
    """The name of a file or folder in this one. Raises DataError for any other."""
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]{1,255}", name) or name[0] == ".":
        what = f"{printable(str(name))[:80]!r} is no name of a file in it"
        raise DataError(f"{printable(folder)}: {what}: save it again")
    return name


def _json(file: Path) -> dict[str, object]:
    try:
        return parsed(read_regular(file, _LARGEST))
    except ValueError as error:
        raise DataError(f"{printable(file)}: {error}: save the data set again") from error


def _walked(folder: Path, inventory: Inventory) -> list[Path]:
    """All Parquet and Arrow files below the folder; others are noted in the inventory."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("cache-"):
                found.append(Path(here) / name)
            elif not name.startswith(".") and name not in ("dataset_info.json", "README.md"):
                suffix = Path(name).suffix[:20]
                why = "script, never run" if suffix == ".py" else suffix or "no suffix"
                inventory.leave_out(printable(why), os.path.relpath(Path(here) / name, folder))
            if len(found) > _MOST_FILES:
                raise DataError(f"{printable(folder)}: more than {_MOST_FILES:,} files: name fewer")
    # The same rows again, as they lie there before `datasets` has unpacked them.
    arrow = [file for file in found if file.suffix == ".arrow"]
    return found if len(arrow) in (0, len(found)) else [f for f in found if f not in arrow]


def _by_name(place: str, root: Path, files: Sequence[Path], inventory: Inventory) -> Parts:
    """The files by the part that their names say."""
    if not files:
        scripts = "; its script is never run" if "script, never run" in inventory.names() else ""
        what = f"no .parquet or .arrow files in it{scripts}"
        raise DataError(
            f"{place}: {what}: give a data set saved with save_to_disk or as Parquet, or read "
            "images with the source folder"
        )
    _refuse_several(place, [file.relative_to(root) for file in files])
    parts: Parts = {}
    names = [_part(file.relative_to(root)) for file in files]
    for file, name in zip(files, names, strict=True):
        # Beside files that are parts, others are so too, under names of their own.
        parts.setdefault(name or (_own(file) if any(names) else ""), []).append(file)
    for its in parts.values():
        _refuse_gaps(place, its)
    return parts


def _part(file: Path) -> str:
    """Which part the file is of: `train-00000-of-00004.parquet`, `train/0000.parquet`; empty where
    nothing says so.
    """
    numbers = _NUMBERED.fullmatch(file.stem)
    if numbers and numbers[1]:
        return _named(numbers[1]) or numbers[1]
    return next((part for name in _names(file) if (part := _named(name))), "")


def _own(file: Path) -> str:
    """The file's name, or its folder's where that of the file is a number."""
    return file.parent.name if file.stem.isdigit() else file.stem


def _names(file: Path) -> Iterator[str]:
    yield file.stem
    yield from reversed(file.parts[:-1])


def _named(name: str) -> str | None:
    """The part that the name, or its last word, is called after; or else the first of its words."""
    words = re.split(r"[^A-Za-z]+", name)
    return next((part for word in (name, words[-1], *words) if (part := part_of(word))), None)


def _refuse_several(place: str, files: Sequence[Path]) -> None:
    """Raises DataError where the first folders are configurations and not parts."""
    tops = {file.parts[0] for file in files if len(file.parts) > 1}
    several = sorted(tops - {"data"})
    if len(several) > 1 and not any(map(_named, several)):
        known = ", ".join(printable(top)[:40] for top in several[:8])
        raise DataError(f"{place}: data of several kinds, {known}: say which with config")


def _refuse_gaps(place: str, files: Sequence[Path]) -> None:
    """Raises DataError where files are missing of those that their names count."""
    found: dict[tuple[Path, str, str], set[int]] = {}
    for file in files:
        if numbers := _NUMBERED.fullmatch(file.stem):
            found.setdefault((file.parent, numbers[1], numbers[3]), set()).add(int(numbers[2]))
    for (_, name, count), seen in found.items():
        if missing := sorted(set(range(int(count))) - seen):
            first = f"{printable(name)[:60]}-{missing[0]:05}-of-{count}"
            what = f"{len(missing)} of {int(count)} files are missing, first {first}"
            raise DataError(f"{place}: {what}: fetch it again")
