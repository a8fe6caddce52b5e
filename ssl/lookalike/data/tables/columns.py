"""Which column of somebody's table says what: by name, by the names that others use, or as the
recipe says.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lookalike.errors import DataError, printable

MOST_COLUMNS = 10_000

ROLES = {
    "path": ("file_name", "filename", "image", "image_path", "file", "filepath", "file_path"),
    "label": ("class", "target"),
    "camera": (),
    "split": (),
    "is_query": (),
    "is_gallery": (),
}
"""What a column may say, by its own name, and other names for it."""


@dataclass(frozen=True)
class Columns:
    """Names of columns, exactly as they stand in the header; by default those that are known."""

    path: str | None = None
    label: str | None = None
    camera: str | None = None
    split: str | None = None
    is_query: str | None = None
    is_gallery: str | None = None
    keys: ClassVar[dict[str, str]] = {}
    """Of roles the key of the recipe that names the column, where it is not columns.ROLE."""

    def key(self, role: str) -> str:
        """The key of the recipe that names the column."""
        return self.keys.get(role, f"columns.{role}")

    def choice(self, role: str, name: str) -> str:
        """How to say which column is the role's."""
        key = self.keys.get(role)
        return (
            f"say which with {key}: {name}"
            if key
            else (f"say which with columns: {{{role}: {name}}}")
        )


def places_of(place: str, header: Sequence[str], given: Columns) -> dict[str, int]:
    """Where in the header the column of each role is, of those that are there.

    A role's own name comes before any other of its names; those count in any case and with spaces
    around. Raises DataError when there is no path, when two columns may be meant, or a name is
    nearly right.
    """
    if len(header) > MOST_COLUMNS:
        raise DataError(f"{place}: more than the {MOST_COLUMNS:,} columns allowed: leave some out")
    found = {}
    for role in ROLES:
        if (at := _place(place, header, role, given)) is not None:
            found[role] = at
    _refuse_near_misses(place, header, found)
    if "path" not in found:
        known = ", ".join(printable(name)[:40] for name in header[:8]) or "nothing"
        remedy = f"name it so, or {given.choice('path', 'NAME')}"
        raise DataError(f"{place}: no column path, the header has {known}: {remedy}")
    return found


def has_path(header: Sequence[str], given: Columns) -> bool:
    """Whether the header has a column of paths, or more than one."""
    names = {given.path} if given.path else {"path", *ROLES["path"]}
    return any(name in names or _plain(name) in names for name in header)


def _place(place: str, header: Sequence[str], role: str, chosen: Columns) -> int | None:
    """Where the role's column is: as given, else of its own name, else of the only other name."""
    given = getattr(chosen, role)
    for name in (role,) if given is None else (given,):
        if header.count(name) > 1:
            raise DataError(f"{place}: two columns {printable(name)[:40]}: rename one")
        if name in header:
            return header.index(name)
    if given is not None:
        known = ", ".join(printable(name)[:40] for name in header[:8])
        what = f"no column {printable(given)[:40]}, the header has {known}"
        raise DataError(f"{place}: {what}: change {chosen.key(role)}")
    names = [at for at, name in enumerate(header) if _plain(name) in (role, *ROLES[role])]
    if len(names) > 1:
        one, other = (printable(header[at])[:40] for at in names[:2])
        what = f"columns {one!r} and {other!r} may both be the {role}"
        raise DataError(f"{place}: {what}: {chosen.choice(role, one)}")
    return names[0] if names else None


def _refuse_near_misses(place: str, header: Sequence[str], found: dict[str, int]) -> None:
    """Raises DataError for a column that is named almost as one of a role that is not there."""
    for at, name in enumerate(header):
        near = difflib.get_close_matches(_plain(name), ROLES, n=1, cutoff=0.75)
        if near and near[0] not in found and at not in found.values():
            raise DataError(
                f"{place}: column {printable(name)[:40]!r}: did you mean {near[0]!r}? rename it"
            )


def _plain(name: str) -> str:
    return name.strip().lower()
