"""SIGINT, SIGTERM and SIGUSR1 as a wish to stop after the step in hand, with everything saved."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Stopped(Exception):
    """A signal ended the training after a whole step; `number` is the signal's, SIGTERM where
    another rank got it.
    """

    def __init__(self, number: int, done: int, steps: int) -> None:
        self.number = number or int(signal.SIGTERM)
        name = signal.Signals(self.number).name
        super().__init__(
            f"stopped by {name} after step {done} of {steps}, saved: the same command goes on from "
            "there"
        )


class Signals:
    """While entered, the first signal is remembered in `caught` (0: none); a second one exits at
    once.

    Outside the main thread, where Python allows no handlers, nothing is caught. `heard`: whether
    any ever was in this process, which then is about to leave: the same wish may reach it again,
    from a launcher or a shell.
    """

    heard = False
    _numbers = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.caught = 0

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self._previous = {n: signal.signal(n, self._catch) for n in self._numbers} if main else {}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            os._exit(128 + number)
        self.caught = number
        Signals.heard = True
