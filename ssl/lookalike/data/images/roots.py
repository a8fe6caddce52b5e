"""Images in files below several folders, as one set."""

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property

from lookalike.data.images.contract import NOTHING, Annotations, Reading
from lookalike.data.images.files import FileImages, file_states
from lookalike.data.names import Names


class ManyRoots(FileImages):
    """The images of one root after the other, each with its paths below it.

    The fingerprint is of the paths and of the number of their root, not of where that lies.
    """

    def __init__(
        self,
        roots: Sequence[tuple[str | os.PathLike[str], Sequence[bytes]]],
        reading: Reading,
        annotations: Annotations = NOTHING,
        *,
        within: Sequence[str | os.PathLike[str]] | None = None,
    ) -> None:
        self._roots = [os.fspath(root) for root, _ in roots]
        self._walls = [os.path.realpath(os.fspath(wall)) for wall in within or ()]
        numbered = (b"%d/%b" % (k, p) for k, (_, paths) in enumerate(roots) for p in paths)
        marks = [getattr(paths, "mark", "") for _, paths in roots]
        paths = Names(numbered, " ".join(marks) if all(marks) else "")
        super().__init__("", paths, reading, annotations)

    @cached_property
    def order(self) -> str:
        """sha256 of the folders and of the paths in their order."""
        places = "\0".join([*self._roots, self._paths.digest])
        return hashlib.sha256(os.fsencode(places)).hexdigest()

    def name(self, i: int) -> str:
        number, path = self._place(i)
        return f"{self._roots[number].rstrip('/')}/{path}"

    def _wall(self, i: int) -> str | None:
        return self._walls[self._place(i)[0]] if self._walls else None

    def _place(self, i: int) -> tuple[int, str]:
        number, _, path = os.fsdecode(self._paths[i]).partition("/")
        return int(number), path

    def _states(self, paths: Sequence[bytes]) -> list[tuple[int, int]]:
        """Sorted as they are, paths of one root stand together."""
        inner: list[list[bytes]] = [[] for _ in self._roots]
        order = list(dict.fromkeys(int(path.partition(b"/")[0]) for path in paths))
        for path in paths:
            number, _, rest = path.partition(b"/")
            inner[int(number)].append(rest)
        return [state for n in order for state in file_states(self._roots[n], inner[n])]
