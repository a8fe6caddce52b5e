"""Sums of hinges over all triplets and all quadruplets of a batch, without listing them.

A sum of active hinges is linear in the distances: each distance counts as often as it stands in an
active hinge, and those counts come from sorting. So B³ triplets take O(B² log B) time and O(B²)
memory, and so do B⁴ quadruplets.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lookalike.metric import sizes
from lookalike.nn.numerics import widest

_LAST = 2**63 - 1  # the key of a pair that is none


class Hinges(NamedTuple):
    """`total`: the sum of all hinges, differentiable; `active`: how many are above 0; `number`: how
    many there are.
    """

    total: Tensor
    active: Tensor
    number: Tensor

    def mean(self) -> Tensor:
        """Over all of them; 0 of none."""
        return self.total / self.number.clamp(min=1)

    def mean_of_active(self) -> Tensor:
        """Over those above 0; 0 of none."""
        return self.total / self.active.clamp(min=1)


def triplet_hinges(
    d_BR: Tensor,
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
    *,
    semihard: bool = False,
) -> Hinges:
    """Σ [d(a,p) - d(a,n) + margin]₊ over every anchor a, each of its positives p and each of its
    negatives n.

    d_BR: distances of anchors (rows) to references; the masks are boolean and disjoint. `semihard`:
    only where d(a,p) < d(a,n), FaceNet's choice.
    """
    near = _nearest_first(d_BR.detach(), positive_BR)

    def weights(margin: float | Tensor, touching: bool) -> tuple[Tensor, Tensor]:
        return _triplet_weights(d_BR.detach(), near, positive_BR, negative_BR, margin, touching)

    weight_BR, active = weights(margin, False)
    if semihard:
        less_BR, fewer = weights(0.0, True)
        weight_BR, active = weight_BR - less_BR, active - fewer
    count = (positive_BR.sum(dim=1) * negative_BR.sum(dim=1)).sum()
    return Hinges(_linear(weight_BR, d_BR) + active.to(d_BR.dtype) * margin, active, count)


def _linear(weight: Tensor, d: Tensor) -> Tensor:
    """Σ weight · d, added up in fp64 where the device has it: large sums cancel."""
    return (weight.to(d.dtype) * d).sum(dtype=widest(d.device)).to(d.dtype)


def _nearest_first(d_BR: Tensor, positive_BR: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) each: the distances of each anchor's positives in their order, then inf, and whose
    they are, any column for inf; S is R where nobody waits to be told how many positives there are.
    """
    if not sizes.seen(d_BR):
        found_BR, column_BR = d_BR.masked_fill(~positive_BR, torch.inf).sort(dim=1)
        return found_BR, column_BR
    a_P, p_P = torch.nonzero(positive_BR, as_tuple=True)
    count_B = positive_BR.sum(dim=1)
    slot_P = torch.arange(len(a_P)) - (count_B.cumsum(0) - count_B)[a_P]
    most = max(1, int(count_B.max())) if len(count_B) else 1
    found_BS = d_BR.new_full((len(d_BR), most), torch.inf)
    column_BS = torch.zeros(found_BS.shape, dtype=torch.int64)
    found_BS[a_P, slot_P], column_BS[a_P, slot_P] = d_BR[a_P, p_P], p_P
    found_BS, order_BS = found_BS.sort(dim=1)
    return found_BS, column_BS.gather(1, order_BS)


def _triplet_weights(
    d_BR: Tensor,
    near: tuple[Tensor, Tensor],
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
    touching: bool,
) -> tuple[Tensor, Tensor]:
    """How often each distance stands in an active hinge (int64, minus for negatives), and how many
    are active.

    Active is d(a,p) + margin > d(a,n), or ≥ where `touching`. near: of `_nearest_first`.
    """
    near_BS, column_BS = near
    place_BR = torch.searchsorted(near_BS + margin, d_BR.contiguous(), right=not touching)
    count_B1 = positive_BR.sum(dim=1, keepdim=True)
    b, s = near_BS.shape
    met_BS = torch.zeros(b, s + 1, dtype=torch.int64, device=d_BR.device)
    met_BS = met_BS.scatter_add_(1, place_BR, negative_BR.long()).cumsum(dim=1)[:, :-1]
    met_BS = met_BS * (torch.arange(s, device=d_BR.device) < count_B1)
    times_BR = place_BR.sub_(count_B1).mul_(negative_BR)
    return times_BR.scatter_add_(1, column_BS, met_BS), met_BS.sum()


def quadruplet_hinges(
    d_BR: Tensor,
    y_B: Tensor,
    y_R: Tensor,
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
) -> Hinges:
    """Σ [d(i,j) - d(l,k) + margin]₊ over each positive (i,j) and each negative (l,k) of two classes
    not i's.

    y_B, y_R: classes counted from 0, of anchors and references. Thresholds d(i,j) + margin are
    sorted once; how many of one class, or pairs that touch one class, lie below a place is read off
    a table of C × (positives + 1), or, where nobody waits to be told its size, found in sorted keys
    of class and place.
    """
    of = _tabled_quadruplets if sizes.seen(d_BR) else _keyed_quadruplets
    return of(d_BR, y_B, y_R, positive_BR, negative_BR, margin)


