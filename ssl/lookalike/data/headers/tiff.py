"""The tags of a TIFF file, of unknown worth -> its header."""

import math
import struct
from dataclasses import replace

from lookalike.data.headers import tags
from lookalike.data.headers.header import (
    COPY,
    MAX_PIXELS_WHOLE,
    MEMORY,
    MOST_TEXT,
    MOST_VALUES,
    Header,
    Samples,
)
from lookalike.data.headers.tags import Layout, Tag

_MOST_TAGS, _MOST_STRIPS, _MOST_RATIONALS, _MOST_SAMPLES = 4096, 1 << 15, 4096, 1024
_MOST_LAB = 12_500_000  # pixels of a TIFF in L*a*b*, at 30 ns each
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _PLANES, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = (
    273,
    277,
    278,
    284,
    320,
    322,
    323,
    324,
)
_PREDICTOR, _EXTRA, _FORMAT, _XMP = 317, 338, 339, 700
_COUNTS = {279, 325}
_READ = {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, _STRIPS, tags.ORIENTATION}
_READ |= {_SAMPLES, _ROWS, 282, 283, _PLANES, 296, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES}
_READ |= {_EXTRA, _FORMAT, 530} | _COUNTS
_PLAIN = {_BITS, _SAMPLES, _PHOTOMETRIC, _EXTRA, _FORMAT}
_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32773, 32809, 32946, 34676, 34677, 34925, 50000, 50001}
_GREY, _RGB, _PALETTE, _INKS, _YCBCR, _LAB = (0, 1), 2, 3, 5, 6, 8
_INTEGER, _SIGNED, _FLOAT = 1, 2, 3


def read(data: bytes) -> Header:
    """Judges the tags of the first image, which Pillow reads, several times, in Python."""
    if data[:4] == b"MM\0+":
        raise ValueError("a BigTIFF of the big-endian kind, which cannot be read")
    place = tags.layout(data)
    found = tags.directory(data, place, place.first, _MOST_TAGS)
    told = _told(found)
    sizes = [tags.number(data, place, found.get(tag)) for tag in (_WIDTH, _HEIGHT)]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError("damaged header: no width or height")
    width, height = (int(size) for size in sizes if size)
    page = _Page(data, place, found)
    header = page.header(width, height)
    peak = page.peak(width, height) if header.eight or header.pillow else header.taken
    taken = peak if header.pillow else header.taken
    lab = page.number(_PHOTOMETRIC, 0) == _LAB
    room = MEMORY - 4 * max(0, told - MOST_TEXT)
    limit = min(_MOST_LAB if lab else MAX_PIXELS_WHOLE, int(room / peak))
    form = "TIFF" if limit == MAX_PIXELS_WHOLE else "such a TIFF"
    width, height = (height, width) if page.turn >= 5 else (width, height)
    return replace(header, width=width, height=height, limit=limit, form=form, taken=taken)


def look(data: bytes) -> Header:
    """Of the first bytes of a file alone. Raises ValueError where its tags do not lie in them."""
    place = tags.layout(data)
    listed = tags.listed(data, place, place.first)
    if missing := listed & _PLAIN - set(tags.directory(data, place, place.first, _MOST_TAGS)):
        raise ValueError(f"the values of tag {min(missing)} lie elsewhere")
    return read(data)


