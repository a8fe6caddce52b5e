"""Everything that crosses ranks: which one this is, the group of all, and what they exchange."""

from lookalike.comm.exchange import cat, count, from_all, from_first, highest, mean, offset, spread, sum, together
from lookalike.comm.group import bandwidth, barrier, lost, patient_barrier, start, stop
from lookalike.comm.place import TIMEOUT, device, environment, local_rank, rank, started, timeout, world_size

__all__ = ["TIMEOUT", "device", "environment", "local_rank", "rank", "started", "timeout", "world_size"]
__all__ += ["bandwidth", "barrier", "lost", "patient_barrier", "start", "stop"]
__all__ += ["cat", "count", "from_all", "from_first", "highest", "mean", "offset", "spread", "sum", "together"]
