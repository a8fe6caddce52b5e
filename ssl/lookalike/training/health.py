"""Is the training learning anything? Measures of embeddings that need no labels, and an alarm when
they collapse.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lookalike import comm
from lookalike.nn.batchnorm import standardize
from lookalike.nn.correlation import gram_energy
from lookalike.nn.numerics import at_least_fp32, l2_normalize
from lookalike.nn.queue import Queue

_ROWS = 256


@torch.no_grad()
def measure(embeddings: Sequence[Tensor]) -> dict[str, float]:
    """Health of (B, D) embeddings of each view, this rank's rows; the same numbers on all ranks.

    `health/std`: mean deviation of a dimension of the unit rows, times √D: 1 when they fill all
    directions alike, 0 when they are one point (SimSiam, arXiv 2011.10566, section 4.1).
    `health/rank`: effective rank of the centred rows (RankMe, arXiv 2210.02885, equation 1),
    `health/rank_share`: that over the largest it could be. `health/alignment`: mean squared
    distance of an image's two views, `health/uniformity`: log mean exp(-2 d²) over pairs of images
    (Wang & Isola, arXiv 2005.10242, equations 1 and 2), both of unit rows. `health/off_diagonal`:
    mean squared correlation of two dimensions. At most 256 rows enter the costly ones.
    """
    first, *others = (at_least_fp32(z_BD) for z_BD in embeddings)
    rows_ND = comm.cat(l2_normalize(first))
    few_ND = rows_ND[:_ROWS]
    centred_ND = few_ND - few_ND.mean(dim=0)
    rank = _effective_rank(centred_ND)
    found = {
        "health/std": rows_ND.std(dim=0, unbiased=False).mean() * rows_ND.shape[1] ** 0.5,
        "health/rank": rank,
        "health/rank_share": rank / max(1, min(len(few_ND) - 1, few_ND.shape[1])),
        "health/uniformity": _uniformity(few_ND),
        "health/off_diagonal": _off_diagonal(first),
    }
    if others:
        found["health/alignment"] = comm.mean(
            (l2_normalize(first) - l2_normalize(others[0])).square().sum(dim=1)
        )
    values = torch.stack([value.double() for value in found.values()]).tolist()
    return dict(zip(found, values, strict=True))


def _effective_rank(x_ND: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares; from the smaller of the two Gram matrices,
    in fp64.
    """
    x_ND = (x_ND.cpu() if x_ND.device.type == "mps" else x_ND).double()
    gram = x_ND @ x_ND.T if len(x_ND) <= x_ND.shape[1] else x_ND.T @ x_ND
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-30)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


def _uniformity(x_ND: Tensor) -> Tensor:
    squared = torch.cdist(x_ND, x_ND).square()
    n = len(x_ND)
    apart = ~torch.eye(n, dtype=torch.bool, device=x_ND.device)
    found: Tensor = (-2 * squared[apart]).exp().mean().log()
    return found


def _off_diagonal(z_BD: Tensor) -> Tensor:
    """Mean squared off-diagonal entry of the correlation matrix; no D × D matrix where N is
    smaller.
    """
    x_BD, n = standardize(z_BD), comm.count(z_BD)
    d = x_BD.shape[1]
    diagonal_D = comm.sum(x_BD.square().sum(dim=0)) / n
    return (gram_energy(x_BD) / n**2 - diagonal_D.square().sum()) / max(1, d * (d - 1))


def queue_ages(module: nn.Module, batch: int) -> dict[str, float]:
    """How many steps ago the oldest row of each queue was written, for the log."""
    queues = {name: part for name, part in module.named_modules() if isinstance(part, Queue)}
    return {
        f"health/{name}_age": min(float(q.written), len(q.rows_QD)) / batch
        for name, q in queues.items()
    }


class CollapseDetector:
    """Tells collapse from learning: three measurements in a row that no healthy run shows.

    Seen while setting the limits, in the first 240 steps of each method on small data: `health/std`
    of healthy runs stays above .28, and falls below .05 when all embeddings become one point;
    `health/off_diagonal` of healthy runs rises to .91 at most and falls again, and passes .97 when
    nothing decorrelates.
    """

    least_std, most_correlated, patience = 0.15, 0.95, 3

    def __init__(self, bad: int = 0) -> None:
        self.bad = bad

    def update(self, values: Mapping[str, float]) -> str:
        """One measurement; what is wrong, at the third bad one in a row and at no other, else
        nothing.
        """
        seen = self._seen(values)
        self.bad = self.bad + 1 if seen else 0
        return f"collapse: {seen}" if self.bad == self.patience else ""

    def _seen(self, values: Mapping[str, float]) -> str:
        std, correlated = values["health/std"], values["health/off_diagonal"]
        if values.get("loss") == 0:
            return (
                "the loss is exactly 0, there is nothing to learn: "
                "check the method's coefficients and temperatures"
            )
        if not std >= self.least_std:
            return (
                f"all embeddings point one way (health/std {std:.2g}; 1 fills all directions): "
                "lower the learning "
                "rate, lengthen the warm-up, check that the views differ and that the predictor or "
                "teacher is there"
            )
        if correlated > self.most_correlated:
            return (
                f"all dimensions say the same (health/off_diagonal {correlated:.2g}, effective "
                "rank "
                f"{values['health/rank']:.2g}): raise the weight of the decorrelating term, or the "
                "batch"
            )
        return ""
