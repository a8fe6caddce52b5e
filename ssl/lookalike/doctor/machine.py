"""What a machine says of itself; under a launcher each rank, through the process group."""

import hashlib
import platform
import shutil
import socket
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lookalike import comm
from lookalike.data.images import Images
from lookalike.data.pace import pace
from lookalike.doctor.conditions import conditions
from lookalike.doctor.devices import devices
from lookalike.errors import Error
from lookalike.folder import nearest, refuse_unwritable

Report = dict[str, Any]
Find = Callable[[], Images]
"""Finds the train images."""

# What has to be the same on all machines, and how people call it.
SAME = {
    "python": "Python",
    "torch": "torch",
    "deepspeed": "DeepSpeed",
    "lookalike": "lookalike",
    "data": "the data set",
}


def report(find: Find | None, out: Path) -> Report:
    """This machine: versions, GPUs, free disk at `out`, fingerprint of the images and
    how many a second are decoded, what went wrong.
    """
    found: Report = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
        "lookalike": f"{version('lookalike')} {source()}".removeprefix("missing "),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "able": devices(),
        "addresses": [comm.address(i) for i in range(torch.cuda.device_count())],
        "notes": conditions(out),
        "free": shutil.disk_usage(nearest(out)).free,
        "there": "" if out.exists() else str(nearest(out)),
        "machine": _machine(),
        "data": "",
        "error": "",
    }
    try:
        refuse_unwritable(out)
        if find:
            images = find()
            found["data"] = images.fingerprint[:12]
            if seen := pace(images):
                found |= {"pace": seen.line, "images_per_second": seen._asdict()}
    except Error as error:
        found["error"] = str(error)
    return found


def version(package: str) -> str:
    """The installed version of a package, or `missing`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def source() -> str:
    """The first letters of a digest over our own files: two checkouts of one version may differ."""
    home = Path(__file__).parent.parent
    files = sorted([*home.rglob("*.py"), *home.rglob("*.c")])
    return hashlib.sha256(
        b"".join(str(f.relative_to(home)).encode() + f.read_bytes() for f in files)
    ).hexdigest()[:8]


def _gpu(i: int) -> str:
    found = torch.cuda.get_device_properties(i)
    return f"{found.name} {found.total_memory / 2**30:.0f} GiB"


def _machine() -> str:
    """The same for two names of one machine: its kernel since it was started, and its network;
    empty where unknown.
    """
    try:
        network = Path("/proc/self/ns/net").readlink()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {network}"
    except OSError:
        return ""


def here(find: Find | None, out: Path) -> list[Report]:
    """Reports of all ranks of this process group, one a machine; alone that of this machine."""
    mine = report(find, out)
    if comm.world_size() == 1:
        return [mine]
    comm.start(seconds=60)
    comm.barrier()
    told = comm.gather_objects({**mine, "clock": time.time()})
    rate = comm.bandwidth()
    reports: dict[str, Report] = {}
    for one in told:
        one["skew"] = one["clock"] - told[0]["clock"]
        machine = reports.setdefault(one["host"], {**one, "slots": 0, "bandwidth": rate})
        machine["slots"] += 1
        _add_gpus(machine, one)
    return list(reports.values())


def _add_gpus(machine: Report, one: Report) -> None:
    """Those that only this rank sees, as where each sees its own alone."""
    for name, line, address in zip(one["gpus"], one["able"], one["addresses"], strict=False):
        if address not in machine["addresses"]:
            machine["gpus"], machine["able"] = [*machine["gpus"], name], [*machine["able"], line]
            machine["addresses"] = [*machine["addresses"], address]
