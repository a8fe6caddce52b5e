"""Views on an accelerator: all that is drawn goes there in one copy, and nothing is asked of it.

`by_kernels` are Triton's (`kernels`): three passes over memory. `by_torch` is for devices without:
every operation on every view, with numbers that mean nothing where it was not drawn, the hue once,
between the blends before it and those after it. Neither reads what was drawn on the host, so that
the launches of a batch depend on its shape alone.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike import rng
from lookalike.views import colour
from lookalike.views.erasing import erase
from lookalike.views.form import ViewFormat
from lookalike.views.randaugment import augmented
from lookalike.views.resample import shifted
from lookalike.views.send import constant, send_all

_NOTHING = (1.0, 0.0, 0.0)


class Part(NamedTuple):
    """What `fused.make` takes, for views of one size; `draws`: as `fused.flat` gives them."""

    images: Tensor | Sequence[Tensor]
    draws: Mapping[str, Tensor]
    form: ViewFormat

    @property
    def first(self) -> Tensor:
        """Its canvas, or its first crops."""
        return self.images if isinstance(self.images, Tensor) else self.images[0]


def make(parts: Sequence[Part]) -> list[Tensor]:
    """The views (B, C, *sides) of every part in turn, normalised, channels-last."""
    first = parts[0].first
    return (by_kernels if _has_kernels(first) else by_torch)(parts)


def _has_kernels(x: Tensor) -> bool:
    """Not where somebody only pretends, with tensors that have no memory."""
    return type(x) is Tensor and x.device.type == "cuda" and _tried(x.device)


@cache
def _tried(device: torch.device) -> bool:
    """Whether Triton's kernels are there and run; where they should and do not, that is said."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (7, 0):
        return False
    one, none = torch.ones(1, dtype=torch.long), torch.zeros(1, dtype=torch.bool)
    draws = dict.fromkeys(("flip", "grey", "blur", "solarize", "jitter"), none)
    draws |= {"box": torch.tensor([[0, 0, 8, 8]]), "hue_turn": 4 * one, "sigma": one / 1}
    draws |= {"blends": torch.ones(1, 4, 3), "factors": torch.ones(1, 4)}
    draws |= {"order": torch.arange(4)[None]}
    form = ViewFormat((8, 8), "bicubic", 1.0, (0.0,), (1.0,))
    canvas = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device)
    try:
        by_kernels([Part(canvas, draws, form)])
    except Exception as error:  # whatever a compiler may say
        reason = str(error).strip().splitlines()
        warnings.warn(
            f"views: Triton's kernels do not run here ({type(error).__name__}: "
            f"{reason[0] if reason else ''}): slower ones of torch take their place",
            stacklevel=2,
        )
        return False
    return True


# By Triton's kernels


def by_kernels(parts: Sequence[Part]) -> list[Tensor]:
    """Three passes over memory for each part, after one copy for all of them."""
    tables = [list(_tables(part)) for part in parts]
    device, found = parts[0].first.device, list[Tensor]()
    sent = iter(send_all([table for each in tables for table in each], device))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for part, each in zip(parts, tables, strict=True):
            views_MCHW = _passes(part, *(next(sent) for _ in each))
            found += torch.split(views_MCHW, len(part.first))
    return found


def _tables(part: Part) -> tuple[Tensor, ...]:
    """Rows of whole numbers and of floats of each view, in the columns that `kernels` names; words
    of noise; and (3, C) mean, standard deviation and filling.
    """
    draws, form, channels = part.draws, part.form, part.first.shape[1]
    return (
        _whole(draws, len(part.first), isinstance(part.images, Tensor), _radius(form)),
        _floats(draws, _radius(form)),
        rng.bits(draws["erase_word"]) if "erase" in draws else draws["flip"].long(),
        torch.stack([torch.tensor(v).expand(channels) for v in _levels(form)]),
    )


def _levels(form: ViewFormat) -> tuple[Sequence[float], ...]:
    """Mean, standard deviation, and what an erased box is filled with; of each channel."""
    return form.mean, form.std, (0.0,) if form.erase_with == "zero" else form.filling


def _radius(form: ViewFormat) -> int:
    return colour.kernel_radius(form.sigma_max, min(form.sides))


