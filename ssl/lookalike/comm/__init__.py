"""Everything that crosses ranks: which one this is, the group of all, and what they exchange."""

from lookalike.comm.exchange import (
    all_max,
    all_rows,
    all_sum,
    broadcast_module,
    broadcast_object,
    cat,
    count,
    gather_objects,
    mean,
    offset,
    rows_known,
    sum,
)
from lookalike.comm.group import (
    bandwidth,
    barrier,
    gradient_group,
    is_peer_failure,
    start,
    stop,
)
from lookalike.comm.share import consecutive, cut, in_turn
from lookalike.comm.topology import (
    DEVICE,
    TIMEOUT,
    address,
    device,
    environment,
    exact_device,
    local_rank,
    rank,
    started,
    timeout,
    unbracketed,
    unusable,
    world_size,
)

__all__ = [
    "DEVICE",
    "TIMEOUT",
    "address",
    "device",
    "environment",
    "exact_device",
    "local_rank",
    "rank",
    "started",
    "timeout",
    "unbracketed",
    "unusable",
    "world_size",
]
__all__ += ["consecutive", "cut", "in_turn"]
__all__ += ["bandwidth", "barrier", "gradient_group", "is_peer_failure", "start", "stop"]
__all__ += [
    "all_max",
    "all_rows",
    "all_sum",
    "broadcast_module",
    "broadcast_object",
    "cat",
    "count",
    "gather_objects",
    "mean",
    "offset",
    "rows_known",
    "sum",
]
