"""How many images a second a machine reads and decodes: whether the data or the network will limit
a training.
"""

import time
from typing import NamedTuple

import torch

from lookalike.data import nvjpeg
from lookalike.data.decode import BadImage
from lookalike.data.glimpse import spread
from lookalike.data.images import ArrayImages, Images
from lookalike.data.images.encoded import EncodedImages
from lookalike.data.loader import cores
from lookalike.data.readable import is_far
from lookalike.data.reader import Reader

SECONDS = 0.25
"""Of processor time that a look takes at most, but for one image."""
LOOKED_AT = 64


class Pace(NamedTuple):
    """Images a second: of one core by its processor time, which waiting for a disk is not; of so
    many `cores`, if the disk keeps up; and of nvJPEG, 0 where there is none.
    """

    core: float
    cores: int
    device: float = 0.0

    @property
    def line(self) -> str:
        """`data: 480 images/s a core, 16 cores: about 7,700 images/s`."""
        whole = round(self.core * self.cores, -2) if self.core * self.cores > 1000 else 0
        about = f"{whole or self.core * self.cores:,.0f}"
        many = "cores" if self.cores > 1 else "core"
        by_gpu = f"; nvJPEG (decode: device) {self.device:,.0f}" if self.device else ""
        return (
            f"data: {self.core:,.0f} images/s a core, {self.cores} {many}: about {about} images/s"
            f"{by_gpu}"
        )


def pace(images: Images) -> Pace | None:
    """By a look at some images, evenly spread, as canvases; None of images in memory or far away,
    and where none can be read.
    """
    if isinstance(images, ArrayImages) or is_far(images) or not len(images):
        return None
    canvas_CHW = torch.empty(images.shape, dtype=images.form.dtype)
    ids = spread(len(images), LOOKED_AT)
    began = time.process_time()
    done = int(_read(images, ids[0], canvas_CHW))  # whose decoder is loaded now
    if time.process_time() - began < SECONDS:
        done, began = 0, time.process_time()
        for i in ids:
            done += _read(images, i, canvas_CHW)
            if time.process_time() - began > SECONDS:
                break
    taken = time.process_time() - began
    if not done:
        return None
    return Pace(done / max(taken, 1e-6), cores(), _of_device(images, ids))


def _read(images: Images, i: int, canvas_CHW: torch.Tensor) -> bool:
    try:
        images.read(i, canvas_CHW)
    except BadImage:
        return False
    return True


def _of_device(images: Images, ids: list[int]) -> float:
    """By this process's GPU; 0 where it is none, or decodes none of these."""
    if nvjpeg.unusable() or not isinstance(images, EncodedImages):
        return 0.0
    device = torch.device("cuda", torch.cuda.current_device())
    return of_decoder(images, ids, device, nvjpeg.on(device))


def of_decoder(
    images: EncodedImages, ids: list[int], device: torch.device, decode: nvjpeg.Decode
) -> float:
    """Images a second that become canvases on a device, read already; 0 where it refuses them."""
    reader = Reader(images, 0)
    part_BCHW = torch.empty(len(ids), *images.shape, dtype=images.form.dtype)
    found = nvjpeg.read(reader, 0, ids, [part_BCHW])
    if not found.jpegs:
        return 0.0
    rows = [jpeg.row for jpeg in found.jpegs]
    finish, ids = nvjpeg.Finisher(reader, device, decode), [ids[row] for row in rows]
    part_BCHW = part_BCHW[rows]
    jpegs = [jpeg._replace(row=k) for k, jpeg in enumerate(found.jpegs)]
    for _ in range(2):  # the first makes the decoder
        began = time.perf_counter()
        finish(0, ids, part_BCHW, nvjpeg.Read([], jpegs))
        taken = time.perf_counter() - began
    return len(ids) / taken
