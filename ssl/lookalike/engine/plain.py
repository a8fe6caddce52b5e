"""One process, no DeepSpeed: the engine for a laptop or one GPU, and the oracle that the other is tested against."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike import comm
from lookalike.engine.state import (
    Precision,
    State,
    autocast,
    follow,
    load_model,
    load_optim,
    model_state,
    optim_state,
)
from lookalike.errors import RunError
from lookalike.optim import clip
from lookalike.recipe import NonNegative
from lookalike.statistics import still


class Plain:
    """One process without DeepSpeed; `clip` 0 leaves the gradient alone."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        accumulate: int = 1,
        precision: Precision = "fp32",
        clip: NonNegative = 0.0,
    ) -> None:
        if comm.world_size() > 1:
            raise RunError("pretrain.engine: plain trains in one process: remove it, or name: zero, for several ranks")
        self.module, self.optimizer = module, optimizer
        self.accumulate, self.precision, self.clip = accumulate, precision, clip
        self._micro = 0

    def __call__(self, *inputs: Any) -> Any:
        with autocast(next(self.module.parameters()).device, self.precision):
            return self.module(*inputs)

    def backward(self, value: Tensor) -> None:
        with still(self.module):
            (value / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        self._micro += 1
        if self._micro % self.accumulate:
            return
        clip([p for p in self.module.parameters() if p.grad is not None], self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def follow(self) -> None:
        follow(self.module)

    def save(self) -> State:
        return State(model_state(self.module), optim_state(self.module, self.optimizer))

    @torch.no_grad()
    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        load_optim(self.module, self.optimizer, state.optim)
