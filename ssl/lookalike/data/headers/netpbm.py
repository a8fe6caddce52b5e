"""The first words of a PBM, PGM, PPM or PAM file (by Netpbm), of unknown worth -> its header.

`span` of it begins where its values do.
"""

import re
from dataclasses import replace

from lookalike.data.headers.header import MAX_PIXELS_WHOLE, MEMORY, Header

_WORD = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*([^\s#]{1,20})")
_LINE = re.compile(rb"[^\n]{0,200}\n")
_MOST_LINES, _MOST_HEAD = 100, 1 << 16
_MOST_TEXT = 8_000_000  # values that are written as text, at 60 ns each
_MOST_CHANNELS = 512
_CLEAR = (b"BLACKANDWHITE_ALPHA", b"GRAYSCALE_ALPHA", b"RGB_ALPHA")


def read(data: bytes) -> Header:
    """Raises ValueError where its sides or its white are no numbers."""
    form = data[1] - ord("0")
    if form == 7:
        return _arbitrary(data)
    at, words = 2, list[int]()
    for _ in range(2 if form in (1, 4) else 3):
        match = _WORD.match(data, at, _MOST_HEAD)
        if match is None or not match[1].isdigit():
            raise ValueError("damaged header: no sides")
        at = match.end()
        words.append(int(match[1]))
    width, height, white = words if len(words) == 3 else (*words, 1)
    channels = 3 if form in (3, 6) else 1
    found = _header(width, height, channels, white, at + 1, len(data))
    if form < 4 and width * height * channels > _MOST_TEXT:
        return replace(found, limit=_MOST_TEXT // channels, form="PPM as text")
    return found


def _arbitrary(data: bytes) -> Header:
    """PAM: a name and a value in each line, up to ENDHDR."""
    said: dict[bytes, bytes] = {}
    at = 2
    for _ in range(_MOST_LINES):
        match = _LINE.match(data, at, _MOST_HEAD)
        if match is None:
            break
        name, _, value = match[0].strip().partition(b" ")
        at = match.end()
        if name == b"ENDHDR":
            return _of_words(said, at, len(data))
        if name and not name.startswith(b"#"):
            said[name] = value.strip()
    raise ValueError("damaged header: no ENDHDR")


def _of_words(said: dict[bytes, bytes], at: int, end: int) -> Header:
    numbers = [said.get(name, b"") for name in (b"WIDTH", b"HEIGHT", b"DEPTH", b"MAXVAL")]
    if not all(number.isdigit() and len(number) < 20 for number in numbers):
        raise ValueError("damaged header: no sides")
    width, height, channels, white = map(int, numbers)
    alpha = said.get(b"TUPLTYPE", b"") in _CLEAR and channels in (2, 4)
    return replace(_header(width, height, channels, white, at, end), alpha=alpha)


def _header(width: int, height: int, channels: int, white: int, at: int, end: int) -> Header:
    if not 1 <= white <= 65535 or not 1 <= channels <= _MOST_CHANNELS:
        raise ValueError(f"{channels} values up to {white} a pixel: damaged header")
    stored = channels * (1 if white < 256 else 2)
    return Header(
        "PPM",
        width,
        height,
        limit=min(MAX_PIXELS_WHOLE, MEMORY // (2 * stored)),
        form="PPM",
        channels=channels,
        bits=max(8, white.bit_length()),
        white=float(white),
        eight=False,
        pillow=False,
        taken=1.0,
        span=(at, end),
    )
