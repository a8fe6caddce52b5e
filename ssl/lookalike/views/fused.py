"""All views of a batch in one go: crop, resize and flip in one resampling, then few passes over the
colours.

Plans of the same operations. On a CPU `make` sorts the images by what was drawn for them, so that a
group shares the turn of its hue, fits the cache, and only what was drawn is computed; that form is
what every other is compared with. On an accelerator it is `device`'s. `make_compiled` is one fixed
graph for torch.compile, in which what was not drawn is computed as nothing.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.views import colour, device, native
from lookalike.views.erasing import erase, erase_boxes
from lookalike.views.form import Draws, ViewFormat
from lookalike.views.randaugment import augmented
from lookalike.views.resample import crop_resize, shifted
from lookalike.views.send import constant, on_marked, send, send_all

DRAWN = (
    *("box", "flip", "jitter", "factors", "order", "grey", "blur", "sigma", "solarize"),
    *("drop", "channel", "shift", "operations", "strengths"),
    *("erase", "erase_area", "erase_aspect", "erase_place", "erase_word"),
)
# Elements of float32 that stay in a core's second cache from one operation to the next.
_CACHED = 1 << 18
_NEVER = 4  # the turn of the hue where there is no jitter


def make(images: Tensor | Sequence[Tensor], draws_VB: Draws, form: ViewFormat) -> list[Tensor]:
    """V views (B, C, *sides), normalised, channels-last, of `form.dtype`.

    images: canvas (B, C, H, W), uint8 or floats in [0, 1], to be cut by the drawn boxes, or V such
    tensors (B, C, *sides) already cut. draws_VB: each (V, B, …), on the host.
    """
    first = images if isinstance(images, Tensor) else images[0]
    (views, batch), channels = draws_VB["flip"].shape, first.shape[1]
    draws = flat(draws_VB, channels, form.sides)
    if first.device.type != "cpu":
        return device.make([device.Part(images, draws, form)])
    if native.available():
        return native_views(images, draws, form)
    shape = (views * batch, *form.sides, channels)
    out_MCHW = torch.empty(shape, dtype=form.dtype).permute(0, 3, 1, 2)
    mean_C11, std_C11 = (constant(v, first.device)[:, None, None] for v in (form.mean, form.std))
    limit = max(1, cached() // (channels * math.prod(form.sides)))
    for rows in groups(draws, limit):
        chosen = {name: value[rows] for name, value in draws.items()}
        x = moved(cut(images, rows, chosen, form), chosen, form)
        x = erased(colours(x, chosen, form.sigma_max), chosen, form)
        put(out_MCHW, rows, x.sub_(mean_C11).div_(std_C11))
    return list(torch.split(out_MCHW, batch))


def make_several(
    parts: Sequence[tuple[Tensor | Sequence[Tensor], Draws, ViewFormat]],
) -> list[Tensor]:
    """As `make` of each part in turn; what is drawn for all of them goes to a device in one
    copy.
    """
    images = parts[0][0]
    first = images if isinstance(images, Tensor) else images[0]
    if first.device.type == "cpu":
        return [view for part in parts for view in make(*part)]
    return device.make(
        [
            device.Part(images, flat(draws_VB, first.shape[1], form.sides), form)
            for images, draws_VB, form in parts
        ]
    )


def native_views(
    images: Tensor | Sequence[Tensor], draws: dict[str, Tensor], form: ViewFormat
) -> list[Tensor]:
    """By the kernel; what it does not know, padding, RandAugment and the cutting of floats, comes
    before it in torch, by groups that fit the caches.
    """
    first = images if isinstance(images, Tensor) else images[0]
    known = not isinstance(images, Tensor) or images.dtype == torch.uint8
    if known and "shift" not in draws and "operations" not in draws:
        return native.make(images, draws, form)
    count, channels = len(draws["flip"]), first.shape[1]
    out_MHWC = native.space(count, channels, form)
    limit = max(1, cached() // (channels * math.prod(form.sides)))
    for rows in torch.split(torch.arange(count), limit):
        chosen = {name: value[rows] for name, value in draws.items()}
        x = moved(cut(images, rows, chosen, form), chosen, form)
        chosen["flip"] = torch.zeros_like(chosen["flip"])
        native.write(out_MHWC[rows[0] : rows[-1] + 1], [x], chosen, form)
    return native.views(out_MHWC, len(first), form)


def cached() -> int:
    """How many numbers of a group stay in the caches of all threads; with several each needs enough
    to be worth it.
    """
    threads = torch.get_num_threads()
    return _CACHED if threads == 1 else 2 * threads * _CACHED


def flat(draws_VB: Draws, channels: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """The draws of M = V · B views of this size, row view · B + image, with the blends, the hue's
    turn and the boxes to erase that follow; `channel` by number, and no drop of an only channel.
    """
    draws = {name: value.flatten(0, 1) for name, value in draws_VB.items()}
    if "drop" in draws:
        draws["channel"] = channel_of(draws["channel"], channels)
        draws["drop"] = draws["drop"] & (channels > 1)
    if "erase" in draws:
        draws["erase_box"], fits = erased_boxes(draws, size)
        draws["erase"] = draws["erase"] & fits
    draws["blends"] = colour.coefficients(draws["factors"], draws["order"], channels)
    draws["hue_turn"] = hue_turns(draws, channels)
    return draws


def erased_boxes(draws: Draws, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What is erased of views of this size, (…, 4), where that is drawn; and whether it fits."""
    return erase_boxes(draws["erase_area"], draws["erase_aspect"], draws["erase_place"], size)


