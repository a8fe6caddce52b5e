"""What the person at the terminal sees: bars, lines, results on stdout, notes on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0


class Terminal:
    """A bar on a terminal, a plain line every ten seconds in a pipe, silence on other ranks
    than 0.
    """

    def __init__(
        self, title: str, steps: int, steps_per_epoch: int, first_step: int, active: bool = True
    ) -> None:
        self.title, self.steps, self.per_epoch, self.active = title, steps, steps_per_epoch, active
        self._said, self._bar = 0.0, None
        self._started, self._first = time.monotonic(), first_step
        console = Console()
        if active and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=steps, completed=first_step, shown="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, values: Mapping[str, float]) -> None:
        """`done` steps are done; `values` as logged: loss, lr, images_per_s, waiting."""
        if not self.active:
            return
        shown = self._sentence(done, values)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, shown=shown)
        elif time.monotonic() - self._said >= _EVERY or done == self.steps:
            self._said = time.monotonic()
            say(f"{self.title}: {shown}, {self._remaining(done)}")

    def _sentence(self, done: int, values: Mapping[str, float]) -> str:
        epoch = min(done, self.steps - 1) // self.per_epoch + 1
        return (
            f"epoch {epoch}/{-(-self.steps // self.per_epoch)}, step {done}/{self.steps}, "
            f"loss {values['loss']:.4g}, lr {values['lr']:.3g}, "
            f"{values['images_per_s']:.0f} images/s, waiting for data "
            f"{100 * values['waiting']:.0f} %"
        )

    def _remaining(self, done: int) -> str:
        seconds = (
            (time.monotonic() - self._started) / max(1, done - self._first) * (self.steps - done)
        )
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s left"


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told how many of `total` are done: on stderr a bar, or in a pipe a line
    every ten seconds.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn(title),
            BarColumn(20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _EVERY:
            said = time.monotonic()
            note(f"{title}: {done} of {total}")

    yield tell


def note(text: str) -> None:
    """One line beside the answer, on stderr: what is printed may go into a pipe."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def say(text: str) -> None:
    """One line for the person at the terminal; a reader who has gone away stops no training."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
