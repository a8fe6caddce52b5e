"""Watches one step: were its gradients numbers, and, if it is skipped, what its forward moved goes
back.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lookalike.engine.scaler import Scaler
from lookalike.nn.batchnorm import freeze_running_stats, norms_below, running_stats
from lookalike.nn.hooks import discard, followers, scheduled
from lookalike.optim import Progress, put_back


class Guard:
    """One for each engine, on the parameters that are trained; nothing here waits for the device.

    `whole`: gradients stay where autograd puts them until the step, and are looked at once, after
    the last backward; else each when it is made, before an engine moves it away. What a step asks
    of the module (norms, followers, what is scheduled) is listed once: a module in training does
    not change. `scaler`: of fp16.
    """

    def __init__(
        self, module: nn.Module, *, whole: bool = False, scaler: Scaler | None = None
    ) -> None:
        self._watched = [p for p in module.parameters() if p.requires_grad]
        seen = [] if whole else self._watched
        self._hooks = [p.register_hook(self._see) for p in seen]  # type: ignore[no-untyped-call]
        self._whole, self._scaler = whole, scaler
        self._sums: list[Tensor] = []
        self._norms, self._running = norms_below(module), running_stats(module)
        self._before: list[Tensor] = []
        self._module, self._scheduled = module, scheduled(module)
        self.followers = followers(module)

    def _see(self, gradient: Tensor) -> Tensor | None:
        """NaN and infinity survive a sum. The gradient of a scaled loss goes on as the true one."""
        gradient = gradient.detach()
        self._sums.append(gradient.sum())
        return None if self._scaler is None else gradient * self._scaler.scale.reciprocal()

    def start(self, progress: Progress) -> None:
        """Before a step: tells every Scheduled module where the training stands."""
        for part in self._scheduled:
            part.on_step(progress)

    @torch.no_grad()
    def begin(self) -> None:
        """Before a forward: remembers the running statistics as they were before the step's first
        one.
        """
        if self._running and not self._before:
            self._before = [tensor.clone() for tensor in self._running]

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """While entered, for a backward, no running statistics move."""
        with freeze_running_stats(self._module, self._norms):
            yield

    def scaled(self, value: Tensor) -> Tensor:
        """The loss of a micro-batch, as backward takes it."""
        return value if self._scaler is None else self._scaler.scaled(value)

    def parameters(self) -> list[nn.Parameter]:
        """Those that have a gradient, where these stay whole."""
        return [p for p in self._watched if p.grad is not None]

    def gradients(self) -> list[Tensor]:
        """Every gradient that holds numbers, where they stay whole."""
        return [p.grad for p in self._watched if p.grad is not None and p.numel()]

    @torch.no_grad()
    def finite(self) -> Tensor:
        """Whether every gradient of the step so far is a number, on this rank: a boolean on the
        device.
        """
        found = list(self._sums)
        if self._whole and (gradients := self.gradients()):
            found = list(torch._foreach_norm(gradients, float("inf")))
        if not found:
            return torch.ones((), dtype=torch.bool, device=self._watched[0].device)
        return torch.stack(found).isfinite().all()

    def broken(self, finite: Tensor, value: Tensor) -> Tensor:
        """(2,), 0 or 1, on the device: whether the step must be skipped on this rank's account, and
        whether that is trouble, which an overflow of fp16's scaled gradient is not.
        """
        skip = ~(finite & value.detach().isfinite())
        trouble = skip if self._scaler is None else skip & self._scaler.beyond()
        return torch.stack([skip, trouble]).to(torch.int32)

    def unscale(self) -> None:
        """Before clipping, where gradients stay whole: the true ones in place of the scaled."""
        if self._whole and self._scaler is not None:
            self._scaler.unscale(self.gradients())

    @torch.no_grad()
    def end(self, skip: bool | Tensor, trouble: bool | Tensor) -> None:
        """After the step's last micro-batch: forgets it, and undoes what a skipped one has moved or
        staged; where only the device knows, what was staged is left to `follow`.
        """
        if skip is True:
            discard(self._module)
            for tensor, before in zip(self._running, self._before, strict=False):
                tensor.copy_(before)
        elif torch.is_tensor(skip) and self._before:
            put_back(self._running, self._before, skip)
        if self._scaler is not None:
            self._scaler.update(skip, trouble)
        self._before, self._sums = [], []

    def close(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
