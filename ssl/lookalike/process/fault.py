"""Faults on purpose, for tests and rehearsals: one hook in the loop, inert unless LOOKALIKE_FAULT
is set.

`LOOKALIKE_FAULT="kill:rank=1,step=7"`: on rank 1, when step 7 begins, SIGKILL. Also `raise:` (an
exception), `hang:` (sleeps for ever) and `stop:` (SIGSTOP, as a frozen machine). With `once=FILE`
it happens only while FILE does not exist, and makes it: after a restart the same step passes.
"""

import os
import re
import signal
import time
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lookalike import comm
from lookalike.errors import RunError

NAME = "LOOKALIKE_FAULT"
_PATTERN = re.compile(r"(kill|raise|hang|stop):rank=(\d+),step=(\d+)(?:,once=([^,]+))?")


class Fault(NamedTuple):
    """What happens on which rank when which step begins; `once` is its marker file."""

    kind: str
    rank: int
    step: int
    once: Path | None


def parse(text: str) -> Fault:
    """The fault that the variable's text asks for. Raises RunError when it is none."""
    found = _PATTERN.fullmatch(text)
    if not found:
        raise RunError(
            f"environment: {NAME}={text!r} is no fault: unset it, or write kill:rank=1,step=7 "
            "(or raise, hang, stop; with ,once=FILE)"
        )
    kind, rank, step, once = found.groups()
    return Fault(kind, int(rank), int(step), Path(once) if once else None)


def refuse_unknown() -> None:
    """Raises RunError where LOOKALIKE_FAULT is set and asks for no fault."""
    if os.environ.get(NAME):
        parse(os.environ[NAME])


def inject(step: int) -> None:
    """Does what LOOKALIKE_FAULT asks for, if anything, when `step` begins on this rank."""
    text = os.environ.get(NAME)
    if not text:
        return
    if comm.rank() == 0:
        _warn(text)
    fault = parse(text)
    if (comm.rank(), step) == (fault.rank, fault.step) and _first_time(fault.once):
        _happen(fault)


@cache
def _warn(text: str) -> None:
    """Once a process, whatever others do to Python's own memory of warnings."""
    warnings.warn(
        f"{NAME}={text} is set: this run is meant to fail; unset it otherwise", stacklevel=3
    )


def _first_time(marker: Path | None) -> bool:
    if marker is None:
        return True
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _happen(fault: Fault) -> None:
    if fault.kind == "raise":
        raise RuntimeError(f"{NAME}: raised on rank {fault.rank} at step {fault.step}, as asked")
    if fault.kind != "hang":
        os.kill(os.getpid(), signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        return
    while True:
        time.sleep(3600)
