"""What a recipe may choose by name of metric learning. The tables are imported when one of their
names is asked for: pytorch-metric-learning and SciPy take as long as half of torch.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from lookalike.lean import without
from lookalike.recipe import Choice, Count, NonNegative, Spec

# What the stage knows and the recipe need not say, by the names that the library has for it.
WIDTH = ("embedding_size", "descriptors_dim")
GIVEN = frozenset({"num_classes", "seed", *WIDTH})


def table(name: str) -> Mapping[str, Any]:
    """A table of the library's: LOSSES, MINERS, DISTANCES, REDUCERS, REGULARIZERS."""
    found: Mapping[str, Any] = getattr(_imported("pml"), name)
    return found


def single() -> Mapping[str, Any]:
    """SINGLE, every loss of one kind."""
    found: Mapping[str, Any] = _imported("losses").SINGLE
    return found


def every() -> Mapping[str, Any]:
    """Every objective: those, and their weighted sum."""
    found: Mapping[str, Any] = _imported("losses").OBJECTIVES
    return found


def _imported(room: str) -> Any:
    """A module of these; the library's `scipy.stats` ranks labels in a function that is not
    called.
    """
    with without("scipy.stats"):
        return importlib.import_module(f"lookalike.metric.{room}")


def _of(name: str) -> Callable[[], Mapping[str, Any]]:
    return partial(table, name)


PARTS: Mapping[str, Any] = {
    "distance": Choice(_of("DISTANCES")),
    "reducer": Choice(_of("REDUCERS")),
    "embedding_regularizer": Choice(_of("REGULARIZERS")),
    "weight_regularizer": Choice(_of("REGULARIZERS")),
    "triplets_per_anchor": Literal["all"] | Count,
}
MINER = Choice(_of("MINERS"), nested=PARTS)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One objective of a sum, with a miner of its own."""

    objective: Annotated[Spec, Choice(single, supplied=GIVEN, nested=PARTS)]
    miner: Annotated[Spec, MINER] | None = None
    weight: NonNegative = 1.0


@dataclass(frozen=True, kw_only=True)
class WeightedSum:
    """Several objectives of the same embeddings, each times its weight, added up."""

    parts: list[Part]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: none given, list one at least")


OBJECTIVE = Choice(every, supplied=GIVEN, nested=PARTS)
