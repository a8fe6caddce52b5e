"""What the first bytes of an image file may say, and the limits that this is held against.

`limit` follows from what Pillow 13 and torchvision 0.29 hold while they decode: their own image, at
1, 2 or 4 bytes a pixel, then the copy that is handed on, of 3; below MEMORY together. What the
decoders of the other formats hold says `taken`. `make fuzz`, tests/data/test_bombs.py and
tests/data/test_format_bombs.py measure it.
"""

from dataclasses import dataclass, field, replace

# bytes that decoding may hold: 200 MB less what is read in and loaded for the first time
MEMORY = 175_000_000
MAX_PIXELS = 100_000_000  # of a JPEG, which can be decoded shrunk
MAX_PIXELS_JPEG = 64_000_000  # of one that is not: 192 MB
MAX_PIXELS_WHOLE = 25_000_000  # of the other formats
MAX_SIDE = 65_535
COPY = 3  # bytes a pixel of what is handed on

# Of what decoders pass through before the pixels, in several formats.
MOST_CHUNKS = 1 << 16
MOST_TEXT = 1 << 20
MOST_VALUES = 1 << 16
MOST_JUNK = 1 << 16
MOST_EXIF = 1 << 24


@dataclass
class Segments:
    """What the segments up to the first scan say; `sampling` holds the horizontal and vertical
    factor of each part.

    `odd`: there was junk, or a first marker that decoders treat each in their way. `kept`: the
    spans of bytes up to the first scan that matter to the pixels; `scan`: where that begins.
    `several`: its parts, or bits, come in several scans, for which decoders hold the whole frame.
    """

    frame: int = 0
    bits: int = 0
    width: int = 0
    height: int = 0
    sampling: tuple[tuple[int, int], ...] = ()
    several: bool = False
    scans: int = 1
    odd: bool = False
    exif: bytes = b""
    xmp: bytes = b""
    kept: tuple[tuple[int, int], ...] = ()
    scan: int = 0


@dataclass(frozen=True)
class Samples:
    """How the values of a TIFF lie: its photometric interpretation, compression and kind of
    transparency (TIFF 6.0: PhotometricInterpretation, Compression, ExtraSamples), an orientation.
    """

    photometric: int
    compression: int
    premultiplied: bool
    turn: int


@dataclass(frozen=True)
class Header:
    """`width` and `height` in pixels as stored, upright by `turn`, an EXIF orientation (1 where
    decoders turn it).

    `limit`: the pixels that are allowed unless the user says otherwise, `whole`: those that are
    when nothing is shrunk (of a JPEG, and with torchvision), `form`: what they are allowed for.
    `plain`: torchvision may decode it: a JPEG of 8-bit grey or three colours, or a WebP of one
    frame. `held`: bytes a pixel that a JPEG's decoder holds, shrunk or not.

    `channels`: values a pixel, transparency among them; palettes, inks and differences of colour
    count as the colours that they stand for. `alpha`: the last of them is transparency. `bits`: of
    each that matter, `floating` and `signed`: what they are. `white`: the value that is white,
    where it is not the largest of so many bits; signed and 32-bit integers count as 16-bit ones,
    whose white is 65535. `eight`: Pillow gives its 8 bits, or the high ones, and drops no channel;
    `pillow`: it gives all bits of them. `taken`: bytes a pixel that the decoder of all bits holds,
    its result included. `frames`: of a format in which each is an image of its own. `tiff`: how its
    values lie; `span`: the bytes of the file that are the image.
    """

    kind: str
    width: int
    height: int
    limit: int = MAX_PIXELS_WHOLE
    whole: int = MAX_PIXELS_WHOLE
    form: str = ""
    turn: int = 1
    plain: bool = False
    alpha: bool = False
    held: float = 0.0
    channels: int = 3
    bits: int = 8
    floating: bool = False
    signed: bool = False
    white: float | None = None
    eight: bool = True
    pillow: bool = True
    taken: float = 8.0
    frames: int = 1
    jpeg: Segments | None = field(default=None, repr=False)
    tiff: Samples | None = field(default=None, repr=False)
    span: tuple[int, int] | None = None

    @property
    def full(self) -> float | None:
        """The value that is white; None where the file's type has none."""
        if self.white is not None:
            return self.white
        if self.floating:
            return 1.0
        if self.signed or self.bits > 16:
            return 65535.0 if self.bits >= 16 else None
        return float((1 << self.bits) - 1)


def check(header: Header, max_pixels: int | None) -> None:
    """Raises ValueError when the image is empty, or larger than `max_pixels`, or where that is None
    than the limits.
    """
    width, height = header.width, header.height
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels: an empty image")
    if max_pixels is None and max(width, height) > MAX_SIDE:
        raise ValueError(
            f"{width} x {height} pixels, a side of more than {MAX_SIDE}: data.max_pixels allows "
            "more"
        )
    if width * height > (header.limit if max_pixels is None else max_pixels):
        raise too_large(
            width, height, header.form, header.limit if max_pixels is None else max_pixels
        )


def within(header: Header, limit: int) -> Header:
    """Of so many pixels at most."""
    if limit >= header.limit:
        return header
    form = header.form.removeprefix("such a ")
    return replace(header, limit=limit, form=f"such a {form}, decoded with all its bits")


def too_large(width: int, height: int, form: str, limit: int) -> ValueError:
    """The refusal, with the key that allows more."""
    allowed = f"more than the {limit} allowed for {form}"
    return ValueError(
        f"{width * height} pixels ({width} x {height}), {allowed}: data.max_pixels allows more"
    )
