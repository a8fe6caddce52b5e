"""metrics.jsonl (the truth) and TensorBoard: no logger that fails ends a training."""

import json
import os
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lookalike.folder import atomic_write


class Metrics:
    """`metrics.jsonl` and TensorBoard of one training below `folder`; nothing is written where
    `active` is False.

    What lies beyond `step` in an earlier metrics.jsonl is dropped: those steps are done again. No
    logger ends a training: lines that cannot be written wait in memory and are tried again with the
    next.
    """

    def __init__(self, folder: Path, step: int, active: bool = True) -> None:
        self.path, self.active = folder / "metrics.jsonl", active
        self._waiting: list[bytes] = []
        self._failed = False
        self._board: Any = None
        self._hook = threading.excepthook
        if active:
            folder.mkdir(parents=True, exist_ok=True)
            self._drop(step)
            self._open_board(step)

    def cut(self, step: int) -> None:
        """Drops what lies beyond `step`: the training has gone back there."""
        if self.active:
            self._drop(step)
            if self._board is not None:
                self._open_board(step)

    def _drop(self, step: int) -> None:
        self._waiting = [line for line in self._waiting if _step(line) <= step]
        try:
            _cut(self.path, step)
        except OSError as error:
            self._say(error)

    def _open_board(self, step: int) -> None:
        """A new file of events, from which on a reader forgets what lies beyond `step`."""
        try:
            from torch.utils.tensorboard import SummaryWriter

            threading.excepthook = self._heard  # its first line comes from a thread at once
            if self._board is not None:
                self._board.close()
            self._board = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)
        except Exception as error:
            self._give_up(error)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line with the step and its values."""
        if not self.active:
            return
        self._waiting.append(json.dumps({"step": step, **values}).encode() + b"\n")
        self._flush()
        if self._board is not None:
            try:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
            except Exception as error:
                self._give_up(error)

    def _flush(self) -> None:
        """Writes the lines that wait, all or none of them."""
        try:
            append(self.path, b"".join(self._waiting))
            self._waiting, self._failed = [], False
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            reason = f"cannot be written ({error.strerror or error})"
            warnings.warn(
                f"{self.path}: {reason}: training goes on, its lines wait in memory", stacklevel=4
            )
        self._failed = True

    def _give_up(self, error: BaseException) -> None:
        """A second logger that fails must not end a training: metrics.jsonl holds everything."""
        self._board = None
        warnings.warn(f"TensorBoard stopped ({error}); metrics.jsonl goes on", stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def _heard(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread of its own, whose traceback is no news to a user."""
        if "tensorboard" not in type(args.thread).__module__:
            self._hook(args)
        elif self._board is not None:
            self._give_up(args.exc_value or RuntimeError(args.exc_type.__name__))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._waiting:
            self._flush()
        if self._waiting:
            warnings.warn(
                f"{self.path}: the last {len(self._waiting)} lines could not be written",
                stacklevel=2,
            )
        if self._board is not None:
            try:
                self._board.close()
            except Exception as failure:
                self._give_up(failure)
        threading.excepthook = self._hook


def append(path: Path, lines: bytes) -> None:
    """Adds the lines to the file, whole or, unless another process adds some too, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        end, written = file.seek(0, os.SEEK_END), 0
        try:
            while written < len(lines):
                written += file.write(lines[written:])
        except OSError:
            if file.seek(0, os.SEEK_END) == end + written:
                file.truncate(end)
            raise


def _cut(path: Path, step: int) -> None:
    """Keeps the whole lines of steps up to `step`; a kill meanwhile leaves the file as it was, or
    so cut.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= step]
    if len(kept) < len(lines):
        with atomic_write(path) as file:
            file.writelines(kept)


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
