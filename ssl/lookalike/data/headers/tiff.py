"""The tags of a TIFF file, of unknown worth -> its header."""

import math

from lookalike.data.headers import tags
from lookalike.data.headers.header import (
    COPY,
    MAX_PIXELS_WHOLE,
    MEMORY,
    MOST_TEXT,
    MOST_VALUES,
    Header,
)
from lookalike.data.headers.tags import Layout, Tag

_MOST_TAGS, _MOST_STRIPS, _MOST_RATIONALS = 4096, 1 << 15, 4096
_MOST_LAB = 12_500_000  # pixels of a TIFF in L*a*b*, at 30 ns each
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES = (
    256,
    257,
    258,
    259,
    262,
    277,
    284,
)
_STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _COLOURS, _FORMAT, _XMP = (
    273,
    278,
    322,
    323,
    324,
    320,
    339,
    700,
)
_COUNTS = {279, 325}
_READ = {
    _WIDTH,
    _HEIGHT,
    _BITS,
    _COMPRESSION,
    _PHOTOMETRIC,
    266,
    _STRIPS,
    tags.ORIENTATION,
    _SAMPLES,
    _ROWS,
    282,
    283,
}
_READ |= {_PLANES, 296, 317, _TILE_WIDTH, _TILE_HEIGHT, _TILES, 338, _FORMAT, 530} | _COUNTS


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
    peak = _peak(data, place, found, width, height)
    lab = tags.number(data, place, found.get(_PHOTOMETRIC)) == 8
    room = MEMORY - 4 * max(0, told - MOST_TEXT)
    limit = min(_MOST_LAB if lab else MAX_PIXELS_WHOLE, int(room / peak))
    form = "TIFF" if limit == MAX_PIXELS_WHOLE else "such a TIFF"
    width, height = (height, width) if _turn(data, place, found) >= 5 else (width, height)
    return Header("TIFF", width, height, limit=limit, form=form)


def _turn(data: bytes, place: Layout, found: dict[int, Tag]) -> int:
    """By its own tag or else by XMP; Pillow turns it."""
    if tags.ORIENTATION in found:
        turn = tags.number(data, place, found[tags.ORIENTATION])
        return int(turn) if turn is not None and turn in range(1, 9) else 1
    return tags.turn(b"", data[found[_XMP].at :][: found[_XMP].size]) if _XMP in found else 1


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


def _peak(data: bytes, place: Layout, found: dict[int, Tag], width: int, height: int) -> float:
    """Bytes a pixel: Pillow's image, and beside it a turned one, or a strip or tile of libtiff's,
    or our copy.
    """

    def number(tag: int, otherwise: int) -> int:
        value = tags.number(data, place, found.get(tag))
        return otherwise if value is None or not math.isfinite(value) else int(value)

    bits, compression, photometric = (
        number(_BITS, 1),
        number(_COMPRESSION, 1),
        number(_PHOTOMETRIC, 0),
    )
    samples = number(_SAMPLES, 3 if compression == 7 and photometric in (2, 6) else 1)
    stored = 4
    if samples == 1 and photometric in (0, 1, 3) and compression != 6:
        stored = 1 if bits <= 8 else 2 if bits <= 16 and number(_FORMAT, 1) == 1 else 4
    across, down = width, min(max(number(_ROWS, height), 1), height)
    if _STRIPS not in found:
        across, down = number(_TILE_WIDTH, width), number(_TILE_HEIGHT, height)
    if min(across, down) < 1 or max(across, down) > max(2 * max(width, height), 4096):
        raise ValueError(
            f"tiles of {across} x {down} pixels for {width} x {height}: damaged header"
        )
    buffer = (
        0.0 if compression == 1 else across * down * max(4, samples * bits / 8) / (width * height)
    )
    turned = stored if _turn(data, place, found) > 1 else 0
    return stored + max(COPY, turned, buffer)
