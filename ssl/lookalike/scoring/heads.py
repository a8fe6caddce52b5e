"""Linear classifiers on the same features, trained at once: each with a rate of its own, and with
its own share of the rows.

Softmax cross-entropy; SGD with momentum as torch.optim.SGD has it (weight decay on all of a head),
or LARS (You, Gitman & Ginsburg, arXiv 1708.03888) as MAE's linear probe has it: the weight alone
adapts and decays. Weights begin normal with deviation .01, biases at 0, alike in every head, as in
the linear evaluations of MoCo, Barlow Twins, VICReg and DINOv2.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm

LOGITS = 2**26
"""So many class scores are in memory at once, each of 4 bytes and twice."""

TRUST = 0.001


class Descent(NamedTuple):
    """How a step is made from a gradient."""

    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    lars: bool = False


class Heads:
    """K linear heads (C, D) and (C,) on features (N, D)."""

    def __init__(
        self,
        width: int,
        classes: int,
        rates: Sequence[float],
        descent: Descent,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rates, self.descent = list(rates), descent
        generator = torch.Generator().manual_seed(seed)
        weight_CD = torch.randn(classes, width, generator=generator) * 0.01
        self.weight_KCD = weight_CD.to(device).repeat(len(self.rates), 1, 1)
        self.bias_KC = torch.zeros(len(self.rates), classes, device=device)
        self.speed_KCD = torch.zeros_like(self.weight_KCD)
        self.speed_KC = torch.zeros_like(self.bias_KC)

    def state(self) -> dict[str, Tensor]:
        """All that changes, one head a row."""
        names = ("weight_KCD", "bias_KC", "speed_KCD", "speed_KC")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def step(self, x_ND: Tensor, labels_N: Tensor, share_KN: Tensor, factor: float) -> None:
        """One step of every head, on Σ_n share_kn · cross-entropy, at its rate × `factor`."""
        for part in self._parts(len(x_ND)):
            logits_NKC = self._logits(x_ND, part)
            error_NKC = logits_NKC.softmax(dim=2)
            true_NK1 = labels_N[:, None, None].expand(-1, error_NKC.shape[1], 1)
            error_NKC.scatter_add_(2, true_NK1, -torch.ones_like(true_NK1, dtype=torch.float32))
            error_NKC *= share_KN[part].T[:, :, None]
            self._move_weights(part, error_NKC.flatten(1), x_ND, factor)
            self._move_biases(part, error_NKC.sum(dim=0), factor)

    @torch.no_grad()
    def logits(self, x_ND: Tensor) -> Iterator[Tensor]:
        """(N, C) of each head in turn."""
        for part in self._parts(len(x_ND)):
            yield from self._logits(x_ND, part).unbind(1)

    def _parts(self, rows: int) -> Iterator[slice]:
        step = max(1, LOGITS // max(1, rows * self.bias_KC.shape[1]))
        return (slice(k, k + step) for k in range(0, len(self.rates), step))

    def _logits(self, x_ND: Tensor, part: slice) -> Tensor:
        weight_kCD, bias_kC = self.weight_KCD[part], self.bias_KC[part]
        found = torch.addmm(bias_kC.flatten(), x_ND, weight_kCD.flatten(0, 1).T)
        return found.view(len(x_ND), *bias_kC.shape)

    def _move_weights(self, part: slice, error_NR: Tensor, x_ND: Tensor, factor: float) -> None:
        how, weight_kCD, speed_kCD = self.descent, self.weight_KCD[part], self.speed_KCD[part]
        if not (how.nesterov or how.lars):  # without a third tensor of this size
            speed_kCD.view(-1, x_ND.shape[1]).addmm_(error_NR.T, x_ND, beta=how.momentum)
            speed_kCD.add_(weight_kCD, alpha=how.weight_decay)
            self._along(weight_kCD, speed_kCD, part, factor)
            return
        slope_kCD = (error_NR.T @ x_ND).view_as(weight_kCD).add_(weight_kCD, alpha=how.weight_decay)
        if how.lars:
            slope_kCD *= _trust(weight_kCD, slope_kCD)[:, None, None]
        speed_kCD.mul_(how.momentum).add_(slope_kCD)
        ahead_kCD = slope_kCD.add_(speed_kCD, alpha=how.momentum) if how.nesterov else speed_kCD
        self._along(weight_kCD, ahead_kCD, part, factor)

    def _move_biases(self, part: slice, slope_kC: Tensor, factor: float) -> None:
        how, bias_kC, speed_kC = self.descent, self.bias_KC[part], self.speed_KC[part]
        if not how.lars:
            slope_kC.add_(bias_kC, alpha=how.weight_decay)
        speed_kC.mul_(how.momentum).add_(slope_kC)
        ahead_kC = slope_kC.add_(speed_kC, alpha=how.momentum) if how.nesterov else speed_kC
        self._along(bias_kC, ahead_kC, part, factor)

    def _along(self, what: Tensor, ahead: Tensor, part: slice, factor: float) -> None:
        for one, way, rate in zip(what, ahead, self.rates[part], strict=True):
            one.add_(way, alpha=-rate * factor)


def _trust(weight_kCD: Tensor, slope_kCD: Tensor) -> Tensor:
    """(k,): TRUST · ‖w‖ / ‖g‖ of each head, 1 where either is 0."""
    ours_k, theirs_k = weight_kCD.flatten(1).norm(dim=1), slope_kCD.flatten(1).norm(dim=1)
    return torch.where((ours_k > 0) & (theirs_k > 0), TRUST * ours_k / theirs_k, 1.0)


class Standard:
    """BatchNorm without scale and shift (He et al., arXiv 2111.06377, appendix A.1), over the rows
    of all ranks: a batch is standardised by itself, and what is scored by the running statistics.
    """

    def __init__(self, width: int, device: torch.device, eps: float = 1e-6) -> None:
        self.mean_D, self.var_D = (
            torch.zeros(width, device=device),
            torch.ones(width, device=device),
        )
        self.eps = eps

    def state(self) -> dict[str, Tensor]:
        """The running statistics."""
        return {"mean_D": self.mean_D, "var_D": self.var_D}

    @torch.no_grad()
    def learn(self, x_RD: Tensor) -> Tensor:
        """These rows standardised by the mean and deviation of all ranks' rows, which enter the
        running statistics by a tenth.
        """
        rows = torch.full((1,), len(x_RD), dtype=torch.float64, device=x_RD.device)
        sums = comm.all_sum(torch.cat([rows, x_RD.sum(dim=0, dtype=torch.float64)]))
        count, mean_D = float(sums[0]), (sums[1:] / sums[0]).float()
        centred_RD = x_RD - mean_D
        square_D = comm.all_sum(centred_RD.square().sum(dim=0, dtype=torch.float64))
        self.mean_D.lerp_(mean_D, 0.1)
        self.var_D.lerp_((square_D / max(1.0, count - 1)).float(), 0.1)
        return centred_RD.mul_((square_D / count + self.eps).rsqrt().float())

    @property
    def std_D(self) -> Tensor:
        """By what rows are divided that are scored."""
        return (self.var_D + self.eps).sqrt()

    def apply(self, x_RD: Tensor) -> Tensor:
        """Rows standardised by the running statistics."""
        return (x_RD - self.mean_D) / self.std_D
