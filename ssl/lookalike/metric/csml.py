"""Cosine similarity metric learning: a matrix A under which images of one class point one way.

Nguyen & Bai, "Cosine similarity metric learning for face verification", ACCV 2010, equations 1 to
4. Maximises Σ_pos CS - α Σ_neg CS - β ‖A - A₀‖², CS(x, y, A) = (Ax)·(Ay) / (‖Ax‖ ‖Ay‖), α = n⁺ /
n⁻.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pytorch_metric_learning.losses import BaseMetricLossFunction
from torch import Tensor, nn

from lookalike.metric.own_loss import OwnLoss
from lookalike.metric.pair_masks import masks, number
from lookalike.nn.numerics import l2_normalize
from lookalike.optim import ParameterHints
from lookalike.recipe import NonNegative


def csml(
    cs_BR: Tensor, positive_BR: Tensor, negative_BR: Tensor, form: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """What is to be minimised, without the pull to A₀: -Σ_pos CS + α Σ_neg CS, α = n⁺ / n⁻; `mean`:
    over n⁺.

    That mean is the mean cosine of negative pairs less that of positive ones. 0 where either kind
    is missing.
    """
    positives, negatives = positive_BR.sum(), negative_BR.sum()
    apart = (cs_BR * negative_BR).sum() / negatives.clamp(min=1) - (
        cs_BR * positive_BR
    ).sum() / positives.clamp(min=1)
    apart = apart * ((positives > 0) & (negatives > 0))
    return apart if form == "mean" else apart * positives


class CSMLLoss(OwnLoss, ParameterHints, BaseMetricLossFunction):  # type: ignore[misc]
    """Cosine similarity metric learning (Nguyen & Bai 2010) as a loss that owns A, (rows, D),
    trained with the rest.

    `initial`: A₀ as rows of numbers, the identity by default; `beta` pulls A to A₀, so weight decay
    spares it; `form` sum is the paper's, mean divides its sums (not β's part) by n⁺. Each unordered
    pair of the batch counts once. A fine-tuned embedding comes out with A folded into its head.
    """

    unnormalised = True

    def __init__(
        self,
        embedding_size: int,
        *,
        initial: Sequence[Sequence[float]] | None = None,
        beta: NonNegative = 0.01,
        form: Literal["mean", "sum"] = "mean",
    ) -> None:
        """Raises ValueError when `initial` is no matrix of `embedding_size` columns."""
        super().__init__()
        a_KD = torch.eye(embedding_size) if initial is None else torch.as_tensor(initial).float()
        if a_KD.ndim != 2 or a_KD.shape[1] != embedding_size:
            raise ValueError(
                f"initial: shape {tuple(a_KD.shape)}, not rows of {embedding_size} numbers"
            )
        self.a_KD, self.beta, self.form = nn.Parameter(a_KD), beta, form
        self.register_buffer("initial_KD", a_KD.detach().clone())

    def no_weight_decay(self) -> set[str]:
        """A, which β holds."""
        return {"a_KD"}

    def affine(self) -> tuple[Tensor, Tensor]:
        """(A, 0): the map under which cosines are learned."""
        return self.a_KD.detach(), self.a_KD.new_zeros(len(self.a_KD))

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Any,
    ) -> Any:
        """As the library asks: one number; the pull to A₀ once, not again with a memory."""
        chosen = masks(indices_tuple, labels, ref_labels).once()
        x_BK = l2_normalize(embeddings @ self.a_KD.T)
        y_RK = x_BK if ref_emb is embeddings else l2_normalize(ref_emb @ self.a_KD.T)
        value = csml(x_BK @ y_RK.T, chosen.positive_BR, chosen.negative_BR, self.form)
        if ref_emb is embeddings:
            value = value + self.beta * (self.a_KD - self.initial_KD).square().sum()
        return {"loss": number(value)}
