"""Optimizers and schedules: each parameter in exactly one group, rates as pure functions of the step.

Learning rates are final: nothing scales them by the batch behind the reader's back.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from timm.optim import Lars
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from lookalike.errors import RunError
from lookalike.recipe import Fraction, NonNegative, Positive

Groups = list[dict[str, Any]]


def parameter_groups(module: nn.Module) -> Groups:
    """Trainable parameters as `weights` (matrices and kernels) and `biases and norms` (vectors, and whatever a
    module below names in timm's `no_weight_decay()`).

    Raises RunError when nothing is trainable, or when a parameter would be in no group or in two.
    """
    names = set(_exempt(module))
    exempt = {id(p) for n, p in module.named_parameters(remove_duplicate=False) if n in names}
    named = {n: p for n, p in module.named_parameters() if p.requires_grad}
    plain = {n for n, p in named.items() if p.ndim <= 1 or id(p) in exempt}
    groups: Groups = [
        {"name": "weights", "params": [p for n, p in named.items() if n not in plain]},
        {"name": "biases and norms", "params": [p for n, p in named.items() if n in plain]},
    ]
    groups = [group for group in groups if group["params"]]
    held = [id(p) for group in groups for p in group["params"]]
    if not held:
        raise RunError("optimizer: no parameter is trainable: unfreeze the backbone or give it a head")
    if sorted(held) != sorted({id(p) for p in named.values()}):
        raise RunError("optimizer: a parameter is in no group or in two: tied weights need one name")
    return groups


def _exempt(module: nn.Module) -> Iterable[str]:
    for prefix, child in module.named_modules():
        names = getattr(child, "no_weight_decay", None)
        if callable(names):
            yield from (f"{prefix}.{name}".lstrip(".") for name in names())


def _set_rates(groups: Groups, lr: float, bias_lr: float | None, weight_decay: float) -> Groups:
    """`base_lr` is what the schedule multiplies; biases and norms know no weight decay."""
    for group in groups:
        vectors = group["name"] != "weights"
        group["base_lr"] = group["lr"] = bias_lr if vectors and bias_lr is not None else lr
        group["weight_decay"] = 0.0 if vectors else weight_decay
    return groups


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
    return SGD(_set_rates(groups, lr, bias_lr, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov)


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
    return AdamW(_set_rates(groups, lr, bias_lr, weight_decay), lr=lr, betas=betas, eps=eps)


def lars(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    momentum: Fraction = 0.9,
    trust: Positive = 0.001,
    weight_decay: NonNegative = 1e-6,
) -> Optimizer:
    """LARS (You, Gitman & Ginsburg, arXiv 1708.03888), timm's; biases and norms take plain momentum steps."""
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    for group in groups:
        group["always_adapt"] = group["name"] == "weights"
    optimizer: Optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust)
    return optimizer


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {"sgd": sgd, "adamw": adamw, "lars": lars}


def is_layerwise(optimizer: Optimizer) -> bool:
    """Whether a step depends on the norm of each layer, so that it must see whole layers."""
    return isinstance(optimizer, Lars)


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """The factor on every base rate at `step` (from 0): linear to 1 over `warmup` steps, then a half cosine
    to `final` at the last step (Loshchilov & Hutter, arXiv 1608.03983, without restarts).
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_rates(optimizer: Optimizer, factor: float) -> dict[str, float]:
    """Sets every group's rate to factor × its base rate; returns them by group name."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = rates[group["name"]] = factor * group["base_lr"]
    return rates


def clip(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradient down to norm `limit` if it is longer; 0 leaves it alone."""
    if limit > 0:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
