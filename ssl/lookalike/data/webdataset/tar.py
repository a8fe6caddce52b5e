"""What lies where in a tar file: ustar, GNU and pax headers, read one after another; nothing is
ever extracted.

IEEE Std 1003.1 (pax), and GNU tar's manual, "Basic Tar Format". Sizes and names are of unknown
worth: a header is believed only with its checksum, and what it declares is held against the length
of the file.
"""

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_LONGEST_HEADER = 1 << 20
LONGEST_NAME = 4096
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "link",
    b"2": "link",
    b"5": "folder",
    b"S": "sparse file",
}
_KINDS |= dict.fromkeys((b"3", b"4", b"6"), "device")
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"


class Damaged(Exception):
    """No whole tar file: the byte where that shows, and why."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset, self.reason = offset, reason

    def __str__(self) -> str:
        return f"byte {self.offset}: {self.reason}"


class Entry(NamedTuple):
    """One member: its name, what it is (file, link, device, …), where its bytes begin, how many
    there are.
    """

    name: bytes
    kind: str
    offset: int
    size: int


def entries(file: BinaryIO) -> Iterator[Entry]:
    """The members in order; between two of them the caller may read elsewhere in the file.

    Raises Damaged where the file ends before its end mark, or a header is none.
    """
    total = os.fstat(file.fileno()).st_size
    at, name, size = 0, b"", -1
    while True:
        start, block = at, _read(file, at, _BLOCK, total, "no end mark: the file is cut short")
        if block == bytes(_BLOCK):
            return
        kind, declared = _header(block, at)
        at += _BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL):
            if declared > _LONGEST_HEADER:
                raise Damaged(
                    start, f"a header of {declared} bytes, more than the {_LONGEST_HEADER} allowed"
                )
            body = _read(file, at, declared, total, "cut short in a header")
            at += _padded(declared)
            if kind == _LONG_NAME:
                name = body.split(b"\0", 1)[0]
            elif kind == _PAX:
                records = _records(body, start)
                name, size = records.get(b"path", name), _decimal(records.get(b"size"), size, start)
            continue
        if kind == b"S":
            at = _past_sparse(file, block, at, total)
        size = declared if size < 0 else size
        if at + size > total:
            raise Damaged(start, f"{total - at} of a member's {size} bytes: the file is cut short")
        yield Entry(name or _name(block), _KINDS.get(kind, "member of another kind"), at, size)
        at, name, size = at + _padded(size), b"", -1


def _read(file: BinaryIO, at: int, size: int, total: int, otherwise: str) -> bytes:
    if at + size > total:
        raise Damaged(at, otherwise)
    file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise Damaged(at, otherwise)
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _header(block: bytes, at: int) -> tuple[bytes, int]:
    """Kind and size. Raises Damaged without the right checksum."""
    total = _sum(block[:256]) + _sum(block[256:]) - _sum(block[148:156]) + 8 * ord(" ")
    # Some old writers summed signed bytes.
    signed = (
        total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if not block.isascii()
        else total
    )
    size = _number(block[124:136])
    if _number(block[148:156]) not in (total, signed) or size < 0:
        what = (
            "compressed: unpack it first, random reads need plain tar"
            if _compressed(block)
            else "no tar header"
        )
        raise Damaged(at, what)
    return block[156:157], size


def _sum(piece: bytes) -> int:
    """The sum of at most 256 bytes, in a tenth of the time of `sum`: the first of Adler-32's two
    sums is 1 more, modulo 65521 (RFC 1950).
    """
    return (zlib.adler32(piece) & 0xFFFF) - 1


def _compressed(block: bytes) -> bool:
    return block.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))


def _number(field: bytes) -> int:
    """Octal digits, or GNU's base 256 behind a set first bit; -1 where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if not digits:
        return 0
    return int(digits, 8) if digits.isdigit() and not set(digits) & {*b"89"} else -1


def _name(block: bytes) -> bytes:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _records(body: bytes, at: int) -> dict[bytes, bytes]:
    """`length key=value\\n`, again and again."""
    found, start = {}, 0
    while start < len(body):
        digits, space, _ = body[start : start + 8].partition(b" ")
        if not space or not digits.isdigit():
            raise Damaged(at, "damaged extended header")
        end = start + int(digits)
        key, equals, value = body[start + len(digits) + 1 : end].partition(b"=")
        if not equals or value[-1:] != b"\n" or end > len(body):
            raise Damaged(at, "damaged extended header")
        found[key] = value[:-1]
        start = end
    return found


def _decimal(text: bytes | None, otherwise: int, at: int) -> int:
    if text is None:
        return otherwise
    if not text.isdigit() or len(text) > 18:
        raise Damaged(at, "damaged extended header: its size is not a number")
    return int(text)


def _past_sparse(file: BinaryIO, block: bytes, at: int, total: int) -> int:
    """Where the data of GNU's sparse file begin: behind further blocks of its map."""
    more = block[482]
    while more:
        more = _read(file, at, _BLOCK, total, "cut short in a header")[504]
        at += _BLOCK
    return at
