"""Views of a CPU by native.c, where it has been compiled (compiling.py); fused.py's torch form is
its oracle, and takes its place where it is missing.

Both are pure functions of the draws, equal to 1e-5 of normalised units but for pixels at the
threshold of solarization; of each the bits are the same in any batch, order and number of threads.
`LOOKALIKE_NATIVE=0` in the environment switches the kernel off.
"""

import ctypes
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike.errors import RunError
from lookalike.views import colour, compiling
from lookalike.views.form import ViewFormat

SWITCH = "LOOKALIKE_NATIVE"
# Views that a thread makes at a time: so many that a call costs nothing beside them.
_SHARE = 8
_NO_BOX = 2  # what lookalike_views returns
# native.c's Job, in its order.
_NUMBERS = (
    *("views", "batch", "channels", "height", "width", "rows", "columns", "cut", "cubic"),
    *("of_floats", "bfloat", "radius", "noise"),
)
_PLACES = (
    *("images", "out", "box", "flip", "factors", "blends", "hue_turn", "grey", "blur"),
    *("solarize", "taps", "drop", "channel", "erase", "erase_box", "erase_word"),
    *("mean", "std", "filling"),
)
_TYPES = dict.fromkeys(("flip", "grey", "blur", "solarize", "drop", "erase"), torch.bool)
_TYPES |= dict.fromkeys(("box", "hue_turn", "channel", "erase_box", "erase_word"), torch.int64)
_TYPES |= dict.fromkeys(("factors", "blends"), torch.float32)


_DRAWN = ("flip", "factors", "blends", "hue_turn", "grey", "blur", "solarize")


class Kernel(NamedTuple):
    """The library, or None and why there is none."""

    library: Any
    why: str


class _Job(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in _NUMBERS) + tuple(
        (name, ctypes.c_void_p) for name in _PLACES
    )


def loaded(path: Path) -> Kernel:
    """The library at `path`, if it is whole and of this version's source."""
    remedy = "python -m lookalike.views.build"
    try:
        if not compiling.whole(path.read_bytes()):
            return Kernel(None, f"{path.name} is damaged or of another version: {remedy}")
        library = ctypes.CDLL(str(path))
        if library.lookalike_size() != ctypes.sizeof(_Job):
            return Kernel(None, f"{path.name} is of another version: {remedy}")
    except FileNotFoundError:
        return Kernel(None, f"not compiled: {remedy}")
    except (OSError, AttributeError) as error:
        return Kernel(None, f"{path.name} cannot be loaded ({error}): {remedy}")
    library.lookalike_views.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    library.lookalike_wanted.argtypes = (ctypes.c_void_p, ctypes.c_int64)
    return Kernel(library, "")


@cache
def _beside() -> Kernel:
    """What lies beside this file, read once a process; what lies there in vain is said once."""
    path = compiling.SOURCE.with_name(compiling.name())
    kernel = loaded(path)
    if kernel.library is None and path.exists():
        warnings.warn(f"views: torch's form is used, {kernel.why}", stacklevel=2)
    return kernel


_refused = ""


def refuse(why: str) -> None:
    """From now on torch's form in this process, because of `why`; nothing: as it was found."""
    global _refused
    _refused = why


def found() -> Kernel:
    """The kernel that is used, or why none is. Raises RunError where the switch is neither 0 nor
    1.
    """
    asked = os.environ.get(SWITCH) or "1"
    if asked not in ("0", "1"):
        raise RunError(f"environment: {SWITCH}={asked[:80]!r}: say 0 or 1, or unset it")
    if asked == "0":
        return Kernel(None, f"{SWITCH}=0")
    return Kernel(None, _refused) if _refused else _beside()


def mark() -> str:
    """What has to be the same on ranks that are to make the same bits: of the kernel's source, or
    nothing for torch's form.
    """
    return compiling.source()[:12] if available() else ""


def available() -> bool:
    """Whether the kernel makes views on a CPU."""
    return found().library is not None


def make(
    images: Tensor | Sequence[Tensor], draws: Mapping[str, Tensor], form: ViewFormat
) -> list[Tensor]:
    """V views (B, C, *sides), normalised, channels-last, of `form.dtype`, by the kernel.

    images: bytes (B, C, H, W) to be cut, or V of bytes or floats (B, C, *sides) already cut; draws:
    `fused.flat`'s, V · B rows, without what `fused.moved` does. Raises ValueError for a box that
    does not lie in the images.
    """
    first = images if isinstance(images, Tensor) else images[0]
    out_MHWC = space(len(draws["flip"]), first.shape[1], form)
    write(out_MHWC, images, draws, form)
    return views(out_MHWC, len(first), form)


