"""Any source -> tar shards in the WebDataset layout, with an index beside each and a listing of
them all.

Every byte depends on the images and the options alone: not on workers, clocks or users, nor on how
often the packing was killed and begun again. A shard appears only by rename and is finished once
its index lies beside it.
"""

import json
import os
import tarfile
import time
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lookalike.data import cache
from lookalike.data.decode import BadImage, Opened
from lookalike.data.decoders.pixels import saved
from lookalike.data.folders.index import SUFFIXES, os_errors_as
from lookalike.data.images import Images
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.loader import one_by_one
from lookalike.data.passport import portable
from lookalike.data.sources import Source, Split
from lookalike.data.webdataset.listing import FORMAT, LISTING
from lookalike.data.webdataset.samples import NO_LABEL, Samples, parts, unsealed
from lookalike.errors import DataError, RunError, printable
from lookalike.folder import atomic_write, sweep, write_file
from lookalike.log import say

PLAN = "pack.json"
BAD = "bad_samples.jsonl"
_END = bytes(1024)
_SUFFIXES = {suffix.decode() for suffix in SUFFIXES}


@dataclass(frozen=True)
class Packing:
    """How shards are made: closed at `shard_mb` (10^6 bytes) or `shard_samples`, whichever comes
    first.

    `form`: keep (the bytes as they are; of images in memory PNG), jpeg or webp at `quality`; by
    default keep, and jpeg where `resize` brings the shorter side down to that many pixels. Raises
    DataError for what cannot be.
    """

    shard_mb: float = 512.0
    shard_samples: int | None = None
    resize: int | None = None
    form: Literal["keep", "jpeg", "webp"] | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        if self.form not in (None, "keep", "jpeg", "webp"):
            raise DataError(f"--format {self.form}: give keep, jpeg or webp")
        if self.form == "keep" and self.resize:
            raise DataError("--format keep: bytes cannot be kept and resized: leave one out")
        if not (self.shard_mb > 0 and (self.shard_samples or 1) > 0 and (self.resize or 1) > 0):
            raise DataError("--shard-size, --shard-count and --resize: give numbers above 0")
        if not 1 <= self.quality <= 100:
            raise DataError(f"--quality {self.quality}: give 1 to 100")

    @property
    def kept(self) -> bool:
        """Whether encoded images stay as they are."""
        return not self.resize and self.form in (None, "keep")


class Packed(NamedTuple):
    """One sample to be: suffix and bytes of its image, or the reason why there is none."""

    suffix: str
    data: bytes
    reason: str = ""


def pack(source: Source, target: Path, how: Packing, workers: int) -> None:
    """Writes the source's train and test set, whichever there are, into the folder `target`; goes
    on where it stopped.

    Raises DataError when the folder holds the shards of other images or options.
    """
    sets = dict(_sets(source))
    for images in sets.values():
        _refuse_squeezed(images, how)
    _tell_lost(sets)
    plan = {
        "format": FORMAT,
        **asdict(how),
        "data": {split: portable(each) for split, each in sets.items()},
    }
    with os_errors_as(target):
        target.mkdir(parents=True, exist_ok=True)
        _agree(target, plan)
        listed, bad = {}, []
        for split, images in sets.items():
            shards = list(_shards(split, images, target, how, workers))
            listed[split] = [
                {key: shard[key] for key in ("name", "samples", "bytes", "crc32")}
                for shard in shards
            ]
            bad += [{"split": split, **record} for shard in shards for record in shard["bad"]]
    classes = {split: images.classes for split, images in sets.items()}
    write_file(
        target / BAD, "".join(json.dumps(record, sort_keys=True) + "\n" for record in bad).encode()
    )
    listing = {"format": FORMAT, "classes": classes, "splits": listed}
    write_file(target / LISTING, json.dumps(listing, indent=1).encode())
    counts = ", ".join(
        f"{sum(s['samples'] for s in shards)} {split}" for split, shards in listed.items()
    )
    say(f"pack: {counts} images in {target}; {len(bad)} bad ones left out, see {BAD}")


def _sets(source: Source) -> Iterator[tuple[Split, Images]]:
    yield "train", source.split("train")
    try:
        test = source.split("test")
    except DataError as error:
        warnings.warn(f"no test set is packed: {error}", stacklevel=2)
        return
    yield "test", test


def _refuse_squeezed(images: Images, how: Packing) -> None:
    """Raises DataError where bits or channels would be lost: JPEG, WebP and what is resized have 8
    bits, of one channel or three. Files that are kept lose nothing, and are kept.
    """
    form = images.form
    if how.kept and isinstance(images, EncodedImages):
        return
    if form.depth != "uint8" or form.channels not in (1, 3):
        remedy = "keep the files: leave --format and --resize out"
        remedy = remedy if isinstance(images, EncodedImages) else "give them as files"
        what = f"{form.channels} channels of {form.depth}, and a packed image has 8 bits of 1 or 3"
        raise DataError(f"pack: {what}: {remedy}")


def _tell_lost(sets: dict[Split, Images]) -> None:
    """One line for what the images have and shards do not keep."""
    kinds = ("cameras", "roles", "pairs", "groups")
    lost = [
        kind for kind in kinds if any(getattr(images, kind) is not None for images in sets.values())
    ]
    if lost:
        warnings.warn(
            f"shards keep no {', '.join(lost)}: score from the images themselves", stacklevel=3
        )


def _agree(target: Path, plan: dict[str, Any]) -> None:
    """Writes the plan, or holds it against that of the earlier packing. Removes what a kill
    left.
    """
    path = target / PLAN
    if path.exists() and not _same(path.read_bytes(), plan):
        raise DataError(
            f"{target}: holds shards of other images, labels or options: choose another folder, or "
            "empty it"
        )
    sweep(target)
    write_file(path, json.dumps(plan, indent=1).encode())


