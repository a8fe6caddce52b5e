"""The process group: joined, waited for, lost, left; how fast its links are."""

import datetime
import errno
import os
import re
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.comm import devices
from lookalike.comm.exchange import forget_rows
from lookalike.comm.topology import (
    device,
    environment,
    missing,
    rank,
    started,
    taken,
    timeout,
    unbracketed,
    unusable,
    world_size,
)
from lookalike.errors import LostError, RunError

# The watchdog of a rank that waits in the loop, which tells more than an error of the network,
# comes first.
_LATER = 3.0
_PATIENCE = datetime.timedelta(days=30)
_PATIENT: list[Any] = []
_GRADIENTS: list[Any] = []
# How gloo, NCCL and the store say that another rank has gone or does not answer.
_GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|timeout|socket closed|pair closure|remote "
    r"process exited|"
    r"remote error|remote server|communicator was aborted|got 0 bytes|connectfullmesh|connection "
    r"refused",
    re.IGNORECASE,
)


def start(*, alone: bool = False, seconds: float = 1800.0) -> None:
    """Joins the process group that the launcher's environment names; `alone` makes one of a single
    process.

    A collective fails after `seconds`, or LOOKALIKE_TIMEOUT. Raises RunError when the environment
    makes no sense, LostError when the group does not come together in that time.
    """
    if started():
        return
    environment(alone=alone)
    if rank() == 0 and (said := unusable()):
        warnings.warn(said, stacklevel=2)
    if world_size() == 1 and not alone:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    limit = datetime.timedelta(seconds=timeout(seconds) + _LATER)
    _default_timeout(limit)
    with _joining():
        if missing():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(_backend(), store=store, rank=0, world_size=1, timeout=limit)
        else:
            os.environ["MASTER_ADDR"] = unbracketed(os.environ["MASTER_ADDR"])
            _refuse_taken_port()
            dist.init_process_group(_backend(), timeout=limit)
        if world_size() > 1:
            _PATIENT[:] = [dist.new_group(backend="gloo", timeout=limit)]
            _refuse_conflict()


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _default_timeout(limit: datetime.timedelta) -> None:
    """Groups that others make, DeepSpeed's among them, take the default, whatever `start` was
    told.
    """
    dist.distributed_c10d.default_pg_timeout = limit
    dist.distributed_c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]


def _refuse_conflict() -> None:
    """Before anything waits for a GPU that another rank has: NCCL would end in a long message, or
    hang.
    """
    told: list[Any] = [None] * world_size()
    dist.all_gather_object(told, taken(), group=_PATIENT[0])
    if problem := devices.conflict(told):
        raise RunError(problem)


def _refuse_taken_port() -> None:
    """The first rank listens on it, unless torchrun does so for all its ranks."""
    if rank() != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    for family, kind, _, _, place in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(place)
        except OSError as error:
            # An address that is not this machine's own (a service of Kubernetes) can only be tried
            # in earnest.
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise RunError(
                    f"environment: MASTER_PORT={port} cannot be had on {host} "
                    f"({error.strerror}): "
                    "choose another, the same on all ranks"
                ) from error


@contextmanager
def _joining() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        kind = LostError if is_peer_failure(error) else RunError
        place = ", ".join(f"{n}={os.environ.get(n)}" for n in ("MASTER_ADDR", "MASTER_PORT"))
        reason = str(error).splitlines()[0].rstrip(".")
        raise kind(
            f"process group at {place}: {reason}: is every rank up and reachable?"
        ) from error


def is_peer_failure(error: BaseException) -> bool:
    """Whether this says that another rank has ended or does not answer, in the words of gloo, NCCL
    or the store.
    """
    text = str(error)
    ours = (
        isinstance(error, dist.DistError)
        or "gloo" in text
        or "NCCL" in text
        or "pair closure" in text
    )
    return isinstance(error, RuntimeError) and ours and bool(_GONE.search(text))


def stop() -> None:
    """Leaves the process group, if there is one."""
    if started():
        _PATIENT.clear()
        _GRADIENTS.clear()
        forget_rows()
        dist.destroy_process_group()


def gradient_group() -> Any:
    """All ranks once more, for gradients alone, made at the first call, by all ranks alike: what
    BatchNorm sums in backward need not wait behind a bucket of them, nor come in the same turn.
    """
    if not _GRADIENTS:
        _GRADIENTS.append(dist.new_group())
    return _GRADIENTS[0]


def barrier(*, patient: bool = False) -> None:
    """Waits for all ranks; `patient`: while one of them works alone, for as long as it lives."""
    if world_size() == 1:
        return
    if patient:
        dist.monitored_barrier(_PATIENT[0], timeout=_PATIENCE)
    else:
        dist.barrier()


def bandwidth(mebibytes: int = 32, rounds: int = 5) -> float:
    """Bytes a second through each rank in an all-reduce, 2 (W - 1) / W of its size; the best of
    `rounds`.

    0 on one rank. The same figure on any number of ranks means links of the same speed.
    """
    world = world_size()
    if world == 1:
        return 0.0
    x = torch.ones(mebibytes * 2**18, device=device())
    seconds = min(_time(x) for _ in range(rounds))
    return 2 * (world - 1) / world * 4 * len(x) / seconds


def _time(x: Tensor) -> float:
    dist.barrier()
    began = time.monotonic()
    dist.all_reduce(x)
    x[:1].item()
    x.fill_(1.0)
    return time.monotonic() - began
