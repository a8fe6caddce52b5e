"""LARS: each layer's step in proportion to its weights' norm.

You, Gitman & Ginsburg, "Large batch training of convolutional networks", arXiv 1708.03888,
algorithm 1. Follows timm's `Lars` to the bit on a CPU, and its state bears the same name; here no
Python loop runs over layers, and a step can be skipped on the device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_EPS = 1e-8


class Lars(Optimizer):
    """SGD with momentum, whose gradient g + decay · w is scaled, layer by layer, by trust · |w| /
    (|g| + decay · |w|) in groups that `always_adapt` or have a weight decay.

    A layer without weight or gradient is not scaled. A step uses the gradients up: they hold what
    was made of them. `fused`: one kernel moves all parameters, and
    where the tensor `found_inf` beside the optimizer is 1 nothing moves, as in torch's own fused
    optimizers.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: Any,
        *,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        nesterov: bool = False,
        always_adapt: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "nesterov": nesterov,
            "always_adapt": always_adapt,
            "fused": fused,
        }
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Moves every parameter that has a gradient."""
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._move(group, parameters)
        return value

    def _move(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        own: list[Tensor] = [p.detach() for p in parameters]
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if group["always_adapt"] or group["weight_decay"] != 0:
            adapt(own, gradients, group["trust"], group["weight_decay"])
        lr, momentum, nesterov = group["lr"], group["momentum"], group["nesterov"]
        if group["fused"]:
            self._fused(parameters, own, gradients, group)
            return
        if momentum:
            speeds = self._speeds(parameters, gradients, momentum)
            if nesterov:
                torch._foreach_add_(gradients, speeds, alpha=momentum)
            else:
                gradients = speeds
        torch._foreach_add_(own, gradients, alpha=-lr)

    def _speeds(
        self, parameters: list[nn.Parameter], gradients: list[Tensor], momentum: float
    ) -> list[Tensor]:
        """The moved `momentum_buffer` of each: the first time its gradient."""
        known = [i for i, p in enumerate(parameters) if "momentum_buffer" in self.state[p]]
        if known:
            speeds = [self.state[parameters[i]]["momentum_buffer"] for i in known]
            torch._foreach_mul_(speeds, momentum)
            torch._foreach_add_(speeds, [gradients[i] for i in known])
        for i in set(range(len(parameters))) - set(known):
            self.state[parameters[i]]["momentum_buffer"] = gradients[i].clone()
        return [self.state[p]["momentum_buffer"] for p in parameters]

    def _fused(
        self,
        parameters: list[nn.Parameter],
        own: list[Tensor],
        gradients: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """torch's fused SGD of the adapted gradients, from a momentum of 0."""
        speeds: list[Tensor] = []
        if group["momentum"]:
            start_at_rest(self, parameters)
            speeds = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._fused_sgd_(
            own,
            gradients,
            speeds,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
            grad_scale=None,
            found_inf=self.found_inf,
        )


def start_at_rest(optimizer: Optimizer, parameters: list[nn.Parameter]) -> None:
    """Gives every parameter a momentum of 0, from which its first step is as without one: a fused
    kernel that skips the first step would leave what happens to lie in memory.
    """
    for p in parameters:
        if optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p.detach())


def adapt(weights: list[Tensor], gradients: list[Tensor], trust: float, decay: float) -> None:
    """Each layer's gradient, in its place, with its weight decay, times trust · |w| / (|g| + decay
    · |w|), or 1 where one of the two norms is 0.
    """
    norm_L = torch.stack(torch._foreach_norm(weights))
    slope_L = torch.stack(torch._foreach_norm(gradients))
    ratio_L = trust * norm_L / (slope_L + norm_L * decay + _EPS)
    ratio_L = torch.where((norm_L > 0) & (slope_L > 0), ratio_L, torch.ones_like(ratio_L))
    torch._foreach_add_(gradients, weights, alpha=decay)
    torch._foreach_mul_(gradients, list(ratio_L.unbind()))
