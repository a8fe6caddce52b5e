"""Which member of a sample is its image and which its label: what a recipe says, and what names and
texts of members say.

WebDataset's key of a sample is a member's name up to the first dot of its last part, the rest is
the suffix (its `base_plus_ext`). Where names have dots of their own, the key ends before the last
dot or the last but one: `Keys.dots`.
"""

import json
import math
import re
from typing import Any, NamedTuple

from lookalike.data.folders.index import SUFFIXES
from lookalike.errors import DataError

NO_LABEL = -1
MOST_CLASSES = 1_000_000
FOLDER = "folder"
LONGEST_TEXT = 256
IMAGES = {suffix[1:] for suffix in SUFFIXES}
# What samples often hold beside an image and no image ever is: not looked into.
PLAIN = frozenset(b"cls json txt text caption pyd pkl pth pt npz xml csv yaml html".split())
PLAIN |= frozenset(b"mp3 wav flac ogg m4a mp4 mkv webm avi mov transcript idx cbor mp".split())
_FIRST_DOT = re.compile(rb"((?:.*/|)[^./]+)[.]([^/]*)", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+[.]?\d*|[.]\d+)([eE][+-]?\d+)?", re.ASCII)


class Keys(NamedTuple):
    """Suffixes of the image, by preference, suffix of the label and the path in its JSON; what is
    empty is found out. `dots`: 0 where a sample's name ends at the first dot, n where it ends
    before the last n.
    """

    image: tuple[bytes, ...] = ()
    label: bytes = b""
    path: str = ""
    dots: int = 0

    def split(self, name: bytes) -> tuple[bytes, bytes]:
        """The sample's name and the member's suffix, in lower case; both empty for a name that
        is none.
        """
        if not self.dots and (split := _FIRST_DOT.fullmatch(name)):
            return split[1], split[2].lower()
        folder, slash, last = name.rpartition(b"/")
        if not last or last[:1] == b".":
            return b"", b""
        for suffix in (*self.image, self.label):
            if self.dots and suffix and last.lower().endswith(b"." + suffix):
                stem = last[: -len(suffix) - 1]
                return (folder + slash + stem, suffix) if stem else (b"", b"")
        stem, *parts = last.rsplit(b".", self.dots)
        return folder + slash + stem, b".".join(parts).lower()

    def labels(self, suffix: bytes) -> bool:
        """Whether a member of this suffix may say what its sample is of."""
        if self.label:
            return suffix == self.label
        return suffix.rpartition(b".")[2] in (b"cls", b"json")


def keys_of(image_key: str | None, label_key: str | None) -> Keys:
    """What a recipe says. Raises DataError for what is no suffix."""
    named = [] if image_key is None else image_key.split(";")
    images = tuple(_suffix("image_key", word) for word in named)
    if label_key in (None, FOLDER):
        return Keys(images)
    word, colon, path = str(label_key).partition(":")
    suffix = _suffix("label_key", word)
    is_json = suffix.rpartition(b".")[2] == b"json"
    if colon and not (path and is_json):
        raise DataError(
            f"data.label_key: {label_key!r}: a path leads into .json only: write json:PATH, as in "
            "json:annotations.category"
        )
    return Keys(images, suffix, path or ("label" if is_json else ""))


def _suffix(key: str, word: str) -> bytes:
    suffix = word.strip().lower().removeprefix(".")
    if not suffix or "/" in suffix or len(suffix) > 100 or not suffix.isprintable():
        raise DataError(
            f"data.{key}: {word[:100]!r} is no member's suffix: write what follows the sample's "
            "name and a dot, as in input.png"
        )
    return suffix.encode()


def label_in(text: bytes, keys: Keys, suffix: bytes) -> int | str | None:
    """A whole number below MOST_CLASSES or a class's name, as a member's text says; else None."""
    if suffix.rpartition(b".")[2] == b"json":
        try:
            return _value(_at(json.loads(text), keys.path or "label"))
        except (ValueError, RecursionError):
            return None
    if text.isdigit() and len(text) < 19:
        return _value(int(text))
    try:
        word = text.decode()
    except UnicodeDecodeError:
        return None
    if _NUMBER.fullmatch(word):
        return _value(float(word))
    return None if word[:1] in ("{", "[") else _value(word)


def _value(found: Any) -> int | str | None:
    if isinstance(found, str):
        word = found.strip()
        return word if 0 < len(word) <= LONGEST_TEXT and word.isprintable() else None
    if isinstance(found, float) and math.isfinite(found) and found.is_integer():
        found = int(found)
    return found if type(found) is int and 0 <= found < MOST_CLASSES else None


def _at(data: Any, path: str) -> Any:
    """What lies at a path of names and numbers with dots between them; a name may itself have
    dots.
    """
    if isinstance(data, dict) and path in data:
        return data[path]
    for part in path.split("."):
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and part.isdecimal() and int(part) < len(data):
            data = data[int(part)]
        else:
            return None
    return data
