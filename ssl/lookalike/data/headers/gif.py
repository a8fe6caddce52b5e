"""The blocks of a GIF file (89a), of unknown worth -> its header."""

import struct

from lookalike.data.headers.header import MOST_JUNK, Header

_MOST_SUBBLOCKS = 8192


def read(data: bytes) -> Header:
    """Walks to the first frame, which may be larger than the screen; in extensions as Pillow
    does.
    """
    if len(data) < 13:
        raise ValueError("damaged header")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, blocks, junk = 13 + (3 << (flags & 7) + 1 if flags & 128 else 0), 0, 0
    while data[at : at + 1] not in (b"", b";", b","):
        at, passed = _past_extension(data, at) if data[at] == ord("!") else (at + 1, 0)
        blocks, junk = blocks + passed, junk + (not passed)
        if blocks >= _MOST_SUBBLOCKS or junk > MOST_JUNK:
            raise ValueError(f"more than {_MOST_SUBBLOCKS} blocks before its first frame")
    if data[at : at + 1] == b"," and at + 10 <= len(data):
        left, top, across, down = struct.unpack_from("<HHHH", data, at + 1)
        width, height = max(width, left + across), max(height, top + down)
    return Header("GIF", width, height)


def _past_extension(data: bytes, at: int) -> tuple[int, int]:
    """Where the next block begins, and how many blocks were passed: a few, then all up to an empty
    one.
    """
    label, at, blocks = data[at + 1 : at + 2], at + 2, 0
    few = (
        0
        if label == b"\xfe"
        else 2
        if label == b"\xff" and data[at + 1 : at + 12] == b"NETSCAPE2.0"
        else 1
    )
    while at < len(data) and blocks < _MOST_SUBBLOCKS and (data[at] or blocks < few):
        at, blocks = at + 1 + data[at], blocks + 1
    return at + 1, blocks + 1
