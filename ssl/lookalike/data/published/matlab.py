"""One variable of a MATLAB file, level 5, of unknown worth -> texts, numbers, lists and
dictionaries, by scipy in a process of its own: whatever the file does to it, it ends here as an
error of one line.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from lookalike.data.folders.index import os_errors_as
from lookalike.errors import DataError, printable
from lookalike.folder import read_regular

MAX_BYTES, MAX_MEMORY, MAX_TEXT = 16_000_000, 2**29, 2**21
"""Of the file, of the process that reads it, and of what comes back."""
MAX_SECONDS, PATIENCE = 20, 120.0
"""Of the processor, and on the clock, the imports included."""
_READER = Path(__file__).with_name("loadmat.py")


def variable(file: Path, name: str, *fields: str) -> list[Any]:
    """The elements of an array: of structs as dictionaries of these fields (none: of all), of cells
    as they are.

    In them an array of one number is the number, and what lies deeper than four in one another is
    None. Raises DataError when the file cannot be read, or has no such array.
    """
    try:
        with os_errors_as(file):
            data = read_regular(file, MAX_BYTES)
    except ValueError as error:
        raise DataError(f"{printable(file)}: {error}: fetch the file again") from error
    if not data:
        raise DataError(
            f"{printable(file)}: 0 bytes, 1 to {MAX_BYTES} are allowed: fetch the file again"
        )
    try:
        return _found(data, [name, *fields])
    except ValueError as error:
        reason = printable(str(error))[:120]
        raise DataError(
            f"{printable(file)}: no MATLAB file that can be read ({reason}): fetch the file again"
        ) from error


def _found(data: bytes, words: list[str]) -> list[Any]:
    bounds = [str(MAX_MEMORY), str(MAX_SECONDS), str(MAX_TEXT)]
    # One thread: each reserves address space, which is what is bounded.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-W", "ignore", str(_READER), *bounds, *words]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=PATIENCE, env={**os.environ, **single}
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"not done after {PATIENCE:g} s") from error
    if done.returncode < 0:
        raise ValueError(f"its reader was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        raise ValueError(next((line for line in reversed(lines) if line), "no reason given"))
    found: list[Any] = json.loads(done.stdout)
    return found
