"""The header of a BMP file, of unknown worth -> ours."""

import struct

from lookalike.data.headers.header import MOST_VALUES, Header

_MOST_RLE = 1_600_000  # pixels of a BMP that Pillow unpacks in Python


def read(data: bytes) -> Header:
    """Pillow unpacks run lengths in Python, so these are bounded more narrowly."""
    if len(data) < 26:
        raise ValueError("damaged header")
    if struct.unpack_from("<I", data, 14)[0] == 12:
        return Header("BMP", *struct.unpack_from("<HH", data, 18))
    if len(data) < 54:
        raise ValueError("damaged header")
    width, height, compression = (
        *struct.unpack_from("<II", data, 18),
        struct.unpack_from("<I", data, 30)[0],
    )
    height = 2**32 - height if height >> 24 == 0xFF else height
    if compression not in (1, 2):
        return Header("BMP", width, height)
    if len(data) > 2 * width * height + 4 * height + MOST_VALUES:
        raise ValueError(
            f"{width} x {height} pixels, run-length encoded in {len(data)} bytes: more than they "
            "can take"
        )
    return Header("BMP", width, height, limit=_MOST_RLE, form="BMP in run-length code")
