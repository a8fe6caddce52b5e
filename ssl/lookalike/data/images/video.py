"""Frames of video clips as images."""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lookalike.data.clips import BadClip, Clip, OpenClip
from lookalike.data.decode import BadImage, cut
from lookalike.data.images.arrays import DecodedImage
from lookalike.data.images.contract import NOTHING, Annotated, Annotations, Reading
from lookalike.geometry import central, sides

_OPEN = 8


class ClipFile(NamedTuple):
    """A clip: its path below the root, bytes of its file, and what it is."""

    path: bytes
    size: int
    clip: Clip


class VideoImages(Annotated):
    """Frames of clips below `root`, RGB, 8 bits: of row i that of `clips[clip_N[i]]`, int64, at
    `number_N[i]`, int64, times `every` seconds after its first.
    """

    def __init__(
        self,
        root: str,
        clips: Sequence[ClipFile],
        every: Fraction,
        rows: tuple[np.ndarray, np.ndarray],
        reading: Reading,
        annotations: Annotations = NOTHING,
    ) -> None:
        self._root, self._clips, self._every, self._reading = root, clips, every, reading
        self._clip_N, self._number_N = rows
        self.form, self.annotations = reading.form, annotations
        self.shape = (reading.form.channels, *sides(reading.size))
        self._forget()

    def _forget(self) -> None:
        """Nothing is open; neither positions in files nor locks may be shared with a fork."""
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[int, OpenClip] = OrderedDict()

    def __len__(self) -> int:
        return len(self._clip_N)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the clips' paths, bytes and times, and of the frames' times."""
        digest = hashlib.sha256(repr((self._every, len(self._clips))).encode())
        for file in self._clips:
            digest.update(file.path + b"\0" + repr((file.size, *file.clip)).encode())
        digest.update(self._clip_N.tobytes() + self._number_N.tobytes())
        return digest.hexdigest()

    @property
    def order(self) -> str:
        """The fingerprint tells it."""
        return self.fingerprint

    def name(self, i: int) -> str:
        """`ROOT/clip.mp4@12.000s`."""
        i = range(len(self))[i]
        path = os.fsdecode(self._clips[self._clip_N[i]].path)
        return f"{self._root}/{path}@{float(self._seconds(i)):.3f}s"

    def _seconds(self, i: int) -> Fraction:
        return int(self._number_N[i]) * self._every

    def open(self, i: int) -> DecodedImage:
        """The frame at full size. Raises BadImage."""
        i = range(len(self))[i]
        if self._process != os.getpid():
            self._forget()
        c = int(self._clip_N[i])
        try:
            with self._lock:
                pixels_HWC = self._opened(c).frame(self._clips[c].clip, self._seconds(i))
            return DecodedImage(torch.from_numpy(pixels_HWC).permute(2, 0, 1))
        except BadClip as error:
            reason = str(error)
        raise BadImage(self.name(i), reason)

    def _opened(self, c: int) -> OpenClip:
        """The open clip; a few are."""
        found = self._open.pop(c, None)
        if found is None:
            path = f"{self._root}/{os.fsdecode(self._clips[c].path)}"
            found = OpenClip(path, self._reading.max_pixels)
        self._open[c] = found
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)[1].close()
        return found

    def read(self, i: int, out_CHW: Tensor | None = None) -> Tensor:
        """Its canvas, uint8 (3, H, W), in `out_CHW` if given. Raises BadImage."""
        out_CHW = torch.empty(self.shape, dtype=torch.uint8) if out_CHW is None else out_CHW
        frame_CHW = self.open(i).pixels()
        height, width = frame_CHW.shape[1:]
        whole = self._reading.fit == "squash"
        box = (0, 0, height, width) if whole else central(height, width, self.shape[1:])
        return cut(frame_CHW, box, out_CHW)

    def rows(self, ids_K: Tensor) -> "VideoImages":
        """Some of them, int64 (K,)."""
        ids, known = ids_K.numpy(), self.annotations.of(ids_K)
        rows = (self._clip_N[ids], self._number_N[ids])
        return VideoImages(self._root, self._clips, self._every, rows, self._reading, known)

    def __getstate__(self) -> dict[str, Any]:
        left = ("_open", "_lock", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
