"""Every loss, miner, distance, reducer and regularizer of pytorch-metric-learning, by its own name.

Left out are base classes, wrappers that take another loss or a queue, and the two that know no
labels.
"""

import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor

from lookalike.nn.hooks import Deferred, Good

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


class DynamicSoftMarginLoss(losses.DynamicSoftMarginLoss, Deferred):  # type: ignore[misc]
    """The library's, whose histogram holds on to the graph of the last step and is not saved: here
    it is a buffer.

    The library reads it in the forward that moves it, so what is staged is how it was before.
    """

    hist_: Tensor

    def __init__(
        self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs: Any
    ) -> None:
        losses.DynamicSoftMarginLoss.__init__(
            self, min_val=min_val, num_bins=num_bins, momentum=momentum, **kwargs
        )
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)

    def compute_loss(self, *arguments: Any) -> Any:
        """The library's, from what the steps before have left."""
        self.hist_ = self.hist_.detach()
        self.stage(self.hist_)
        return super().compute_loss(*arguments)

    def commit(self, good: Good = True) -> None:
        """Keeps what the step has added, without its graph; goes back to before it where it was not
        good.
        """
        self.hist_ = self.hist_.detach()
        if self._staged and good is not True:
            (before,) = self._staged[0]
            self.hist_ = torch.where(torch.as_tensor(good), self.hist_, before)
        super().discard()

    def discard(self) -> None:
        """Goes back to before the step."""
        for (before,) in self._staged[:1]:
            self.hist_ = before
        super().discard()


LOSSES = {**_public(losses), "DynamicSoftMarginLoss": DynamicSoftMarginLoss}
MINERS = _public(miners)
