"""What a miner or the labels say about pairs, as masks: which reference is a positive, which a
negative of an anchor; about triplets, as a sum of hinges.

B² booleans instead of lists of B³ triplets.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike.errors import DataError
from lookalike.metric import sizes
from lookalike.metric.hinges import Hinges, triplet_hinges


class Masks(NamedTuple):
    """Booleans (B, R) of anchors and references, and whether each pair stands there in both
    orders.
    """

    positive_BR: Tensor
    negative_BR: Tensor
    mirrored: bool = False

    def once(self) -> "Masks":
        """The same with each unordered pair once."""
        if not self.mirrored:
            return self
        return Masks(self.positive_BR.triu(), self.negative_BR.triu())


def masks(indices_tuple: Any, labels_B: Tensor, labels_R: Tensor) -> Masks:
    """Of a miner's pairs or triplets; where there are none, of the labels, a row never its own
    positive; a reference of `sizes.NO_CLASS` is nothing of anyone.

    Raises ValueError when labels are no whole numbers: floats would make one class of 2²⁴ and 2²⁴ +
    1.
    """
    if labels_B.is_floating_point() or labels_R.is_floating_point():
        raise ValueError(f"labels are {labels_B.dtype}: give whole numbers (int64)")
    if indices_tuple is None:
        same_BR = labels_B[:, None] == labels_R[None]
        if labels_R is labels_B:
            return Masks(same_BR.clone().fill_diagonal_(False), ~same_BR, mirrored=True)
        return Masks(same_BR, ~same_BR & (labels_R.long() != sizes.NO_CLASS))
    from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

    a, p, b, n = lmu.convert_to_pairs(indices_tuple, labels_B, labels_R)
    empty = torch.zeros(len(labels_B), len(labels_R), dtype=torch.bool, device=labels_B.device)
    positive_BR, negative_BR = empty.clone(), empty
    positive_BR[a, p], negative_BR[b, n] = True, True
    return Masks(positive_BR, negative_BR)


def hinges(
    indices_tuple: Any,
    labels_B: Tensor,
    labels_R: Tensor,
    d_BR: Tensor,
    margin: float,
    *,
    semihard: bool = False,
) -> Hinges:
    """[d(a,p) - d(a,n) + margin]₊ of a miner's triplets; where there are none, of all, or all
    `semihard` ones.
    """
    if indices_tuple is None:
        positive_BR, negative_BR, _ = masks(None, labels_B, labels_R)
        return triplet_hinges(d_BR, positive_BR, negative_BR, margin, semihard=semihard)
    from pytorch_metric_learning.utils import loss_and_miner_utils as lmu

    a, p, n = lmu.convert_to_triplets(indices_tuple, labels_B, labels_R)
    hinge_T = torch.relu(d_BR[a, p] - d_BR[a, n] + margin)
    return Hinges(hinge_T.sum(), (hinge_T > 0).sum(), torch.full_like(a.sum(), len(a)))


def refuse_unknown(labels_N: Tensor, num_classes: int) -> Tensor | None:
    """Raises DataError for a label outside 0 … num_classes - 1, for which a loss has no row.

    On an accelerator nobody waits: whether all are known is given as a boolean there, for a loss
    that is NaN where they are not.
    """
    if not len(labels_N):
        return None
    if not sizes.seen(labels_N):
        return ((labels_N >= 0) & (labels_N < num_classes)).all()
    for label in map(int, torch.aminmax(labels_N)):
        if not 0 <= label < num_classes:
            known = f"the {num_classes} classes, 0 to {num_classes - 1}"
            raise DataError(f"labels: {label} is none of {known}: number them so")
    return None


def classes(labels_B: Tensor, labels_R: Tensor) -> tuple[Tensor, Tensor]:
    """The same classes counted from 0 in the order of their labels: (B,) and (R,)."""
    if labels_R is labels_B:
        y_B = _ranked(labels_B)
        return y_B, y_B
    both = _ranked(torch.cat([labels_B, labels_R]))
    return both[: len(labels_B)], both[len(labels_B) :]


def _ranked(labels_N: Tensor) -> Tensor:
    """`torch.unique`'s inverse, which on a GPU waits to know how many there are."""
    sorted_N, order_N = labels_N.sort(stable=True)
    new_N = sorted_N.diff(prepend=sorted_N[:1]) != 0
    return torch.empty_like(order_N).scatter_(0, order_N, new_N.cumsum(0))


def dissimilarity(distance: Any, z_BD: Tensor, ref_RD: Tensor) -> Tensor:
    """(B, R) by one of the library's distances, larger the further apart; similarities change their
    sign.
    """
    mat_BR: Tensor = distance(z_BD, ref_RD)
    return -mat_BR if distance.is_inverted else mat_BR


def listed(
    losses: Tensor, mask: Tensor, kind: str, reducer: Any, indices: tuple[Tensor, ...] | None = None
) -> dict[str, Any]:
    """Losses of the shape of a mask as the library takes them: a list of those that the mask names,
    and where each stands, or what `indices` say there.

    The mean of them, the same but for rounding, where the host would wait for their number; another
    reducer is given the list there too.
    """
    from pytorch_metric_learning.reducers import MeanReducer

    if not sizes.seen(losses) and type(reducer) is MeanReducer:
        return number(torch.where(mask, losses, 0.0).sum() / mask.sum().clamp(min=1))
    places = mask.nonzero(as_tuple=True)
    found: Any = places if indices is None else tuple(index[places] for index in indices)
    return {
        "losses": losses[places] if len(places[0]) else 0,
        "indices": found[0] if kind == "element" else found,
        "reduction_type": kind,
    }


def reducer_of(reducer: Any, part: str) -> Any:
    """What reduces one part of a loss, of the library's reducer of several."""
    several = getattr(reducer, "reducers", None)
    return several[part] if several is not None and part in several else reducer


def number(value: Tensor) -> dict[str, Any]:
    """A loss that is one number already, as the library takes it."""
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}
