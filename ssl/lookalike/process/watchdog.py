"""A thread that ends a training in which no step ends any more, whatever hangs: a collective, a
disk, a driver.
"""

import faulthandler
import os
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from lookalike import comm
from lookalike.errors import HUNG

_HOUSE = str(Path(__file__).parent)
# A hanging file system may also swallow the report: the process ends this much later all the same.
_GRACE = 3.0


class Watchdog:
    """While entered, the process ends with exit code HUNG once no `step` was reported for
    `seconds`.

    First it writes the stacks of all threads to stderr and to `stacks_rank0.txt` in `folder`.
    """

    def __init__(self, folder: Path, seconds: float, done: int = 0) -> None:
        self.folder, self.seconds, self.done = folder, seconds, done
        self._tick = min(1.0, seconds / 10)
        self._idle = 0.0
        self._left = threading.Event()

    def __enter__(self) -> Self:
        self._watched = threading.get_ident()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()

    def step(self, done: int) -> None:
        """`done` steps are done: the time runs anew."""
        self.done, self._idle = done, 0.0

    def _watch(self) -> None:
        """Counts ticks, not the clock: time in which the whole process was suspended is nobody's
        fault.
        """
        while not self._left.wait(self._tick):
            self._idle += self._tick
            if self._idle >= self.seconds:
                self._end()

    def _end(self) -> None:
        """Tells where everything stands, and ends the process without asking the thread that
        hangs.
        """
        last = threading.Timer(_GRACE, os._exit, (HUNG,))
        last.daemon = True
        last.start()
        path = self.folder / f"stacks_rank{comm.rank()}.txt"
        faulthandler.dump_traceback(2)
        _tell(self._sentence(path))
        try:
            with path.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
        except OSError as error:
            _tell(f"{path}: cannot be written ({error.strerror}): the stacks are above")
        os._exit(HUNG)

    def _sentence(self, path: Path) -> str:
        frame = sys._current_frames().get(self._watched)
        place = _place(frame) if frame else "no thread"
        return (
            f"rank {comm.rank()}: no step ended for {self.seconds:g} s after step {self.done}; it "
            f"stands in {place}; "
            f"stacks in {path}; the same command goes on from the last checkpoint"
        )


def _place(frame: FrameType) -> str:
    """The innermost frame of this house, and whether it waits for other ranks there."""
    stack = traceback.extract_stack(frame)
    ours = [f for f in stack if f.filename.startswith(_HOUSE)] or list(stack)
    waits = any("torch/distributed/" in f.filename for f in stack)
    here = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} {ours[-1].name}"
    return f"{here}, waiting for another rank" if waits else here


def _tell(text: str) -> None:
    os.write(2, f"lookalike: {text}\n".encode(errors="backslashreplace"))
