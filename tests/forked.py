"""A function called in a forked child: what it gave, how long it took, by how much its memory grew
at most.
"""

import ctypes
import faulthandler
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Judged(NamedTuple):
    """What the call gave; processor seconds; bytes of growth; how the child ended, if not well."""

    value: Any
    seconds: float
    growth: int
    ended: str = ""


def forked(work: Callable[[], Any], limit: float = 60) -> Judged:
    """Calls `work`; after `limit` seconds of time the child is ended."""
    back, there = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(back)
            faulthandler.disable()  # how it ended is told by its status
            signal.setitimer(signal.ITIMER_REAL, limit)  # SIGALRM ends it
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            _trim()
            code, before, start = _bytes("RssFile"), peak(reset=True), time.process_time()
            value = work()
            took, most = time.process_time() - start, peak()
            # What a child maps anew of libraries is no memory of the work.
            found = Judged(value, took, most - before - max(0, _bytes("RssFile") - code))
            with os.fdopen(there, "wb") as answer:
                pickle.dump(found, answer)
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(back, "rb") as answer:
        said = answer.read()
    status = os.waitpid(child, 0)[1]
    if status or not said:
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "an exception"
        return Judged(None, limit, 0, how)
    return pickle.loads(said)


def peak(reset: bool = False) -> int:
    """The most bytes this process held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return _bytes("VmHWM")


def _bytes(name: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])


def _trim() -> None:
    """Gives back what was freed before: else it would be taken anew without a trace."""
    ctypes.CDLL(None).malloc_trim(0)