def _same(data: bytes, plan: dict[str, Any]) -> bool:
    """Whether that is the plan; one of an earlier release says of the images their fingerprints
    alone.
    """
    try:
        earlier = json.loads(data)
        marks = earlier["data"]
        known = {
            split: each["data"] if isinstance(marks[split], str) else each
            for split, each in plan["data"].items()
        }
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    return bool(earlier == {**plan, "data": known})


def _shards(
    split: str, images: Images, target: Path, how: Packing, workers: int
) -> Iterator[dict[str, Any]]:
    """What is known of each shard in turn, written now or earlier."""
    start, stream, began = 0, None, time.monotonic()
    first = 0
    for number in range(len(images) + 1):
        if start >= len(images):
            return
        path = target / f"{split}-{number:06d}.tar"
        about = _finished(path, start)
        if about is None:
            if stream is None:
                stream, first, began = (
                    _encoded(images, start, how, workers),
                    start,
                    time.monotonic(),
                )
            about = _write(path, images, start, stream, how)
            rate = (about["next"] - first) / max(1e-9, time.monotonic() - began)
            say(f"pack: {path.name}, {about['next']} of {len(images)} images, {rate:.0f}/s")
        else:
            stream = None
        start = about["next"]
        yield about


def _finished(path: Path, start: int) -> dict[str, Any] | None:
    """What the index beside a shard says, if both are whole and the shard begins with the sample
    `start`.
    """
    try:
        found = unsealed(Path(f"{path}.idx").read_bytes(), {"bytes": path.stat().st_size})
    except OSError:
        return None
    return (
        dict(found.about)
        if found and found.about.get("first") == start < found.about["next"]
        else None
    )


def _write(
    path: Path, images: Images, start: int, stream: Iterator[Packed], how: Packing
) -> dict[str, Any]:
    """One shard and its index; `stream` gives the images from `start` on."""
    rows: list[tuple[bytes, int, int, int, int]] = []
    bad, at, crc, i = [], 0, 0, start
    with atomic_write(path) as file:
        while (
            i < len(images)
            and at < how.shard_mb * 1e6
            and len(rows) < (how.shard_samples or len(images))
        ):
            packed = _next(stream)
            if packed.reason:
                bad.append(
                    {"sample": i, "path": printable(images.name(i)), "reason": packed.reason}
                )
            else:
                name = f"{i:09d}{packed.suffix}"
                label = NO_LABEL if images.labels is None else int(images.labels[i])
                rows.append(
                    (name.encode(), at + 512, len(packed.data), zlib.crc32(packed.data), label)
                )
                members = member(name, packed.data)
                members += member(f"{i:09d}.cls", b"%d" % label) if label != NO_LABEL else b""
                file.write(members)
                at, crc = at + len(members), zlib.crc32(members, crc)
            i += 1
        file.write(_END)
    about = {
        "name": path.name,
        "bytes": at + len(_END),
        "crc32": zlib.crc32(_END, crc),
        "samples": len(rows),
    }
    about |= {"first": start, "next": i, "bad": bad}
    columns = [np.array([row[k] for row in rows], np.int64) for k in range(1, 5)]
    found = Samples(
        [row[0] for row in rows], columns[0], columns[1], columns[2], columns[3], {}, {}
    )
    write_file(Path(f"{path}.idx"), cache.seal(parts(found, about)))
    return about


def member(name: str, data: bytes) -> bytes:
    """Header, bytes and padding: nobody's, of 1970."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)


def _next(stream: Iterator[Packed]) -> Packed:
    try:
        return next(stream)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RunError(
            "pack: a worker died: out of memory? the same command with fewer --workers goes on"
        ) from error


def _encoded(images: Images, start: int, how: Packing, workers: int) -> Iterator[Packed]:
    """The samples from `start` on, in order, made by `workers` processes (0: in this one)."""
    order, ahead = range(start, len(images)), 8 if workers else None
    return one_by_one(
        _Encoder(images, how), sampler=order, num_workers=workers, prefetch_factor=ahead
    )


class _Encoder(Dataset[Packed]):
    """Makes one sample an item."""

    def __init__(self, images: Images, how: Packing) -> None:
        self.images, self.how = images, how

    def __getitem__(self, i: int) -> Packed:
        try:
            return encode(self.images, i, self.how)
        except BadImage as error:
            return Packed("", b"", error.reason)


def encode(images: Images, i: int, how: Packing) -> Packed:
    """The i-th image as it will be packed. Raises BadImage when it cannot be decoded, kept ones
    too.
    """
    if isinstance(images, EncodedImages):
        data, name = images.contents(i), images.name(i)
        image_CHW = Opened(data, name, images.form, images.max_pixels).pixels()
        if how.kept:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a name is no path of this machine)
            return Packed(suffix if suffix in _SUFFIXES else ".jpg", data)
    else:
        image_CHW = images.open(i).pixels()
    if how.resize and min(image_CHW.shape[1:]) > how.resize:
        image_CHW = tv.resize(image_CHW, [how.resize], InterpolationMode.BICUBIC, antialias=True)
    if how.form == "webp":
        return Packed(".webp", saved(image_CHW, "WEBP", quality=how.quality))
    if how.form == "jpeg" or (how.resize and how.form is None):
        return Packed(".jpg", saved(image_CHW, "JPEG", quality=how.quality))
    return Packed(".png", saved(image_CHW, "PNG"))
