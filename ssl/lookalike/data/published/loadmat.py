"""One variable of the MATLAB file on stdin -> JSON on stdout; run by `matlab.variable` alone.

`python loadmat.py BYTES SECONDS LONGEST NAME FIELD…`: at most so much memory and processor time,
and so long a text. scipy.io.loadmat may end the process where bytes are wrong (1.17: SIGSEGV).
"""

import contextlib
import io
import json
import sys
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatlabFunction, MatlabObject, MatlabOpaque

_DEEPEST = 4


def bound(memory: int, seconds: int) -> None:
    """Ends this process above so many bytes and seconds, where the system can; without a core."""
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def plain(value: Any, only: list[str], depth: int = 0) -> Any:
    """Texts, numbers, lists and, of structs, dictionaries; None what lies deeper than four.

    Raises ValueError for objects, functions and all else.
    """
    if isinstance(value, MatlabObject | MatlabFunction | MatlabOpaque):
        raise ValueError("it holds an object or a function")
    if not isinstance(value, np.ndarray):
        raise ValueError(f"it holds a {type(value).__name__}")
    if depth > _DEEPEST:
        return None
    flat = value.flatten(order="F")
    if names := value.dtype.names:
        kept = [name for name in names if not only or name in only]
        return [{name: plain(each[name], [], depth + 1) for name in kept} for each in flat]
    if value.dtype == object:
        return [plain(each, [], depth + 1) for each in flat]
    if value.dtype.kind == "U":
        return "".join(flat.tolist())
    numbers = flat.tolist()
    return numbers[0] if len(numbers) == 1 else numbers


def main(memory: str, seconds: str, longest: str, name: str, *only: str) -> str:
    """The variable's JSON. Raises ValueError where there is none, or too much of it."""
    bound(int(memory), int(seconds))
    data = sys.stdin.buffer.read()
    if data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("not of level 5")
    found = loadmat(io.BytesIO(data), variable_names=[name])
    if name not in found:
        raise ValueError(f"no {name} in it")
    value = plain(found[name], list(only))
    if not isinstance(value, list):
        raise ValueError(f"{name} is no array")
    text = json.dumps(value)
    if len(text) > int(longest):
        raise ValueError(f"{name} holds more than {longest} bytes")
    return text


if __name__ == "__main__":
    try:
        sys.stdout.write(main(*sys.argv[1:]))
    except MemoryError:
        sys.exit(f"more than the {sys.argv[1]} bytes of memory allowed")
    except Exception as error:  # whatever scipy meets in wrong bytes
        sys.exit(" ".join(f"{error or type(error).__name__}".split()))