def _whole(draws: Mapping[str, Tensor], batch: int, uncut: bool, radius: int) -> Tensor:
    """(M, 19) int32."""
    jitter, m = draws["jitter"], torch.arange(len(draws["jitter"]))
    at = draws["order"].eq(colour.OPERATIONS.index("contrast")).int().argmax(dim=1)
    reach = torch.where(draws["blur"], (3 * draws["sigma"]).ceil().clamp(max=radius), 0)
    nothing = torch.zeros(len(m), 4)
    box = (
        torch.where(draws["erase"][:, None], draws["erase_box"], 0) if "erase" in draws else nothing
    )
    single = [
        torch.where(jitter, at, 0), torch.where(jitter, at, 4), draws["hue_turn"],
        draws["grey"], reach, draws["solarize"],
        torch.where(draws["drop"], draws["channel"], -1) if "drop" in draws else nothing[:, 0] - 1,
    ]  # fmt: skip
    columns = [
        (m % batch)[:, None],
        draws["box"] if uncut else nothing,
        draws["flip"][:, None],
        draws["shift"] if "shift" in draws else nothing[:, :2],
        torch.stack([column.to(torch.int32) for column in single], dim=1),
        box,
    ]
    return torch.cat([column.to(torch.int32) for column in columns], dim=1)


def _floats(draws: Mapping[str, Tensor], radius: int) -> Tensor:
    """(M, 13 + radius + 1): the blends, the hue's angle, the taps from the middle outwards."""
    taps = colour.taps(draws["sigma"], radius)[:, radius:]
    alone = torch.eye(1, radius + 1)
    taps = torch.where(draws["blur"][:, None], taps, alone)
    return torch.cat([draws["blends"].flatten(1), draws["factors"][:, 3:], taps], dim=1)