def channel_of(share: Tensor, channels: int) -> Tensor:
    """The number of a channel, int64, from a number in [0, 1); the product may round up."""
    return (share * channels).long().clamp(max=channels - 1)


def hue_turns(draws: Draws, channels: int) -> Tensor:
    """(M,): at which of the four turns each image's hue is turned; _NEVER without jitter or without
    colour.
    """
    turn = draws["order"].eq(colour.OPERATIONS.index("hue")).int().argmax(dim=1)
    return torch.where(draws["jitter"], turn if channels == 3 else _NEVER - 1, _NEVER)


def groups(draws: Draws, limit: int) -> Iterator[Tensor]:
    """Rows whose hue comes at the same turn, at most `limit` at a time, those alike blurred side by
    side.
    """
    turn = draws["hue_turn"]
    width = torch.where(draws["blur"], draws["sigma"], 0.0)
    rows = torch.argsort(turn + width / (1 + width.max()), stable=True)
    for same in torch.split(rows, torch.bincount(turn, minlength=_NEVER + 1).tolist()):
        yield from (part for part in torch.split(same, limit) if len(part))


def put(out_MCHW: Tensor, rows: Tensor, x: Tensor) -> None:
    """Writes images to their rows, one at a time: a third of an indexed copy's time."""
    for row, image in zip(rows.tolist(), x, strict=True):
        out_MCHW[row].copy_(image)


def cut(images: Tensor | Sequence[Tensor], rows: Tensor, chosen: Draws, form: ViewFormat) -> Tensor:
    """(n, C, *sides) floats in [0, 1] of the views `rows` (view · batch + image), flipped where
    drawn.
    """
    if not isinstance(images, Tensor):
        return _ready(images, rows, chosen["flip"])
    image = rows % len(images)
    if images.device.type == "cpu" and images.dtype == torch.uint8:
        return _native(
            images, image.tolist(), chosen["box"].tolist(), chosen["flip"].tolist(), form
        )
    box, flip, image = (
        send(chosen["box"], images.device),
        send(chosen["flip"], images.device),
        send(image, images.device),
    )
    x = in_unit(images.index_select(0, image))
    return crop_resize(x, box, form.sides, flip_B=flip, interpolation=form.interpolation)


def _native(
    canvas_BCHW: Tensor, image: list[int], box: list[list[int]], flip: list[bool], form: ViewFormat
) -> Tensor:
    """By torch's own antialiased resampling of bytes, which reads each box once and is the fastest
    on a CPU.
    """
    x_NCHW = torch.empty(len(image), canvas_BCHW.shape[1], *form.sides)
    for x, i, (top, left, height, width), mirrored in zip(x_NCHW, image, box, flip, strict=True):
        cut = canvas_BCHW[i : i + 1, :, top : top + height, left : left + width]
        made = F.interpolate(cut, form.sides, mode=form.interpolation, antialias=True)
        x.copy_(made[0].flip(2) if mirrored else made[0])
    return x_NCHW.div_(255)


