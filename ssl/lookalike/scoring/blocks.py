"""Rows of features in blocks of a fixed size, dealt to the ranks: the blocks do not depend on how
many ranks there are.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lookalike import comm
from lookalike.scoring.knn import rank

ROWS = 4096


def dealt(rows: int, block: int = ROWS) -> Iterator[slice]:
    """This rank's blocks of so many rows; over all ranks each block comes once."""
    for part in comm.in_turn(comm.cut(rows, block)):
        yield slice(part.start, part.stop)


def taken(x_ND: Tensor, which: slice | Tensor) -> Tensor:
    """These rows in float64 on this rank's device."""
    return x_ND[which].to(comm.exact_device(), torch.float64)


def zeros(*shape: int) -> Tensor:
    """float64 on this rank's device, for a sum over blocks."""
    return torch.zeros(*shape, dtype=torch.float64, device=comm.exact_device())


def hit(scores_BC: Tensor, true_B: Tensor) -> Tensor:
    """How many rows have their class among the best 1 and the best 5, int64 (2,); of equals the
    lower class comes first. -1 is a class that there is not.
    """
    ahead_B, known_B = rank(scores_BC, true_B), true_B >= 0
    return torch.stack([(known_B & (ahead_B < k)).sum() for k in (1, 5)])


def shares(hits_2: Tensor, rows: int, classes: int) -> dict[str, float]:
    """`top1`, and `top5` with more than 5 classes, of these hits among so many rows."""
    first, fifth = (hits_2 / rows).tolist()
    return {"top1": first, "top5": fifth} if classes > 5 else {"top1": first}
