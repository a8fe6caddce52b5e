"""The pictures in an AVIF or HEIC file, of unknown worth -> the sides that their own code claims,
which is what decoders take memory for: AV1 (section 5.5: sequence header) and HEVC (ITU-T H.265,
section 7.3.2.2: sequence parameter set).
"""

from collections.abc import Iterator

from lookalike.data.headers.boxes import boxes, first

_MOST_UNITS = 1 << 16
_MOST_ITEMS, _MOST_EXTENTS = 4096, 64
_MOST_SETS = 256
_SEQUENCE, _SET = 1, 33


class Bits:
    """Numbers of any width out of bytes, the highest bit first; behind the end lie zeros."""

    def __init__(self, data: bytes) -> None:
        self._all, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next number of so many bits. Raises ValueError behind the end."""
        self._left -= count
        if self._left < 0:
            raise ValueError("damaged header: cut short")
        return self._all >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """The next number in Exp-Golomb code (ITU-T H.265, section 9.2)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("damaged header: a number of more than 32 bits")
        return (1 << zeros) - 1 + self.take(zeros)


def sides(data: bytes) -> Iterator[tuple[int, int]]:
    """Width and height of every picture in the file. Raises ValueError where they lie nowhere."""
    meta = first(data, b"meta", 0, len(data))
    if meta is None:
        return
    inner = {name: (a, b) for name, a, b in boxes(data, meta[0] + 4, meta[1])}
    units = sets = 0
    for body in (*_settings(data, inner), *_items(data, inner)):
        for kind, unit in body:
            units += 1
            if units > _MOST_UNITS or sets > _MOST_SETS:
                raise ValueError(f"more than {_MOST_UNITS} units of code")
            if kind in (b"av1", b"hevc"):
                sets += 1
                yield _of_av1(unit) if kind == b"av1" else _of_hevc(unit)


def _settings(
    data: bytes, inner: dict[bytes, tuple[int, int]]
) -> Iterator[Iterator[tuple[bytes, bytes]]]:
    """The units that lie in the boxes av1C and hvcC."""
    if b"iprp" not in inner or (place := first(data, b"ipco", *inner[b"iprp"])) is None:
        return
    for name, start, end in boxes(data, *place):
        if name == b"av1C":
            yield _obus(data, start + 4, end)
        elif name == b"hvcC":
            yield _in_settings(data, start, end)


def _in_settings(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    arrays, at = data[start + 22] if start + 22 < end else 0, start + 23
    for _ in range(arrays):
        count, at = int.from_bytes(data[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            length = int.from_bytes(data[at : at + 2], "big")
            if at + 2 + length > end:
                raise ValueError("damaged header: settings of its code")
            yield _nal(data[at + 2 : at + 2 + min(length, 4096)])
            at += 2 + length


def _items(
    data: bytes, inner: dict[bytes, tuple[int, int]]
) -> Iterator[Iterator[tuple[bytes, bytes]]]:
    """The units of every image in the box iloc, by its type in iinf."""
    kinds, idat = _kinds(data, inner), inner.get(b"idat", (0, 0))[0]
    for item, method, extents in _places(data, inner):
        if kinds.get(item) not in (b"av01", b"hvc1"):
            continue
        if method > 1:
            raise ValueError("damaged header: an image made of other images' bytes")
        # Of an image in pieces decoders put these together first.
        body = b"".join(data[at + idat * (method == 1) :][:size] for at, size in extents)
        yield (_obus if kinds[item] == b"av01" else _nals)(body, 0, len(body))


def _kinds(data: bytes, inner: dict[bytes, tuple[int, int]]) -> dict[int, bytes]:
    """The type of each item."""
    found: dict[int, bytes] = {}
    if b"iinf" not in inner:
        return found
    at, end = inner[b"iinf"]
    for name, start, _ in boxes(data, at + (8 if data[at] else 6), end):
        version = data[start]
        if name == b"infe" and version >= 2:
            size = 4 if version > 2 else 2
            item = int.from_bytes(data[start + 4 : start + 4 + size], "big")
            found[item] = data[start + 6 + size : start + 10 + size]
    return found


def _places(
    data: bytes, inner: dict[bytes, tuple[int, int]]
) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Number, method and pieces (begin, size) of each item."""
    if b"iloc" not in inner:
        return
    at, end = inner[b"iloc"]
    version, wide = data[at], (data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4)
    number = 4 if version == 2 else 2
    index = data[at + 5] & 15 if version else 0

    def take(size: int) -> int:
        nonlocal at
        at += size
        if at > end:
            raise ValueError("damaged header: places of images")
        return int.from_bytes(data[at - size : at], "big")

    at += 6
    for _ in range(min(take(number), _MOST_ITEMS)):
        item, method = take(number), take(2) & 15 if version else 0
        take(2)
        base, count = take(wide[2]), take(2)
        if count > _MOST_EXTENTS:
            raise ValueError(f"an image in {count} pieces")
        places = []
        for _ in range(count):
            take(index)
            begin, size = base + take(wide[0]), take(wide[1])
            places.append((begin, size or len(data)))
        yield item, method, places


def _obus(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The units of AV1 (section 5.3), sequence headers with what they hold."""
    while at < end:
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] >> 1 & 1
        at += 1 + extended
        size = end - at
        if sized:
            size, at = _leb128(data, at)
        yield b"av1" if kind == _SEQUENCE else b"", data[at : at + min(size, 256)]
        at += size


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(data[at : at + 8]):
        value |= (byte & 127) << 7 * i
        if not byte & 128:
            return value, at + i + 1
    raise ValueError("damaged header: the length of a unit")


def _nals(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """The units of HEVC, each behind its length in four bytes."""
    while at + 4 <= end:
        length = int.from_bytes(data[at : at + 4], "big")
        yield _nal(data[at + 4 : at + 4 + min(length, 4096)])
        at += 4 + length


def _nal(unit: bytes) -> tuple[bytes, bytes]:
    kind = unit[0] >> 1 & 63 if unit else 0
    return (b"hevc", unit[2:].replace(b"\0\0\3", b"\0\0")) if kind == _SET else (b"", b"")


def _of_av1(unit: bytes) -> tuple[int, int]:
    """The largest frame that the sequence header allows."""
    bits = Bits(unit)
    bits.take(4)
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        _pass_timing(bits)
    across, down = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(across) + 1, bits.take(down) + 1


def _pass_timing(bits: Bits) -> None:
    model = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(64)
        if bits.take(1):
            bits.golomb()
        model = bits.take(1)
        delay = bits.take(5) + 1 if model else 0
        bits.take(42 if model else 0)
    shown = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if model and bits.take(1):
            bits.take(2 * delay + 1)
        if shown and bits.take(1):
            bits.take(4)


def _of_hevc(unit: bytes) -> tuple[int, int]:
    bits = Bits(unit)
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 96)
    present = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.golomb()
    if bits.golomb() == 3:  # chroma_format_idc
        bits.take(1)
    return bits.golomb(), bits.golomb()