def _ready(crops: Sequence[Tensor], rows: Tensor, flip: Tensor) -> Tensor:
    """What was cut on the host, flipped where drawn."""
    batch, device = len(crops[0]), crops[0].device
    x = in_unit(torch.stack([crops[row // batch][row % batch] for row in rows.tolist()]))
    mirrored = torch.nonzero(flip).flatten()
    if len(mirrored):
        mirrored = send(mirrored, device)
        x[mirrored] = x[mirrored].flip(3)
    return x


def in_unit(x: Tensor) -> Tensor:
    """Floats in [0, 1] of bytes; other floats are that already."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x.float()


def moved(x: Tensor, chosen: Draws, form: ViewFormat) -> Tensor:
    """Padded and cropped back, then RandAugment's operations, where they are drawn; in place."""
    if "shift" in chosen:
        x = shifted(x, chosen["shift"], form.outside)
    if "operations" in chosen:
        x = augmented(x, chosen["operations"], chosen["strengths"], form.filling)
    return x


def erased(x: Tensor, chosen: Draws, form: ViewFormat) -> Tensor:
    """Without what is drawn to be erased; in place."""
    if "erase" not in chosen:
        return x
    on, box, word = (chosen[name] for name in ("erase", "erase_box", "erase_word"))
    return erase(x, on, box, word, form.erase_with, form.filling)


def colours(x: Tensor, chosen: Draws, sigma_max: float) -> Tensor:
    """Jitter of a group, then grey, blur, solarization and the loss of a channel for the images for
    which they were drawn; in place.
    """
    turn, device = int(chosen["hue_turn"][0]), x.device
    if turn != _NEVER:
        blends = send(chosen["blends"], device)
        for t in range(4):
            if x.shape[1] == 3 and t == turn:
                x = colour.hue(x, send(chosen["factors"][:, 3], device))
            else:
                _, grey, mean = chosen["blends"][:, t].any(dim=0).tolist()
                x = colour.blend(x, blends[:, t], grey=grey, mean=mean)
    if x.shape[1] == 3:
        x = on_marked(x, chosen["grey"], lambda y: y.copy_(colour.luma(y)))
    if chosen["blur"].any():
        x = _blurred(
            x, chosen["blur"], chosen["sigma"], colour.kernel_radius(sigma_max, min(x.shape[2:]))
        )
    x = on_marked(x, chosen["solarize"], colour.solarize)
    if "drop" not in chosen:
        return x
    channel = send(chosen["channel"][chosen["drop"]], device)
    return on_marked(x, chosen["drop"], lambda y: colour.drop(y, channel))


def _blurred(x: Tensor, on: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Without the neighbours that count for nothing in any of these images."""
    weights = colour.taps(sigma[on], radius)
    idle = int((weights.sum(dim=0) == 0)[:radius].sum())
    weights = send(weights[:, idle : weights.shape[1] - idle], x.device)
    return on_marked(x, on, lambda y: colour.blur(y, weights))


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same values, channels-last also where there is one channel, which torch would not tell
    from contiguous.
    """
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    _, c, h, w = x_BCHW.shape
    return x_BCHW.as_strided(x_BCHW.shape, (c * h * w, 1, c * w, c))


def make_compiled(
    images: Tensor | Sequence[Tensor], draws_VB: Draws, form: ViewFormat
) -> list[Tensor]:
    """As `make`, by one graph that torch.compile has made."""
    first = images if isinstance(images, Tensor) else images[0]
    draws = flat(draws_VB, first.shape[1], form.sides)
    radius = colour.kernel_radius(form.sigma_max, min(form.sides))
    draws["taps"] = colour.taps(torch.where(draws["blur"], draws["sigma"], 1e-3), radius)
    draws |= {name: torch.tensor(value) for name, value in _known(form).items()}
    sent = dict(zip(draws, send_all(list(draws.values()), first.device), strict=True))
    x_MCHW = torch.cat(list(images)) if not isinstance(images, Tensor) else images
    made = channels_last(_compiled()(x_MCHW, sent, form, isinstance(images, Tensor)))
    return list(torch.split(made, len(first)))


@cache
def _compiled() -> Any:
    return torch.compile(graph, fullgraph=True, dynamic=False)


def graph(images: Tensor, draws: Draws, form: ViewFormat, uncut: bool) -> Tensor:
    """(M, C, *sides): every operation on every view, with numbers that mean nothing where it was
    not drawn.
    """
    x, n = in_unit(images), len(draws["flip"])
    if uncut:
        x = x.repeat(n // len(x), 1, 1, 1)
        x = crop_resize(
            x, draws["box"], form.sides, flip_B=draws["flip"], interpolation=form.interpolation
        )
    else:
        x = torch.where(_wide(draws["flip"]), x.flip(3), x)
    on, off, mean_C, std_C = (
        draws[name] if name in draws else torch.tensor(value, device=x.device)
        for name, value in _known(form).items()
    )
    for t in range(4):
        x = colour.blend(x, torch.where(draws["jitter"][:, None], draws["blends"][:, t], off))
        if x.shape[1] == 3:
            x = colour.hue(x, torch.where(draws["hue_turn"] == t, draws["factors"][:, 3], 0.0))
    if x.shape[1] == 3:
        x = colour.blend(x, torch.where(draws["grey"][:, None], on, off), mean=False)
    x = colour.blur(x, draws["taps"])
    x = torch.where(_wide(draws["solarize"]), colour.solarize(x.clone()), x)
    if "drop" in draws:
        x = colour.drop(x, torch.where(draws["drop"], draws["channel"], -1))
    return (
        ((x - mean_C[:, None, None]) / std_C[:, None, None])
        .to(form.dtype)
        .contiguous(memory_format=torch.channels_last)
    )


def _known(form: ViewFormat) -> dict[str, Sequence[float]]:
    """What the graph takes besides what is drawn."""
    return {"on": colour.GREY, "off": colour.AS_IT_IS, "mean": form.mean, "std": form.std}


def _wide(on_M: Tensor) -> Tensor:
    return on_M[:, None, None, None]
