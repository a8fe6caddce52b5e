"""Everything that crosses ranks: which one this is, the group of all, and what they exchange."""

from lookalike.comm.exchange import (
    bandwidth,
    cat,
    count,
    from_all,
    from_first,
    highest,
    mean,
    offset,
    spread,
    sum,
    together,
)
from lookalike.comm.group import barrier, lost, patient_barrier, start, stop
from lookalike.comm.place import TIMEOUT, device, environment, local_rank, rank, started, timeout, world_size

__all__ = [
    "TIMEOUT",
    "bandwidth",
    "barrier",
    "cat",
    "count",
    "device",
    "environment",
    "from_all",
    "from_first",
    "highest",
    "local_rank",
    "lost",
    "mean",
    "offset",
    "patient_barrier",
    "rank",
    "spread",
    "start",
    "started",
    "stop",
    "sum",
    "timeout",
    "together",
    "world_size",
]
