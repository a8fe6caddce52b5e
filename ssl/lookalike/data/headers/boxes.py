"""The boxes of ISO base media, JPEG 2000 and JPEG XL files (ISO 14496-12, section 4.2), of unknown
worth.
"""

import struct
from collections.abc import Iterator

_MOST_BOXES = 4096


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where the body begins and ends, of the boxes that lie there side by side; nothing
    is said of what lies in them. Raises ValueError for one that is damaged, or more than 4096.
    """
    for _ in range(_MOST_BOXES):
        if start + 8 > min(end, len(data)):
            return
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= len(data):
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = end - start if size == 0 else size
        if size < head or start + size > end:
            raise ValueError(f"damaged header: box {name!r} of {size} bytes")
        yield name, start + head, start + size
        start += size
    raise ValueError(f"more than {_MOST_BOXES} boxes side by side")


def first(data: bytes, name: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where the body of the first box of that type begins and ends; None where there is none."""
    for kind, *span in boxes(data, start, end):
        if kind == name:
            return span[0], span[1]
    return None
