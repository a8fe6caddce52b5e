"""A training state by parameter name: what one engine saves, any other can load."""

import contextlib
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike.errors import RunError

Precision = Literal["fp32", "bf16"]


class State(NamedTuple):
    """`model`: parameters and buffers by name; `optim`: `<parameter>/<key>`, the optimizer's tensors."""

    model: dict[str, Tensor]
    optim: dict[str, Tensor]


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """bf16 for what is safe in it; parameters, statistics and losses stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def follow(module: nn.Module) -> None:
    """Calls `follow` of every module below that has it."""
    for part in module.modules():
        heard = getattr(part, "follow", None)
        if callable(heard):
            heard()


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later training cannot change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def model_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: copied(tensor) for name, tensor in module.state_dict().items()}


def load_model(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Takes parameters and buffers back; every name and shape has to fit."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise RunError(f"checkpoint: does not fit the recipe's model: {' '.join(str(error).split())[:200]}") from error


def optim_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Copies of the optimizer's tensors, and of its numbers as 0-dimensional tensors."""
    found = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}/{key}"] = copied(torch.as_tensor(value))
    return found


def by_parameter(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`<parameter>/<key>` -> parameter -> key."""
    nested: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        nested.setdefault(name, {})[key] = tensor
    return nested


def load_optim(module: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Takes the optimizer's tensors back, each laid out as its parameter; counters stay on the CPU."""
    nested = by_parameter(tensors)
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        if name in nested:
            optimizer.state[parameter] = {
                key: value.clone() if value.dim() == 0 else torch.empty_like(parameter).copy_(value)
                for key, value in nested[name].items()
            }