def space(count: int, channels: int, form: ViewFormat) -> Tensor:
    """(M, *sides, C), into which views are to be written."""
    dtype = form.dtype if form.dtype == torch.bfloat16 else torch.float32
    out_MHWC = torch.empty(count, *form.sides, channels, dtype=dtype)
    found().library.lookalike_wanted(out_MHWC.data_ptr(), out_MHWC.nbytes)
    return out_MHWC


def views(out_MHWC: Tensor, batch: int, form: ViewFormat) -> list[Tensor]:
    """V of (B, C, *sides) of what was written."""
    return list(torch.split(out_MHWC.permute(0, 3, 1, 2).to(form.dtype), batch))


def write(
    out_MHWC: Tensor,
    images: Tensor | Sequence[Tensor],
    draws: Mapping[str, Tensor],
    form: ViewFormat,
) -> None:
    """As `make`, into a contiguous place of `space`'s kind."""
    cut, count = isinstance(images, Tensor), len(out_MHWC)
    pixels = [_plain(x) for x in ([images] if isinstance(images, Tensor) else images)]
    batch, channels = pixels[0].shape[:2]
    number = count // max(1, batch)
    read = _read(draws, form, channels, (*_DRAWN, "box") if cut else _DRAWN)
    _fitting(out_MHWC, pixels, read, None if cut else form.sides)
    addresses = [x.data_ptr() for x in (pixels * number if cut else pixels)]
    places = (ctypes.c_void_p * len(addresses))(*addresses)
    job = _Job(
        *(number, batch, channels, *pixels[0].shape[2:], *form.sides, cut),
        *(form.interpolation == "bicubic", pixels[0].is_floating_point()),
        *(out_MHWC.dtype == torch.bfloat16, read["taps"].shape[1] - 1),
        *(form.erase_with == "random", ctypes.addressof(places), out_MHWC.data_ptr()),
        *(read[name].data_ptr() if name in read else None for name in _PLACES[2:]),
    )
    _run(job, count)


def _fitting(
    out_MHWC: Tensor, pixels: list[Tensor], read: dict[str, Tensor], sides: tuple[int, int] | None
) -> None:
    """That the kernel reads and writes nothing beyond these tensors; `sides`: of what was cut."""
    shape, number = pixels[0].shape, 1 if sides is None else len(out_MHWC) // max(1, len(pixels[0]))
    if any(x.shape != shape or x.dtype != pixels[0].dtype for x in pixels) or len(pixels) != number:
        raise ValueError("views: images that are not all of one shape and type, as many as views")
    if sides and tuple(shape[2:]) != sides:
        raise ValueError(f"views: crops of {shape[2]} × {shape[3]} pixels, not {sides}")
    per_view = [x for name, x in read.items() if name not in ("mean", "std", "filling")]
    if any(len(x) != len(out_MHWC) for x in per_view) or len(out_MHWC) % max(1, shape[0]):
        raise ValueError(f"views: draws that are not for {len(out_MHWC)} views")


def _plain(x: Tensor) -> Tensor:
    """Bytes or float32, one after the other in memory."""
    return (x if x.dtype == torch.uint8 else x.float()).contiguous()


def _read(
    draws: Mapping[str, Tensor], form: ViewFormat, channels: int, needed: Sequence[str]
) -> dict[str, Tensor]:
    """What the kernel reads, each in the type that it reads."""
    names = [*needed, *(["drop", "channel"] if "drop" in draws else [])]
    names += ["erase", "erase_box", "erase_word"] if "erase" in draws else []
    read = {name: draws[name].to(_TYPES[name]).contiguous() for name in names}
    radius = colour.kernel_radius(form.sigma_max, min(form.sides))
    read["taps"] = colour.taps(draws["sigma"].float(), radius)[:, radius:].contiguous()
    filling = [0.0] if form.erase_with == "zero" else form.filling
    for name, values in (("mean", form.mean), ("std", form.std), ("filling", filling)):
        read[name] = torch.tensor(values, dtype=torch.float32).expand(channels).contiguous()
    return read


def _run(job: _Job, count: int) -> None:
    """All views, by as many threads as torch has, in shares of a few images."""
    threads = max(1, min(torch.get_num_threads(), count // _SHARE))
    library = found().library
    if threads == 1:
        codes = [library.lookalike_views(ctypes.byref(job), 0, count)]
    else:
        share = max(_SHARE, -(-count // (4 * threads)))
        firsts = range(0, count, share)
        call = partial(library.lookalike_views, ctypes.byref(job))
        codes = list(
            _pool(threads, os.getpid()).map(
                call, firsts, [min(share, count - first) for first in firsts]
            )
        )
    if _NO_BOX in codes:
        raise ValueError("views: a box that does not lie in its image")
    if any(codes):
        raise MemoryError("views: no memory for the planes of a view")


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of a process's own: threads do not outlive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="views")
