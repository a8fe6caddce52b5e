"""Which GPU is a rank's own: a pure function of what the launcher says and of what is visible, and
a comparison of what all ranks took before the first of them waits for another on it.

A launcher shows a rank all GPUs of its machine, and LOCAL_RANK counts them, or, as SLURM's
`--gpus-per-task` does, only those that are its own. Both names are right: only ranks that took the
same GPU are wrong, and that is known once their GPUs are compared.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lookalike.errors import printable

VISIBLE = "CUDA_VISIBLE_DEVICES"
_NAMED = 4


class Taken(NamedTuple):
    """What a rank took: on which machine, which GPU, by an address that no other has (empty for
    none), of how many that it sees, and its LOCAL_RANK if it has one.
    """

    host: str
    gpu: str
    visible: int
    local_rank: str | None


def index_of(local_rank: int, visible: int) -> int | None:
    """The number, among those that a rank sees, of its GPU; None where it sees none."""
    return local_rank % visible if visible else None


def unusable(environment: Mapping[str, str], visible: int) -> str:
    """Why no GPU is used though the environment names some; empty where none was asked for, or some
    are there.
    """
    asked = environment.get(VISIBLE, "")
    if visible or not asked.strip() or asked.strip().startswith("-"):
        return ""
    return (
        f"environment: {VISIBLE}={printable(asked)[:80]}, but no such GPU can be used: trains on "
        "the CPU: mend it (nvidia-smi -L lists them), or unset it"
    )


def conflict(taken: Sequence[Taken]) -> str:
    """Why these ranks, in order, cannot train together; empty where they can."""
    if without := [rank for rank, one in enumerate(taken) if not one.gpu]:
        if len(without) == len(taken):
            return ""
        return (
            f"environment: {_ranks(taken, without)} no GPU, the other ranks do: mend the driver or "
            f"{VISIBLE} there, or hide the GPUs from all"
        )
    places: dict[tuple[str, str], list[int]] = {}
    for rank, one in enumerate(taken):
        places.setdefault((one.host, one.gpu), []).append(rank)
    for (host, _), ranks in places.items():
        if len(ranks) > 1:
            return _shared(taken, host, ranks)
    return ""


def _ranks(taken: Sequence[Taken], ranks: Sequence[int]) -> str:
    """Which ranks, and where they run."""
    named = ", ".join(f"{rank} ({printable(taken[rank].host)})" for rank in ranks[:_NAMED])
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    return f"rank {named} sees" if len(ranks) == 1 else f"ranks {named}{more} see"


def _shared(taken: Sequence[Taken], host: str, ranks: Sequence[int]) -> str:
    """Ranks of one machine that took one GPU."""
    there = [one for one in taken if one.host == host]
    gpus = max(len({one.gpu for one in there}), *(one.visible for one in there))
    both = " and ".join(map(str, ranks[:2]))
    remedy = "start no more ranks than GPUs"
    if any(taken[rank].local_rank is None for rank in ranks):
        remedy = "give each rank of a machine its own LOCAL_RANK, as torchrun and launch/ do"
    return (
        f"environment: ranks {both} would share a GPU of {printable(host)} ({len(there)} ranks "
        f"there, GPUs: {gpus}): {remedy}"
    )
