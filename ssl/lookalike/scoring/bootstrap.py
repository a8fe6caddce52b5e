"""How sure a mean over queries is: percentile intervals from resampled queries, or from resampled
classes.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. The queries of one class
share their matches, so they are not independent: resampling whole classes (chapter 8) gives wider,
honester intervals.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.breakdown import checked


def intervals(
    values: Mapping[str, Tensor],
    groups_Q: Tensor | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The interval of each measure's mean, (low, high), at `level`; each draw resamples all
    measures alike.

    With `groups_Q` (the class of each query) whole groups are drawn. The same seed gives the same
    interval. Raises Error when there are no values, the groups are not one per query, or level or
    draws is out of range.
    """
    if not values or not 0 < level < 1 or draws < 2:
        raise Error(
            f"bootstrap: {len(values)} measures, level {level}, draws {draws}; level in (0, 1), 2 "
            "or more draws"
        )
    first_Q = next(iter(values.values()))
    value_QM = checked(values, torch.arange(len(first_Q)) if groups_Q is None else groups_Q).cpu()
    rows = len(value_QM)
    of_Q = (
        torch.arange(rows)
        if groups_Q is None
        else torch.unique(groups_Q.cpu(), return_inverse=True)[1]
    )
    size_G = torch.bincount(of_Q).double()
    sum_GM = value_QM.new_zeros(len(size_G), value_QM.shape[1]).index_add_(0, of_Q, value_QM)
    generator, parts = torch.Generator().manual_seed(seed), []
    for _ in range(draws):
        count_G = torch.bincount(
            torch.randint(len(size_G), (len(size_G),), generator=generator), minlength=len(size_G)
        )
        parts.append(count_G.double() @ sum_GM / (count_G @ size_G.long()))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends_2M = torch.stack(parts).quantile(tails, dim=0)
    return {
        name: (float(low), float(high)) for name, (low, high) in zip(values, ends_2M.T, strict=True)
    }
