"""Fault injection for tests and rehearsals: two hooks in the loop, inert without a fault.

`LOOKALIKE_FAULT="kill:rank=1,step=7"`: on rank 1, when step 7 begins, SIGKILL. The kinds:

    kill   SIGKILL
    term   SIGTERM, which ends a run after the step, with everything saved; so do `int` and `usr1`
    stop   SIGSTOP, as a frozen machine
    raise  an exception
    hang   sleeps for ever
    nan    what the module is given in this step is NaN; `steps=3`: in this one and the next two

Several faults stand with `;` between. With `,once=FILE` at the end a fault happens only while FILE
does not exist, and makes it (`nan`: in its last step): after a restart or a rollback the same step
passes. In a process `with plan("nan:rank=0,step=3"):` asks for the same without the environment.
"""

import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lookalike import comm
from lookalike.errors import RunError

NAME = "LOOKALIKE_FAULT"
_SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "int": signal.SIGINT,
    "usr1": signal.SIGUSR1,
    "stop": signal.SIGSTOP,
}
_KINDS = (*_SIGNALS, "raise", "hang", "nan")
_PATTERN = re.compile(
    rf"({'|'.join(_KINDS)}):rank=(\d+),step=(\d+)(?:,steps=([1-9]\d*))?(?:,once=([^,;]+))?"
)


class Fault(NamedTuple):
    """What happens on which rank when which step, of `steps` for `nan`, begins; `once` is its
    marker file.
    """

    kind: str
    rank: int
    step: int
    steps: int = 1
    once: Path | None = None


Planned = Fault | Callable[[int], None]
_planned: list[Planned] = []
_nan = False


def parse(text: str) -> list[Fault]:
    """The faults that the variable's text asks for. Raises RunError when one is none."""
    return [_one(part) for part in text.split(";")]


def _one(text: str) -> Fault:
    found = _PATTERN.fullmatch(text)
    if not found or (found[4] and found[1] != "nan"):
        raise RunError(
            f"environment: {NAME}={text!r} is not a valid fault: unset it, or write "
            f"kill:rank=1,step=7 (or {', '.join(_KINDS[1:])}; with ,steps=3 for nan; with "
            ",once=FILE)"
        )
    kind, rank, step, steps, once = found.groups()
    return Fault(kind, int(rank), int(step), int(steps or 1), Path(once) if once else None)


def refuse_unknown() -> None:
    """Raises RunError where LOOKALIKE_FAULT is set and asks for no fault."""
    if os.environ.get(NAME):
        parse(os.environ[NAME])


@contextmanager
def plan(*faults: str | Callable[[int], None]) -> Iterator[None]:
    """These faults, written as in LOOKALIKE_FAULT, in this process and without a warning.

    A function among them is called with the number of every step that begins, from 1.
    """
    before = list(_planned)
    for fault in faults:
        _planned.extend(parse(fault) if isinstance(fault, str) else [fault])
    try:
        yield
    finally:
        _planned[:] = before


def inject(step: int) -> None:
    """Does what is asked for, if anything, when `step`, counted from 1, begins on this rank."""
    global _nan
    _nan = False
    text = os.environ.get(NAME)
    if text and comm.rank() == 0:
        _warn(text)
    asked_for = parse(text) if text else []
    for fault in [*_planned, *asked_for]:
        if not isinstance(fault, Fault):
            fault(step)
        elif fault.rank == comm.rank() and 0 <= step - fault.step < fault.steps:
            _happen(fault, last=step - fault.step == fault.steps - 1)


def spoiled(inputs: Any) -> Any:
    """The module's inputs of the step under way: as they are, or NaN where `nan` is asked for."""
    if not _nan:
        return inputs
    if isinstance(inputs, Tensor):
        return inputs * float("nan") if inputs.is_floating_point() else inputs
    if isinstance(inputs, list | tuple):
        return type(inputs)(spoiled(part) for part in inputs)
    return inputs


@cache
def _warn(text: str) -> None:
    """Once a process, whatever others do to Python's own memory of warnings."""
    warnings.warn(
        f"{NAME}={text} is set: this run is meant to fail; unset it otherwise", stacklevel=3
    )


def _happen(fault: Fault, last: bool) -> None:
    """Unless its marker is there; makes the marker in the fault's last step."""
    global _nan
    if fault.once is not None:
        if fault.once.exists():
            return
        if last:
            fault.once.touch()
    if fault.kind == "nan":
        _nan = True
    elif fault.kind == "raise":
        raise RuntimeError(f"{NAME}: raised on rank {fault.rank} at step {fault.step}, as asked")
    elif fault.kind == "hang":
        while True:
            time.sleep(3600)
    else:
        os.kill(os.getpid(), _SIGNALS[fault.kind])
