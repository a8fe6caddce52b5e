"""Every loss, miner, distance, reducer and regularizer of pytorch-metric-learning, by its own name.

Left out are base classes, wrappers that take another loss or a queue, and the two that know no labels.
"""

import inspect
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch import Tensor, nn

from lookalike import comm
from lookalike.blocks import Loss
from lookalike.errors import RunError
from lookalike.recipe import Choice, Spec

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
# What the stage knows and the recipe need not say, by the names that the library has for it.
_WIDTH = ("embedding_size", "descriptors_dim")
GIVEN = frozenset({"num_classes", *_WIDTH})


def _public(room: ModuleType, skip: Iterable[str] = _WRAPPERS) -> dict[str, Any]:
    return {name: kind for name, kind in sorted(vars(room).items()) if inspect.isclass(kind) and name not in skip}


DISTANCES = _public(distances)
REDUCERS = _public(reducers)
REGULARIZERS = _public(regularizers)
_PARTS: Mapping[str, Choice] = {
    "distance": Choice(DISTANCES),
    "reducer": Choice(REDUCERS),
    "embedding_regularizer": Choice(REGULARIZERS),
    "weight_regularizer": Choice(REGULARIZERS),
}
OBJECTIVES = _public(losses)
MINERS = _public(miners)
OBJECTIVE = Choice(OBJECTIVES, given=GIVEN, nested=_PARTS)
MINER = Choice(MINERS, nested=_PARTS)


class Objective(nn.Module):
    """A loss with its miner over the batch of all ranks: gathered in rank order, so that every rank sees the same."""

    def __init__(self, objective: Spec, miner: Spec | None, *, num_classes: int, embedding_size: int) -> None:
        super().__init__()
        given = {"num_classes": num_classes, **dict.fromkeys(_WIDTH, embedding_size)}
        wanted = {name: given[name] for name in GIVEN & required(OBJECTIVES[objective.name])}
        try:
            self.loss = objective.build(**wanted)
            self.miner = miner.build() if miner else None
            self._try(num_classes, embedding_size)
        except Exception as error:  # a library of many authors raises whatever it meets: the recipe chose it
            reason = " ".join(str(error).split())[:200]
            names = objective.name + (f" with {miner.name}" if miner else "")
            raise RunError(f"finetune.objective: {names}: {type(error).__name__}: {reason}") from error

    @torch.no_grad()
    def _try(self, num_classes: int, embedding_size: int) -> None:
        """One random batch on this process alone, so that parts that do not fit are refused before training."""
        labels_N = torch.arange(24) % min(4, num_classes)
        with torch.random.fork_rng(devices=[]):
            z_ND = torch.nn.functional.normalize(torch.randn(24, embedding_size), dim=1)
            self.loss(z_ND, labels_N, self.miner(z_ND, labels_N) if self.miner else None)

    def forward(self, z_BD: Tensor, labels_B: Tensor) -> Loss:
        """Embeddings (B, D) and classes (B,) of this rank -> the loss over all ranks' rows, in fp32."""
        with torch.autocast(z_BD.device.type, enabled=False):
            z_ND, labels_N = comm.cat(z_BD.float()), comm.cat(labels_B)
            chosen = self.miner(z_ND, labels_N) if self.miner else None
            value = self.loss(z_ND, labels_N, chosen)
        return Loss(value, {})


def required(kind: type) -> set[str]:
    """The parameters that a constructor, or one that it hands its keywords to, asks for by name."""
    found: set[str] = set()
    for parent in inspect.getmro(kind):
        if "__init__" in vars(parent):
            parameters = inspect.signature(parent.__init__).parameters  # type: ignore[misc]
            found |= set(parameters)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return found
