"""The seam: who runs forward, backward, step, and gives the state by parameter name. ENGINES lists
both.

`plain` is one process without DeepSpeed, the oracle of the tests; `zero` is DeepSpeed on any number
of ranks.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike.engine.plain import Plain
from lookalike.engine.state import State
from lookalike.engine.zero import Zero

__all__ = ["ENGINES", "Engine", "State"]


class Engine(Protocol):
    """What the loop asks of an engine; `module` is the method or fine-tuning system in training."""

    module: nn.Module
    optimizer: Optimizer

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward under the engine's precision."""

    def backward(self, value: Tensor) -> None:
        """Adds one micro-batch's share, 1 / accumulate, of the step's gradient."""

    def finite(self) -> Tensor:
        """Whether every gradient of the step so far is a number on this rank: a boolean on the
        device, not waited for.

        To be asked after the last `backward` of a step and before its `step`, and to be agreed on
        by all ranks.
        """

    def step(self, skip: bool = False) -> None:
        """Averages over ranks, clips if asked, moves the parameters, clears the gradient; once a
        micro-batch.

        `skip`, the same on all ranks, counts in the last call of a step: the step then leaves no
        trace in parameters, optimizer state and running statistics.
        """

    def follow(self) -> None:
        """Lets teachers, queues and running statistics follow a good step."""

    def save(self) -> State:
        """Copies of parameters, buffers and optimizer state by name, on the CPU; called by every
        rank alike.
        """

    def load(self, state: State) -> None:
        """Takes back what `save` gave, from any engine; called by every rank alike."""

    def close(self) -> None:
        """Ends the training: the module is a plain one with whole parameters; called by every rank
        alike.
        """


ENGINES: Mapping[str, Callable[..., Engine]] = {"plain": Plain, "zero": Zero}
