"""What a data source was pointed at and did not take: by kind, with every name. And the line, and
the file, that say it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lookalike.errors import printable

MOST_NAMES = 100_000
"""Of so many names a reason the list is whole; of more there is the number."""
_SAID = 6
_LONGEST = 60


class LeftOut(NamedTuple):
    """How many files, members or rows were left out for one reason, and the first of them."""

    why: str
    number: int
    example: str


class Inventory:
    """Names of what was left out, by the reason in a few words (`.txt`, `no label`, `link out of
    the folder`, …). A name that is left out twice for one reason, as by two splits, counts once.

    `remarks`: what else has to be said of what was found, a line each.
    """

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._known: dict[str, set[int]] = {}
        self._numbers: dict[str, int] = {}
        self.remarks: list[str] = []

    def leave_out(self, why: str, name: str, number: int = 1) -> None:
        """Notes that `name` was left out, and why; or `number` things, of which it is the first."""
        self.leave_out_all(why, (name,), number)

    def leave_out_all(self, why: str, names: Iterable[str], number: int = 1) -> None:
        """The same of many names."""
        known, kept = self._known.setdefault(why, set()), self._names.setdefault(why, [])
        for name in names:
            if (mark := hash(name)) not in known:
                known.add(mark)
                self._numbers[why] = self._numbers.get(why, 0) + number
                if len(kept) < MOST_NAMES:
                    kept.append(name)

    def remark(self, text: str) -> None:
        """Notes a line to be said, once."""
        if text not in self.remarks:
            self.remarks.append(text)

    def __iter__(self) -> Iterator[LeftOut]:
        """By count, the largest first."""
        found = (
            LeftOut(why, self._numbers[why], names[0])
            for why, names in self._names.items()
            if names
        )
        return iter(sorted(found, key=lambda one: (-one.number, one.why)))

    def names(self) -> dict[str, list[str]]:
        """All of them, by reason, the first `MOST_NAMES` of each."""
        return {why: list(names) for why, names in self._names.items() if names}

    def said(self) -> str:
        """`left out 3: 2 × .txt (readme.txt), 1 × hidden (.cache)`; nothing where nothing was."""
        found = list(self)
        told = [f"{number:,} × {printable(why)} ({_short(name)})" for why, number, name in found]
        more = [f"{len(told) - _SAID} kinds more"] if len(told) > _SAID else []
        total = sum(one.number for one in found)
        return f"left out {total:,}: {', '.join(told[:_SAID] + more)}" if found else ""


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST else f"…{text[-_LONGEST:]}"
