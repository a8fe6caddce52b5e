"""Sums of hinges over all triplets and all quadruplets of a batch, without listing them.

A sum of active hinges is linear in the distances: each distance counts as often as it stands in an
active hinge, and those counts come from sorting. So B³ triplets take O(B² log B) time and O(B²)
memory, and so do B⁴ quadruplets.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
    weight_BR, active = _triplet_weights(
        d_BR.detach(), positive_BR, negative_BR, margin, touching=False
    )
    if semihard:
        less_BR, fewer = _triplet_weights(
            d_BR.detach(), positive_BR, negative_BR, 0.0, touching=True
        )
        weight_BR, active = weight_BR - less_BR, active - fewer
    count = (positive_BR.sum(dim=1) * negative_BR.sum(dim=1)).sum()
    return Hinges(_linear(weight_BR, d_BR) + active.to(d_BR.dtype) * margin, active, count)


def _linear(weight: Tensor, d: Tensor) -> Tensor:
    """Σ weight · d, added up in fp64: large sums cancel."""
    return (weight.to(d.dtype) * d).sum(dtype=torch.float64).to(d.dtype)


def _triplet_weights(
    d_BR: Tensor,
    positive_BR: Tensor,
    negative_BR: Tensor,
    margin: float | Tensor,
    *,
    touching: bool,
) -> tuple[Tensor, Tensor]:
    """How often each distance stands in an active hinge (int64, minus for negatives), and how many
    are active.

    Active is d(a,p) + margin > d(a,n), or ≥ where `touching`.
    """
    a_P, p_P = torch.nonzero(positive_BR, as_tuple=True)
    count_B = positive_BR.sum(dim=1)
    slot_P = torch.arange(len(a_P), device=d_BR.device) - (count_B.cumsum(0) - count_B)[a_P]
    widest = max(1, int(count_B.max())) if len(count_B) else 1
    edge_BS = d_BR.new_full((len(d_BR), widest), torch.inf)
    edge_BS[a_P, slot_P] = d_BR[a_P, p_P] + margin
    edge_BS, order_BS = edge_BS.sort(dim=1)
    place_BR = torch.searchsorted(edge_BS, d_BR.contiguous(), right=not touching)
    times_BR = (count_B[:, None] - place_BR) * negative_BR
    met_BS = torch.zeros(len(d_BR), widest + 1, dtype=torch.int64, device=d_BR.device)
    met_BS = met_BS.scatter_add_(1, place_BR, negative_BR.long()).cumsum(dim=1)[:, :-1]
    met_BS = torch.empty_like(met_BS).scatter_(1, order_BS, met_BS)
    times_BR.neg_()
    times_BR[a_P, p_P] += met_BS[a_P, slot_P]
    return times_BR, met_BS[a_P, slot_P].sum()


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
    a table of C × (positives + 1).
    """
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