def _keyed_quadruplets(
    d_BR: Tensor,
    y_B: Tensor,
    y_R: Tensor,
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
) -> Hinges:
    """Over all N = B R pairs, which the masks tell apart: O(N log N) time, O(N) memory."""
    d_N, positive_N, negative_N = (x.flatten() for x in (d_BR.detach(), positive_BR, negative_BR))
    one_N, other_N = y_B[:, None].expand_as(d_BR).flatten(), y_R.expand_as(d_BR).flatten()
    edge_N, order_N = (d_N + margin).masked_fill(~positive_N, torch.inf).sort()
    place_N = torch.searchsorted(edge_N, d_N, right=True)
    rank_N = torch.empty_like(order_N).scatter_(
        0, order_N, torch.arange(len(d_N), device=d_N.device)
    )

    def key(y_N: Tensor, at_N: Tensor | int) -> Tensor:
        return y_N * (len(d_N) + 1) + at_N

    def sorted_keys(*parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        keys = [key(y, at).masked_fill(~real, _LAST) for y, at, real in parts]
        return torch.cat(keys).sort().values

    # above: how many thresholds lie above each negative pair, less those of its own two classes
    thresholds = sorted_keys((one_N, rank_N, positive_N))
    above_N = positive_N.sum() - place_N
    for y_N in (one_N, other_N):
        above_N = above_N - torch.searchsorted(thresholds, key(y_N + 1, 0))
        above_N = above_N + torch.searchsorted(thresholds, key(y_N, place_N))
    above_N = above_N * negative_N

    # met: how many negative pairs lie below each threshold, less those that touch its class
    touching = sorted_keys((one_N, place_N, negative_N), (other_N, place_N, negative_N))
    first_N = torch.searchsorted(touching, key(one_N, 0))
    below_N = place_N.new_zeros(len(d_N) + 1)
    below_N = below_N.scatter_add_(0, place_N, negative_N.long()).cumsum(0)[rank_N]
    met_N = below_N - torch.searchsorted(touching, key(one_N, rank_N), right=True) + first_N
    met_N = met_N * positive_N
    others_N = negative_N.sum() - torch.searchsorted(touching, key(one_N + 1, 0)) + first_N

    positives, negatives = (_linear(x_N.view_as(d_BR), d_BR) for x_N in (met_N, above_N))
    active, count = met_N.sum(), (others_N * positive_N).sum()
    return Hinges(positives - negatives + active.to(d_BR.dtype) * margin, active, count)


def _tabled_quadruplets(
    d_BR: Tensor,
    y_B: Tensor,
    y_R: Tensor,
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
) -> Hinges:
    """Over the listed pairs."""
    flat = d_BR.detach()
    i_P, j_P = torch.nonzero(positive_BR, as_tuple=True)
    l_E, k_E = torch.nonzero(negative_BR, as_tuple=True)
    edge_P, order_P = (flat[i_P, j_P] + margin).sort()
    own_P = y_B[i_P][order_P]
    place_E = torch.searchsorted(edge_P, flat[l_E, k_E], right=True)
    pairs, classes = len(i_P), int(torch.cat([y_B, y_R]).max()) + 1 if len(y_B) else 1
    first_E, second_E = y_B[l_E] * (pairs + 1), y_R[k_E] * (pairs + 1)

    # above: how many thresholds lie above each negative pair, less those of its own two classes
    below_CP = torch.zeros(classes, pairs + 1, dtype=torch.int64, device=d_BR.device)
    below_CP[own_P, torch.arange(1, pairs + 1, device=d_BR.device)] = 1
    above_CP = below_CP.sum(dim=1, keepdim=True) - below_CP.cumsum(dim=1)
    above = above_CP.flatten()
    above_E = pairs - place_E - above[first_E + place_E] - above[second_E + place_E]

    # met: how many negative pairs lie below each threshold, less those that touch its class
    touch_CP = torch.zeros(classes * (pairs + 1), dtype=torch.int64, device=d_BR.device)
    one_E = torch.ones_like(place_E)
    touch_CP.scatter_add_(0, first_E + place_E, one_E).scatter_add_(0, second_E + place_E, one_E)
    touch_CP = touch_CP.view(classes, pairs + 1).cumsum(dim=1)
    all_P = torch.bincount(place_E, minlength=pairs + 1).cumsum(0)[:-1]
    met_P = all_P - touch_CP[own_P, torch.arange(pairs, device=d_BR.device)]
    count = (len(l_E) - touch_CP[own_P, -1]).sum()

    positives = _linear(met_P, d_BR[i_P, j_P][order_P])
    active = met_P.sum()
    return Hinges(
        positives - _linear(above_E, d_BR[l_E, k_E]) + active.to(d_BR.dtype) * margin, active, count
    )
