"""Ranks of one machine: starts N processes, hands signals on, and ends with the code of the first
cause.

`python -m lookalike.process.ranks N WORDS…` runs `python WORDS…` N times, each told who it is as
torchrun would. A rank watches its launcher: when that is gone, the rank stops as on SIGTERM.

Not torchrun, even by launch/elastic.py: it ends the other ranks at the first failure, so the cause
is a rank that was merely LOST where that one ended first, and kills 30 s after a signal, in the
middle of a long save; and it starts in 8 s where this takes 0.3 (2.2 s of a core, mostly imports).
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from lookalike.errors import LOST

PARENT = "LOOKALIKE_PARENT"
# After the first rank that failed the others have so long to say why, then to leave, before they
# are killed.
_GRACE = 10.0
_LEAVE = 20.0
_TICK = 0.05
# A rank looks so often whether its launcher is there.
_LOOK = 1.0
_FORWARDED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_ASKED = {getattr(signal, name, 0) for name in _FORWARDED}
Process = subprocess.Popen[bytes]


def launch(ranks: int, words: Sequence[str]) -> int:
    """Runs `python words` on so many ranks of this machine; returns 0, or the exit code of the
    first cause.
    """
    wishes: list[int] = []
    for number in (getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: wishes.append(number))
    world = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), PARENT: str(os.getpid())}
    place = dict(zip(("MASTER_ADDR", "MASTER_PORT"), _meeting_place(), strict=True))
    # In a session of its own: Ctrl-C comes to the launcher alone, and from it once.
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "start_new_session": True}
    started = []
    for rank in range(ranks):
        environment = {**os.environ, **world, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(subprocess.Popen([sys.executable, *words], env=environment, **how))
    rank, code = _wait(started, wishes)
    if code < 0 and -code not in _ASKED:
        name = signal.Signals(-code).name
        print(
            f"lookalike: rank {rank} was ended by {name}: the same command goes on", file=sys.stderr
        )
    return 128 - code if code < 0 else code


def _wait(started: Sequence[Process], wishes: list[int]) -> tuple[int, int]:
    """The first cause, a rank and its code. Once one has failed the others are asked to leave, and
    in the end killed.

    `wishes`: signals that came to this process, which are handed on.
    """
    codes: dict[int, int] = {}
    failed, cause = 0.0, None
    while len(codes) < len(started):
        while wishes:
            _send(started, wishes.pop(0))
        for rank, process in enumerate(started):
            if rank not in codes and process.poll() is not None:
                codes[rank] = process.returncode
        now = time.monotonic()
        if any(codes.values()):
            failed = failed or now
            if cause is None and now > failed + _GRACE:
                cause = _first(codes)
                _send(started, signal.SIGTERM)
            if now > failed + _GRACE + _LEAVE:
                _kill(started)
        time.sleep(_TICK)
    return cause or _first(codes)


def _first(codes: dict[int, int]) -> tuple[int, int]:
    """The rank, in order of their ends, that is no mere consequence of another one's; and its
    code.
    """
    failed = [(rank, code) for rank, code in codes.items() if code]
    causes = [(rank, code) for rank, code in failed if code != LOST]
    return (causes or failed or [(0, 0)])[0]


def _send(started: Sequence[Process], number: int) -> None:
    for process in started:
        if process.poll() is None:
            process.send_signal(
                signal.SIGTERM if signal.Signals(number).name == "SIGHUP" else number
            )


def _kill(started: Sequence[Process]) -> None:
    """With their loader processes, which share their sessions."""
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _meeting_place() -> tuple[str, str]:
    """Address and free port of this machine alone, by IPv4, or where there is none by IPv6. Raises
    OSError where there is neither.
    """
    try:
        return _free("127.0.0.1", socket.AF_INET)
    except OSError:
        return _free("::1", socket.AF_INET6)


def _free(address: str, family: socket.AddressFamily) -> tuple[str, str]:
    with socket.socket(family) as tried:
        tried.bind((address, 0))
        return address, str(tried.getsockname()[1])


def follow_launcher() -> None:
    """Where a launcher that watches over ranks started this one: once it is gone, SIGTERM for this
    process.

    That is the process which LOOKALIKE_PARENT names, or torchrun; a rank started by hand may
    outlive its shell.
    """
    told = os.environ.get(PARENT, "")
    parent = (
        int(told)
        if told.isdecimal()
        else os.getppid()
        if "TORCHELASTIC_RUN_ID" in os.environ
        else 0
    )
    if parent:
        threading.Thread(target=_follow, args=(parent,), name="launcher", daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), sys.argv[2:]))
