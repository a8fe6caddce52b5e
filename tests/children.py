"""Programs for the tests, forked from a server that has imported everything: none costs the 4 to 8
seconds of an interpreter's start. What must be seen from its first import on starts one of its own.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

CLI = "from lookalike import cli; cli.main()"
# What a run of the toy recipe would import in each process of its own, too.
PRELOAD = ["lookalike.cli", "lookalike.pipeline", "deepspeed", "sklearn.datasets"]
PRELOAD += ["torch.utils.tensorboard", "PIL.PngImagePlugin"]


def context() -> ForkServerContext:
    """Where processes begin with everything imported."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOAD)
    return made


def child(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a test's module."""
    process = context().Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def take_environment(values: dict[str, str]) -> None:
    """These variables and no others: a forked process has those of its server."""
    os.environ.clear()
    os.environ.update(values)


class Ended(NamedTuple):
    """As subprocess.run tells it."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """`code` as the main program, with these words of a command line; None removes a variable."""

    def __init__(self, code: str, *words: str, **environment: str | None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.out, self.err = (Path(self._folder.name) / name for name in ("out", "err"))
        wanted = {**os.environ, **environment}
        kept = {name: value for name, value in wanted.items() if value is not None}
        self.process = child(_become, code, words, kept, self.out, self.err)

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def printed(self, text: str, seconds: float = 120) -> bool:
        """Waits until it has printed the text."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.is_alive():
            if self.out.exists() and text in self.out.read_text():
                return True
            time.sleep(0.01)
        return self.out.exists() and text in self.out.read_text()

    def wait(self, seconds: float = 120) -> Ended:
        """Its end, which is brought about after that many seconds."""
        self.process.join(seconds)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            self.process.join()
        texts = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        self._folder.cleanup()
        assert code is not None, f"did not end in {seconds} s: {texts}"
        return Ended(code, *texts)


def run(code: str, *words: str, **environment: str | None) -> Ended:
    """The end of a program."""
    return Program(code, *words, **environment).wait()


def _become(
    code: str, words: tuple[str, ...], environment: dict[str, str], out: Path, err: Path
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    take_environment(environment)
    torch.set_num_threads(1)
    sys.argv[:] = ["lookalike", *words]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
