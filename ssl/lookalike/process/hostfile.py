"""A hostfile, `name slots=N` a line: names that a shell, ssh and pdsh cannot take for anything
else.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from lookalike.errors import RunError

_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252})[ \t]+slots=([1-9][0-9]{0,3})")


_IPV6 = re.compile(r"\s*\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?\]?(\s|$)")
_LARGEST = 1 << 20


class Host(NamedTuple):
    """A machine, and how many ranks run on it."""

    name: str
    slots: int


def read_hosts(path: str | Path) -> list[Host]:
    """The machines of a hostfile in order. Raises RunError that names the line which is none."""
    try:
        lines = [line.decode("ascii") for line in _contents(path).splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read as a hostfile ({error}): a line `name slots=N` a machine"
        ) from error
    hosts = [
        _host(f"{path}:{number}", line)
        for number, line in enumerate(lines, 1)
        if _says_something(line)
    ]
    if not hosts:
        raise RunError(f"{path}: lists no host: a line `name slots=N` each")
    names = [host.name.lower() for host in hosts]
    twice = {host.name for host in hosts if names.count(host.name.lower()) > 1}
    if twice:
        raise RunError(
            f"{path}: {', '.join(sorted(twice))} stands twice: one line a machine, with all its "
            "slots"
        )
    return hosts


def _contents(path: str | Path) -> bytes:
    """The bytes of a file, a pipe or a device, if they end; a named pipe that nobody writes to is
    empty.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"more than {_LARGEST} bytes")
    return data


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for a writer; reading waits for what a writer sends."""
    wait = getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | wait)
    if wait:
        os.set_blocking(handle, True)
    return handle


def _says_something(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _host(place: str, line: str) -> Host:
    found = _LINE.fullmatch(line.strip(" \t\r"))
    if not found and _IPV6.match(line):
        raise RunError(
            f"{place}: {line[:80]!r}: pdsh takes the colons of an IPv6 address for something else: "
            "give the machine a name, in /etc/hosts of every machine, and write that"
        )
    if not found:
        raise RunError(
            f"{place}: {line[:80]!r} is no machine: write `name slots=N`, name in letters, digits, "
            ". _ -"
        )
    return Host(found[1], int(found[2]))
