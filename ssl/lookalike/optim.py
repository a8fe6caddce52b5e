"""Optimizers and schedules: each parameter in exactly one group, rates as pure functions of the
step.

Learning rates are final: nothing scales them by the batch behind the reader's back.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from timm.optim import Lars
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lookalike.errors import RunError
from lookalike.recipe import Choice, Fraction, NonNegative, Positive

Groups = list[dict[str, Any]]


class LrScale(NamedTuple):
    """How a parameter's rate differs from the recipe's: `scale` times that, and 0 before epoch
    `starts`.
    """

    scale: float = 1.0
    starts: float = 0.0


class ParameterHints:
    """A base for modules that want some of their parameters trained otherwise; names are relative
    to the module, as in `named_parameters`.
    """

    def lr_scales(self) -> Mapping[str, LrScale]:
        """Parameters whose rate differs from the recipe's."""
        return {}

    def constant_lr(self) -> Set[str]:
        """Parameters whose rate the schedule leaves alone."""
        return frozenset()

    def no_weight_decay(self) -> Set[str]:
        """Parameters that are spared weight decay, as vectors always are."""
        return frozenset()


def parameter_groups(module: nn.Module) -> Groups:
    """Trainable parameters as `weights` (matrices and kernels) and `biases and norms` (vectors, and
    whatever is spared weight decay); apart from both what ParameterHints give another rate.

    Raises RunError when nothing is trainable.
    """
    spared, constant, lr_scales = _hints(module)
    held: dict[tuple[bool, LrScale, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            kind = (
                id(p) in constant,
                lr_scales.get(id(p), LrScale()),
                p.ndim <= 1 or id(p) in spared,
            )
            held.setdefault(kind, []).append(p)
    if not held:
        raise RunError(
            "optimizer: no parameter is trainable: unfreeze the backbone or give it a head"
        )
    return [
        {
            "name": _name(*kind),
            "params": held[kind],
            "vectors": kind[2],
            "constant": kind[0],
            **kind[1]._asdict(),
        }
        for kind in sorted(held)
    ]


def _name(constant: bool, lr_scale: LrScale, vectors: bool) -> str:
    scaled = f", rate × {lr_scale.scale:g}" if lr_scale.scale != 1 else ""
    waits = f", from epoch {lr_scale.starts:g}" if lr_scale.starts else ""
    return (
        ("biases and norms" if vectors else "weights")
        + (", constant rate" if constant else "")
        + scaled
        + waits
    )


def _hints(module: nn.Module) -> tuple[set[int], set[int], dict[int, LrScale]]:
    """By the id of the parameter: what is spared weight decay, whose rate is constant, and whose is
    scaled.
    """
    spared: set[str] = set()
    constant: set[str] = set()
    lr_scales: dict[str, LrScale] = {}
    for prefix, child in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        # By name, not by type: it is timm's convention, kept by models that know nothing of us.
        asked = getattr(child, "no_weight_decay", None)
        if callable(asked):
            spared |= {dot + name for name in asked()}
        if isinstance(child, ParameterHints):
            constant |= {dot + name for name in child.constant_lr()}
            lr_scales |= {dot + name: scale for name, scale in child.lr_scales().items()}
    named = list(module.named_parameters(remove_duplicate=False))
    return (
        {id(p) for name, p in named if name in spared},
        {id(p) for name, p in named if name in constant},
        {id(p): lr_scales[name] for name, p in named if name in lr_scales},
    )


def _set_rates(groups: Groups, lr: float, bias_lr: float | None, weight_decay: float) -> Groups:
    """`base_lr` is what the schedule multiplies; biases and norms know no weight decay."""
    for group in groups:
        vectors = group["vectors"]
        group["base_lr"] = group["lr"] = (
            bias_lr if vectors and bias_lr is not None else lr
        ) * group["scale"]
        group["base_weight_decay"] = group["weight_decay"] = 0.0 if vectors else weight_decay
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
    return SGD(
        _set_rates(groups, lr, bias_lr, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov
    )


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
    return Adam(_set_rates(groups, lr, bias_lr, weight_decay), lr=lr, betas=betas, eps=eps)


def lars(
    groups: Groups,
    *,
    lr: Positive,
    bias_lr: NonNegative | None = None,
    momentum: Fraction = 0.9,
    trust: Positive = 0.001,
    weight_decay: NonNegative = 1e-6,
) -> Optimizer:
    """LARS (You, Gitman & Ginsburg, arXiv 1708.03888), timm's; biases and norms take plain momentum
    steps.
    """
    groups = _set_rates(groups, lr, bias_lr, weight_decay)
    for group in groups:
        group["always_adapt"] = not group["vectors"]
    optimizer: Optimizer = Lars(groups, lr=lr, momentum=momentum, trust_coeff=trust)
    return optimizer


OPTIMIZERS: Mapping[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "lars": lars,
}


def is_layerwise(optimizer: Optimizer) -> bool:
    """Whether a step depends on the norm of each layer, so that it must see whole layers."""
    return isinstance(optimizer, Lars)


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """The factor on every base rate at `step` (from 0): linear to 1 over `warmup` steps, then a
    half cosine to `final` at the last step (Loshchilov & Hutter, arXiv 1608.03983, without
    restarts).
    """
    if step < warmup:
        return warm_up(step, warmup, None)
    return cosine(1.0, final, (step - warmup) / max(1, steps - 1 - warmup))


class Course(NamedTuple):
    """Where a schedule stands that is past its warm-up: at `step` (from 0) of `steps`, after
    `warmup` steps, in epochs of `per_epoch` steps; `final`: the factor at the last step.
    """

    step: int
    steps: int
    warmup: int
    per_epoch: int
    final: float

    @property
    def progress(self) -> float:
        """0 at the first step after the warm-up, 1 at the last of all."""
        return (self.step - self.warmup) / max(1, self.steps - 1 - self.warmup)


def by_cosine(course: Course) -> float:
    """Along a half cosine to `final_lr` times the base rate (Loshchilov & Hutter, arXiv 1608.03983,
    without restarts).
    """
    return cosine(1.0, course.final, course.progress)


def by_line(course: Course) -> float:
    """Along a straight line to `final_lr` times the base rate."""
    return 1.0 + (course.final - 1.0) * min(max(course.progress, 0.0), 1.0)


def by_steps(
    course: Course,
    *,
    at: Annotated[tuple[Positive, ...], Field(min_length=1)],
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1,
) -> float:
    """In steps. `at`: the epochs, counted from the beginning of the training, at each of which the
    rate is multiplied by `factor`.
    """
    gone = sum(course.step >= round(epoch * course.per_epoch) for epoch in at)
    return factor**gone


def stays(course: Course) -> float:
    """As it is, after the warm-up."""
    return 1.0


SCHEDULES: Mapping[str, Callable[..., float]] = {
    "cosine": by_cosine,
    "steps": by_steps,
    "linear": by_line,
    "constant": stays,
}
SCHEDULE = Choice(SCHEDULES, supplied={"course"})


def warm_up(step: int, warmup: int, start: float | None) -> float:
    """The factor at `step` < `warmup`: from 1 / warmup to 1 at the last of them by equal steps, or,
    where there is a `start`, from that to 1 at the step that follows them.
    """
    if start is None:
        return (step + 1) / warmup
    return start + (1.0 - start) * step / warmup


class Progress(NamedTuple):
    """Where a training stands: `step` of `steps` (from 0), `epoch`, a fraction that counts from 0,
    and the run's `seed`.
    """

    step: int
    steps: int
    epoch: float
    seed: int = 0

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last."""
        return self.step / max(1, self.steps - 1)


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1 by a half cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def set_rates(optimizer: Optimizer, factor: float, epoch: float = math.inf) -> dict[str, float]:
    """Sets every group's rate to factor × its base rate, or to that itself where it is constant; by
    group name.

    0 where the group starts after `epoch`.
    """
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        wanted = group["base_lr"] * (1.0 if group.get("constant") else factor)
        group["lr"] = rates[group["name"]] = wanted if epoch >= group.get("starts", 0.0) else 0.0
    return rates


def set_weight_decay(optimizer: Optimizer, final: float, progress: float) -> None:
    """Sets the weight decay of every group that has one between its base and `final`, by a half
    cosine.
    """
    for group in optimizer.param_groups:
        if not group["vectors"]:
            group["weight_decay"] = cosine(group["base_weight_decay"], final, progress)


def clip(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradient down to norm `limit` if it is longer; 0 leaves it alone."""
    if limit > 0:
        torch.nn.utils.clip_grad_norm_(parameters, limit)
