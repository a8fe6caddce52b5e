"""One pass over a tar shard: which of its members are images, and what label each has.

Members of one sample (keys.py) may stand anywhere in the shard. Its image is the first member with
an image's suffix and nothing before that; else the only one that ends in such a suffix, as
`input.png`, or whose first bytes are an image's. Its label is `.cls`, or `label` in `.json`, or the
only member that ends so. All other members, links, devices, absolute names and `..` are passed over
and counted; pickles are never opened.
"""

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from lookalike.data.decode import HEAD, is_image
from lookalike.data.webdataset.doubt import Candidate, crowded, doubt
from lookalike.data.webdataset.keys import IMAGES, NO_LABEL, PLAIN, Keys, label_in
from lookalike.data.webdataset.tar import LONGEST_NAME, Damaged, Entry, entries
from lookalike.errors import DataError, printable

NO_IMAGE, SEVERAL_LABELS = "sample without an image", "several labels"
MOST = 1 << 20  # members of one shard
_LONGEST_LABEL = 1 << 16
_CHUNK = 1 << 20
_KINDS = 50


class Samples(NamedTuple):
    """N samples in the order of their images: member names, offset, size, crc32, label (or
    NO_LABEL), int64.

    `ignored`: how many members of each kind were passed over; `examples`: one of each. `texts`:
    names of classes, where labels are numbers into it. `doubt`: see doubt.py; then there are no
    samples, and `examples` has two suffixes.
    """

    names: list[bytes]
    offsets_N: np.ndarray
    sizes_N: np.ndarray
    crcs_N: np.ndarray
    labels_N: np.ndarray
    ignored: Mapping[str, int]
    about: Mapping[str, Any]
    examples: Mapping[str, str] = {}
    texts: Sequence[str] = ()
    doubt: str = ""


def read_samples(file: BinaryIO, place: str, keys: Keys = Keys()) -> Samples:  # noqa: B008 (a tuple)
    """One pass over the shard. Raises DataError naming the shard and the byte where it is
    damaged.
    """
    found = _Pass(file, keys)
    try:
        for count, entry in enumerate(entries(file)):
            if count >= MOST:
                raise Damaged(entry.offset, f"more than {MOST} members: make smaller shards")
            found.take(entry)
    except Damaged as damage:
        raise DataError(f"{place}: {damage}: fetch or pack the shard again") from damage
    return found.samples()


