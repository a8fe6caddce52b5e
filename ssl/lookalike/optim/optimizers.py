"""The optimizers that a recipe can name.

Learning rates are final: nothing scales them by the batch behind the reader's back.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lookalike.optim.groups import Groups
from lookalike.optim.lars import Lars
from lookalike.recipe import Fraction, NonNegative, Positive


def _set_rates(groups: Groups, lr: float, bias_lr: float | None, weight_decay: float) -> Groups:
    """`base_lr` is what the schedule multiplies; biases and norms know no weight decay."""
    for group in groups:
        vectors = group["vectors"]
        group["base_lr"] = group["lr"] = (
            bias_lr if vectors and bias_lr is not None else lr
        ) * group["scale"]
        group["base_weight_decay"] = group["weight_decay"] = 0.0 if vectors else weight_decay
    return groups


def fused(groups: Groups) -> bool | None:
    """Whether one kernel moves all parameters: where all lie on a CUDA device; None, torch's own
    choice, elsewhere.
    """
    parameters = [p for group in groups for p in group["params"]]
    return all(p.is_cuda and p.is_floating_point() for p in parameters) or None


def sgd(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    momentum: Fraction = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Stochastic gradient descent with momentum, torch's."""
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused(groups))


def adamw(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.05,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101), torch's."""
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused(groups))


def adam(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> Optimizer:
    """Adam (Kingma & Ba, ICLR 2015, arXiv 1412.6980), torch's: weight decay is an L2 term of the
    gradient.
    """
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    return Adam(groups, lr=lr, betas=betas, eps=eps, fused=fused(groups))


def lars(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    momentum: Fraction = 0.9,
    trust: Positive = 0.001,
    weight_decay: NonNegative = 1e-6,
) -> Optimizer:
    """LARS (You, Gitman & Ginsburg, arXiv 1708.03888); biases and norms take plain momentum
    steps.
    """
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    for group in groups:
        group["always_adapt"] = not group["vectors"]
    return Lars(groups, lr=lr, momentum=momentum, trust=trust, fused=fused(groups))


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "lars": lars,
}


def is_layerwise(optimizer: Optimizer) -> bool:
    """Whether a step depends on the norm of each layer, so that it must see whole layers."""
    return isinstance(optimizer, Lars)


def clip(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradient down to norm `limit` if it is longer; 0 leaves it alone."""
    if limit > 0:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
