"""What a data source was pointed at and did not take: by kind, with every name."""

from collections.abc import Iterator
from typing import NamedTuple


class LeftOut(NamedTuple):
    """How many files, members or rows were left out for one reason, and the first of them."""

    why: str
    number: int
    example: str


class Inventory:
    """Names of what was left out, by the reason in a few words (`.txt`, `no label`, `link out of
    the folder`, …). A name that is left out twice for one reason, as by two splits, counts once.
    """

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def leave_out(self, why: str, name: str) -> None:
        """Notes that `name` was left out, and why."""
        self._names.setdefault(why, {})[name] = None

    def __iter__(self) -> Iterator[LeftOut]:
        """By count, the largest first."""
        by_count = sorted(self._names.items(), key=lambda item: (-len(item[1]), item[0]))
        return (LeftOut(why, len(names), next(iter(names))) for why, names in by_count)

    def names(self) -> dict[str, list[str]]:
        """All of them, by reason."""
        return {why: list(names) for why, names in self._names.items()}
