"""Rates as pure functions of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field
from torch.optim import Optimizer

from lookalike.recipe import Choice, Positive


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
