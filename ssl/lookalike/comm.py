"""Everything that crosses ranks: differentiable sum, mean and cat, the identity on one rank.

The law that all losses rest on: each rank computes the loss of the WHOLE batch and the engine averages the
parameters' gradients over ranks. The backward of `sum` and of `cat` adds what every rank's copy of the loss
sends back, W times the true gradient, and the engine's mean divides by W: what remains is the gradient that
one process would find on the whole batch, for even and uneven splits alike.
`torch.distributed.nn.functional`, which had such functions, is deprecated.
"""

import builtins
import datetime
import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lookalike.errors import LostError, RunError

TIMEOUT = "LOOKALIKE_TIMEOUT"
# The watchdog of a rank that waits in the loop, which tells more than an error of the network, comes first.
_LATER = 3.0
_PATIENCE = datetime.timedelta(days=30)
_PATIENT: list[Any] = []
# How gloo, NCCL and the store say that another rank has gone or does not answer.
_GONE = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|timeout|socket closed|pair closure|remote process exited|"
    r"remote error|remote server|communicator was aborted|got 0 bytes|connectfullmesh|connection refused",
    re.IGNORECASE,
)


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
        raise RunError("environment: WORLD_SIZE=0 is no number of ranks: unset it, or start ranks with torchrun")
    return world


def local_rank() -> int:
    """This process among those of its machine: the index of its GPU."""
    return _number("LOCAL_RANK", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise RunError(f"environment: {name}={text!r} is no number: unset it, or start ranks with torchrun")
    return int(text)


def device() -> torch.device:
    """Where this rank computes: its own GPU, else the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def timeout(asked: float) -> float:
    """Seconds after which a rank that does not answer is lost: LOOKALIKE_TIMEOUT where set, else as asked."""
    text = os.environ.get(TIMEOUT)
    if not text:
        return asked
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise RunError(f"environment: {TIMEOUT}={text!r} is no number of seconds above 0: unset it, or say 1800")
    return seconds


def environment(*, alone: bool = False) -> None:
    """Raises RunError where the launcher's variables, or LOOKALIKE_TIMEOUT, make no sense."""
    world = world_size()
    if rank() >= world:
        raise RunError(f"environment: RANK={rank()} of WORLD_SIZE={world}: unset both, or start with torchrun")
    local_rank()
    timeout(1.0)
    missing = _missing()
    if missing and world > 1:
        raise RunError(f"environment: {', '.join(missing)} not set: start ranks with torchrun or launch/local.sh")
    if world > 1 or (alone and not missing):
        _refuse_port(os.environ["MASTER_PORT"])
        _refuse_unknown_host(os.environ["MASTER_ADDR"])


def _missing() -> list[str]:
    return [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]


def start(*, alone: bool = False, seconds: float = 1800.0) -> None:
    """Joins the process group that the launcher's environment names; `alone` makes one of a single process.

    A collective fails after `seconds`, or LOOKALIKE_TIMEOUT. Raises RunError when the environment makes no sense,
    LostError when the group does not come together in that time.
    """
    if started():
        return
    environment(alone=alone)
    if world_size() == 1 and not alone:
        return
    if torch.cuda.is_available():
        _refuse_missing_gpu(torch.cuda.device_count())
        torch.cuda.set_device(device())
    limit = datetime.timedelta(seconds=timeout(seconds) + _LATER)
    _default_timeout(limit)
    with _joining():
        if _missing():
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(_backend(), store=store, rank=0, world_size=1, timeout=limit)
        else:
            _refuse_taken_port()
            dist.init_process_group(_backend(), timeout=limit)
        if world_size() > 1:
            _PATIENT[:] = [dist.new_group(backend="gloo", timeout=limit)]


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _default_timeout(limit: datetime.timedelta) -> None:
    """Groups that others make, DeepSpeed's among them, take the default, whatever `start` was told."""
    dist.distributed_c10d.default_pg_timeout = limit
    dist.distributed_c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]


def _refuse_missing_gpu(count: int) -> None:
    if local_rank() >= count:
        raise RunError(f"environment: LOCAL_RANK={local_rank()}, but GPUs here: {count}: start no more ranks than GPUs")


def _refuse_port(text: str) -> None:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise RunError(f"environment: MASTER_PORT={text!r} is no port: say 1 to 65535, the same on all ranks")


