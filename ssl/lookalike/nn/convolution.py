"""Convolutions whose gradient a CPU gets wrong in bf16, padded before they are computed."""

import contextlib
from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

_FUNCTIONS: dict[type[nn.Module], Any] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


@contextlib.contextmanager
def padded(module: nn.Module) -> Iterator[None]:
    """While entered, a convolution with a stride that has `idle` columns pads its input itself;
    values and gradients are what they should be, all other convolutions as ever.

    oneDNN (3.12, jit_bf16:avx512_core_bf16) multiplies memory that it never wrote into such a
    column's gradient, which is zero: any number, NaN and Inf too, another in each run.
    """
    parts = [part for part in module.modules() if _is_concerned(part)]
    for part in parts:
        vars(part)["_conv_forward"] = MethodType(_conv_forward, part)
    try:
        yield
    finally:
        for part in parts:
            vars(part).pop("_conv_forward", None)


def _is_concerned(part: Any) -> bool:
    """Whether it pads with zeros and steps over columns; a subclass that convolves in a way of its
    own is left alone.
    """
    kind = _kind(part)
    if kind is None or type(part)._conv_forward is not kind._conv_forward:
        return False
    zeros = part.padding_mode == "zeros" and not isinstance(part.padding, str)
    return bool(zeros and part.stride[-1] > 1 and part.padding[-1] > 0)


def _kind(part: nn.Module) -> Any:
    return next((kind for kind in _FUNCTIONS if isinstance(part, kind)), None)


# Named as what it stands for, so that a pickled network finds its own again.
def _conv_forward(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
    kind = _kind(self)
    geometry = self.kernel_size[-1], self.stride[-1], self.padding[-1], self.dilation[-1]
    if not idle(x.shape[-1], *geometry):
        return kind._conv_forward(self, x, weight, bias)
    x = F.pad(x, self._reversed_padding_repeated_twice)
    return _FUNCTIONS[kind](x, weight, bias, self.stride, 0, self.dilation, self.groups)


def idle(width: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> list[int]:
    """The columns of a kernel that meet nothing but padding, wherever it stands on a row of
    `width` pixels.
    """
    places = (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    starts = [place * stride - padding for place in range(places)]
    return [
        column
        for column in range(kernel)
        if not any(0 <= start + column * dilation < width for start in starts)
    ]
