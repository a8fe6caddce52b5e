"""RandAugment (Cubuk, Zoph, Shlens & Le, NeurIPS 2020, arXiv 1909.13719): some operations of a
list, each drawn for each image, all of one magnitude.

List and ranges are torchvision's `RandAugment`'s, which are the paper's. Images are floats in [0,
1], and operations may write into their argument; those of bytes (posterize, equalize) round first.
Geometric ones resample bilinearly, and what comes from outside the image has the colour `fill`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.views import colour
from lookalike.views.send import constant, on_marked, send

LEVELS = 30
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("brightness", "color", "contrast")
OPERATIONS = (
    *("identity", *GEOMETRIC, *BLENDS),
    *("sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
SIGNED = (*GEOMETRIC, *BLENDS, "sharpness")
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}
_MOST = {"shear_x": 0.3, "shear_y": 0.3, "translate_x": 150 / 331, "translate_y": 150 / 331}
_MOST |= {"rotate": 30.0} | dict.fromkeys((*BLENDS, "sharpness"), 0.9)


def augmented(
    x_NCHW: Tensor, operation_NK: Tensor, strength_NK: Tensor, fill: Sequence[float]
) -> Tensor:
    """The K operations of each image, in place, by their numbers in OPERATIONS, one after the
    other.

    strength_NK: in [-1, 1], magnitude / LEVELS with its sign, which only SIGNED ones heed; both on
    the host. fill: of each channel.
    """
    fill_C11 = constant(fill, x_NCHW.device)[:, None, None]
    for operation_N, strength_N in zip(operation_NK.unbind(1), strength_NK.unbind(1), strict=True):
        x_NCHW = _turn(x_NCHW, operation_N, strength_N, fill_C11)
    return x_NCHW


def _turn(x: Tensor, operation_N: Tensor, strength_N: Tensor, fill_C11: Tensor) -> Tensor:
    """One operation of each image, those of one kind together."""
    kind_N = _KIND[operation_N]
    for kind in sorted(set(kind_N.tolist())):
        on = kind_N == kind
        work = partial(
            _KINDS[kind], operation_N=operation_N[on], strength_N=strength_N[on], fill_C11=fill_C11
        )
        x = on_marked(x, on, work)
    return x


def _nothing(x: Tensor, **drawn: Tensor) -> Tensor:
    return x


def _warped(x: Tensor, operation_N: Tensor, strength_N: Tensor, fill_C11: Tensor) -> Tensor:
    return warp(x, matrices(operation_N, strength_N, (x.shape[2], x.shape[3])), fill_C11)


def _translated(x: Tensor, operation_N: Tensor, strength_N: Tensor, fill_C11: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return _warped(x, operation_N, strength_N, fill_C11)
    moved_N2 = translations(operation_N, strength_N, (x.shape[2], x.shape[3]))
    for image, (right, down) in zip(x, moved_N2.long().tolist(), strict=True):
        translate(image, right, down, fill_C11)
    return x


def _blended(x: Tensor, operation_N: Tensor, strength_N: Tensor, **fill: Tensor) -> Tensor:
    abc_N3 = coefficients(operation_N, strength_N, x.shape[1])
    _, grey, mean = abc_N3.any(dim=0).tolist()
    return colour.blend(x, send(abc_N3, x.device), grey=grey, mean=mean)


def _sharpened(x: Tensor, strength_N: Tensor, **other: Tensor) -> Tensor:
    return sharpness(x, send(1 + _MOST["sharpness"] * strength_N, x.device))


def _posterized(x: Tensor, strength_N: Tensor, **other: Tensor) -> Tensor:
    return posterize(x, send((4 * strength_N.abs()).round(), x.device))


def _solarized(x: Tensor, strength_N: Tensor, **other: Tensor) -> Tensor:
    return solarize(x, send(1 - strength_N.abs(), x.device))


def _stretched(x: Tensor, **drawn: Tensor) -> Tensor:
    return autocontrast(x)


def _equalized(x: Tensor, **drawn: Tensor) -> Tensor:
    return equalize(x)


# What does the work of each operation, and which of them each operation's number stands for.
_WORK: dict[str, Callable[..., Tensor]] = {"identity": _nothing}
_WORK |= dict.fromkeys(GEOMETRIC, _warped) | dict.fromkeys(BLENDS, _blended)
_WORK |= {"translate_x": _translated, "translate_y": _translated}
_WORK |= {"sharpness": _sharpened, "posterize": _posterized, "solarize": _solarized}
_WORK |= {"autocontrast": _stretched, "equalize": _equalized}
_KINDS = list(dict.fromkeys(_WORK.values()))
_KIND = torch.tensor([_KINDS.index(_WORK[name]) for name in OPERATIONS])


def coefficients(operation_N: Tensor, strength_N: Tensor, channels: int) -> Tensor:
    """(N, 3): `colour.blend`'s three numbers of brightness, color (saturation, nothing without
    three channels) or contrast.
    """
    factor_N, zero_N = 1 + _MOST["brightness"] * strength_N, torch.zeros_like(strength_N)
    rest_N = 1 - factor_N
    is_color = operation_N == _NUMBER["color"]
    if channels != 3:
        factor_N = torch.where(is_color, 1.0, factor_N)
        is_color = torch.zeros_like(is_color)
    grey_N = torch.where(is_color, rest_N, zero_N)
    mean_N = torch.where(operation_N == _NUMBER["contrast"], rest_N, zero_N)
    return torch.stack([factor_N, grey_N, mean_N], dim=1)


def matrices(operation_N: Tensor, strength_N: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2, 3): where in the image each point of the result lies; x and y in pixels from the upper
    left corner, whose pixel has its centre at (.5, .5).
    """
    height, width = size
    names = ("shear_x", "shear_y", "rotate")
    by = {name: torch.where(operation_N == _NUMBER[name], strength_N, 0.0) for name in names}
    angle_N = torch.deg2rad(_MOST["rotate"] * by["rotate"])
    cos, sin = angle_N.cos(), angle_N.sin()
    shear_x, shear_y = (_MOST[name] * by[name] for name in ("shear_x", "shear_y"))
    right, down = translations(operation_N, strength_N, size).unbind(1)
    x0, y0 = width / 2, height / 2
    return torch.stack(
        [
            torch.stack([cos, shear_x - sin, x0 - x0 * cos + y0 * sin - right], dim=1),
            torch.stack([shear_y + sin, cos, y0 - x0 * sin - y0 * cos - down], dim=1),
        ],
        dim=1,
    )


