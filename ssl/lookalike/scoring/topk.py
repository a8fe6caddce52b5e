"""The nearest rows of a large matrix, exactly, at the price of float32 products.

What is nearest is defined in float64 (`similarity`): whole steps, then what an item is (`kind`),
then its row. Products in float32 find some more candidates than are asked for; the similarity of
those is measured by the definition. A query is certain when its k-th place is nearer than anything
left out can be; the others are done again in float64. So the answer is that of the definition,
whatever the blocks.

What can be: the computed product of two vectors of n numbers, in whatever order they are summed, is
within γ_n |a|ᵀ|b| ≤ γ_n ‖a‖ ‖b‖ of the true one, γ_n = n u / (1 - n u), u = 2⁻²⁴ (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd edition, section 3.1, equations 3.4 and 3.5). `CHUNK`
numbers of the width are multiplied at a time and their products added up, so n is `CHUNK` + (chunks
- 1); rounding rows, lengths and the sum to float32 adds at most eight u. Nothing of queries × N is
ever held: `PRODUCT` similarities on a processor, a sixteenth of the free memory on a GPU.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.scoring.rows import blocks, split
from lookalike.scoring.similarity import (
    FARTHEST,
    SHORTEST,
    WIDE,
    Bank,
    full_precision,
    in_steps,
    squares,
)

QUERIES = 256
"""Queries at once on a processor."""

PRODUCT = 2**21
"""Similarities at once on a processor, 4 bytes each."""

COPIED = 2**22
"""Numbers of a block of rows that had to be converted, 4 bytes each."""

CHUNK = 512
"""Numbers of the width that one product sums."""

SPARE = 12
"""Candidates beyond those asked for, and a quarter of k more."""

GROUP = 16
"""Similarities of which the largest is looked at first."""

DIRECT = 32
"""Where more than one in so many rows is asked for, float64 at once is no slower."""

_U = 2.0**-24
_NONE = torch.iinfo(torch.int64).min

Kind = Callable[[Tensor, Tensor], Tensor]
"""(queries (B,), rows (B, K)) → what each is to its query, int64 (B, K): 0 … 3, at equal nearness
the larger one first; below 0 it is not in the list, of which a query may have one.
"""


class Top(NamedTuple):
    """Rows of the gallery, int64, their nearness in whole `STEP`s and their kinds, `(Q, k)` each,
    in order.

    Behind the end of a shorter list the row is -1.
    """

    row_Qk: Tensor
    steps_Qk: Tensor
    kind_Qk: Tensor


@torch.no_grad()
def topk(query_QD: Tensor, bank: Bank, k: int, *, kind: Kind | None = None) -> Top:
    """The k nearest rows of each query, in order: nearer first, then by `kind`, then the earlier
    row; on the queries' device.

    k above N is N. Raises Error for k below 1, and where a row of the gallery is NaN or Inf.
    """
    if k < 1:
        raise Error(f"k {k}: ask for at least 1")
    ask = _Ask(bank, min(k, len(bank)), kind or _alike)
    nothing_0k = torch.empty(0, ask.k, dtype=torch.int64, device=bank.device)
    parts = [Top(nothing_0k, nothing_0k, nothing_0k)]
    with full_precision():
        for number_B in split(torch.arange(len(query_QD)), _queries(bank)):
            parts.append(_answers(ask, query_QD, number_B))
    return Top(*(torch.cat(part).to(query_QD.device) for part in zip(*parts, strict=True)))


class _Ask(NamedTuple):
    """What is asked of every query."""

    bank: Bank
    k: int
    kind: Kind


def _alike(query_B: Tensor, row_BK: Tensor) -> Tensor:
    return torch.zeros_like(row_BK)


def _answers(ask: _Ask, query_QD: Tensor, number_B: Tensor) -> Top:
    """The answers to some queries."""
    from_BD = ask.bank.placed(query_QD[number_B[0] : number_B[-1] + 1])
    number_B = number_B.to(from_BD.device)
    if (ask.k + 1) * DIRECT > len(ask.bank):
        return _wide(ask, from_BD, number_B)
    top, sure_B = _narrow(ask, from_BD, number_B)
    again_A = (~sure_B).nonzero()[:, 0]
    for part_A in split(again_A, QUERIES):
        for found_Bk, wide_Ak in zip(
            top, _wide(ask, from_BD[part_A], number_B[part_A]), strict=True
        ):
            found_Bk[part_A] = wide_Ak
    return top


def _narrow(ask: _Ask, from_BD: Tensor, number_B: Tensor) -> tuple[Top, Tensor]:
    """The answers as float32 finds them, and which of them are certain, bool `(B,)`."""
    bank, asked = ask.bank, ask.k + 1  # one may be the query itself
    wanted = min(len(bank), asked + SPARE + ask.k // 4)
    upper_BK, row_BK = _candidates(from_BD, bank, wanted)
    most_BK = _most(upper_BK, from_BD, bank)
    steps_BK = torch.full_like(row_BK, -FARTHEST)
    steps_BK[:, :asked] = bank.measured(from_BD, row_BK[:, :asked])
    # Of the others only those that may be as near as the farthest of these are measured.
    open_BK = most_BK >= steps_BK[:, :asked].amin(1, keepdim=True)
    open_BK[:, :asked] = False
    of_P, place_P = open_BK.nonzero(as_tuple=True)
    for part in split(torch.arange(len(of_P), device=of_P.device), QUERIES):
        rows_P1 = row_BK[of_P[part], place_P[part]][:, None]
        steps_BK[of_P[part], place_P[part]] = bank.measured(from_BD[of_P[part]], rows_P1)[:, 0]
    open_BK[:, :asked] = True
    key_BK = _keys(ask, number_B, row_BK, steps_BK).masked_fill_(~open_BK, _NONE)
    top = _decoded(key_BK.topk(ask.k, dim=1).values, len(bank))
    sure_B = (top.steps_Qk[:, -1] > most_BK[:, -1]) & upper_BK.isfinite().all(1)
    return top, sure_B


def _wide(ask: _Ask, from_BD: Tensor, number_B: Tensor) -> Top:
    """The answers by float64 products with all rows."""
    bank = ask.bank
    best_Bk = torch.empty(len(from_BD), 0, dtype=torch.int64, device=from_BD.device)
    width = from_BD.shape[1]
    rows = max(1, min(WIDE // width, _room(bank) // (8 * len(from_BD))))
    for start, x_nD in blocks(bank.there, rows * width):
        row_n = torch.arange(start, start + len(x_nD), device=from_BD.device)
        steps_Bn = _steps(from_BD, bank, row_n, x_nD)
        key_Bn = _keys(ask, number_B, row_n.expand_as(steps_Bn), steps_Bn)
        key_BK = torch.cat((best_Bk, key_Bn), dim=1)
        best_Bk = key_BK.topk(min(ask.k, key_BK.shape[1]), dim=1).values
    return _decoded(best_Bk, len(bank))


def _steps(from_BD: Tensor, bank: Bank, row_n: Tensor, x_nD: Tensor) -> Tensor:
    """As `Bank.measured`, by a product; where its rounding could show, measured."""
    to_nD, slack = bank.placed(x_nD), 4 * (from_BD.shape[1] + 4) * 2.0**-53
    if bank.cosine:
        low_Bn = from_BD @ to_nD.T
        high_Bn = in_steps(low_Bn + slack)
        steps_Bn = in_steps(low_Bn.sub_(slack))
    else:
        square_Bn = squares(from_BD, to_nD)
        slack_Bn = slack * (from_BD.square().sum(1)[:, None] + to_nD.square().sum(1))
        high_Bn = in_steps((square_Bn - slack_Bn).clamp_min_(0).sqrt_().neg_())
        steps_Bn = in_steps(square_Bn.add_(slack_Bn).sqrt_().neg_())
    of_P, place_P = (high_Bn != steps_Bn).nonzero(as_tuple=True)
    for part in split(torch.arange(len(of_P), device=of_P.device), QUERIES):
        exact_P1 = bank.measured(from_BD[of_P[part]], row_n[place_P[part]][:, None])
        steps_Bn[of_P[part], place_P[part]] = exact_P1[:, 0]
    return steps_Bn


def _keys(ask: _Ask, number_B: Tensor, row_BK: Tensor, steps_BK: Tensor) -> Tensor:
    """One whole number an item, no two alike, below 2⁶²: nearness, then what it is, then the
    row.
    """
    rows, kind_BK = len(ask.bank), ask.kind(number_B, row_BK)
    key_BK = (steps_BK * 4 + kind_BK).mul_(rows).add_(rows - 1 - row_BK)
    return key_BK.masked_fill_(kind_BK < 0, _NONE)


def _decoded(key_Bk: Tensor, rows: int) -> Top:
    nothing_Bk = key_Bk == _NONE
    key_Bk = key_Bk.masked_fill(nothing_Bk, 0)
    upper_Bk = key_Bk.div(rows, rounding_mode="floor")
    row_Bk = (rows - 1 - (key_Bk - upper_Bk * rows)).masked_fill_(nothing_Bk, -1)
    steps_Bk = upper_Bk.div(4, rounding_mode="floor")
    return Top(row_Bk, steps_Bk, upper_Bk - steps_Bk * 4)


def _error(width: int) -> float:
    """Bound of a float32 product's error by the rows' lengths."""
    return 1.01 * (min(width, CHUNK) + -(-width // CHUNK) + 8) * _U


def _most(upper_BK: Tensor, from_BD: Tensor, bank: Bank) -> Tensor:
    """The steps that an item of this float32 score has at most, int64 `(B, K)`."""
    error = _error(from_BD.shape[1])
    if bank.cosine:
        return in_steps(upper_BK.double().add_(error))
    size_B1 = torch.linalg.vector_norm(from_BD, dim=1, keepdim=True).square_()
    square_BK = (size_B1 * (1 - error) - 2 * upper_BK.double()).clamp_min_(0)
    return in_steps(square_BK.sqrt_().neg_())


def _candidates(from_BD: Tensor, bank: Bank, wanted: int) -> tuple[Tensor, Tensor]:
    """The float32 scores and rows of the `wanted` best, `(B, wanted)`, falling.

    Scores: the cosine; Euclidean: a·b - |b|²/2, the larger the nearer, and as much larger as its
    error may be.
    """
    from_BD = from_BD.float()
    best_BK, row_BK = from_BD.new_empty(len(from_BD), 0), None
    for start, near_Bn in _products(from_BD, bank):
        value_BK, place_BK = _promising(near_Bn, best_BK, wanted)
        place_BK = place_BK + start
        if row_BK is not None:
            value_BK = torch.cat((best_BK, value_BK), dim=1)
            place_BK = torch.cat((row_BK, place_BK), dim=1)
        best_BK, at_BK = value_BK.topk(min(wanted, value_BK.shape[1]), dim=1)
        row_BK = place_BK.gather(1, at_BK)
    assert row_BK is not None
    return best_BK, row_BK


def _promising(near_Bn: Tensor, best_BK: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """Scores and columns that hold all of the `wanted` best which are above the best so far.

    Those lie in the groups whose largest is among the `wanted` largest: a sixteenth is sorted.
    """
    groups = near_Bn.shape[1] // GROUP
    column_Bn = torch.arange(near_Bn.shape[1], device=near_Bn.device).expand_as(near_Bn)
    largest_Bg = near_Bn[:, : groups * GROUP].view(len(near_Bn), GROUP, groups).amax(1)
    count = min(wanted, groups)
    if best_BK.shape[1] == wanted and groups:
        count = min(count, int((largest_Bg > best_BK[:, -1:]).sum(1).amax()))
    if not groups or 2 * count > groups:
        return near_Bn, column_Bn
    group_Bc = largest_Bg.topk(count, dim=1, sorted=False).indices
    step_G1 = torch.arange(0, groups * GROUP, groups, device=near_Bn.device)[:, None]
    place_BK = (group_Bc[:, None] + step_G1).flatten(1)
    if groups * GROUP < near_Bn.shape[1]:
        place_BK = torch.cat((place_BK, column_Bn[:, groups * GROUP :]), dim=1)
    return near_Bn.gather(1, place_BK), place_BK


def _products(from_BD: Tensor, bank: Bank) -> Iterator[tuple[int, Tensor]]:
    """First row and float32 scores `(B, n)` of each block of the gallery."""
    width, frame = from_BD.shape[1], bank.frame_there
    # What float32 holds as it is needs no copy, unless a product of its size may overflow.
    raw = bank.cosine and bank.x_ND.dtype != torch.float64
    raw = raw and float(frame.length_N.amax()) < 1e30
    room = max(1, _room(bank) // len(from_BD))
    if not raw or bank.x_ND.dtype != torch.float32:
        room = min(room, max(1, COPIED // width))
    for start, x_nD in blocks(bank.there, room * width):
        length_n = frame.length_N[start : start + len(x_nD)]
        if raw:
            near_Bn = _product(from_BD, x_nD.to(bank.device).float())
            near_Bn.mul_(length_n.clamp_min(SHORTEST).reciprocal_().float())
        else:
            near_Bn = _product(from_BD, bank.placed(x_nD).float())
        if not bank.cosine:
            near_Bn.add_(length_n.square().mul_((_error(width) - 1) / 2).float())
        yield start, near_Bn


def _product(from_BD: Tensor, to_nD: Tensor) -> Tensor:
    near_Bn = from_BD[:, :CHUNK] @ to_nD[:, :CHUNK].T
    for start in range(CHUNK, from_BD.shape[1], CHUNK):
        near_Bn.add_(from_BD[:, start : start + CHUNK] @ to_nD[:, start : start + CHUNK].T)
    return near_Bn


def _room(bank: Bank) -> int:
    """Similarities at once."""
    if bank.device.type == "cpu":
        return PRODUCT
    free, _ = torch.cuda.mem_get_info(bank.device)
    return max(PRODUCT, min(2**28, free // 64))


def _queries(bank: Bank) -> int:
    """Queries at once: more on a GPU, to which the gallery may have to be brought each time."""
    return QUERIES if bank.device.type == "cpu" else 16 * QUERIES
