"""Linear classifiers of patches, several learning rates at once, and how they learn."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lookalike.data.images.masked import IGNORED
from lookalike.scoring.segmentation import pixel_logits, pixel_loss

Rule = Literal["adamw", "sgd"]
ROOM = 1 << 25
"""So many logits are held at once."""

_BETAS, _EPS, _MOMENTUM = (0.9, 0.999), 1e-8, 0.9


@dataclass
class Heads:
    """K linear classifiers with their optimizer's state, all float64 but for what they compute:
    `weight_KCE`, whose last column is the bias; `first` and `second` moments; `steps` done.

    Float64, so that sums over ranks, whose order differs with their number, change nothing that
    float32 would show.
    """

    weight_KCE: Tensor
    first_KCE: Tensor
    second_KCE: Tensor
    steps: int = 0

    @classmethod
    def zeros(cls, heads: int, classes: int, dim: int, device: torch.device) -> "Heads":
        """The problem is convex: they begin at zero."""

        def zeros() -> Tensor:
            return torch.zeros(heads, classes, dim + 1, dtype=torch.float64, device=device)

        return cls(zeros(), zeros(), zeros())

    def of(self, k: int) -> tuple[Tensor, Tensor]:
        """Weights (C, D) and biases (C,) of one, float32."""
        whole_CE = self.weight_KCE[k].float()
        return whole_CE[:, :-1].contiguous(), whole_CE[:, -1].contiguous()

    def step(self, grad_KCE: Tensor, rates: Sequence[float], decay: float, rule: Rule) -> None:
        """AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) or SGD with momentum 0.9
        and its decay in the gradient, each head by its own rate; biases do not decay.
        """
        self.steps += 1
        rate_K11 = torch.tensor(rates, dtype=torch.float64, device=grad_KCE.device)[:, None, None]
        if rule == "adamw":
            (one, two), t = _BETAS, self.steps
            self.first_KCE.lerp_(grad_KCE, 1 - one)
            self.second_KCE.mul_(two).addcmul_(grad_KCE, grad_KCE, value=1 - two)
            root_KCE = (self.second_KCE / (1 - two**t)).sqrt() + _EPS
            move_KCE = self.first_KCE / (1 - one**t) / root_KCE
            move_KCE[..., :-1] += decay * self.weight_KCE[..., :-1]
        else:
            grad_KCE = grad_KCE.clone()
            grad_KCE[..., :-1] += decay * self.weight_KCE[..., :-1]
            move_KCE = self.first_KCE.mul_(_MOMENTUM).add_(grad_KCE)
        self.weight_KCE -= rate_K11 * move_KCE


def gradients(heads: Heads, x_BDhw: Tensor, class_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Of the summed loss over these pixels by each head's weights, float64 (K, C, E); and the sums,
    float64 (K,). One head after the other and few images at a time: the numbers of a head do not
    depend on how many others there are.
    """
    grad_KCE = torch.zeros_like(heads.weight_KCE)
    loss_K = torch.zeros(len(grad_KCE), dtype=torch.float64, device=grad_KCE.device)
    classes = grad_KCE.shape[1]
    for k in range(len(grad_KCE)):
        weight_CD, bias_C = (each.requires_grad_() for each in heads.of(k))
        for x, target in pieces(x_BDhw, class_BHW, classes):
            with torch.enable_grad():
                logits = pixel_logits(x, weight_CD, bias_C, target.shape[1:])
                loss = pixel_loss(logits, target)
                gw_CD, gb_C = torch.autograd.grad(loss, (weight_CD, bias_C))
            grad_KCE[k, :, :-1] += gw_CD
            grad_KCE[k, :, -1] += gb_C
            loss_K[k] += loss.detach()
    return grad_KCE, loss_K


@torch.no_grad()
def predicted(heads: Heads, k: int, x_BDhw: Tensor, sides: tuple[int, int]) -> Tensor:
    """The class of each pixel, int64 (B, *sides), by head k."""
    weight_CD, bias_C = heads.of(k)
    return pixel_logits(x_BDhw, weight_CD, bias_C, sides).argmax(1)


def pieces(x_BDhw: Tensor, class_BHW: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and classes of as many images as the logits of all pixels may be held of."""
    step = max(1, ROOM // (classes * class_BHW[0].numel()))
    for start in range(0, len(x_BDhw), step):
        yield x_BDhw[start : start + step], class_BHW[start : start + step]


def rate(step: int, steps: int, warm: float = 0.05) -> float:
    """The share of the learning rate at a step: linear up over the first steps, linear down to
    zero.
    """
    return min(1.0, (step + 1) / max(1.0, warm * steps)) * (1 - step / steps)


def known_pixels(class_BHW: Tensor) -> int:
    """How many have a class."""
    return int((class_BHW != IGNORED).sum())