def translations(operation_N: Tensor, strength_N: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 2): by how many whole pixels each image goes to the right, and down."""
    found = [
        torch.where(operation_N == _NUMBER[name], _MOST[name] * side * strength_N, 0.0).trunc()
        for name, side in (("translate_x", size[1]), ("translate_y", size[0]))
    ]
    return torch.stack(found, dim=1)


def translate(x_CHW: Tensor, right: int, down: int, fill_C11: Tensor) -> None:
    """Moves the image by less than its sides, in place; `fill` comes after it."""
    _, height, width = x_CHW.shape
    kept = x_CHW[
        :, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ].clone()
    x_CHW.copy_(fill_C11.expand_as(x_CHW))
    x_CHW[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = kept


def warp(x_NCHW: Tensor, matrix_N23: Tensor, fill_C11: Tensor) -> Tensor:
    """The images, bilinearly, at the points that the matrices name; `fill` outside."""
    height, width = x_NCHW.shape[2:]
    ratio = torch.tensor([[1.0, height / width], [width / height, 1.0]])
    linear_N22 = matrix_N23[:, :, :2] * ratio
    moved_N2 = 2 * matrix_N23[:, :, 2] / torch.tensor([width, height])
    theta_N23 = torch.cat([linear_N22, (linear_N22.sum(dim=2) + moved_N2 - 1)[:, :, None]], dim=2)
    grid = F.affine_grid(send(theta_N23, x_NCHW.device), list(x_NCHW.shape), align_corners=False)
    found = F.grid_sample(x_NCHW - fill_C11, grid, mode="bilinear", align_corners=False)
    return found.add_(fill_C11).clamp_(0, 1)


def sharpness(x_NCHW: Tensor, factor_N: Tensor) -> Tensor:
    """Each pixel that is not at the edge, factor × it + (1 - factor) × the weighted mean around it
    (Pillow's SMOOTH: 5 of the pixel, 1 of each of its 8 neighbours).
    """
    if min(x_NCHW.shape[2:]) < 3:
        return x_NCHW
    tall = x_NCHW[:, :, :-2] + x_NCHW[:, :, 1:-1] + x_NCHW[:, :, 2:]
    box = tall[..., :-2] + tall[..., 1:-1] + tall[..., 2:]
    inner, f = x_NCHW[:, :, 1:-1, 1:-1], factor_N[:, None, None, None]
    smooth = box.add_(inner, alpha=4).div_(13)
    inner.mul_(f).add_(smooth.mul_(1 - f)).clamp_(0, 1)
    return x_NCHW


def posterize(x_NCHW: Tensor, dropped_N: Tensor) -> Tensor:
    """Bytes without their `dropped` lowest bits, whole numbers from 0 to 8."""
    step = (2.0**dropped_N)[:, None, None, None]
    return x_NCHW.mul_(255).round_().div_(step).floor_().mul_(step / 255)


def solarize(x_NCHW: Tensor, threshold_N: Tensor) -> Tensor:
    """Inverts what is as bright as the threshold or brighter, to a small part of a byte."""
    bright = x_NCHW.ge(threshold_N[:, None, None, None] - 1e-5).to(x_NCHW.dtype)
    return x_NCHW.lerp_(1 - x_NCHW, bright)


def autocontrast(x_NCHW: Tensor) -> Tensor:
    """Each channel from its darkest to its brightest value stretched to [0, 1]; one of a single
    value stays.
    """
    low, high = x_NCHW.amin(dim=(2, 3), keepdim=True), x_NCHW.amax(dim=(2, 3), keepdim=True)
    flat = high <= low
    low, wide = torch.where(flat, 0.0, low), torch.where(flat, 1.0, high - low)
    return x_NCHW.sub_(low).div_(wide).clamp_(0, 1)


def equalize(x_NCHW: Tensor) -> Tensor:
    """Each channel's bytes by a table that makes their histogram as even as whole steps allow,
    Pillow's `ImageOps.equalize`.
    """
    planes, device = x_NCHW.shape[0] * x_NCHW.shape[1], x_NCHW.device
    first_M1 = 256 * torch.arange(planes, device=device)[:, None]
    byte_MP = (x_NCHW * 255).round_().reshape(planes, -1)
    place_Q = byte_MP.to(torch.int32).add_(first_M1.to(torch.int32)).flatten()
    count_MK = _counts(place_Q, planes * 256).view(planes, 256)
    itself_K = torch.arange(256, device=device)
    highest_M1 = (itself_K * (count_MK > 0)).argmax(1, keepdim=True)
    step_M1 = (count_MK.sum(1, keepdim=True) - count_MK.gather(1, highest_M1)) // 255
    below_MK = count_MK.cumsum(1) - count_MK
    table_MK = ((below_MK + step_M1 // 2) // step_M1.clamp(min=1)).clamp(max=255)
    table_MK = torch.where(step_M1 == 0, itself_K, table_MK)
    return (table_MK.flatten().float() / 255).index_select(0, place_Q).view(x_NCHW.shape)


def _counts(place_Q: Tensor, n: int) -> Tensor:
    """How often each number below n comes; on a device without waiting for it."""
    if place_Q.device.type == "cpu":
        return torch.bincount(place_Q, minlength=n)
    ones_Q = torch.ones(len(place_Q), dtype=torch.long, device=place_Q.device)
    return torch.zeros_like(ones_Q[:1]).repeat(n).scatter_add_(0, place_Q.long(), ones_Q)
