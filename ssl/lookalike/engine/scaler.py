"""The dynamic loss scale of fp16: gradients too small for 16 bits are kept by a loss that is scaled
up before backward.

Micikevicius et al., "Mixed precision training", ICLR 2018, arXiv 1710.03740, section 3.2; the rule
and its numbers are those of torch's GradScaler. Nothing here waits for the device.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lookalike.nn.precision import Precision, computed, half

START, GROWTH, BACKOFF, INTERVAL, FLOOR = 65536.0, 2.0, 0.5, 2000, 1.0
_SCALE, _GOOD = "loss_scale/scale", "loss_scale/good_steps"


class Scaler:
    """Doubles after 2000 good steps, halves when the scaled gradient overflows, down to 1.

    A step whose loss itself is not finite, or that overflows at a scale of 1, is no matter of the
    scale and leaves it alone. Alike on all ranks, because all hear of the same overflows.
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.full((), START, device=device)
        self.good = torch.zeros((), dtype=torch.int32, device=device)
        self._losses: list[Tensor] = []

    def scaled(self, value: Tensor) -> Tensor:
        """The loss of one micro-batch, as backward takes it."""
        self._losses.append(value.detach())
        return value * self.scale

    @torch.no_grad()
    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """The true gradient in place of the scaled one; exact, a scale being a power of two."""
        if gradients:
            torch._foreach_mul_(list(gradients), self.scale.reciprocal())

    def beyond(self) -> Tensor:
        """Whether no smaller scale would have kept this step's gradient finite on this rank: a
        boolean on the device.
        """
        return ~torch.stack(self._losses).isfinite().all() | (self.scale <= FLOOR)

    @torch.no_grad()
    def update(self, skip: bool | Tensor, trouble: bool | Tensor) -> None:
        """After a step: it was skipped, and in trouble for another reason than the scale."""
        skip = torch.as_tensor(skip, device=self.scale.device)
        trouble = torch.as_tensor(trouble, device=self.scale.device)
        scale, good, overflow = self.scale.clone(), self.good.clone(), (skip & ~trouble).float()
        torch._amp_update_scale_(scale, good, overflow, GROWTH, BACKOFF, INTERVAL)
        self.scale.copy_(torch.where(trouble, self.scale, scale.clamp(min=FLOOR)))
        self.good.copy_(torch.where(trouble, self.good, good))
        self._losses = []

    def save(self) -> dict[str, Tensor]:
        """Copies on the CPU, by names beside those of an optimizer's state."""
        return {_SCALE: self.scale.cpu().clone(), _GOOD: self.good.cpu().clone()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what `save` gave; what was saved without a scale begins with the first one."""
        self.scale.copy_(tensors.get(_SCALE, torch.tensor(START)))
        self.good.copy_(tensors.get(_GOOD, torch.tensor(0)))


def scaler_for(precision: Precision, device: torch.device) -> Scaler | None:
    """A scaler where the network computes in fp16, else none."""
    wanted = half(computed(precision, device)) is torch.float16
    return Scaler(device) if wanted else None
