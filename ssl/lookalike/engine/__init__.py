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
from lookalike.nn.hooks import Good
from lookalike.optim import Progress

__all__ = ["ENGINES", "Engine", "State"]


class Engine(Protocol):
    """What the loop asks of an engine; `module` is the method or fine-tuning system in training."""

    module: nn.Module
    optimizer: Optimizer
    # Whether what a step's verdict asks for is done on the device, which the host reads later.
    late: bool

    def start(self, progress: Progress) -> None:
        """Before a step: tells every module that follows the schedule where the training stands."""

    def __call__(self, *inputs: Any) -> Any:
        """The module's forward under the engine's precision."""

    def backward(self, value: Tensor) -> None:
        """Adds one micro-batch's share, 1 / accumulate, of the step's gradient."""

    def broken(self, value: Tensor) -> Tensor:
        """(2,), 0 or 1, on the device and not waited for: whether the loss `value` or any gradient
        of the step so far is not a number on this rank, and whether that is trouble: not where only
        fp16's scaled gradient has overflowed.

        To be asked after the last `backward` of a step and before its `step`, and to be agreed on
        by all ranks.
        """

    def step(self, skip: bool | Tensor = False, trouble: bool | Tensor | None = None) -> None:
        """Averages over ranks, clips if asked, moves the parameters, clears the gradient; once a
        micro-batch.

        `skip`, the same on all ranks, counts in the last call of a step: the step then leaves no
        trace in parameters, optimizer state and running statistics, and fp16's loss scale is
        lowered unless it was in `trouble` (by default as `skip`). A boolean on the device is not
        waited for.
        """

    def follow(self, good: Good = True) -> None:
        """Lets teachers, queues and running statistics follow a good step; with a boolean on the
        device, called after every step.
        """

    def values(self) -> dict[str, float]:
        """What the engine has to say in a line of the log."""

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
