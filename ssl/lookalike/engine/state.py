"""A training state by parameter name: what one engine saves, any other can load."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike.engine.scaler import Scaler
from lookalike.errors import RunError


class State(NamedTuple):
    """`model`: parameters and buffers by name; `optim`: `<parameter>/<key>`, the optimizer's
    tensors.
    """

    model: dict[str, Tensor]
    optim: dict[str, Tensor]


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later training cannot change."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def model_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: copied(tensor) for name, tensor in module.state_dict().items()}


def misfit(shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> str:
    """What keeps saved tensors from being loaded where these shapes are, or nothing."""
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors or name not in shapes:
            where = "the checkpoint" if name not in tensors else "the recipe's model"
            return f"{name} is missing in {where}"
        if tensors[name].shape != shapes[name]:
            found, wanted = tuple(tensors[name].shape), tuple(shapes[name])
            return f"{name} has shape {found}, not {wanted}"
    return ""


def load_model(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Takes parameters and buffers back; every name and shape has to fit."""
    if problem := misfit(
        {name: tensor.shape for name, tensor in module.state_dict().items()}, tensors
    ):
        raise RunError(problem)
    module.load_state_dict(tensors, strict=True)


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
    """Takes the optimizer's tensors back, each laid out as its parameter; counters lie where the
    optimizer wants them.
    """
    nested = by_parameter(tensors)
    optimizer.state.clear()
    for name, parameter in module.named_parameters():
        if name in nested:
            optimizer.state[parameter] = {
                key: counter(optimizer, value, parameter)
                if value.dim() == 0
                else torch.empty_like(parameter).copy_(value)
                for key, value in nested[name].items()
            }


def counter(optimizer: Optimizer, value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a count of steps: beside the parameter for fused kernels, else on the CPU."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return value.to(parameter.device if fused else "cpu", copy=True)


def with_scale(state: State, scaler: Scaler | None) -> State:
    """The state with fp16's loss scale, where there is one."""
    return state if scaler is None else State(state.model, {**state.optim, **scaler.save()})