class _Page:
    """The tags of one image."""

    def __init__(self, data: bytes, place: Layout, found: dict[int, Tag]) -> None:
        self._data, self._place, self._found = data, place, found
        self.turn = self._turn()

    def _turn(self) -> int:
        """By its own tag or else by XMP; Pillow turns it."""
        data, found = self._data, self._found
        if tags.ORIENTATION in found:
            turn = tags.number(data, self._place, found[tags.ORIENTATION])
            return int(turn) if turn is not None and turn in range(1, 9) else 1
        return tags.turn(b"", data[found[_XMP].at :][: found[_XMP].size]) if _XMP in found else 1

    def number(self, tag: int, otherwise: int) -> int:
        value = tags.number(self._data, self._place, self._found.get(tag))
        return otherwise if value is None or not math.isfinite(value) else int(value)

    def _same(self, tag: int, otherwise: int) -> int:
        """What all values of the tag are. Raises ValueError when they differ."""
        values = set(self._shorts(tag)) or {otherwise}
        if len(values) > 1:
            raise ValueError(f"bands of different types: tag {tag} says {sorted(values)}")
        return values.pop()

    def _shorts(self, tag: int) -> tuple[int, ...]:
        entry = self._found.get(tag)
        if entry is None or entry.kind != 3:
            value = tags.number(self._data, self._place, entry)
            return () if value is None else (int(value),)
        most = min(entry.values, _MOST_SAMPLES)
        return struct.unpack_from(f"{self._place.order}{most}H", self._data, entry.at)

    def header(self, width: int, height: int) -> Header:
        """What its values are. Raises ValueError for what is no image of its own, or cannot be
        read.
        """
        compression, photometric = self.number(_COMPRESSION, 1), self.number(_PHOTOMETRIC, 0)
        if self.number(_SUBFILE, 0) & 1:
            raise ValueError("its first image is a preview (camera raw?): save it as TIFF or PNG")
        if compression not in _COMPRESSIONS:
            raise ValueError(f"TIFF compression {compression}, which is not read: save it deflated")
        samples, bits = self.samples(), self._same(_BITS, 1)
        kind = self._same(_FORMAT, _INTEGER)
        kind = _INTEGER if kind == 4 else kind
        if not 1 <= samples <= _MOST_SAMPLES or not 1 <= bits <= 64 or kind > _FLOAT:
            raise ValueError(f"{samples} bands of {bits} bits of kind {kind}: not read")
        extra = self._shorts(_EXTRA)
        eight = _eight(photometric, samples, bits, kind, extra)
        alpha = _clear(photometric, samples, extra)
        channels = samples
        if eight and photometric in (_PALETTE, _INKS):
            channels = 3 + alpha
        pillow = samples == 1 and photometric == 1 and (bits, kind) in _WHOLE
        pillow |= eight and bits <= 8
        return Header(
            "TIFF",
            width,
            height,
            channels=channels,
            bits=max(bits, 8) if eight else bits,
            floating=kind == _FLOAT,
            signed=kind == _SIGNED,
            alpha=alpha,
            eight=eight,
            pillow=pillow,
            taken=self._taken(samples * -(-bits // 8), width, height),
            tiff=Samples(photometric, compression, extra[:1] == (1,), self.turn),
        )

    def samples(self) -> int:
        """How many values a pixel has, as Pillow counts them."""
        jpeg = self.number(_COMPRESSION, 1) == 7 and self.number(_PHOTOMETRIC, 0) in (_RGB, _YCBCR)
        return self.number(_SAMPLES, 3 if jpeg else 1)

    def _piece(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of its strips or tiles. Raises ValueError when these cannot be."""
        across, down = width, min(max(self.number(_ROWS, height), 1), height)
        if _STRIPS not in self._found:
            across, down = self.number(_TILE_WIDTH, width), self.number(_TILE_HEIGHT, height)
        if min(across, down) < 1 or max(across, down) > max(2 * max(width, height), 4096):
            raise ValueError(
                f"tiles of {across} x {down} pixels for {width} x {height}: damaged header"
            )
        return across, down

    def _taken(self, stored: int, width: int, height: int) -> float:
        """Bytes a pixel of tifffile: the image, and of a packed strip or tile what it was unpacked
        to, and its values.
        """
        across, down = self._piece(width, height)
        packed = self.number(_COMPRESSION, 1) > 1 or self.number(_PREDICTOR, 1) > 1
        return stored * (1.1 + 2.1 * packed * across * down / (width * height))

    def peak(self, width: int, height: int) -> float:
        """Bytes a pixel: Pillow's image, and beside it a turned one, or a strip or tile of
        libtiff's, or our copy.
        """
        bits, compression = self.number(_BITS, 1), self.number(_COMPRESSION, 1)
        samples, stored = self.samples(), 4
        photometric = self.number(_PHOTOMETRIC, 0)
        if samples == 1 and photometric in (0, 1, 3) and compression != 6:
            short = bits <= 16 and self.number(_FORMAT, 1) == 1
            stored = 1 if bits <= 8 else 2 if short else 4
        across, down = self._piece(width, height)
        buffer = (
            0.0
            if compression == 1
            else across * down * max(4, samples * bits / 8) / (width * height)
        )
        turned = stored if self.turn > 1 else 0
        return stored + max(COPY, turned, buffer)


# Bits and kinds of one grey value that Pillow keeps whole.
_WHOLE = {(16, _INTEGER), (16, _SIGNED), (32, _SIGNED), (32, _FLOAT)}


def _eight(photometric: int, samples: int, bits: int, kind: int, extra: tuple[int, ...]) -> bool:
    """Whether Pillow's 8 bits of it are its values, or their high byte, with no band dropped."""
    if kind == _SIGNED:
        return samples == 1 and photometric == 1 and bits in (16, 32)
    if kind == _FLOAT:
        return False
    if samples == 1:
        high = photometric == 1 and bits in (16, 32)
        return photometric in (*_GREY, _PALETTE, _YCBCR) and (bits in (1, 2, 4, 8) or high)
    if samples == 2:
        return bits == 8 and photometric in (1, _PALETTE) and extra == (2,)
    if samples == 3:
        return not extra and bits in ((8, 16) if photometric == _RGB else (8,))
    if samples != 4 or bits not in (8, 16):
        return False
    return not extra if photometric == _INKS else _clear(photometric, samples, extra)


def _clear(photometric: int, samples: int, extra: tuple[int, ...]) -> bool:
    """Whether its last value is transparency; in four of a colour image it is where nothing is said
    of it, as Pillow and Corel Draw (999) have it.
    """
    if photometric == _RGB and samples == 4:
        return extra in ((), (1,), (2,), (999,))
    return samples == 2 and photometric in (*_GREY, _PALETTE) and extra in ((1,), (2,))


def _told(found: dict[int, Tag]) -> int:
    """The bytes of all values. Raises ValueError where a tag has more of them than an image
    needs.
    """
    rationals = 0
    for name, tag in found.items():
        most = (
            3 * MOST_VALUES
            if name == _COLOURS
            else _MOST_STRIPS
            if name in (_STRIPS, _TILES)
            else MOST_VALUES
        )
        if tag.values > most and (tag.kind not in (1, 2, 7) or name in _READ or name == _COLOURS):
            raise ValueError(f"tag {name} of {tag.values} values, more than the {most} allowed")
        rationals += tag.values * (tag.kind in (5, 10))
    if rationals > _MOST_RATIONALS:
        raise ValueError(
            f"{rationals} fractions in its tags, more than the {_MOST_RATIONALS} allowed"
        )
    told = sum(tag.size for tag in found.values())
    if told > MEMORY // 8:
        raise ValueError(f"tags of {told} bytes, more than the {MEMORY // 8} allowed")
    return told
