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
from lookalike.engine.scaler import scaler_for
from lookalike.engine.state import (
    State,
    load_model,
    load_optim,
    model_state,
    optim_state,
    with_scale,
)
from lookalike.engine.verdict import is_late, maybe_skipped
from lookalike.errors import RunError
from lookalike.nn.hooks import Good, follow_one
from lookalike.nn.precision import Precision, autocast, products
from lookalike.optim import Progress, clip
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
        late: bool | None = None,
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
        device = next(module.parameters()).device
        self.late = is_late(late, device)
        self._micro = 0
        self._scaler = scaler_for(precision, device)
        self._guard = Guard(module, whole=True, scaler=self._scaler)

    def start(self, progress: Progress) -> None:
        self._guard.start(progress)

    def __call__(self, *inputs: Any) -> Any:
        self._guard.begin()
        with autocast(next(self.module.parameters()).device, self.precision):
            return self.module(*inputs)

    def backward(self, value: Tensor) -> None:
        with self._guard.still(), products(value.device, self.precision):
            (self._guard.scaled(value) / self.accumulate).backward()  # type: ignore[no-untyped-call]

    def finite(self) -> Tensor:
        return self._guard.finite()

    def broken(self, value: Tensor) -> Tensor:
        return self._guard.broken(self.finite(), value)

    def step(self, skip: bool | Tensor = False, trouble: bool | Tensor | None = None) -> None:
        self._micro += 1
        if self._micro % self.accumulate:
            return
        if skip is not True:
            self._guard.unscale()
            clip(self._guard.parameters(), self.clip)
            with maybe_skipped(self.optimizer, skip):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._guard.end(skip, skip if trouble is None else trouble)

    def follow(self, good: Good = True) -> None:
        for part in self._guard.followers:
            follow_one(part, good)

    def values(self) -> dict[str, float]:
        return {} if self._scaler is None else {"loss_scale": float(self._scaler.scale)}

    def save(self) -> State:
        return with_scale(
            State(model_state(self.module), optim_state(self.module, self.optimizer)), self._scaler
        )

    @torch.no_grad()
    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        load_optim(self.module, self.optimizer, state.optim)
        if self._scaler is not None:
            self._scaler.load(state.optim)

    def close(self) -> None:
        self._guard.close()
