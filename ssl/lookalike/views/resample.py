"""Crop, flip and antialiased resize as one linear map per picture: out = Y · picture · Xᵀ.

Resampling a rectangle is separable, so two small matrices a picture do all three at once and exactly as
torchvision's antialiased resize of the cut-out rectangle does (support widened by the shrinking factor, weights
cut at the rectangle's edge and normalised; cubic with a = -1/2, as in Pillow).
"""

from typing import Literal

import torch
from torch import Tensor

from lookalike import draw

Interpolation = Literal["bilinear", "bicubic"]

_ATTEMPTS = 10


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel (1981, equation 4) of support 2."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x.square() + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def weights(start_B: Tensor, extent_B: Tensor, n_in: int, n_out: int, interpolation: Interpolation) -> Tensor:
    """(B, n_out, n_in): each input pixel's share in each output pixel of the cut [start, start + extent)."""
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
    size: int,
    *,
    flip_B: Tensor | None = None,
    interpolation: Interpolation = "bicubic",
) -> Tensor:
    """Cuts box (top, left, height, width; whole pixels) from each picture, resizes it to size × size, flips it.

    x_BCHW: float in [0, 1]; returns (B, C, size, size) in [0, 1] (the cubic overshoots; it is clamped).
    """
    top, left, height, width = box_B4.to(x_BCHW.device).unbind(1)
    y_BOH = weights(top, height, x_BCHW.shape[2], size, interpolation)
    x_BOW = weights(left, width, x_BCHW.shape[3], size, interpolation)
    if flip_B is not None:
        x_BOW = torch.where(flip_B.to(x_BCHW.device)[:, None, None], x_BOW.flip(1), x_BOW)
    out = y_BOH[:, None] @ x_BCHW @ x_BOW.transpose(1, 2)[:, None]
    return out.clamp_(0, 1)


def draw_boxes(
    ids_B: Tensor,
    key: tuple[int | str, ...],
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """(B, 4) int64 boxes (top, left, height, width), drawn by the law of torchvision's RandomResizedCrop.

    Pictures of one height and width, or int64 (B,) of each picture's own.

    Ten attempts at an area share in `scale` and a log-uniform aspect in `ratio`; if none fits, the largest
    centred box whose aspect is allowed.
    """
    ids_BA = ids_B[:, None], torch.arange(_ATTEMPTS, device=ids_B.device)[None]
    height_B1, width_B1 = (torch.as_tensor(n, device=ids_B.device).reshape(-1, 1) for n in (height, width))
    area_BA = height_B1 * width_B1 * _between(draw.uniform(*key, "area", *ids_BA), *scale)
    low, high = torch.tensor(ratio, dtype=torch.float32).log().tolist()
    aspect_BA = _between(draw.uniform(*key, "aspect", *ids_BA), low, high).exp()
    w_BA, h_BA = (area_BA * aspect_BA).sqrt().round().long(), (area_BA / aspect_BA).sqrt().round().long()
    fits_BA = (w_BA > 0) & (w_BA <= width_B1) & (h_BA > 0) & (h_BA <= height_B1)
    first_B = fits_BA.int().argmax(dim=1, keepdim=True)
    h_B, w_B = h_BA.gather(1, first_B)[:, 0], w_BA.gather(1, first_B)[:, 0]
    top_B = _below(draw.uniform(*key, "top", ids_B), height_B1[:, 0] - h_B + 1)
    left_B = _below(draw.uniform(*key, "left", ids_B), width_B1[:, 0] - w_B + 1)
    drawn_B4 = torch.stack([top_B, left_B, h_B, w_B], dim=1)
    return torch.where(fits_BA.any(dim=1, keepdim=True), drawn_B4, _central(height_B1[:, 0], width_B1[:, 0], ratio))


def _between(u: Tensor, low: float, high: float) -> Tensor:
    return low + u * (high - low)


def _below(u: Tensor, n: Tensor) -> Tensor:
    """A whole number in [0, n); the product may round up to n itself."""
    return torch.minimum((u * n).long(), n - 1)


def _central(height_B: Tensor, width_B: Tensor, ratio: tuple[float, float]) -> Tensor:
    """(B, 4), or (1, 4) for one height and width: the largest centred box whose aspect is allowed."""
    h_B, w_B = height_B.double(), width_B.double()
    w_B, h_B = torch.minimum(w_B, (h_B * ratio[1]).round()), torch.minimum(h_B, (w_B / ratio[0]).round())
    box_4B = (height_B - h_B) // 2, (width_B - w_B) // 2, h_B, w_B
    return torch.stack([n.long() for n in box_4B], dim=1)


def resize_crop(x_BCHW: Tensor, size: int, crop: float = 1.0, interpolation: Interpolation = "bicubic") -> Tensor:
    """The test-time view: the central square of share `crop` of the shorter side, resized to size × size."""
    height, width = x_BCHW.shape[2:]
    side = max(1, round(min(height, width) * crop))
    box = torch.tensor([[(height - side) // 2, (width - side) // 2, side, side]])
    return crop_resize(x_BCHW, box.expand(len(x_BCHW), 4), size, interpolation=interpolation)
