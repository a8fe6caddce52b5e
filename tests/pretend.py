"""Modules on devices that are not there: `meta`, and a GPU that FakeTensorMode makes up.

Both know shapes, types and devices and hold no numbers, so that what reads one fails: `.item()`,
`if tensor`, `nonzero`, `unique`, a mask as an index. The made-up GPU refuses a host's tensor beside
its own, but for one of no dimension, as a GPU does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

Module = TypeVar("Module", bound=nn.Module)


def moved(value: Any, device: str) -> Any:
    """A tensor of the shape, or whatever holds some, on `device`."""
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if isinstance(value, list | tuple):
        return type(value)(moved(each, device) for each in value)
    return value


def place(module: Module, device: str) -> Module:
    """The module with every parameter and buffer on `device`; shared ones stay shared."""
    made: dict[int, Tensor] = {}

    def there(old: Tensor) -> Tensor:
        if id(old) not in made:
            new = moved(old, device)
            made[id(old)] = (
                nn.Parameter(new, requires_grad=old.requires_grad)
                if isinstance(old, nn.Parameter)
                else new
            )
        return made[id(old)]

    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, old in list(held.items()):
                if old is not None:
                    held[name] = there(old)  # type: ignore[assignment]
    return module


@contextmanager
def device(name: str) -> Iterator[str]:
    """Inside, there is such a device: `meta`, for which torch knows no autocast, or `cuda`."""
    if name == "cuda":
        with FakeTensorMode():
            yield name
        return
    real = torch.autocast

    def autocast(kind: str, *given: Any, **how: Any) -> Any:
        return nullcontext() if kind == "meta" else real(kind, *given, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", autocast)
        yield name
