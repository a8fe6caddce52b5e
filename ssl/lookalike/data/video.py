"""A folder of video clips as a source of images: frames every so many seconds."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from lookalike.data import cache
from lookalike.data.clips import BadClip, Clip, look
from lookalike.data.decode import HEAD, is_image
from lookalike.data.folders.allfiles import files_below
from lookalike.data.folders.index import top_folders, units
from lookalike.data.images import Annotations, Images, file_states
from lookalike.data.images.contract import Fit, Reading
from lookalike.data.images.video import ClipFile, VideoImages
from lookalike.data.inventory import Inventory
from lookalike.data.outside import opened
from lookalike.data.reading import Canvas, canvas_for
from lookalike.data.sources import Split, checked, folder_at
from lookalike.data.webdataset.listing import split_folders
from lookalike.errors import DataError, printable
from lookalike.geometry import PixelFormat
from lookalike.recipe import Size

MOST_FRAMES = 100_000_000
_SUFFIXES = frozenset(b".mp4 .m4v .mkv .webm .avi .mov .mpg .mpeg .ts .m2ts .mts .flv".split())
_SUFFIXES |= frozenset(b".ogv .wmv .asf .3gp .vob .divx".split())
Answer = Sequence[int] | str
"""Of a file: the numbers of a Clip, or why it is none."""
_THREADS = 8


class Video:
    """A folder of video clips (MP4, MOV, MKV, WebM, AVI, MPEG, …, known by their content) as frames
    every so many seconds, RGB of 8 bits. Needs the extra `video`.

    `every`: seconds from one image to the next, each the first frame at or after its time. Frames
    of one clip are a group and never in both sets. PATH/train and PATH/test (or val) hold the
    splits, also called training, testing, valid and validation, in any case; else a hash of each
    clip's relative path splits them. `labels`: as of `folder`, the subfolders with clips are the
    classes. `canvas`, `fit`: as of `folder`. `max_pixels`: how many pixels a frame may have, by
    default 40 million.
    """

    channels = 3

    holds_out = True

    def __init__(
        self,
        path: str,
        every: Annotated[float, Field(ge=1e-3, le=86_400)] = 1.0,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        labels: Literal["auto", "folders", "none"] = "auto",
        canvas: Canvas | None = None,
        fit: Fit = "crop",
        max_pixels: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self._path, self._test_fraction, self._labels = path, test_fraction, labels
        self._every = Fraction(str(every))  # of 0.1 a tenth, not the float beside it
        self._canvas, self._fit, self._max_pixels = canvas, fit, max_pixels
        self.inventory = Inventory()
        self._known: dict[str, list[ClipFile]] = {}

    def split(self, name: Split, size: Size | None = None) -> Images:
        wanted = checked(name)
        root = str(folder_at(self._path, "give the folder that holds the clips"))
        inner = split_folders(root, self.inventory.leave_out)
        if not inner:
            files = self._files(root)
            classes = self._classes(root, files)
            hashes_N = units([file.path for file in files], f"video\0{os.path.realpath(root)}")
            share = 0.0 if name == "all" else self._test_fraction
            mask_N = (hashes_N < share) == (wanted == "test")
            return self._images(root, files, classes, mask_N, wanted, size)
        place = inner.get(wanted, inner.get("val") if wanted == "test" else None)
        if place is None:
            raise DataError(f"{printable(root)}: no test or val folder beside train: add one")
        classes = self._classes(inner["train"], self._files(inner["train"]))
        files = self._files(place)
        if wanted == "test" and classes:
            classes = self._classes(place, files, classes)
        return self._images(place, files, classes, np.ones(len(files), bool), wanted, size)

    def _classes(
        self, root: str, files: Sequence[ClipFile], known: tuple[bytes, ...] = ()
    ) -> tuple[bytes, ...]:
        """The folders of the clips, those `known` first; none where clips lie in none."""
        if self._labels == "none":
            return ()
        names = top_folders([file.path for file in files])
        if isinstance(names, dict):
            labelled = known or len(names) >= 2 or self._labels == "folders"
            return (*known, *sorted(names.keys() - set(known))) if labelled else ()
        if self._labels == "folders":
            place = printable(f"{root}/{os.fsdecode(names)}")
            raise DataError(f"{place}: in no class folder; move it into one, or set labels to none")
        return ()

    def _images(
        self,
        root: str,
        files: Sequence[ClipFile],
        classes: tuple[bytes, ...],
        mask_N: np.ndarray,
        wanted: Split,
        size: Size | None,
    ) -> VideoImages:
        counts = [file.clip.frames(self._every) for file in files]
        if sum(counts) > MOST_FRAMES:
            what = f"{sum(counts):,} frames, more than the {MOST_FRAMES:,} allowed"
            raise DataError(f"{printable(root)}: {what}: raise data.every")
        counts_N = np.where(mask_N, counts, 0)
        clip_N = np.repeat(np.arange(len(files)), counts_N)
        starts_N = np.cumsum(counts_N) - counts_N
        number_N = np.arange(len(clip_N)) - starts_N[clip_N]
        if not len(clip_N):
            which = f"none of its {len(files)} clips is in the {wanted} set"
            raise DataError(f"{printable(root)}: {which}; add clips, or change test_fraction")
        form = PixelFormat(self.channels)
        canvas = self._canvas or canvas_for(size or 224)
        reading = Reading(canvas, form, self._fit, self._max_pixels)
        known = Annotations(groups=torch.from_numpy(clip_N))
        if classes:
            index = {name: label for label, name in enumerate(classes)}
            of_clip = [index.get(file.path.partition(b"/")[0], -1) for file in files]
            labels_N = torch.tensor(of_clip)[known.groups]
            known = known._replace(labels=labels_N, classes=tuple(map(os.fsdecode, classes)))
        return VideoImages(root, files, self._every, (clip_N, number_N), reading, known)

    def _files(self, root: str) -> list[ClipFile]:
        """The clips below a folder; other files, and damaged clips, are left out."""
        if root not in self._known:
            paths = files_below(root, self.inventory.leave_out)
            found, reasons = _looked(root, paths, self._max_pixels)
            for path, reason in reasons:
                self.inventory.leave_out(reason, f"{root}/{os.fsdecode(path)}")
            if not found:
                raise DataError(f"{printable(root)}: no clips in it or below: check the path")
            self._known[root] = found
        return self._known[root]


def _looked(
    root: str, paths: Sequence[bytes], max_pixels: int | None
) -> tuple[list[ClipFile], list[tuple[bytes, str]]]:
    """What each file is, remembered for as long as its bytes and its time stay: clips, and why the
    others are none.
    """
    states = file_states(root, paths)
    key = f"clips\0{max_pixels}\0{os.path.realpath(root)}"
    with cache.locked(key):  # the ranks of a machine look once
        kept = _kept(key)
        known = {
            path: kept[path, state]
            for path, state in zip(paths, states, strict=True)
            if (path, state) in kept
        }
        new = [path for path in paths if path not in known]
        with ThreadPoolExecutor(_THREADS) as pool:
            known |= dict(zip(new, pool.map(partial(_answer, root, max_pixels), new), strict=True))
        if new:
            answers = [known[path] for path in paths]
            rows = [[os.fsdecode(p), *s, a] for p, s, a in zip(paths, states, answers, strict=True)]
            cache.store(key, [json.dumps(rows).encode()])
    found, reasons = [], []
    for path, (size, _) in zip(paths, states, strict=True):
        answer = known[path]
        if isinstance(answer, str):
            reasons.append((path, answer))
        else:
            found.append(ClipFile(path, size, Clip(*answer)))
    return found, reasons


def _kept(key: str) -> dict[tuple[bytes, tuple[int, int]], Answer]:
    """What was found of files with these bytes and times."""
    (part,) = cache.load(key) or [b"[]"]
    return {
        (os.fsencode(path), (size, time)): answer for path, size, time, answer in json.loads(part)
    }


def _answer(root: str, max_pixels: int | None, path: bytes) -> Answer:
    """What the file is as a clip, or why it is none."""
    name, suffix = f"{root}/{os.fsdecode(path)}", os.path.splitext(path)[1].lower()  # noqa: PTH122
    other = f"{printable(os.fsdecode(suffix))}" or "no suffix"
    try:
        with opened(name) as file:
            if is_image(file.read(HEAD)):
                return other
        return list(look(name, max_pixels))
    except BadClip as error:
        return f"clip: {error}" if suffix in _SUFFIXES else other
