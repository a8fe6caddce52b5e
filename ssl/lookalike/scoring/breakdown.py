"""Where the mean comes from: each measure of single queries, averaged over classes, cameras or any
other groups.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lookalike.errors import Error


def checked(values: Mapping[str, Tensor], groups_Q: Tensor) -> Tensor:
    """The values as float64 `(Q, M)`. Raises Error when there are none, or not one number and group
    per query.
    """
    shapes = {tuple(value_Q.shape) for value_Q in values.values()}
    if shapes != {tuple(groups_Q.shape)} or groups_Q.ndim != 1 or not len(groups_Q):
        raise Error(
            f"values of queries: shapes {sorted(shapes)} with {tuple(groups_Q.shape)} groups; one "
            "per query"
        )
    if groups_Q.is_floating_point():
        raise Error(f"groups: dtype {groups_Q.dtype}; pass whole numbers")
    value_QM = torch.stack([value_Q.double() for value_Q in values.values()], 1)
    if not bool(value_QM.isfinite().all()):
        raise Error("values of queries: NaN or Inf; leave out queries that have none")
    return value_QM


def by_group(values: Mapping[str, Tensor], groups_Q: Tensor) -> dict[int, dict[str, float]]:
    """The mean of each measure over the queries of each group, and `queries`, how many those are.

    `groups_Q`: the class or camera of each query in `PerQuery.row_Q`. Raises Error when not one per
    query.
    """
    value_QM = checked(values, groups_Q)
    group_G, of_Q, size_G = torch.unique(groups_Q, return_inverse=True, return_counts=True)
    sum_GM = value_QM.new_zeros(len(group_G), value_QM.shape[1]).index_add_(0, of_Q, value_QM)
    mean_GM = sum_GM / size_G[:, None]
    rows = zip(group_G.tolist(), mean_GM.tolist(), size_G.tolist(), strict=True)
    return {
        group: {**dict(zip(values, row, strict=True)), "queries": float(size)}
        for group, row, size in rows
    }


def macro(values: Mapping[str, Tensor], groups_Q: Tensor) -> dict[str, float]:
    """The mean over groups of the groups' means: every class counts the same, however many queries
    it has.
    """
    found = by_group(values, groups_Q).values()
    return {name: sum(one[name] for one in found) / len(found) for name in values}
