"""Quadruplet loss: a pair of one class is nearer than any pair of two classes, by a margin.

Chen, Chen, Zhang & Huang, "Beyond triplet loss: a deep quadruplet network for person
re-identification", CVPR 2017, arXiv 1704.01719, equations 6 and 7.
"""

from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from lookalike.metric.hinges import quadruplet_hinges, triplet_hinges
from lookalike.metric.pair_masks import (
    Masks,
    classes,
    dissimilarity,
    listed,
    masks,
    number,
    reducer_of,
)


def quadruplet_all(
    d_BR: Tensor,
    y_B: Tensor,
    y_R: Tensor,
    chosen: Masks,
    margins: tuple[float | Tensor, float | Tensor],
) -> tuple[Tensor, Tensor]:
    """The means of [d(i,j) - d(i,k) + α₁]₊ and of [d(i,j) - d(l,k) + α₂]₊ over all that the masks
    allow.

    y_i = y_j, y_k ≠ y_i in the first; y_l ≠ y_k and y_i neither of them in the second, which is 0
    below 3 classes. d_BR: squared distances; y_B, y_R: classes counted from 0. O(B² log B) time,
    O(B²) memory.
    """
    first = triplet_hinges(d_BR, chosen.positive_BR, chosen.negative_BR, margins[0])
    once = chosen.once()
    second = quadruplet_hinges(d_BR, y_B, y_R, once.positive_BR, once.negative_BR, margins[1])
    return first.mean(), second.mean()


@torch.no_grad()
def hardest(d_BR: Tensor, y_B: Tensor, y_R: Tensor, chosen: Masks) -> tuple[Tensor, ...]:
    """(positive, negative, l, k, whether it has both), each (B,): the hardest of each anchor, where
    it has a positive and a negative.

    (l, k) is the nearest pair of two classes of which neither is the anchor's, l = -1 where there
    is none. The nearest pair of all serves every class but its own two, which get a search each:
    O(B²), no class-to-class table.
    """
    farthest_B = d_BR.masked_fill(~chosen.positive_BR, -torch.inf).argmax(dim=1)
    apart_BR = d_BR.masked_fill(~chosen.negative_BR, torch.inf)
    best_1 = _nearest_pair(apart_BR)
    place_B = best_1.expand(len(d_BR))
    for c_1 in (y_B[best_1 // len(y_R)], y_R[best_1 % len(y_R)]):
        without_BR = apart_BR.masked_fill((y_B == c_1)[:, None] | (y_R == c_1)[None], torch.inf)
        place_B = torch.where(y_B == c_1, _nearest_pair(without_BR), place_B)
    return (
        farthest_B,
        apart_BR.argmin(dim=1),
        torch.where(place_B < 0, -1, place_B // len(y_R)),
        place_B % len(y_R),
        chosen.positive_BR.any(dim=1) & chosen.negative_BR.any(dim=1),
    )


def _nearest_pair(apart_BR: Tensor) -> Tensor:
    """(1,): the place of the smallest in the flattened matrix, -1 where all are infinite."""
    apart_1N = apart_BR.reshape(1, -1)
    place_1 = apart_1N.argmin(dim=1)
    return torch.where(apart_1N.gather(1, place_1[None])[0] == torch.inf, -1, place_1)


@torch.no_grad()
def adaptive_margins(d_BR: Tensor, chosen: Masks) -> tuple[Tensor, Tensor]:
    """α = w (μ⁻ - μ⁺), w = 1 and ½: from the batch's mean distances of negative and of positive
    pairs; no gradient.
    """
    gap = _mean_where(d_BR, chosen.negative_BR) - _mean_where(d_BR, chosen.positive_BR)
    return gap, gap / 2


def _mean_where(d_BR: Tensor, mask_BR: Tensor) -> Tensor:
    return (d_BR * mask_BR).sum() / mask_BR.sum().clamp(min=1)


class QuadrupletLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """Quadruplet loss (Chen 2017, arXiv 1704.01719): triplets, and pairs of two classes that push
    apart as well.

    `form` all: the mean over all triplets plus the mean over all quadruplets (`reducer` has no
    say); hard: for each anchor its farthest positive, its nearest negative and the nearest pair of
    two other classes. `adaptive`: margins w (μ⁻ - μ⁺), w = 1 and ½, in place of those given.
    Distances are squared and of unit rows by default.
    """

    def __init__(
        self,
        *,
        form: Literal["all", "hard"] = "hard",
        margin: float = 1.0,
        second_margin: float = 0.5,
        adaptive: bool = False,
        **kwargs: Any,
    ) -> None:
        """Raises ValueError unless second_margin < margin."""
        super().__init__(**kwargs)
        if not second_margin < margin:
            raise ValueError(
                f"second_margin {second_margin:g} is not below margin {margin:g}: lower it"
            )
        self.form, self.margins, self.adaptive = form, (margin, second_margin), adaptive

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: sub-losses `triplet_loss` and `pair_loss`."""
        chosen = masks(indices_tuple, labels, ref_labels)
        y_B, y_R = classes(labels, ref_labels)
        d_BR = dissimilarity(self.distance, embeddings, ref_emb)
        margins: Any = adaptive_margins(d_BR, chosen) if self.adaptive else self.margins
        found = self.zero_losses()
        if self.form == "all":
            for name, value in zip(
                found, quadruplet_all(d_BR, y_B, y_R, chosen, margins), strict=False
            ):
                found[name] = number(value)
            return found
        p, n, left, k, both = hardest(d_BR, y_B, y_R, chosen)
        a = torch.arange(len(p), device=p.device)
        near_B = d_BR[a, p]
        first_B = torch.relu(near_B - d_BR[a, n] + margins[0])
        second_B = torch.relu(near_B - d_BR[left, k] + margins[1]) * (left >= 0)
        for name, losses_B, kind, indices in (
            ("triplet_loss", first_B, "triplet", (a, p, n)),
            ("pair_loss", second_B, "element", (a,)),
        ):
            reducer = reducer_of(self.reducer, name)
            found[name] = listed(losses_B, both, kind, reducer, indices)
        return found

    def _sub_loss_names(self) -> list[str]:
        return ["triplet_loss", "pair_loss"]

    def get_default_distance(self) -> Any:
        """d², on the unit sphere."""
        return LpDistance(power=2)
