"""The directory of a Windows icon, of unknown worth -> the header of its largest image."""

import struct
from dataclasses import replace

from lookalike.data.headers import png
from lookalike.data.headers.header import Header

_MOST_ENTRIES = 256
_PNG = b"\x89PNG"


def read(data: bytes) -> Header:
    """`span`: its bytes. A PNG in it counts as such. Raises ValueError where the directory and the
    image say different sides.
    """
    count = int.from_bytes(data[4:6], "little")
    if not 1 <= count <= _MOST_ENTRIES or len(data) < 6 + 16 * count:
        raise ValueError(f"an icon of {count} images: damaged header")
    entries = [struct.unpack_from("<BBBBHHII", data, 6 + 16 * i) for i in range(count)]
    # The largest, and of those the one of the most bits.
    best = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), e[5] or 256))
    width, height, size, at = best[0] or 256, best[1] or 256, best[6], best[7]
    if at + 40 > len(data):
        raise ValueError("damaged header: truncated")
    if data[at : at + 4] == _PNG:
        end = min(at + size, len(data))
        return replace(png.read(data[at:end]), span=(at, end))
    head, across, down, _, _, compression = struct.unpack_from("<IiiHHI", data, at)
    if head < 40 or compression not in (0, 3) or (across, abs(down)) != (width, 2 * height):
        raise ValueError(f"an icon of {across} x {abs(down) // 2} pixels: damaged header")
    return Header(
        "ICO", width, height, channels=4, alpha=True, span=(at, min(at + size, len(data)))
    )


def icon(image: bytes, header: Header) -> bytes:
    """A file of that image alone."""
    sides, bits = (header.width & 255, header.height & 255), image[14:16]
    entry = struct.pack("<BBBBH2sII", *sides, 0, 0, 1, bits, len(image), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + image
