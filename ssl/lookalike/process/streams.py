"""stdout and stderr as a shell hands them over: of any encoding, closed, full, read by nobody."""

import contextlib
import io
import os
import signal
import sys

_BROKEN_PIPE = 128 + getattr(signal, "SIGPIPE", 13)


def prepare() -> None:
    """What a stream's encoding has no bytes for is escaped, as `\\xd7`; where a shell closed one
    (`>&-`), the null device is in its place: the next file would have its number, and whatever
    libraries write there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(text: str) -> None:
    """A line on stderr, if anybody is there to read it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"lookalike: {text}", file=sys.stderr, flush=True)


def delivered(code: int) -> int:
    """Hands over what is printed but not yet written; the exit code, 128 + SIGPIPE where a reader
    that has gone away (`| head`) has seen enough, as other programs have it.
    """
    if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # click's, once it met such a pipe
        return _BROKEN_PIPE
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more
        if isinstance(error, BrokenPipeError):
            return code or _BROKEN_PIPE
        tell(f"stdout: cannot be written ({error.strerror or error}): free space, or print less")
        return code or 2
    return code
