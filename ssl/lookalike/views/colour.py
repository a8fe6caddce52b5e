"""Colour operations of the papers, with parameters of each picture's own, by kornia's functional forms.

Each is the operation of the same name in torchvision (blend with black, with the mean grey, with the grey
picture; rotation of the hue in HSV), on floats in [0, 1]. Pictures of one channel have no saturation, hue or
colour to lose: those operations leave them as they are, as torchvision does.
"""

import math

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor

THRESHOLD = 128 / 255
OPERATIONS = ("brightness", "contrast", "saturation", "hue")


def adjust(x_BCHW: Tensor, operation: str, factor_B: Tensor) -> Tensor:
    """One of OPERATIONS; factor_B multiplies (1 = nothing), for hue it adds (turns, 0 = nothing)."""
    if operation == "brightness":
        y: Tensor = adjust_brightness_accumulative(x_BCHW, factor_B)
    elif operation == "contrast":
        y = adjust_contrast_with_mean_subtraction(x_BCHW, factor_B)
    elif x_BCHW.shape[1] == 1:
        y = x_BCHW
    elif operation == "saturation":
        y = adjust_saturation_with_gray_subtraction(x_BCHW, factor_B)
    else:
        y = adjust_hue(x_BCHW, factor_B * 2 * math.pi)
    return y


def jitter(x_BCHW: Tensor, on_B: Tensor, factor_B4: Tensor, order_B4: Tensor) -> Tensor:
    """Applies the four OPERATIONS to the pictures marked in on_B, in each picture's own order.

    factor_B4: one factor for each of OPERATIONS; order_B4: a permutation of 0 … 3. Both and on_B lie on the
    host, where the rows to touch are known without asking the device.
    """
    for turn in range(len(OPERATIONS)):
        for o, operation in enumerate(OPERATIONS):
            rows = torch.nonzero(on_B & (order_B4[:, turn] == o)).flatten()
            if x_BCHW.shape[1] == 3 or o < 2:
                x_BCHW = _on_rows(x_BCHW, rows, lambda x, f, op=operation: adjust(x, op, f), factor_B4[rows, o])
    return x_BCHW


def grey(x_BCHW: Tensor, on_B: Tensor) -> Tensor:
    """Replaces the marked pictures by their luma in all three channels."""
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    return _on_rows(x_BCHW, torch.nonzero(on_B).flatten(), lambda x: rgb_to_grayscale(x).expand_as(x))


def blur(x_BCHW: Tensor, on_B: Tensor, sigma_B: Tensor, sigma_max: float) -> Tensor:
    """Gaussian blur of the marked pictures, σ in pixels, kernel to 3 σ of the largest σ, borders reflected."""
    size = 2 * math.ceil(3 * sigma_max) + 1
    size = min(size, 2 * min(x_BCHW.shape[2:]) - 1)  # a reflected border is shorter than its picture
    rows = torch.nonzero(on_B).flatten()
    return _on_rows(
        x_BCHW, rows, lambda x, s: gaussian_blur2d(x, (size, size), s[:, None].expand(-1, 2)), sigma_B[rows]
    )


def solarize(x_BCHW: Tensor, on_B: Tensor) -> Tensor:
    """Inverts what is as bright as THRESHOLD or brighter, in the marked pictures."""
    return _on_rows(x_BCHW, torch.nonzero(on_B).flatten(), lambda x: torch.where(x < THRESHOLD, x, 1 - x))


def _on_rows(x_BCHW: Tensor, rows: Tensor, operation, *parameters: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """operation(pictures, *parameters) on the chosen pictures only; x_BCHW is written in place."""
    if len(rows):
        rows = rows.to(x_BCHW.device, non_blocking=True)
        x_BCHW[rows] = operation(x_BCHW[rows], *(p.to(x_BCHW.device, non_blocking=True) for p in parameters))
    return x_BCHW
