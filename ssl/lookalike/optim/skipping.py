"""What a boolean on the device may undo, without the host asking for it: a step of an optimizer, or
anything else that moved.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from lookalike.optim.lars import start_at_rest

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@contextmanager
def skippable(optimizer: Optimizer, skip: Tensor) -> Iterator[None]:
    """While entered, a step moves nothing where `skip`, of no dimension, is true: neither
    parameters nor moments nor the count of steps.

    Fused optimizers are told by `found_inf`, as torch's GradScaler tells them; of what others move
    a copy is kept.
    """
    if all(group.get("fused") for group in optimizer.param_groups):
        with _told(optimizer, skip):
            yield
    else:
        with undone(_moved(optimizer), skip):
            known = {id(t) for t in _moved(optimizer)}
            yield
        fresh = [t for t in _moved(optimizer) if id(t) not in known]
        put_back(fresh, [torch.zeros_like(t) for t in fresh], skip)


@contextmanager
def _told(optimizer: Optimizer, skip: Tensor) -> Iterator[None]:
    fused: Any = optimizer
    if isinstance(optimizer, SGD):
        for group in optimizer.param_groups:
            if group["momentum"]:
                start_at_rest(optimizer, [p for p in group["params"] if p.grad is not None])
    fused.found_inf = skip.to(torch.float32)
    try:
        yield
    finally:
        del fused.found_inf


def _moved(optimizer: Optimizer) -> list[Tensor]:
    """Parameters and the optimizer's tensors."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return [*parameters, *states]


@contextmanager
def undone(tensors: Iterable[Tensor], skip: Tensor) -> Iterator[None]:
    """Where `skip`, of no dimension, is true, what is done to the tensors while entered is undone,
    bit for bit.
    """
    own = [tensor.detach() for tensor in tensors]
    before = [tensor.clone() for tensor in own]
    yield
    put_back(own, before, skip)


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], before: Sequence[Tensor], skip: Tensor) -> None:
    """Where `skip` is true, every tensor becomes what it was before, bit for bit, whatever it holds
    (NaN too).

    In three kernels a number of bits, not one a tensor: bits are subtracted, multiplied by 0 or 1,
    and added, as whole numbers that wrap around.
    """
    by_size: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
    for now, then in zip(tensors, before, strict=True):
        bits = _BITS[now.element_size()]
        pair = by_size.setdefault(now.element_size(), ([], []))
        pair[0].append(now.detach().view(bits))
        pair[1].append(then.view(bits))
    for size, (now_bits, then_bits) in by_size.items():
        differences = torch._foreach_sub(then_bits, now_bits)
        torch._foreach_mul_(differences, skip.to(_BITS[size]))
        torch._foreach_add_(now_bits, differences)
