"""What the pixels of a set are, from a few of its images: how deep, and between which values."""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from lookalike import rng
from lookalike.data.decode import BadImage, Look, Opened, look
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.loader import cores
from lookalike.errors import DataError
from lookalike.geometry import Depth

T = TypeVar("T")

HEADS = (1 << 12, 1 << 16)
"""Bytes of a file in which its header is looked for, first in few; a TIFF's may be at its end."""

PIXELS = 1 << 14
"""Values of an image that enter percentiles at most: 64 MiB of 1,024 images."""

_WHOLE, _WHOLE_BYTES = 16, 1 << 28  # files that are read whole for their header, at most
_PIECE = 16
_LATE = 1e-3  # seconds an answer: a local disk takes a few microseconds, a server far away more


def depth_of(images: EncodedImages) -> Depth:
    """uint8 unless one is deeper: uint16 for integers of up to 16 bits, float32 for all others.

    Of at most `images.looks` of them, evenly spread, the headers alone are read; what cannot be
    read says nothing.
    """
    looks = looked(images)
    if any(each.floating or each.signed or each.bits > 16 for each in looks):
        return "float32"
    return "uint16" if any(each.bits > 8 for each in looks) else "uint8"


def looked(images: EncodedImages) -> list[Look]:
    """What the headers of some images say."""
    ids, found = spread(len(images), images.looks), list[Look]()
    for size in HEADS:
        heads = _heads(images, ids, size)
        seen = [_seen(head) for head in heads]
        found += [each for each in seen if each]
        ids = [
            i
            for i, head, each in zip(ids, heads, seen, strict=True)
            if each is None and len(head) == size
        ]
    return found + [each for data in _whole(images, ids) if (each := _seen(data))]


def measured(images: EncodedImages, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles of the raw values of at most 4 × `images.looks` images, evenly spread, of
    each at most PIXELS values that its number chooses; the same wherever it is measured.

    Raises DataError where none can be read, or both are one value.
    """
    ids = spread(len(images), 4 * images.looks)
    with ThreadPoolExecutor(min(8, cores())) as pool:
        parts = [part for part in pool.map(partial(_some, images), ids) if part is not None]
    if not parts:
        raise DataError(f"data.range: none of {len(ids)} images could be read: is the set sound?")
    low, high = map(float, np.percentile(np.concatenate(parts), percentiles))
    if not low < high:
        text = f"both percentiles of {len(parts)} images are {low:g}: give two values"
        raise DataError(f"data.range: {text}")
    return low, high


def refuse_unscaled(images: EncodedImages) -> None:
    """Raises DataError where one of a few images, evenly spread, has values that only a range
    explains.
    """
    for i in spread(len(images), _WHOLE):
        try:
            low, high = images.open(i).pixels().aminmax()
        except BadImage as error:
            if "data.range" in error.reason:
                raise DataError(str(error)) from error
            continue
        if not (low >= 0 and high <= 1):
            values = f"values {float(low):g} … {float(high):g}, outside 0 … 1"
            raise DataError(str(BadImage(images.name(i), f"{values}: set data.range")))


def spread(count: int, most: int) -> list[int]:
    """At most so many numbers below `count`, evenly spread from end to end."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, most))})


def _heads(images: EncodedImages, ids: Sequence[int], size: int) -> list[bytes]:
    """The first bytes of these; several threads read where answers come late."""

    def head(i: int) -> bytes:
        try:
            return images.head(i, size)
        except BadImage:
            return b""

    began = time.perf_counter()
    first = [head(i) for i in ids[:_PIECE]]
    late = time.perf_counter() - began > _LATE * len(first)
    if not late:
        return first + [head(i) for i in ids[_PIECE:]]
    with ThreadPoolExecutor(_PIECE) as pool:
        return [*first, *pool.map(head, ids[_PIECE:])]


def _seen(data: bytes) -> Look | None:
    try:
        return look(data)
    except Exception:  # whatever is wrong with it: it is a bad image when it is read
        return None


def _whole(images: EncodedImages, ids: Sequence[int]) -> Iterator[bytes]:
    """Some of these files whole: at most _WHOLE, and no more once they are _WHOLE_BYTES."""
    left = _WHOLE_BYTES
    for i in [ids[k] for k in spread(len(ids), _WHOLE)] if ids else []:
        if left <= 0:
            return
        try:
            data = images.contents(i)
        except BadImage:
            continue
        left -= len(data)
        yield data


def _some(images: EncodedImages, i: int) -> np.ndarray | None:
    """Some raw values of an image, float32 (n,); None where it cannot be read."""
    raw = images.form._replace(range=(0.0, 1.0))  # any range keeps values as they stand
    try:
        opened = Opened(images.contents(i), images.name(i), raw, images.max_pixels)
        pixels_CN = opened.pixels().flatten(1).numpy()
    except BadImage:
        return None
    channels, count = pixels_CN.shape
    if (few := math.ceil(PIXELS / channels)) < count:
        draw = np.random.default_rng(rng.seed(0, "range", i))
        pixels_CN = pixels_CN[:, draw.integers(0, count, few)]
    return np.asarray(pixels_CN, np.float32).ravel()
