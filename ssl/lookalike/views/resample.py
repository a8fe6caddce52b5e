"""Crop, flip and antialiased resize as one linear map per image: out = Y · image · Xᵀ.

Resampling a rectangle is separable, so two small matrices an image do all three at once and exactly
as torchvision's antialiased resize of the cut-out rectangle does (support widened by the shrinking
factor, weights cut at the rectangle's edge and normalised; cubic with a = -1/2, as in Pillow).
"""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.geometry import central, sides
from lookalike.recipe import Size
from lookalike.views.send import constant, send

Interpolation = Literal["bilinear", "bicubic"]
Outside = Literal["zero", "reflect"]

ATTEMPTS = 10


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel (1981, equation 4) of support 2."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x.square() + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def weights(
    start_B: Tensor, extent_B: Tensor, n_in: int, n_out: int, interpolation: Interpolation
) -> Tensor:
    """(B, n_out, n_in): each input pixel's share in each output pixel of the cut [start, start +
    extent).
    """
    kernel = _cubic if interpolation == "bicubic" else _linear
    start_B11, extent_B11 = start_B.float()[:, None, None], extent_B.float()[:, None, None]
    step_B11 = extent_B11 / n_out
    widen_B11 = step_B11.clamp(min=1)
    pixel_I = torch.arange(n_in, device=start_B.device) + 0.5
    centre_BO1 = start_B11 + (torch.arange(n_out, device=start_B.device)[:, None] + 0.5) * step_B11
    w_BOI = kernel((pixel_I - centre_BO1) / widen_B11)
    w_BOI = w_BOI * ((pixel_I > start_B11) & (pixel_I < start_B11 + extent_B11))
    return w_BOI / w_BOI.sum(dim=2, keepdim=True)


