"""The list of images that could not be read, and the limit beyond which they stop a run."""

import contextlib
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lookalike.errors import DataError
from lookalike.folder import atomic_write
from lookalike.training.metrics import append


def _samples(path: Path) -> Iterator[int]:
    """The samples listed earlier; a line cut off by a kill is passed over."""
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    ):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield int(json.loads(line)["sample"])


def keep_first(path: Path, count: int) -> None:
    """Drops what was listed after the first `count` samples: those steps are done again."""
    with contextlib.suppress(OSError):
        lines = path.read_bytes().splitlines(keepends=True)
        if len(lines) > count:
            with atomic_write(path) as file:
                file.writelines(lines[:count])


class BadSamples:
    """`bad_samples.jsonl`: each bad image once, with path, reason and replacement; more than
    `limit`, which the recipe sets by `key`, stop the run.

    `count`: of so many an earlier part of the run knew; by default of all that are listed.
    """

    def __init__(
        self, path: Path, limit: int, count: int | None = None, key: str = "max_bad"
    ) -> None:
        self.path, self.limit, self.key = path, limit, key
        self._seen = set(_samples(path))
        self.count = len(self._seen) if count is None else count
        self._failed = False

    def add(self, records: Iterable[Any]) -> int:
        """Writes the new ones among `records` (named tuples with `sample`); returns how many are
        new.
        """
        fresh = {r.sample: r for r in records if r.sample not in self._seen}
        if fresh:
            self._seen |= fresh.keys()
            try:
                append(
                    self.path,
                    "".join(json.dumps(r._asdict()) + "\n" for r in fresh.values()).encode(),
                )
            except OSError as error:
                self._say(error)
        return len(fresh)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(
                f"{self.path}: cannot be written ({error.strerror or error}): training goes on",
                stacklevel=4,
            )

    def check(self, new: int) -> None:
        """Counts what all ranks found. Raises DataError beyond the limit."""
        self.count += new
        if self.count > self.limit:
            raise DataError(
                f"data: {self.count} images could not be read, more than the {self.limit} allowed: "
                f"see {self.path}, fix them or raise {self.key}"
            )
