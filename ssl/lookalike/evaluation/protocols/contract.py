"""What a protocol is given, and what it gives."""

import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from lookalike.data.images import Images
from lookalike.evaluation.features import Features
from lookalike.scoring.linear import Linear


class Numbers(NamedTuple):
    """What all protocols of a probe share; see `experiment.Probe`."""

    grid: tuple[float, ...]
    held_out: float
    max_iterations: int
    batch: int
    workers: int | None
    precision: str
    seed: int


@dataclass(frozen=True)
class Subject:
    """A frozen model on one set of images with labels: train and test, in this order.

    `features` may be mapped from disk and are never copied whole; `model`: in eval mode on this
    rank's device, from normalised images to features, None for raw pixels; `folder`: where a
    protocol may keep what a kill would lose, None where nothing is kept. All ranks hold the same.
    """

    features: tuple[Features, Features]
    images: tuple[Images, Images]
    model: nn.Module | None
    numbers: Numbers
    folder: Path | None = None


@dataclass(frozen=True)
class Found:
    """`scores` by name, the same on every rank; `protocol`: in words what they are scores of;
    `head`: the linear layer that was scored, where there is one.
    """

    scores: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    head: Linear | None = None


class Protocol(typing.Protocol):
    """Scores a subject. Its constructor's arguments are its keys in a recipe.

    It may have a method `refuse(images, architecture, tap)`, which raises DataError or
    BackboneError for what it cannot score, before anything is done.
    """

    needs_model: bool
    """Whether it looks at images through the model again, so that raw pixels have no such score."""

    def score(self, subject: Subject) -> Found:
        """Collective: every rank calls it."""
