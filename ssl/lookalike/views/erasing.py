"""Random erasing (Zhong, Zheng, Kang, Li & Yang, AAAI 2020, arXiv 1708.04896, algorithm 1): a
rectangle of a view becomes noise, its mean, or black.

Boxes follow torchvision's `RandomErasing`: ten attempts at a share of the area and a log-uniform
aspect; where none is smaller than the view, nothing is erased.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lookalike import rng
from lookalike.views.resample import below
from lookalike.views.send import constant, send

ErasedWith = Literal["random", "mean", "zero"]


def erase_boxes(
    area_A: Tensor, aspect_A: Tensor, place_2: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(…, 4) int64 boxes (top, left, height, width), and whether there is one.

    area_A, aspect_A: (…, attempts), shares of the area and height / width; place_2: (…, 2) in [0,
    1).
    """
    height, width = size
    area_A = area_A * (height * width)
    h, w = (area_A * aspect_A).sqrt().round().long(), (area_A / aspect_A).sqrt().round().long()
    fits = (h > 0) & (h < height) & (w > 0) & (w < width)
    first = fits.int().argmax(dim=-1, keepdim=True)
    h, w = h.gather(-1, first)[..., 0], w.gather(-1, first)[..., 0]
    fits_any = fits.any(dim=-1)
    h, w = torch.where(fits_any, h, height), torch.where(fits_any, w, width)
    top, left = below(place_2[..., 0], height - h + 1), below(place_2[..., 1], width - w + 1)
    return torch.stack([top, left, h, w], dim=-1), fits_any


def erase(
    x_NCHW: Tensor,
    on_N: Tensor,
    box_N4: Tensor,
    word_N: Tensor,
    by: ErasedWith,
    fill: Sequence[float],
) -> Tensor:
    """The box of each marked image becomes, in place, the colour `fill` (mean), 0 (zero), or
    numbers of its own in [0, 1) for every pixel and channel, a pure function of the image's word
    (random). `on_N`, `box_N4` and `word_N` (int64) lie on the host.
    """
    rows = torch.nonzero(on_N).flatten()
    if x_NCHW.device.type != "cpu":
        return _masked(x_NCHW, rows, box_N4[rows], word_N[rows], by, fill) if len(rows) else x_NCHW
    _, channels, height, width = x_NCHW.shape
    colour_C11 = torch.tensor(fill)[:, None, None]
    pixel_CHW = torch.arange(channels * height * width).view(channels, height, width)
    for row, (top, left, h, w) in zip(rows.tolist(), box_N4[rows].tolist(), strict=True):
        box = (slice(None), slice(top, top + h), slice(left, left + w))
        if by == "random":
            x_NCHW[row][box] = rng.uniform(word_N[row], pixel_CHW[box])
        else:
            x_NCHW[row][box] = colour_C11 if by == "mean" else 0.0
    return x_NCHW


def _masked(
    x: Tensor, rows: Tensor, box_M4: Tensor, word_M: Tensor, by: ErasedWith, fill: Sequence[float]
) -> Tensor:
    """The same without a loop over images, for a device."""
    channels, height, width = x.shape[1:]
    top, left, h, w = send(box_M4, x.device)[:, :, None].unbind(1)
    y_H, x_W = (torch.arange(side, device=x.device) for side in (height, width))
    inside = ((y_H >= top) & (y_H < top + h))[:, None, :, None]
    inside = inside & ((x_W >= left) & (x_W < left + w))[:, None, None, :]
    if by == "random":
        pixel_CHW = torch.arange(channels * height * width, device=x.device).view(x.shape[1:])
        value = rng.uniform(send(word_M, x.device)[:, None, None, None], pixel_CHW)
    else:
        value = constant(fill if by == "mean" else [0.0], x.device)[:, None, None]
    rows = send(rows, x.device)
    x[rows] = torch.where(inside, value, x[rows])
    return x