def _refuse_taken_port() -> None:
    """The first rank listens on it, unless torchrun does so for all its ranks."""
    if rank() != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(place)
        except OSError as error:
            # An address that is not this machine's own (a service of Kubernetes) can only be tried in earnest.
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise RunError(
                    f"environment: MASTER_PORT={place[1]} cannot be had on {place[0]} ({error.strerror}): "
                    "choose another, the same on all ranks"
                ) from error


def _refuse_unknown_host(address: str) -> None:
    """torch would ask for the address again and again until the timeout."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise RunError(
            f"environment: MASTER_ADDR={address!r} cannot be resolved ({error}): "
            "name the first node as this one knows it"
        ) from error


@contextmanager
def _joining() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        kind = LostError if lost(error) else RunError
        place = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')}, MASTER_PORT={os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0].rstrip(".")
        raise kind(f"process group at {place}: {reason}: is every rank up and reachable?") from error


def lost(error: BaseException) -> bool:
    """Whether this says that another rank has ended or does not answer, in the words of gloo, NCCL or the store."""
    text = str(error)
    ours = isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text or "pair closure" in text
    return isinstance(error, RuntimeError) and ours and bool(_GONE.search(text))


def stop() -> None:
    """Leaves the process group, if there is one."""
    if started():
        _PATIENT.clear()
        dist.destroy_process_group()


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


def patient_barrier() -> None:
    """Waits for all ranks while one of them works alone, for as long as it lives."""
    if world_size() > 1:
        dist.monitored_barrier(_PATIENT[0], timeout=_PATIENCE)


def together(flags: Tensor) -> Tensor:
    """The sum of small counters over ranks, without gradient."""
    if world_size() > 1:
        flags = flags.clone()
        dist.all_reduce(flags)
    return flags


def highest(x: Tensor) -> Tensor:
    """The largest of x over ranks, elementwise, without gradient."""
    if world_size() > 1:
        x = x.detach().clone()
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def from_first(value: Any) -> Any:
    """What rank 0 says, on every rank: one decision for all (plain Python data)."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """What each rank says, in rank order, on every rank (plain Python data)."""
    if world_size() == 1:
        return [value]
    box: list[Any] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def bandwidth(mebibytes: int = 32, rounds: int = 5) -> float:
    """Bytes a second through each rank in an all-reduce, 2 (W - 1) / W of its size; the best of `rounds`.

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


@torch.no_grad()
def spread(module: torch.nn.Module) -> None:
    """Copies rank 0's parameters and buffers to all ranks (DeepSpeed never sends buffers)."""
    if world_size() > 1:
        for tensor in module.state_dict(keep_vars=True).values():
            dist.broadcast(tensor.data, src=0)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _Cat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows = _rows(x)
        ctx.start, ctx.rows = builtins.sum(rows[: rank()]), len(x)
        padded = x.new_zeros(max(rows), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.start : ctx.start + ctx.rows]


def _rows(x: Tensor) -> list[int]:
    """How many rows each rank holds; asked on the host, so that no device is waited for."""
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(x)
    dist.all_reduce(counts)
    return [int(n) for n in counts.tolist()]


def sum(x: Tensor) -> Tensor:
    """The sum of x over ranks, elementwise, same shape; differentiable."""
    return _apply(_Sum, x)


def cat(x: Tensor) -> Tensor:
    """(B, …) of each rank -> (N, …) in rank order; ranks may hold different B; differentiable."""
    return _apply(_Cat, x)


def mean(x: Tensor) -> Tensor:
    """(B, …) -> (…): the mean over the rows of all ranks; differentiable."""
    return sum(x.sum(dim=0)) / count(x)


def count(x: Tensor) -> int:
    """N, the rows of x over all ranks."""
    return len(x) if world_size() == 1 else builtins.sum(_rows(x))


def offset(x: Tensor) -> int:
    """Where this rank's rows of x begin among the rows of all ranks, as `cat` lays them out."""
    return 0 if world_size() == 1 else builtins.sum(_rows(x)[: rank()])


def _apply(function: Any, x: Tensor) -> Tensor:
    if world_size() == 1:
        return x
    result: Tensor = function.apply(x)
    return result
