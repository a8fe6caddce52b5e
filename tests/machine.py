"""Odd machines, made of this one for the process that calls, and for its children: an unknown user,
file systems that are small, read-only or without locks, no /dev/shm. Linux, and root to begin with.
"""

import ctypes
import errno
import os
import platform
from pathlib import Path
from typing import Any

_NEW_MOUNTS = 0x20000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
_KEEP_CAPABILITIES, _NO_NEW_PRIVILEGES, _SECCOMP = 8, 38, 22
_READ_ANYWHERE = 1 << 2  # CAP_DAC_READ_SEARCH
_FLOCK = {"x86_64": 73, "aarch64": 32}


def _call(name: str, *arguments: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def own_mounts() -> None:
    """What is mounted from here on, nobody else sees."""
    _call("unshare", _NEW_MOUNTS)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


def tmpfs(place: Path | str, options: str) -> None:
    """An empty file system in memory, as `size=1m`."""
    _call("mount", b"tmpfs", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), options.encode())


def bind(source: Path | str, place: Path | str) -> None:
    """The file or folder shows at the place too."""
    here, there = os.fsencode(source), os.fsencode(place)
    _call("mount", here, there, None, ctypes.c_ulong(_BIND), None)


def read_only(place: Path | str) -> None:
    """Nothing can be written below it."""
    bind(place, place)
    flags = ctypes.c_ulong(_REMOUNT | _BIND | _READ_ONLY)
    _call("mount", b"none", os.fsencode(place), None, flags, None)


def without_shm(dev: Path) -> None:
    """A /dev without a folder for shared memory, which has what programs need beside; it is made in
    an empty folder.
    """
    tmpfs(dev, "size=1m")
    for name in ("null", "zero", "random", "urandom", "full"):
        (dev / name).touch()
        bind(f"/dev/{name}", dev / name)
    # Recursively: with what was bound inside.
    flags = ctypes.c_ulong(_BIND | _RECURSIVE)
    _call("mount", os.fsencode(dev), b"/dev", None, flags, None)


def become_nobody(user: int = 54321) -> None:
    """A user that no table knows. May read everywhere: root's home may hold the interpreter."""
    os.setgroups([])
    os.setresgid(user, user, user)
    _call("prctl", _KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(_READ_ANYWHERE, _READ_ANYWHERE, 0, 0, 0, 0)
    _call("capset", ctypes.byref(header), ctypes.byref(sets))


class _Filter(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def without_locks(number: int = errno.ENOLCK) -> None:
    """The kernel answers every flock(2) with this error."""
    flock, allow, error = _FLOCK[platform.machine()], 0x7FFF0000, 0x50000 | number
    # Load the call's number; is it flock? then the error, else go on.
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, flock), (0x06, 0, 0, error), (0x06, 0, 0, allow)]
    words = b"".join(
        op.to_bytes(2, "little") + bytes([yes, no]) + value.to_bytes(4, "little")
        for op, yes, no, value in code
    )
    buffer = ctypes.create_string_buffer(words, len(words))
    program = _Filter(len(code), ctypes.addressof(buffer))
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", _SECCOMP, 2, ctypes.byref(program), 0, 0)


def all_of_it() -> str:
    """Whether this machine lets itself be changed so: empty, or why not."""
    try:
        own_mounts()
        tmpfs("/mnt", "size=1m")
        without_shm(Path("/mnt"))
        without_locks()
        become_nobody()
    except (OSError, AttributeError, KeyError) as error:
        return f"cannot be made here: {error}"
    return ""
