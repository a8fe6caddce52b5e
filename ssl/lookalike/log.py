"""What a run tells: metrics.jsonl (the truth), TensorBoard, the terminal, and the list of bad pictures."""

import contextlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lookalike.errors import DataError
from lookalike.folder import appearing

_EVERY = 10.0


class Metrics:
    """`metrics.jsonl` and TensorBoard of one training below `folder`; nothing is written where `active` is False.

    What lies beyond `step` in an earlier metrics.jsonl is dropped: those steps are done again. No logger ends a
    training: lines that cannot be written wait in memory and are tried again with the next.
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
            _append(self.path, b"".join(self._waiting))
            self._waiting, self._failed = [], False
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            reason = f"cannot be written ({error.strerror or error})"
            warnings.warn(f"{self.path}: {reason}: training goes on, its lines wait in memory", stacklevel=4)
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._waiting:
            self._flush()
        if self._waiting:
            warnings.warn(f"{self.path}: the last {len(self._waiting)} lines could not be written", stacklevel=2)
        if self._board is not None:
            try:
                self._board.close()
            except Exception as failure:
                self._give_up(failure)
        threading.excepthook = self._hook


def _append(path: Path, lines: bytes) -> None:
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
    """Keeps the whole lines of steps up to `step`; a kill meanwhile leaves the file as it was, or so cut."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= step]
    if len(kept) < len(lines):
        with appearing(path) as file:
            file.writelines(kept)


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")


class Meter:
    """What the steps reported since it was last asked; tensors stay on the device until then."""

    def __init__(self, images: float, earlier: Mapping[str, Any] | None = None) -> None:
        """`images`: how many pictures of all ranks make one micro-batch; `earlier`: a `state` to go on from."""
        self.images = images
        self._reset()
        self._earlier: dict[str, list[float]] = dict((earlier or {}).get("means", {}))
        self._noted |= (earlier or {}).get("noted", {})

    def _reset(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {"loss": []}
        self._earlier = {}
        self._noted: dict[str, float] = {}
        self._waited, self._since = 0.0, time.monotonic()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context whose time counts as waiting for data."""
        entered = time.monotonic()
        yield
        self._waited += time.monotonic() - entered

    def note(self, values: Mapping[str, float]) -> None:
        """Measurements that were not made at every step; the newest stands in the next values."""
        self._noted |= values

    def add(self, value: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """One micro-batch's loss and its terms."""
        for name, part in {"loss": value, **terms}.items():
            self._parts.setdefault(name, []).append(part.detach())

    def drop(self, count: int) -> None:
        """Forgets the last `count` micro-batches."""
        for parts in self._parts.values():
            del parts[-count:]

    @property
    def heard(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._parts["loss"] or self._earlier.get("loss"))

    def _numbers(self) -> dict[str, list[float]]:
        """Every micro-batch's loss and terms since the last call of `values`, those before a resume first."""
        fresh = {name: torch.stack(parts).double().tolist() for name, parts in self._parts.items() if parts}
        return {name: self._earlier.get(name, []) + fresh.get(name, []) for name in {**self._earlier, **fresh}}

    def state(self) -> dict[str, Any]:
        """What the next `values` will be made of, as JSON data: a training that is resumed logs what it would have."""
        return {"means": self._numbers(), "noted": self._noted}

    def values(self) -> dict[str, float]:
        """Means of loss and terms, images_per_s over all ranks, waiting (share of the time), since the last call."""
        means = {name: float(torch.tensor(each, dtype=torch.float64).mean()) for name, each in self._numbers().items()}
        seconds = max(time.monotonic() - self._since, 1e-9)
        images = self.images * len(self._parts["loss"])
        found = {**means, **self._noted, "images_per_s": images / seconds, "waiting": self._waited / seconds}
        self._reset()
        return found


class Terminal:
    """A bar on a terminal, a plain line every ten seconds in a pipe, silence on other ranks than 0."""

    def __init__(self, title: str, steps: int, steps_per_epoch: int, first_step: int, active: bool = True) -> None:
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
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
            f"{values['images_per_s']:.0f} images/s, waiting for data {100 * values['waiting']:.0f} %"
        )

    def _remaining(self, done: int) -> str:
        seconds = (time.monotonic() - self._started) / max(1, done - self._first) * (self.steps - done)
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s left"


def _samples(path: Path) -> Iterator[int]:
    """The samples listed earlier; a line cut off by a kill is passed over."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield int(json.loads(line)["sample"])


class BadSamples:
    """`bad_samples.jsonl`: each bad picture once, with path, reason and replacement; more than `limit` stop the run."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self._seen = set(_samples(path))
        self.count = len(self._seen)
        self._failed = False

    def add(self, records: Iterable[Any]) -> int:
        """Writes the new ones among `records` (named tuples with `sample`); returns how many are new."""
        fresh = {r.sample: r for r in records if r.sample not in self._seen}
        if fresh:
            self._seen |= fresh.keys()
            try:
                _append(self.path, "".join(json.dumps(r._asdict()) + "\n" for r in fresh.values()).encode())
            except OSError as error:
                self._say(error)
        return len(fresh)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(f"{self.path}: cannot be written ({error.strerror or error}): training goes on", stacklevel=4)

    def check(self, new: int) -> None:
        """Counts what all ranks found. Raises DataError beyond the limit."""
        self.count += new
        if self.count > self.limit:
            raise DataError(
                f"data: {self.count} pictures could not be read, more than the {self.limit} allowed: "
                f"see {self.path}, mend them or raise max_bad"
            )


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told how many of `total` are done: on stderr a bar, or in a pipe a line every ten seconds."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn(title), BarColumn(20), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
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
