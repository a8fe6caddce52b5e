"""Constellation loss: an anchor and its positive against K negatives of K different classes at
once.

Medela & Picon, "Constellation loss: improving the efficiency of deep metric learning loss functions
for the optimal embedding of histopathological images", 2019, arXiv 1905.10675, equation 5. Sohn's
N-pair loss is its special case on N-pair batches, the smooth triplet loss with margin 0 that of K =
1.
"""

from typing import Any, Literal

import torch
from pytorch_metric_learning.distances import DotProductSimilarity
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor

from lookalike import rng
from lookalike.metric import sizes
from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import classes, dissimilarity, listed, masks
from lookalike.nn.hooks import Scheduled
from lookalike.nn.numerics import widest
from lookalike.optim import Progress
from lookalike.recipe import Count


def hard_negatives(s_AR: Tensor, negative_AR: Tensor, y_R: Tensor, k: int) -> Tensor:
    """(A, K): the most similar negative of each class, then the K highest of these; -inf where
    there are fewer.

    s_AR: similarities of anchors to references; y_R: the references' classes, counted from 0.
    """
    count = sizes.at_most(y_R.max() + 1, len(y_R))
    masked_AR = s_AR.masked_fill(~negative_AR, -torch.inf)
    best_AC = s_AR.new_full((len(s_AR), count), -torch.inf)
    best_AC = best_AC.scatter_reduce(1, y_R.expand_as(s_AR), masked_AR, "amax")
    return best_AC.topk(min(k, count), dim=1).values


def random_negatives(negative_AR: Tensor, y_R: Tensor, k: int, seed: int) -> Tensor:
    """(A, R) booleans: of each anchor K classes, and one negative of each; all that there are where
    there are fewer.

    A pure function of the seed, made where the masks are: alike on all ranks and devices.
    """
    device, count = y_R.device, sizes.at_most(y_R.max() + 1, len(y_R))
    row_A1 = torch.arange(len(negative_AR), device=device)[:, None]

    def drawn(what: str, number: int) -> Tensor:
        words = rng.bits(seed, what, row_A1, torch.arange(number, device=device))
        return (words & 2**53 - 1).to(widest(device))

    key_AR = drawn("image", len(y_R)).masked_fill(~negative_AR, -1.0)
    key_AC = drawn("class", count)
    index_AR = y_R.expand_as(key_AR)
    best_AC = key_AR.new_full(key_AC.shape, -1.0).scatter_reduce(1, index_AR, key_AR, "amax")
    key_AC = key_AC.masked_fill(best_AC < 0, -1.0)
    least_A1 = key_AC.topk(min(k, count), dim=1).values[:, -1:]
    class_AC = (key_AC >= least_A1) & (best_AC >= 0)
    return negative_AR & class_AC.gather(1, index_AR) & (key_AR == best_AC.gather(1, index_AR))


def constellation(s_AR: Tensor, negatives_AK: Tensor, a_P: Tensor, p_P: Tensor) -> Tensor:
    """(P,): log(1 + Σ_k exp(s(a, n_k) - s(a, p))) of each pair (a, p), as the softplus of a
    log-sum-exp.

    negatives_AK: the anchors' similarities to their negatives, -inf for none; each row has one at
    least.
    """
    return _softplus(negatives_AK.logsumexp(dim=1)[a_P] - s_AR[a_P, p_P])


def _softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


class ConstellationLoss(Scheduled, OwnLoss, BaseMetricLossFunction):  # type: ignore[misc]
    """Constellation loss (Medela & Picon 2019, arXiv 1905.10675), the mean over all pairs of anchor
    and positive.

    `negatives` hard: of each class the most similar, then the K most similar of these; random: K
    classes and an image of each, drawn anew for each anchor and step; all: every image of another
    class, whatever K is. `k` above the classes there are becomes their number. A pair without
    negatives takes no part. Compares raw dot products of embeddings of any length by default.
    """

    unnormalised = True

    def __init__(
        self,
        seed: int = 0,
        *,
        negatives: Literal["hard", "random", "all"] = "hard",
        k: Count = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.negatives, self.k, self.seed, self.step = negatives, k, seed, 0

    def on_step(self, progress: Progress) -> None:
        """Another step, other draws."""
        self.step = progress.step

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one value a positive pair."""
        positive_BR, negative_BR, _ = masks(indices_tuple, labels, ref_labels)
        y_R, _ = classes(ref_labels, ref_labels)
        if self.negatives == "random":
            seed = rng.seed(self.seed, "constellation", self.step)
            negative_BR = random_negatives(negative_BR, y_R, self.k, seed)
        s_BR = -dissimilarity(self.distance, embeddings, ref_emb)
        if not sizes.seen(s_BR):
            return {"loss": self._unlisted(s_BR, positive_BR, negative_BR, y_R)}
        anchor_A = torch.nonzero(positive_BR.any(dim=1) & negative_BR.any(dim=1)).flatten()
        if not len(anchor_A):
            return self.zero_losses()
        s_AR = s_BR[anchor_A]
        a_P, p_P = torch.nonzero(positive_BR[anchor_A], as_tuple=True)
        loss_P = constellation(s_AR, self._pick(s_AR, negative_BR[anchor_A], y_R), a_P, p_P)
        return {
            "loss": {
                "losses": loss_P,
                "indices": (anchor_A[a_P], p_P),
                "reduction_type": "pos_pair",
            }
        }

    def _unlisted(
        self, s_BR: Tensor, positive_BR: Tensor, negative_BR: Tensor, y_R: Tensor
    ) -> dict[str, Any]:
        """The same over all pairs of an anchor and a reference, of which a mask names those that
        count.
        """
        some_B1 = negative_BR.any(dim=1, keepdim=True)
        negatives_BK = self._pick(s_BR, negative_BR, y_R).masked_fill(~some_B1, 0.0)
        losses_BR = _softplus(negatives_BK.logsumexp(dim=1, keepdim=True) - s_BR)
        return listed(losses_BR, positive_BR & some_B1, "pos_pair", self.reducer)

    def _pick(self, s_AR: Tensor, negative_AR: Tensor, y_R: Tensor) -> Tensor:
        if self.negatives == "hard":
            return hard_negatives(s_AR, negative_AR, y_R, self.k)
        return s_AR.masked_fill(~negative_AR, -torch.inf)

    def get_default_distance(self) -> Any:
        """f_a · f_b."""
        return DotProductSimilarity(normalize_embeddings=False)
