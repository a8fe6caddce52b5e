"""Colour operations of the papers on floats in [0, 1], each with parameters of every image's own,
few passes each.

The operations are torchvision's of the same names. Brightness, contrast, saturation and grey are
one form, `blend`; hue is its rotation in HSV, written without branches or selections (a selection
costs ten times a product on a CPU). All write into their argument. Images that have not three
channels have no colour: saturation, hue and grey leave them as they are, as torchvision does.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

THRESHOLD = 128 / 255
OPERATIONS = ("brightness", "contrast", "saturation", "hue")
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow has it
GREY, AS_IT_IS = (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)


def coefficients(factor_N4: Tensor, order_N4: Tensor, channels: int) -> Tensor:
    """(N, 4, 3): `blend`'s three numbers for each turn of each image's jitter; at the hue's turn 1
    0 0, nothing.

    factor_N4: one factor for each of OPERATIONS; order_N4: which operation comes at each turn.
    """
    f, zero, one = factor_N4, torch.zeros_like(factor_N4[:, 0]), torch.ones_like(factor_N4[:, 0])
    nothing = torch.stack([one, zero, zero], dim=1)
    saturation = torch.stack([f[:, 2], 1 - f[:, 2], zero], dim=1) if channels == 3 else nothing
    brightness, contrast = (
        torch.stack([f[:, 0], zero, zero], dim=1),
        torch.stack([f[:, 1], zero, 1 - f[:, 1]], dim=1),
    )
    each_N43 = torch.stack([brightness, contrast, saturation, nothing], dim=1)
    return each_N43.gather(1, order_N4[:, :, None].expand(-1, -1, 3))


def blend(x_NCHW: Tensor, abc_N3: Tensor, *, grey: bool = True, mean: bool = True) -> Tensor:
    """a x + b luma(x) + c mean(luma(x)), clamped to [0, 1]; `grey` and `mean`: whether any b, any c
    is not 0.
    """
    a, b, c = (abc_N3[:, i, None, None, None] for i in range(3))
    added = luma(x_NCHW).mul_(b) if grey else None
    if mean:
        whole = luma(x_NCHW.mean(dim=(2, 3), keepdim=True)).mul_(c)
        added = whole if added is None else added.add_(whole)
    x_NCHW.mul_(a)
    return (x_NCHW if added is None else x_NCHW.add_(added)).clamp_(0, 1)


def luma(x_NCHW: Tensor) -> Tensor:
    """(N, 1, H, W): the brightness that the eye gives to each pixel; without three channels their
    mean.
    """
    if x_NCHW.shape[1] != 3:
        return x_NCHW.mean(dim=1, keepdim=True)
    red, green, blue = (x_NCHW[:, i : i + 1] for i in range(3))
    found: Tensor = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return found


def hue(x_NCHW: Tensor, angle_N: Tensor) -> Tensor:
    """Turns the hue of three-channel images by `turn_N` (whole turns; 0 is nothing), value and
    saturation unchanged.

    With h of HSV from 0 to 6, red is min + (max - min) clamp(|h - 3| - 1, 0, 1), green has 2 - |h -
    2| there and blue 2 - |h - 4|.
    """
    red, green, blue = (x_NCHW[:, i : i + 1] for i in range(3))
    high, low = (
        torch.maximum(torch.maximum(red, green), blue),
        torch.minimum(torch.minimum(red, green), blue),
    )
    chroma = high - low
    is_red, is_green = (torch.eq(x, high, out=torch.empty_like(x)) for x in (red, green))
    h = (red - green).add_(chroma, alpha=4)
    h.lerp_((blue - red).add_(chroma, alpha=2), is_green).lerp_(green - blue, is_red)
    # Where a pixel is grey any hue gives it back. The added turn keeps what frac cuts positive.
    h.div_((chroma * 6).clamp_(min=1e-12)).add_(angle_N[:, None, None, None] + 1).frac_().mul_(6)
    red.copy_(low).addcmul_(chroma, (h - 3).abs_().sub_(1).clamp_(0, 1))
    green.copy_(low).addcmul_(chroma, torch.rsub((h - 2).abs_(), 2).clamp_(0, 1))
    blue.copy_(low).addcmul_(chroma, torch.rsub(h.sub_(4).abs_(), 2).clamp_(0, 1))
    return x_NCHW


def taps(sigma_N: Tensor, radius: int) -> Tensor:
    """(N, 2 radius + 1): Gaussian weights of σ pixels, to 3 σ of each rounded up, their sum 1."""
    distance_K = torch.arange(-radius, radius + 1, device=sigma_N.device)
    weight_NK = torch.exp(-0.5 * (distance_K / sigma_N[:, None]).square())
    weight_NK = weight_NK * (distance_K.abs() <= (3 * sigma_N[:, None]).ceil())
    return weight_NK / weight_NK.sum(dim=1, keepdim=True)


def kernel_radius(sigma_max: float, side: int) -> int:
    """The radius of the largest kernel: 3 σ, and a reflected border is shorter than its image."""
    return min(math.ceil(3 * sigma_max), side - 1)


def blur(x_NCHW: Tensor, taps_NK: Tensor) -> Tensor:
    """Each image blurred by its own row of weights along both axes, borders reflected."""
    r, (height, width) = taps_NK.shape[1] // 2, x_NCHW.shape[2:]
    wide = F.pad(x_NCHW, (r, r, 0, 0), mode="reflect")
    y_NCHW = _weighted([wide[..., k : k + width] for k in range(2 * r + 1)], taps_NK)
    tall = F.pad(y_NCHW, (0, 0, r, r), mode="reflect")
    return _weighted([tall[..., k : k + height, :] for k in range(2 * r + 1)], taps_NK)


def _weighted(shifted: list[Tensor], taps_NK: Tensor) -> Tensor:
    weights = [taps_NK[:, k, None, None, None] for k in range(len(shifted))]
    total = shifted[0] * weights[0]
    for x, weight in zip(shifted[1:], weights[1:], strict=True):
        total.addcmul_(x, weight)
    return total


def drop(x_NCHW: Tensor, channel_N: Tensor) -> Tensor:
    """Sets one channel of each image to 0, int64 (N,), as kornia's RandomChannelDropout does."""
    gone_NC = torch.arange(x_NCHW.shape[1], device=x_NCHW.device) == channel_N[:, None]
    return x_NCHW.masked_fill_(gone_NC[:, :, None, None], 0)


def solarize(x_NCHW: Tensor) -> Tensor:
    """Inverts what is as bright as THRESHOLD or brighter."""
    return x_NCHW.lerp_(1 - x_NCHW, x_NCHW.ge(THRESHOLD).to(x_NCHW.dtype))