class _Pass:
    """What was found so far."""

    def __init__(self, file: BinaryIO, keys: Keys) -> None:
        self._file, self._keys = file, keys
        self._images: list[Candidate] = []
        self._first: dict[bytes, int] = {}  # of each sample
        self._more: dict[bytes, dict[bytes, int]] = {}  # all, where a sample has several
        self._labels: dict[bytes, dict[bytes, int | str]] = {}
        self._others: dict[bytes, None] = {}  # samples of all other members
        self._dotted: list[bytes] = []  # members without an image that have a dot in the suffix
        self._ignored: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def take(self, entry: Entry) -> None:
        """Sorts one member."""
        key, suffix, why = self._sorted_out(entry)
        if why == "folder":
            return
        if not why:
            rank = self._rank(suffix, entry)
            if rank >= 0:
                why = self._note_image(key, suffix, rank, entry)
            else:
                if b"." in suffix:
                    self._dotted.append(key + b"." + suffix)
                if self._keys.labels(suffix):
                    why = self._note_label(key, suffix, entry)
                else:
                    self._others[key] = None
                    why = _kind(suffix)
        if why:
            self._pass_over(why, entry.name)

    def _pass_over(self, why: str, name: bytes, count: int = 1) -> None:
        why = why if why in self._ignored or len(self._ignored) < _KINDS else "others"
        self._examples.setdefault(why, printable(os.fsdecode(name))[:200])
        self._ignored[why] += count

    def _sorted_out(self, entry: Entry) -> tuple[bytes, bytes, str]:
        """Key, lower-case suffix, and why the member is passed over, if it is."""
        name = entry.name
        while name.startswith(b"./"):
            name = name[2:].lstrip(b"/")
        if entry.kind != "file":
            return b"", b"", entry.kind
        if (
            name.startswith(b"/")
            or b".." in name.split(b"/")
            or b"\0" in name
            or len(name) > LONGEST_NAME
        ):
            return b"", b"", "name out of the shard"
        key, suffix = self._keys.split(name)
        return key, suffix, "" if key else "name without a key"

    def _rank(self, suffix: bytes, entry: Entry) -> int:
        """How surely the member is its sample's image, 0 is best; -1 for none."""
        if wanted := self._keys.image:
            return wanted.index(suffix) if suffix in wanted else -1
        if suffix in IMAGES:
            return 1 if suffix == b"npy" else 0  # often an embedding beside the image
        last = suffix.rpartition(b".")[2]
        if last in PLAIN or self._keys.labels(suffix):
            return -1
        if last not in IMAGES:
            self._file.seek(entry.offset)
            if not is_image(self._file.read(min(HEAD, entry.size))):
                return -1
        return 2 if b"." in suffix else 1

    def _note_image(self, key: bytes, suffix: bytes, rank: int, entry: Entry) -> str:
        """Keeps the image; why it was passed over otherwise."""
        number = len(self._images)
        first = self._first.setdefault(key, number)
        if first != number:
            several = self._more.setdefault(key, {self._images[first].name: first})
            if entry.name in several:
                return "names again"
            if not rank and not self._images[first].rank:
                return "more images"
            several[entry.name] = number
        crc = -1 if rank and not self._keys.image else _crc(self._file, entry.offset, entry.size)
        self._images.append(Candidate(entry.name, key, suffix, rank, entry.offset, entry.size, crc))
        return ""

    def _note_label(self, key: bytes, suffix: bytes, entry: Entry) -> str:
        """Keeps the member's label; why it was passed over otherwise."""
        known = self._labels.setdefault(key, {})
        if suffix in known:
            return "names again"
        if entry.size > _LONGEST_LABEL:
            return f"{_kind(suffix)} too long"
        self._file.seek(entry.offset)
        value = label_in(self._file.read(entry.size).strip(), self._keys, suffix)
        if value is None:
            return f"{_kind(suffix)} without a label"
        known[suffix] = value
        return ""

    def samples(self) -> Samples:
        """What all members together say."""
        if doubt := self._doubt():
            none_N = np.zeros(0, np.int64)
            return Samples([], none_N, none_N, none_N, none_N, {}, {}, self._examples, (), doubt)
        kept = self._chosen()
        if lone := (self._labels.keys() | self._others.keys()) - self._first.keys():
            self._pass_over(NO_IMAGE, min(lone), len(lone))
        crcs = [_crc(self._file, i.offset, i.size) if i.crc < 0 else i.crc for i in kept]
        labels_N, texts = _numbered([self._label(image) for image in kept])
        offsets_N, sizes_N = np.array([i[4:6] for i in kept], np.int64).reshape(-1, 2).T
        names, crcs_N = [image.name for image in kept], np.array(crcs, np.int64)
        ignored = dict(self._ignored)
        return Samples(
            names, offsets_N, sizes_N, crcs_N, labels_N, ignored, {}, self._examples, texts
        )

    def _chosen(self) -> list[Candidate]:
        """One image of each sample; the others are passed over."""
        if not self._more:
            return self._images
        best = {
            key: min(several.values(), key=lambda j: (self._images[j].rank, j))
            for key, several in self._more.items()
        }
        kept = []
        for number, image in enumerate(self._images):
            if best.get(image.key, number) == number:
                kept.append(image)
            else:
                self._pass_over(_kind(image.suffix), image.name)
        return kept

    def _label(self, image: Candidate) -> int | str | None:
        """The sample's label; None where it has none, or several of which none is plainest."""
        if not (known := self._labels.get(image.key)):
            return None
        if self._keys.label:
            return known.get(self._keys.label)
        for kind in (b"cls", b"json"):
            if kind in known:
                return known[kind]
            like = [value for suffix, value in known.items() if suffix.endswith(b"." + kind)]
            if len(like) > 1:
                self._pass_over(SEVERAL_LABELS, image.name)
            if like:
                return like[0] if len(like) == 1 else None
        return None

    def _doubt(self) -> str:
        """Why the samples cannot be told apart as they are, if they cannot."""
        several = {} if self._keys.image else self._more
        crowds = crowded([[self._images[j] for j in some.values()] for some in several.values()])
        if crowds:
            shown = [os.fsdecode(image.suffix) for image in crowds[0][:2]]
            self._examples = {"": printable(" and ".join(shown))}
        return doubt(crowds, self._dotted, self._keys.dots)


def _numbered(labels: Sequence[int | str | None]) -> tuple[np.ndarray, list[str]]:
    """The labels, int64, NO_LABEL for None; with names among them as numbers of the sorted names,
    which come too.
    """
    texts: list[str] = []
    if any(isinstance(label, str) for label in labels):
        texts = sorted({str(label) for label in labels if label is not None})
        index = {text: number for number, text in enumerate(texts)}
        labels = [None if label is None else index[str(label)] for label in labels]
    return np.array([NO_LABEL if label is None else label for label in labels], np.int64), texts


def _kind(suffix: bytes) -> str:
    return f".{printable(os.fsdecode(suffix))[:20]}" if suffix else "no suffix"


def _crc(file: BinaryIO, offset: int, size: int) -> int:
    file.seek(offset)
    left, crc = size, 0
    while left > 0 and (chunk := file.read(min(left, _CHUNK))):
        crc, left = zlib.crc32(chunk, crc), left - len(chunk)
    return crc
