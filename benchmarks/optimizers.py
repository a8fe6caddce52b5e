"""What a step of our LARS costs the host beside timm's: processor time and operators that Python
calls, for the parameters of a ResNet-50; SGD of torch, fused and not, beside them.

The gradient is the same for all, each takes a step in turn. On a CPU the time is mostly arithmetic
(25.6 million numbers); the operators are what a GPU's host would launch from Python.

    python benchmarks/optimizers.py [ROUNDS]
"""

import platform
import statistics
import sys
import time
from typing import Any

import timm
import timm.optim
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.optim import OPTIMIZERS, parameter_groups


class Counted(TorchDispatchMode):
    """How many operators Python calls while entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def model() -> nn.Module:
    """A ResNet-50 with a gradient."""
    torch.manual_seed(0)
    made: nn.Module = timm.create_model("resnet50", num_classes=0)
    for p in made.parameters():
        p.grad = torch.randn_like(p)
    return made


def optimizers() -> dict[str, Any]:
    """By name, each on a network of its own."""
    found: dict[str, Any] = {}
    found["ours"] = OPTIMIZERS["lars"](parameter_groups(model()), lr=0.1)
    groups = parameter_groups(model())
    for group in groups:
        group |= {"weight_decay": 0.0 if group["vectors"] else 1e-6}
        group["always_adapt"] = not group["vectors"]
    found["timm's"] = timm.optim.Lars(groups, lr=0.1, momentum=0.9)
    for fused in (False, True):
        made = OPTIMIZERS["sgd"](parameter_groups(model()), lr=0.1)
        for group in made.param_groups:
            group["fused"] = fused
        found[f"SGD, fused {fused}"] = made
    return found


def main(rounds: int) -> None:
    """Prints one line an optimizer."""
    torch.set_num_threads(1)
    made = optimizers()
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds + 1):
        for name, optimizer in made.items():
            began = time.process_time()
            optimizer.step()
            times[name].append(time.process_time() - began)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    ours = times["ours"][1:]
    for name, optimizer in made.items():
        with Counted() as counted:
            optimizer.step()
        spent = times[name][1:]
        low, middle, high = statistics.quantiles(a / b for a, b in zip(spent, ours, strict=True))
        print(
            f"{name:18} {1000 * statistics.median(spent):7.1f} ms, {middle:.2f} ({low:.2f} to "
            f"{high:.2f}) of ours, {counted.calls} operators"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
