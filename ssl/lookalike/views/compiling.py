"""Compiles native.c, the kernel that makes views on a CPU, where there is a C compiler; never
needed.

Installing does it (hatch_build.py at the root of the source loads this file by its path, so that
it imports only the standard library), and build.py by hand. Nothing is compiled while anything
else runs.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("native.c")
# Nothing that lets a result depend on the processor: no fast-math, no fused products, none of its
# own instructions but those that native.c chooses between when it is loaded.
FLAGS = (
    *("-O3", "-std=gnu11", "-fPIC", "-shared", "-ffp-contract=off", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
# Without instructions to choose between, for compilers and C libraries that cannot.
PLAIN = "-DLOOKALIKE_NO_CLONES"
SECONDS = 300
LENGTH = 65  # of the seal


def name() -> str:
    """The library's file name, which tells machines apart that share a file system; it ends on no
    suffix that Python would import.
    """
    return f"native-{sys.platform}-{platform.machine() or 'unknown'}.library"


def source() -> str:
    """What a library is made of: a digest of the source and of how it is compiled."""
    made_of = SOURCE.read_bytes().replace(b"\r\n", b"\n") + "\0".join(FLAGS).encode()
    return hashlib.sha256(made_of).hexdigest()


def compiler() -> list[str] | None:
    """The command of `CC`, else cc, gcc or clang; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    for command in ([named] if named else []) + [["cc"], ["gcc"], ["clang"]]:
        if shutil.which(command[0]):
            return command
    return None


def seal(library: bytes) -> bytes:
    """What stands at the library's end: a digest of all before it and of what it was made of."""
    return b"\n" + hashlib.sha256(library + source().encode()).hexdigest().encode()


def whole(library: bytes) -> bool:
    """Whether a library was made of this source, and is as it was made."""
    return library[-LENGTH:] == seal(library[:-LENGTH])


def build(folder: Path, *more: str) -> Path:
    """The library, compiled into `folder` in one step: one that is loaded already stays whole.

    `more`: further flags. Raises OSError with what went wrong.
    """
    if sys.platform not in ("linux", "darwin"):
        raise OSError(f"it is not made for {sys.platform}")
    command = compiler()
    if command is None:
        raise OSError("no C compiler: none of CC, cc, gcc, clang")
    target = folder / name()
    said = ""
    for ways in ([], [PLAIN]):
        descriptor, new = tempfile.mkstemp(dir=folder, suffix=".library")
        os.close(descriptor)
        said = _compiled([*command, *FLAGS, *ways, *more], Path(new))
        if not said:
            made = Path(new).read_bytes()
            Path(new).write_bytes(made + seal(made))
            Path(new).chmod(0o755)
            Path(new).replace(target)
            return target
        Path(new).unlink(missing_ok=True)
    raise OSError(f"{shlex.join(command)} failed: {said}")


def _compiled(command: list[str], to: Path) -> str:
    """Nothing, or what the compiler says in one line."""
    words = [*command, "-o", str(to), str(SOURCE), "-lm"]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end within {SECONDS} s"
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line] or lines
    return errors[0] if errors else f"it ends with {done.returncode}"
