"""Optimizers and schedules: each parameter in exactly one group, rates as pure functions of the
step.
"""

from lookalike.optim.groups import Groups, LrScale, ParameterHints, parameter_groups
from lookalike.optim.lars import Lars
from lookalike.optim.optimizers import OPTIMIZERS, adam, adamw, clip, is_layerwise, lars, sgd
from lookalike.optim.schedules import (
    SCHEDULE,
    SCHEDULES,
    Course,
    Progress,
    by_cosine,
    by_line,
    by_steps,
    cosine,
    set_rates,
    set_weight_decay,
    stays,
    warm_up,
    warmup_cosine,
)
from lookalike.optim.skipping import put_back, skippable, undone

__all__ = [
    "OPTIMIZERS",
    "SCHEDULE",
    "SCHEDULES",
    "Course",
    "Groups",
    "Lars",
    "LrScale",
    "ParameterHints",
    "Progress",
    "adam",
    "adamw",
    "by_cosine",
    "by_line",
    "by_steps",
    "clip",
    "cosine",
    "is_layerwise",
    "lars",
    "parameter_groups",
    "put_back",
    "set_rates",
    "set_weight_decay",
    "sgd",
    "skippable",
    "stays",
    "undone",
    "warm_up",
    "warmup_cosine",
]
