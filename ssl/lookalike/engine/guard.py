"""Watches one step: were its gradients numbers, and, if it is skipped, what its forward moved goes
back.
"""

import torch
from torch import Tensor, nn

from lookalike.nn.batchnorm import running_stats
from lookalike.nn.hooks import discard


class Guard:
    """One for each engine, on the parameters that are trained; nothing here waits for the
    device.
    """

    def __init__(self, module: nn.Module) -> None:
        self._watched = [p for p in module.parameters() if p.requires_grad]
        self._hooks = [p.register_hook(self._see) for p in self._watched]  # type: ignore[no-untyped-call]
        self._sums: list[Tensor] = []
        self._running = running_stats(module)
        self._before: list[Tensor] = []
        self._module = module

    def _see(self, gradient: Tensor) -> None:
        """NaN and infinity survive a sum; a hook sees the gradient before an engine moves it
        away.
        """
        self._sums.append(gradient.detach().sum())

    @torch.no_grad()
    def begin(self) -> None:
        """Before a forward: remembers the running statistics as they were before the step's first
        one.
        """
        if self._running and not self._before:
            self._before = [tensor.clone() for tensor in self._running]

    def finite(self) -> Tensor:
        """Whether every gradient of the step so far is a number, on this rank: a boolean on the
        device.
        """
        if not self._sums:
            return torch.ones((), dtype=torch.bool, device=self._watched[0].device)
        return torch.stack(self._sums).isfinite().all()

    @torch.no_grad()
    def end(self, skip: bool) -> None:
        """After the step's last micro-batch: forgets it, and undoes what a skipped one has moved or
        staged.
        """
        if skip:
            discard(self._module)
            for tensor, before in zip(self._running, self._before, strict=False):
                tensor.copy_(before)
        self._before, self._sums = [], []

    def close(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
