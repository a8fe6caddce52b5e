"""One process, no DeepSpeed: the engine for a laptop or one GPU, and the oracle that the other is
tested against.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike import comm
from lookalike.engine.activations import checkpoint_activations as checkpoint_backbone
from lookalike.engine.guard import Guard
from lookalike.engine.state import (
    Precision,
    State,
    autocast,
    load_model,
    load_optim,
    model_state,
    optim_state,
)
from lookalike.errors import RunError
from lookalike.nn.batchnorm import freeze_running_stats
from lookalike.nn.hooks import follow
from lookalike.optim import clip
from lookalike.recipe import NonNegative


class Plain:
    """One process without DeepSpeed; `clip` 0 leaves the gradient alone.

    `checkpoint_activations`: the backbone's activations are computed again in backward, not kept.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        accumulate: int = 1,
        precision: Precision = "fp32",
        clip: NonNegative = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        if comm.world_size() > 1:
            raise RunError(
                "pretrain.engine: plain trains in one process: remove it, or name: zero, for "
                "several ranks"
            )
        if checkpoint_activations:
            checkpoint_backbone(module)
        self.module, self.optimizer = module, optimizer
        self.accumulate, self.precision, self.clip = accumulate, precision, clip
        self._micro = 0
        self._guard = Guard(module)

    def __call__(self, *inputs: Any) -> Any:
        self._guard.begin()
        with autocast(next(self.module.parameters()).device, self.precision):
            return self.module(*inputs)

    def backward(self, value: Tensor) -> None:
        with freeze_running_stats(self.module):
            (value / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def finite(self) -> Tensor:
        return self._guard.finite()

    def step(self, skip: bool = False) -> None:
        self._micro += 1
        if self._micro % self.accumulate:
            return
        if not skip:
            clip([p for p in self.module.parameters() if p.grad is not None], self.clip)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._guard.end(skip)

    def follow(self) -> None:
        follow(self.module)

    def save(self) -> State:
        return State(model_state(self.module), optim_state(self.module, self.optimizer))

    @torch.no_grad()
    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        load_optim(self.module, self.optimizer, state.optim)

    def close(self) -> None:
        self._guard.close()
