"""What the person at the terminal sees: bars, lines, results on stdout, notes on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 10.0


class Bar:
    """One bar on a terminal, which may be closed meanwhile: that stops no work."""

    def __init__(self, progress: Progress, title: str, total: int, **fields: Any) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=total, **fields)

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError, ValueError):
            self._progress.start()
        return self

    def update(self, **fields: Any) -> None:
        """New values of its fields."""
        with contextlib.suppress(OSError, ValueError):
            self._progress.update(self._task, **fields)

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._progress.stop()


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
            progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(20),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar = Bar(progress, title, steps, completed=first_step, shown="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def show(self, done: int, values: Mapping[str, float]) -> None:
        """`done` steps are done; `values` as logged: loss, lr, images_per_s, waiting."""
        if not self.active:
            return
        shown = self._sentence(done, values)
        if self._bar is not None:
            self._bar.update(completed=done, shown=shown)
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
def progress(
    title: str, total: int, *, unit: str = "images", active: bool = True, bar: bool = True
) -> Iterator[Callable[[int], None]]:
    """A function to be told how many of `total` are done: on stderr a bar, or in a pipe, and for
    what has bars of its own inside (`bar` false), a line every ten seconds, with how many a second
    and the time that is left. Silent unless `active`.
    """
    pace = Pace(total, unit)
    console = Console(stderr=True) if active and bar else None
    if console is not None and console.is_terminal:
        columns = (
            TextColumn(title),
            BarColumn(20),
            TextColumn("{task.fields[shown]}"),
        )
        drawn = Bar(Progress(*columns, console=console, transient=True), title, total, shown="")
        with drawn:
            yield lambda done: drawn.update(completed=done, shown=pace.told(done))
        return
    said = time.monotonic()

    def tell(done: int) -> None:
        nonlocal said
        if active and time.monotonic() - said >= _EVERY:
            said = time.monotonic()
            note(f"{title}: {pace.told(done)}")

    yield tell


class Pace:
    """How fast work goes on, in words, since this was made."""

    def __init__(self, total: int, unit: str) -> None:
        self._total, self._unit, self._began = total, unit, time.monotonic()

    def told(self, done: int) -> str:
        """So many are done by now."""
        seconds = max(1e-9, time.monotonic() - self._began)
        rate, left = done / seconds, (self._total - done) * seconds / max(1, done)
        return (
            f"{done:,} of {self._total:,}, {rate:,.{0 if rate >= 10 else 1}f} {self._unit}/s, "
            f"{int(left) // 60} min {int(left) % 60:02d} s left"
        )


def note(text: str) -> None:
    """One line beside the answer, on stderr: what is printed may go into a pipe."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(fitting(text, getattr(sys.stderr, "encoding", None)), file=sys.stderr, flush=True)


def fitting(text: str, encoding: str | None) -> str:
    """The text as such a stream takes it: what it has no bytes for is escaped, as `\\xd7`."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str) -> None:
    """One line for the person at the terminal; a reader who has gone away stops no training."""
    try:
        print(fitting(text, getattr(sys.stdout, "encoding", None)), flush=True)
    except (OSError, ValueError):
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
