"""Which rank this process is: as the group says, or before there is one the launcher's environment,
judged.
"""

import os
import socket
from pathlib import Path

import torch
import torch.distributed as dist

from lookalike.comm import devices
from lookalike.errors import RunError

TIMEOUT = "LOOKALIKE_TIMEOUT"
DEVICE = "LOOKALIKE_DEVICE"
"""`cpu` keeps a run off the GPU."""


def started() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process among all, from 0; before `start` as the launcher says."""
    return dist.get_rank() if started() else _number("RANK", 0)


def world_size() -> int:
    """How many processes train together; before `start` as the launcher says."""
    if started():
        return dist.get_world_size()
    world = _number("WORLD_SIZE", 1)
    if world < 1:
        raise RunError(
            "environment: WORLD_SIZE=0 is not a number of ranks: unset it, or start ranks with "
            "torchrun"
        )
    return world


def local_rank() -> int:
    """This process among those of its machine, from 0, as the launcher says."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise RunError(
            f"environment: {name}={text!r} is not an integer: unset it, or start ranks with "
            "torchrun"
        )
    return int(text)


def device() -> torch.device:
    """Where this rank computes: its own GPU of those that it sees; alone, Apple's; else the CPU, as
    LOOKALIKE_DEVICE may ask for.
    """
    if os.environ.get(DEVICE) == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = devices.index_of(local_rank(), visible)
    if index is not None:
        return torch.device("cuda", index)
    mps = world_size() == 1 and torch.backends.mps.is_available()
    return torch.device("mps" if mps else "cpu")


def exact_device() -> torch.device:
    """Where this rank computes in float64: its device, but the CPU in place of Apple's GPU, which
    has none.
    """
    here = device()
    return torch.device("cpu") if here.type == "mps" else here


def unusable() -> str:
    """Why no GPU is used though the environment names some; empty else."""
    return devices.unusable(
        os.environ, torch.cuda.device_count() if torch.cuda.is_available() else 0
    )


def taken() -> devices.Taken:
    """The GPU of `device`, as other ranks may compare it with theirs."""
    here, text = device(), os.environ.get("LOCAL_RANK") or None
    if here.type != "cuda":
        return devices.Taken(socket.gethostname(), "", 0, text)
    return devices.Taken(socket.gethostname(), address(here), torch.cuda.device_count(), text)


def address(gpu: torch.device | int) -> str:
    """Of a GPU that this process sees: its machine since it was started, and its place on the bus,
    which all slices (MIG) of a GPU share, as NCCL compares them.
    """
    about = torch.cuda.get_device_properties(gpu)
    names = ("pci_domain_id", "pci_bus_id", "pci_device_id")
    place = [str(getattr(about, name)) for name in names if hasattr(about, name)]
    return f"{_boot()} {':'.join(place) or about.uuid}"


def _boot() -> str:
    """The same in all containers of a machine; empty where unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def timeout(asked: float) -> float:
    """Seconds after which a rank that does not answer is lost: LOOKALIKE_TIMEOUT where set, else as
    asked.
    """
    text = os.environ.get(TIMEOUT)
    if not text:
        return asked
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RunError(
            f"environment: {TIMEOUT}={text!r} is not a number of seconds above 0: unset it, or say "
            "1800"
        )
    return seconds


def environment(*, alone: bool = False) -> None:
    """Raises RunError where the launcher's variables, or LOOKALIKE_TIMEOUT, make no sense."""
    world = world_size()
    if rank() >= world:
        raise RunError(
            f"environment: RANK={rank()} of WORLD_SIZE={world}: unset both, or start with torchrun"
        )
    local_rank()
    timeout(1.0)
    if (asked := os.environ.get(DEVICE, "")) not in ("", "cpu"):
        raise RunError(f"environment: {DEVICE}={asked!r}: say cpu, or unset it")
    absent = missing()
    if absent and world > 1:
        raise RunError(
            f"environment: {', '.join(absent)} not set: start ranks with torchrun or "
            "launch/local.sh"
        )
    if world > 1 or (alone and not absent):
        _refuse_port(os.environ["MASTER_PORT"])
        _refuse_unknown_host(unbracketed(os.environ["MASTER_ADDR"]))


def missing() -> list[str]:
    """What a launcher would have set and did not."""
    return [
        name
        for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if name not in os.environ
    ]


def _refuse_port(text: str) -> None:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise RunError(
            f"environment: MASTER_PORT={text!r} is no port: say 1 to 65535, the same on all ranks"
        )


def unbracketed(address: str) -> str:
    """An IPv6 address as one writes it before a port, `[fe80::1]`, as one writes it alone."""
    return address[1:-1] if address.startswith("[") and address.endswith("]") else address


def _refuse_unknown_host(address: str) -> None:
    """torch would ask for the address again and again until the timeout."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise RunError(
            f"environment: MASTER_ADDR={address!r} cannot be resolved ({error}): "
            "name the first node as this one knows it"
        ) from error
