"""JPEGs decoded on the device: loader processes read and judge the files, the device decodes and
resizes them to the same canvases, of the same box, in the same order.

What the device does not take, or refuses, the host decodes: another format, another colour space,
arithmetic code, a file that is cut short, an image above the limits; and a bad image is one as
ever. Measured with libjpeg-turbo in nvJPEG's place: the resize differs by one level of 255 at most;
a JPEG that the host would decode at a half, a quarter or an eighth of its sides is averaged over as
many pixels instead. How nvJPEG's own pixels differ from libjpeg-turbo's has not been measured yet.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from lookalike.data.decode import SHRINKS, BadImage, Opened
from lookalike.data.decoders.orientation import FLIPS
from lookalike.data.decoders.pixels import operators
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.reader import Bad, Reader
from lookalike.geometry import central

T = TypeVar("T")
S = TypeVar("S")

_GREY, _RGB = 1, 3  # torchvision.io.ImageReadMode
_AT_ONCE = 1 << 26  # pixels that the device decodes at a time: 200 MB

Decode = Callable[[list[Tensor], int], list[Tensor]]
"""Takes the bytes of JPEGs, uint8 (n,) each, on the host, and 1 or 3 channels; gives uint8 (C, H,
W) each, as stored, on one device. Raises RuntimeError, and gives nothing, where it refuses one.
"""


class Jpeg(NamedTuple):
    """A file that the device is to decode: its row in the batch; its sides and orientation; its
    bytes, or where these fill the first `size` of the row None.
    """

    row: int
    height: int
    width: int
    turn: int
    size: int
    data: bytes | None


class Read(NamedTuple):
    """What a loader process says of a batch: what was bad, by its row, and what the device is to
    decode.
    """

    bad: list[tuple[int, Bad]]
    jpegs: list[Jpeg]


def unusable() -> str:
    """Why the device decodes nothing here; empty where it does."""
    if not torch.cuda.is_available():
        return "there is no GPU of CUDA"
    has = hasattr(operators(), "decode_jpegs_cuda")
    return "" if has else "this torchvision has no nvJPEG"


def on(device: torch.device) -> Decode:
    """nvJPEG on this GPU."""

    def decode(files: list[Tensor], channels: int) -> list[Tensor]:
        # The operator itself: torchvision's function warns at each call that it is to go.
        mode = _GREY if channels == 1 else _RGB
        found: list[Tensor] = operators().decode_jpegs_cuda(files, mode, device)
        return found

    return decode


def read(reader: Reader, epoch: int, ids: Sequence[int], parts: Sequence[Tensor]) -> Read:
    """As `Reader.fill`, but that in the rows of JPEGs lie their bytes."""
    if not isinstance(reader.images, EncodedImages):
        return Read(list(enumerate(reader.fill(epoch, ids, parts))), [])
    bad: list[tuple[int, Bad]] = []
    jpegs: list[Jpeg] = []
    for row, sample in enumerate(ids):
        try:
            opened = reader.images.open(sample)
            jpeg = _laid(opened, row, parts[0][row])
            if jpeg is None:
                opened.canvas(parts[0][row], whole=reader.images.fit == "squash")
            else:
                jpegs.append(jpeg)
        except BadImage:
            # Once more by the reader, which names it and finds another for it.
            bad += _by_host(reader, epoch, sample, parts[0], row)
    return Read(bad, jpegs)


def _by_host(
    reader: Reader, epoch: int, sample: int, part_BCHW: Tensor, row: int
) -> list[tuple[int, Bad]]:
    """Fills one row as ever; what was bad."""
    return [(row, bad) for bad in reader.fill(epoch, [sample], [part_BCHW[row : row + 1]])]


def _laid(opened: Opened, row: int, out_CHW: Tensor) -> Jpeg | None:
    """The file in the row's memory where it fits; None for one that the host decodes."""
    data = opened.for_device
    if data is None:
        return None
    sides = opened.header.height, opened.header.width, opened.header.turn
    if len(data) > out_CHW.numel():
        return Jpeg(row, *sides, len(data), data)
    out_CHW.view(-1)[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return Jpeg(row, *sides, len(data), None)


class Finisher:
    """Makes canvases on `device` of what `read` has left in a batch; `decode`: by what."""

    def __init__(self, reader: Reader, device: torch.device, decode: Decode) -> None:
        self._reader, self._device, self._decode = reader, device, decode
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(
        self, epoch: int, ids: Sequence[int], part_BCHW: Tensor, found: Read
    ) -> tuple[Tensor, list[Bad]]:
        """The batch (B, C, H, W) on the device, and all that was bad, by row. May be called by
        another thread than the one that uses what it gives; the host waits for it.
        """
        if self._stream is None:
            return self._finished(epoch, ids, part_BCHW, found)
        with torch.cuda.stream(self._stream):
            made = self._finished(epoch, ids, part_BCHW, found)
        self._stream.synchronize()
        return made

    def _finished(
        self, epoch: int, ids: Sequence[int], part_BCHW: Tensor, found: Read
    ) -> tuple[Tensor, list[Bad]]:
        canvas_BCHW = torch.empty(part_BCHW.shape, dtype=part_BCHW.dtype, device=self._device)
        channels, squash = part_BCHW.shape[1], getattr(self._reader.images, "fit", "") == "squash"
        bad, hosts = list(found.bad), set(range(len(ids)))
        for jpegs in _few(found.jpegs):
            files = [_bytes_of(jpeg, part_BCHW) for jpeg in jpegs]
            decoded = self._decoded(files, jpegs, channels)
            for jpeg, image_CHW in zip(jpegs, decoded, strict=True):
                if image_CHW is None:
                    row = jpeg.row
                    bad += _by_host(self._reader, epoch, ids[row], part_BCHW, row)
                else:
                    fit(image_CHW, jpeg.turn, canvas_BCHW[jpeg.row], whole=squash)
                    hosts.remove(jpeg.row)
        if hosts:
            rows_K = torch.tensor(sorted(hosts))
            canvas_BCHW[rows_K.to(self._device)] = part_BCHW[rows_K].to(self._device)
        return canvas_BCHW, [one for _, one in sorted(bad, key=itemgetter(0))]

    def _decoded(
        self, files: list[Tensor], jpegs: Sequence[Jpeg], channels: int
    ) -> list[Tensor | None]:
        """Of those that are refused, or come with other sides, None; found by halving."""
        try:
            found = self._decode(files, channels)
        except RuntimeError:
            if len(files) == 1:
                return [None]
            half = len(files) // 2
            first = self._decoded(files[:half], jpegs[:half], channels)
            return first + self._decoded(files[half:], jpegs[half:], channels)
        wanted = [(channels, jpeg.height, jpeg.width) for jpeg in jpegs]
        return [x if x.shape == sides else None for x, sides in zip(found, wanted, strict=True)]


def _few(jpegs: Sequence[Jpeg]) -> Iterator[list[Jpeg]]:
    """Some at a time, of so many pixels that the device has room for them."""
    some, pixels = list[Jpeg](), 0
    for jpeg in jpegs:
        pixels += jpeg.height * jpeg.width
        if some and pixels > _AT_ONCE:
            yield some
            some, pixels = [], jpeg.height * jpeg.width
        some.append(jpeg)
    if some:
        yield some


def _bytes_of(jpeg: Jpeg, part_BCHW: Tensor) -> Tensor:
    if jpeg.data is None:
        return part_BCHW[jpeg.row].view(-1)[: jpeg.size]
    return torch.frombuffer(bytearray(jpeg.data), dtype=torch.uint8)


def fit(stored_CHW: Tensor, turn: int, out_CHW: Tensor, *, whole: bool) -> None:
    """Resizes the central box of the shape of `out_CHW`, or all, of an image as stored into it, as
    `Opened.canvas` does; uint8, on one device, whose kernels know floats alone.
    """
    rows, columns = out_CHW.shape[1:]

    def box(height: int, width: int) -> tuple[int, int, int, int]:
        return (0, 0, height, width) if whole else central(height, width, (rows, columns))

    sides = stored_CHW.shape[1:]
    _, _, height, width = box(*(sides[::-1] if turn >= 5 else sides))
    room, x_CHW = min(height / rows, width / columns), stored_CHW.float()
    if shrink := next((s for s in SHRINKS if room >= s), 0):
        x_CHW = avg_pool2d(x_CHW, shrink, ceil_mode=True, count_include_pad=False).round_()
    x_CHW = x_CHW.transpose(1, 2) if turn >= 5 else x_CHW
    x_CHW = x_CHW.flip(FLIPS[turn]) if turn in FLIPS else x_CHW
    top, left, height, width = box(*x_CHW.shape[1:])
    x_1CHW = x_CHW[None, :, top : top + height, left : left + width]
    if (height, width) != (rows, columns):
        x_1CHW = interpolate(x_1CHW, (rows, columns), mode="bicubic", antialias=True)
    out_CHW.copy_(x_1CHW[0].round().clamp_(0, 255))


def one_ahead(items: Iterator[S], work: Callable[[S], T]) -> Generator[T, None, None]:
    """What `work` makes of each, in order, in a thread that is one ahead of who asks."""
    coming: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            coming.append(pool.submit(work, item))
            if len(coming) == 2:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
