"""Every loss, miner, distance, reducer and regularizer of pytorch-metric-learning, by its own name.

Left out are base classes, wrappers that take another loss or a queue, and the two that know no
labels.
"""

import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Literal

from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor

from lookalike.recipe import Choice, Count

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
    return {
        name: kind
        for name, kind in sorted(vars(room).items())
        if inspect.isclass(kind) and name not in skip
    }


DISTANCES = _public(distances)
REDUCERS = _public(reducers)
REGULARIZERS = _public(regularizers)
PARTS: Mapping[str, Any] = {
    "distance": Choice(DISTANCES),
    "reducer": Choice(REDUCERS),
    "embedding_regularizer": Choice(REGULARIZERS),
    "weight_regularizer": Choice(REGULARIZERS),
    "triplets_per_anchor": Literal["all"] | Count,
}


class DynamicSoftMarginLoss(losses.DynamicSoftMarginLoss):  # type: ignore[misc]
    """The library's, whose histogram holds on to the graph of the last step and is not saved: here
    it is a buffer.
    """

    hist_: Tensor

    def __init__(
        self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(min_val=min_val, num_bins=num_bins, momentum=momentum, **kwargs)
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)
        self._before: list[Tensor] = []

    def compute_loss(self, *arguments: Any) -> Any:
        """The library's, from what the steps before have left."""
        self.hist_ = self.hist_.detach()
        self._before = [*self._before, self.hist_]
        return super().compute_loss(*arguments)

    def follow(self) -> None:
        """Keeps what the step has added, without its graph."""
        self.hist_, self._before = self.hist_.detach(), []

    def forget(self) -> None:
        """Goes back to before a step that is skipped."""
        self.hist_, self._before = (*self._before, self.hist_)[0].detach(), []


LOSSES = {**_public(losses), "DynamicSoftMarginLoss": DynamicSoftMarginLoss}
MINERS = _public(miners)
MINER = Choice(MINERS, nested=PARTS)