def crop_resize(
    x_BCHW: Tensor,
    box_B4: Tensor,
    size: Size,
    *,
    flip_B: Tensor | None = None,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Cuts box (top, left, height, width; whole pixels) from each image, resizes it to `size`,
    flips it.

    x_BCHW: float in [0, 1]; returns (B, C, *size) in [0, 1]: the cubic overshoots and is
    clamped after each axis, width first, as Pillow and torch's resampling of bytes do.
    """
    top, left, height, width = box_B4.to(x_BCHW.device).unbind(1)
    rows, columns = sides(size)
    y_BOH = weights(top, height, x_BCHW.shape[2], rows, interpolation)
    x_BOW = weights(left, width, x_BCHW.shape[3], columns, interpolation)
    if flip_B is not None:
        x_BOW = torch.where(flip_B.to(x_BCHW.device)[:, None, None], x_BOW.flip(1), x_BOW)
    wide = (x_BCHW @ x_BOW.transpose(1, 2)[:, None]).clamp_(0, 1)
    return (y_BOH[:, None] @ wide).clamp_(0, 1)


def crop_boxes(
    area_A: Tensor,
    aspect_A: Tensor,
    top: Tensor,
    left: Tensor,
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """(…, 4) int64 boxes (top, left, height, width): torchvision's RandomResizedCrop, from numbers
    in [0, 1).

    Ten attempts at an area share in `scale` and a log-uniform aspect in `ratio`; if none fits, the
    largest centred box whose aspect is allowed. area_A, aspect_A: (…, ATTEMPTS); top, left: (…);
    height and width of the images: numbers, or of a shape that broadcasts with top.
    """
    height, width = (
        torch.as_tensor(side, device=top.device).expand(top.shape) for side in (height, width)
    )
    area = (height * width)[..., None] * between(area_A, *scale)
    aspect = log_between(aspect_A, *ratio)
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= width[..., None]) & (h > 0) & (h <= height[..., None])
    first = fits.int().argmax(dim=-1, keepdim=True)
    h, w = h.gather(-1, first)[..., 0], w.gather(-1, first)[..., 0]
    drawn = torch.stack([below(top, height - h + 1), below(left, width - w + 1), h, w], dim=-1)
    return torch.where(fits.any(dim=-1, keepdim=True), drawn, _central(height, width, ratio))


def between(u: Tensor, low: float, high: float) -> Tensor:
    """A number in [low, high) of one in [0, 1)."""
    return low + u * (high - low)


def log_between(u: Tensor, low: float, high: float) -> Tensor:
    """The same, uniform in its logarithm."""
    return between(u, *_logs(low, high)).exp()


@lru_cache(maxsize=64)
def _logs(low: float, high: float) -> tuple[float, float]:
    low, high = torch.tensor([low, high], dtype=torch.float32).log().tolist()
    return low, high


def below(u: Tensor, n: Tensor) -> Tensor:
    """A whole number in [0, n); the product may round up to n itself."""
    return torch.minimum((u * n).long(), n - 1)


def _central(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    low, high = ratio
    wide, narrow = width > height * high, width < height * low
    w = torch.where(wide, (height * high).round().long(), width)
    h = torch.where(narrow, (width / low).round().long(), height)
    return torch.stack([(height - h) // 2, (width - w) // 2, h, w], dim=-1)


def shifted(x_NCHW: Tensor, shift_N2: Tensor, outside: Outside) -> Tensor:
    """Each image, in place, as seen through its own frame, moved down and right by `shift` pixels
    (int64, on the host): what padding by as much and cropping back gives. Outside it is black or
    mirrored.
    """
    height, width = x_NCHW.shape[2:]
    most = int(shift_N2.abs().max())
    if x_NCHW.device.type != "cpu" or most >= min(height, width):
        return _gathered(x_NCHW, shift_N2, outside)
    wide = F.pad(x_NCHW, (most,) * 4, mode="constant" if outside == "zero" else outside)
    for x, padded, (down, right) in zip(x_NCHW, wide, (shift_N2 + most).tolist(), strict=True):
        x.copy_(padded[:, down : down + height, right : right + width])
    return x_NCHW


def _gathered(x_NCHW: Tensor, shift_N2: Tensor, outside: Outside) -> Tensor:
    """The same without a loop over images, by any shift."""
    rows_NH, has_row_NH = _seen(shift_N2[:, 0], x_NCHW.shape[2])
    columns_NW, has_column_NW = _seen(shift_N2[:, 1], x_NCHW.shape[3])
    rows, columns = send(rows_NH, x_NCHW.device), send(columns_NW, x_NCHW.device)
    y_NCHW = torch.take_along_dim(x_NCHW, rows[:, None, :, None], dim=2)
    y_NCHW = torch.take_along_dim(y_NCHW, columns[:, None, None, :], dim=3)
    if outside == "zero":
        there = (has_row_NH[:, :, None] & has_column_NW[:, None, :])[:, None]
        y_NCHW.mul_(send(there.to(x_NCHW.dtype), x_NCHW.device))
    return y_NCHW


def _seen(shift_N: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(N, n): which row stands at each place of a moved frame, mirrored beyond the edge; and
    whether it lies within.
    """
    place_Nn = torch.arange(n) + shift_N[:, None]
    period = max(1, 2 * (n - 1))
    mirrored_Nn = place_Nn % period
    inside_Nn = (place_Nn >= 0) & (place_Nn < n)
    return torch.minimum(mirrored_Nn, period - mirrored_Nn).clamp(max=n - 1), inside_Nn


def resize_crop(
    x_BCHW: Tensor, size: Size, crop: float = 1.0, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """The test-time view: the central share `crop` of the largest box of that shape, resized to
    `size`.
    """
    box_4 = constant(
        central(x_BCHW.shape[2], x_BCHW.shape[3], size, crop), x_BCHW.device, torch.long
    )
    return crop_resize(x_BCHW, box_4.expand(len(x_BCHW), 4), size, interpolation=interpolation)