def _passes(part: Part, ints: Tensor, floats: Tensor, words: Tensor, form_3C: Tensor) -> Tensor:
    """(M, C, *sides): cut, tint, finish; where RandAugment comes between, its own work and one pass
    more.
    """
    (height, width), views, channels = part.form.sides, len(ints), part.first.shape[1]
    by, bx = min(16, _power(height)), min(64, _power(width))
    tiles = -(-height // by) * -(-width // bx)
    frame: Any = (height, width, floats.shape[1])
    how: dict[str, Any] = {"C": channels, "BY": by, "BX": bx}
    x = torch.empty(views, channels, height, width, device=ints.device)
    y, sums = torch.empty_like(x), torch.empty(views, tiles, device=ints.device)
    out = torch.empty(views, height, width, channels, dtype=part.form.dtype, device=ints.device)
    tables, augments = (ints, floats), "operations" in part.draws
    _cut(part, tables, (x, sums), tiles, frame, how | {"JITTER": not augments})
    if augments:
        drawn = part.draws["operations"], part.draws["strengths"]
        x = augmented(x, *drawn, part.form.filling).contiguous()
        launch(
            "cut", (views, tiles), x, *tables, x, sums, 0, *x.stride(), *frame,
            **how, **dict.fromkeys(("CUT", "CUBIC", "BYTES", "MOVED", "REFLECT"), False),
            AGAIN=True, JITTER=True,
        )  # fmt: skip
    launch("tint", (views, tiles), x, *tables, y, sums, *frame, **how, TILES=_power(tiles))
    launch(
        "finish", (views, tiles), y, *tables, words, form_3C, out, *frame, **how,
        DROPS="drop" in part.draws, ERASES="erase" in part.draws,
        NOISE=part.form.erase_with == "random",
    )  # fmt: skip
    return out.permute(0, 3, 1, 2)


def _cut(part: Part, tables: Any, into: Any, tiles: int, frame: Any, how: dict[str, Any]) -> None:
    """The first pass: of the canvas, or of each view's crops."""
    form, uncut = part.form, isinstance(part.images, Tensor)
    every: Sequence[Tensor] = [part.images] if isinstance(part.images, Tensor) else part.images
    how = how | {
        "CUT": uncut,
        "CUBIC": form.interpolation == "bicubic",
        "BYTES": part.first.dtype == torch.uint8,
        "MOVED": "shift" in part.draws,
        "REFLECT": form.outside == "reflect",
        "AGAIN": False,
    }
    views = len(tables[0]) // len(every)
    for number, images in enumerate(every):
        place = (number * views, *images.stride())
        launch("cut", (views, tiles), images, *tables, *into, *place, *frame, **how)


def _power(n: int) -> int:
    """The power of two that n fits into."""
    return 1 << (n - 1).bit_length()


def launch(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> None:
    """One of the kernels, on the grid (views, tiles)."""
    kernels = import_module("lookalike.views.kernels")  # and triton with it
    getattr(kernels, name)[grid](*arguments, **constants)


# Without Triton


def by_torch(parts: Sequence[Part]) -> list[Tensor]:
    """The same by operations of torch on the whole batch, after one copy for all parts; padding,
    RandAugment and erasing send what is drawn for them by themselves.
    """
    tables = [_drawn(part) for part in parts]
    device, found = parts[0].first.device, list[Tensor]()
    sent = iter(send_all([x for each in tables for x in each.values()], device))
    for part, each in zip(parts, tables, strict=True):
        there = {name: next(sent) for name in each}
        found += torch.split(_masked(part, there), len(part.first))
    return found


def _drawn(part: Part) -> dict[str, Tensor]:
    """What `_masked` takes from the host: of M views, or of the two axes of each, (2 M,)."""
    draws, form, channels = part.draws, part.form, part.first.shape[1]
    radius, m = _radius(form), len(draws["flip"])
    size = torch.tensor(form.sides).repeat_interleave(m)
    start, extent = draws["box"][:, :2].T.flatten(), draws["box"][:, 2:].T.flatten()
    step = extent / size
    narrow, pixel_I = 1 / step.clamp(min=1), torch.arange(max(part.first.shape[2:]))
    backwards = torch.cat([torch.zeros_like(draws["flip"]), draws["flip"]])
    taps = colour.taps(draws["sigma"], radius)
    alone = torch.zeros(2 * radius + 1)
    alone[radius] = 1
    mean_C, std_C = (torch.tensor(v).expand(channels) for v in (form.mean, form.std))
    gone = torch.where(draws["drop"], draws["channel"], -1) if "drop" in draws else -extent[:m]
    return {
        "from": -(torch.where(backwards, start + extent, start) * narrow)[:, None],
        "step": (torch.where(backwards, step, -step) * narrow)[:, None],
        "narrow": narrow[:, None, None],
        "within": ((pixel_I >= start[:, None]) & (pixel_I < (start + extent)[:, None]))[:, None],
        "flip": draws["flip"][:, None, None, None],
        "taps": torch.where(draws["blur"][:, None], taps, alone),
        "threshold": torch.where(draws["solarize"], colour.THRESHOLD, 2.0)[:, None, None, None],
        "gone": torch.arange(channels) == gone[:, None],
        "levels": torch.stack([-mean_C / std_C, 1 / std_C])[:, :, None, None],
        **_blends(draws, channels),
    }


def _blends(draws: Mapping[str, Tensor], channels: int) -> dict[str, Tensor]:
    """`blends` (6 or, without colour, 4; M; C, C), what each slot's blend makes of a pixel, and
    `means`, what of the mean over pixels: three before the hue, three after it; `turns` (M, 3, 1):
    the hue's, for each channel; `grey` (M, C, C).
    """
    blends, hue = draws["blends"], draws["hue_turn"]
    luma = torch.tensor(colour.LUMA) if channels == 3 else torch.full((channels,), 1 / channels)
    abc = torch.where(draws["jitter"][:, None, None], blends, torch.tensor(_NOTHING))
    slots = list(abc.unbind(1))
    if channels == 3:
        nothing = torch.tensor(_NOTHING)
        before = [torch.where((t < hue)[:, None], abc[:, t], nothing) for t in range(3)]
        slots = before + [torch.where((t > hue)[:, None], abc[:, t], nothing) for t in range(1, 4)]
    a, b, c = (torch.stack(slots)[..., i, None, None] for i in range(3))
    eye = torch.eye(channels)
    grey = luma.expand(channels, -1) if channels == 3 else eye
    angle = torch.where(hue < 4, draws["factors"][:, 3], 0.0) if channels == 3 else hue * 0.0
    return {
        "blends": a * eye + b * luma,
        "means": c * luma.expand(channels, -1),
        "turns": (6 * angle[:, None] - torch.tensor([0.0, 2.0, 4.0]))[:, :, None],
        "grey": torch.where(draws["grey"][:, None, None], grey, eye),
    }


def _masked(part: Part, there: dict[str, Tensor]) -> Tensor:
    """(M, C, *sides), channels-last, of what `_drawn` found."""
    draws, form = part.draws, part.form
    x = _moved(_framed(part, there), draws, form)
    m, channels, height, width = x.shape
    x = x.reshape(m, channels, height * width)
    for slot, (blend, mean) in enumerate(zip(there["blends"], there["means"], strict=True)):
        if channels == 3 and slot == 3:
            x = _turned(x, there["turns"])
        x = torch.baddbmm(mean @ x.mean(2, keepdim=True), blend, x).clamp_(0, 1)
    x = (there["grey"] @ x).view(m, channels, height, width)
    x = _blurred(x, there["taps"])
    x = torch.where(x >= there["threshold"], 1 - x, x)
    if "drop" in draws:
        x = x.masked_fill_(there["gone"][:, :, None, None], 0)
    if "erase" in draws:
        on, box, word = (draws[name] for name in ("erase", "erase_box", "erase_word"))
        x = erase(x, on, box, word, form.erase_with, form.filling)
    x = torch.addcmul(there["levels"][0], x, there["levels"][1])
    out = torch.empty(m, height, width, channels, dtype=form.dtype, device=x.device)
    return out.permute(0, 3, 1, 2).copy_(x)


def _moved(x: Tensor, draws: Mapping[str, Tensor], form: ViewFormat) -> Tensor:
    """Padded and cropped back, then RandAugment's operations, where they are drawn; in place."""
    if "shift" in draws:
        x = shifted(x, draws["shift"], form.outside)
    if "operations" in draws:
        x = augmented(x, draws["operations"], draws["strengths"], form.filling)
    return x


def _framed(part: Part, there: dict[str, Tensor]) -> Tensor:
    """(M, C, *sides), cut or ready, flipped; the weights of both axes as one table."""
    ready = part.images if isinstance(part.images, Tensor) else torch.cat(list(part.images))
    x = ready.float()
    x = x.div_(255) if ready.dtype == torch.uint8 else x
    if not isinstance(part.images, Tensor):
        return torch.where(there["flip"], x.flip(3), x)
    (rows, columns), m = part.form.sides, len(there["flip"])
    height, width = x.shape[2:]
    weight = _weights(there, max(rows, columns), max(height, width), part.form.interpolation)
    x = x.repeat(m // max(1, len(x)), 1, 1, 1)
    wide = x.flatten(1, 2) @ weight[m:, :columns, :width].mT
    wide = wide.clamp_(0, 1).view(m, -1, height, columns)
    return (weight[:m, None, :rows, :height] @ wide).clamp_(0, 1)


def _weights(there: dict[str, Tensor], n_out: int, n_in: int, interpolation: str) -> Tensor:
    """(2 M, n_out, n_in): `resample.weights` of the rows, then of the columns; the flip is in
    them. Keys' kernel is v² (1 - 2 v) - w² (1 - w) / 2, v and w what 1 and 2 are above |x|, else 0.
    """
    device = there["step"].device
    at_O = constant([o + 0.5 for o in range(n_out)], device)
    pixel_I = constant([i + 0.5 for i in range(n_in)], device)
    minus = torch.addcmul(there["from"], there["step"], at_O)
    d = torch.addcmul(minus[:, :, None], pixel_I, there["narrow"]).abs_()
    share = torch.rsub(d, 1).clamp_(min=0)
    if interpolation == "bicubic":
        near, far = share.square(), torch.rsub(d, 2).clamp_(min=0)
        near = near.addcmul(near, share, value=-2)
        wide = far.square()
        share = near.add_(wide.addcmul(wide, far, value=-1), alpha=-0.5)
    share = share.mul_(there["within"])
    return share / share.sum(dim=2, keepdim=True)


def _turned(x_MCP: Tensor, turn_M31: Tensor) -> Tensor:
    """`colour.hue` of (M, 3, pixels); which of two equal channels is the highest matters not."""
    device = x_MCP.device
    high, which = x_MCP.max(dim=1, keepdim=True)
    low = x_MCP.amin(dim=1, keepdim=True)
    chroma = high.sub_(low)
    rise = constant((0, 1, -1, -1, 0, 1, 1, -1, 0), device).view(3, 3)
    h = (rise @ x_MCP).gather(1, which).div_(chroma.clamp(min=1e-12)).add_(which, alpha=2)
    share = (h + turn_M31).remainder_(6).sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.addcmul(low, chroma, share)


def _blurred(x: Tensor, taps_MK: Tensor) -> Tensor:
    """`colour.blur` as two products with banded matrices, which mirror at the edges."""
    bands = {side: _banded(taps_MK, side) for side in set(x.shape[2:])}
    rows, columns = (bands[side] for side in x.shape[2:])
    wide = (x.flatten(1, 2) @ columns.mT).view(x.shape)
    return rows[:, None] @ wide


def _banded(taps_MK: Tensor, side: int) -> Tensor:
    """(M, side, side): each result's share in what lies around it."""
    m, taps = taps_MK.shape
    reach = range(-(taps // 2), taps // 2 + 1)
    mirrored = [side - 1 - abs(side - 1 - abs(i + k)) for i in range(side) for k in reach]
    place = constant(mirrored, taps_MK.device, torch.long).view(1, side, taps)
    share = taps_MK[:, None].expand(m, side, taps)
    band = torch.zeros(m, side, side, device=taps_MK.device)
    return band.scatter_add_(2, place.expand(m, side, taps), share)
