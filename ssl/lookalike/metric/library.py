"""Every loss, miner, distance, reducer and regularizer of pytorch-metric-learning, by its own name.

Left out are base classes, wrappers that take another loss or a queue, and the two that know no labels.
"""

import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers

from lookalike.recipe import Choice

_WRAPPERS = (
    "BaseMetricLossFunction",
    "BaseLossWrapper",
    "CrossBatchMemory",
    "GenericPairLoss",
    "MultipleLosses",
    "SelfSupervisedLoss",
    "WeightRegularizerMixin",
    "EmbeddingRegularizerMixin",
    "VICRegLoss",
    "ManifoldLoss",
    "BaseMiner",
    "BaseDistance",
    "BaseReducer",
    "BaseRegularizer",
    "MultipleReducers",
    "DivisorReducer",
)


def _public(room: ModuleType, skip: Iterable[str] = _WRAPPERS) -> dict[str, Any]:
    return {name: kind for name, kind in sorted(vars(room).items()) if inspect.isclass(kind) and name not in skip}


DISTANCES = _public(distances)
REDUCERS = _public(reducers)
REGULARIZERS = _public(regularizers)
PARTS: Mapping[str, Choice] = {
    "distance": Choice(DISTANCES),
    "reducer": Choice(REDUCERS),
    "embedding_regularizer": Choice(REGULARIZERS),
    "weight_regularizer": Choice(REGULARIZERS),
}
LOSSES = _public(losses)
MINERS = _public(miners)
MINER = Choice(MINERS, nested=PARTS)
