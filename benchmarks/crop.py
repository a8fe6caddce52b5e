"""What crops on the host cost the processor, and what crops from a canvas lose: pretrain.crop_on
host against device.

Cost: processor time per image of a loader process, two views of 224 by Barlow Twins' law (and ten
by DINO's), in turn. Loss: the same boxes of the central square cut from the canvas of 256 and from
the full-size image; how sharp the first is beside the second (mean absolute difference of
neighbouring pixels), and their distance, by the box's share of the area.

    python benchmarks/crop.py [IMAGES] [ROUNDS]
"""

import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from decode import compare, spread, write
from torch import Tensor

from lookalike.data.decode import cut
from lookalike.data.images import FileImages, Reading
from lookalike.data.reader import HostCrops, Reader
from lookalike.geometry import PixelFormat
from lookalike.views import Asymmetric, MultiCrop, scale
from lookalike.views.resample import crop_resize, draw_boxes

SHARES = [(0.08, 0.2), (0.2, 0.5), (0.5, 1.0)]


def filling(images: FileImages, host_crops: HostCrops | None) -> Callable[[], None]:
    """What a loader process does for a batch."""
    reader = Reader(images, 0, host_crops)
    parts = [torch.empty(len(images), *shape, dtype=torch.uint8) for shape in reader.shapes]
    return lambda: print(end="".join(bad.path for bad in reader.fill(0, range(len(images)), parts)))


def sharpness(x_CHW: Tensor) -> float:
    """Mean absolute difference of neighbours, in 0 … 1."""
    return float((x_CHW.diff(dim=1).abs().mean() + x_CHW.diff(dim=2).abs().mean()) / 2)


def pairs(images: FileImages, share: tuple[float, float]) -> list[tuple[Tensor, Tensor]]:
    """(view from the canvas, the same view from the full-size image), floats in 0 … 1."""
    made = []
    for i in range(len(images)):
        whole_CHW, canvas_CHW = images.open(i).pixels(), images.read(i)
        height, width = whole_CHW.shape[1:]
        side = min(height, width)
        box_14 = draw_boxes(torch.tensor([i]), (0, 0, 0), 256, 256, share, (3 / 4, 4 / 3))
        top, left, h, w = (round(n * side / 256) for n in box_14[0].tolist())
        full = cut(
            whole_CHW,
            (top + (height - side) // 2, left + (width - side) // 2, h, w),
            torch.empty(3, 224, 224, dtype=torch.uint8),
        )
        made.append((crop_resize(scale(canvas_CHW[None]), box_14, 224)[0], scale(full)))
    return made


def main(count: int, rounds: int) -> None:
    """Prints both tables and the ratio of the costs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images = FileImages(folder, write(Path(folder), count), Reading(256, PixelFormat(3)))
        two, ten = HostCrops(Asymmetric(), 224), HostCrops(MultiCrop(), 224)
        sides = {"device": None, "host, 2 views": two, "host, 2 + 8 views": ten}
        found = compare(
            {name: filling(images, host_crops) for name, host_crops in sides.items()}, count, rounds
        )
        print(f"{count} JPEGs of 500 × 375; ms of processor time per image")
        for name, times in found.items():
            print(f"  {name:<18} {spread(times)}")
        for share in SHARES:
            views = pairs(images, share)
            sharp = statistics.median(sharpness(a) / sharpness(b) for a, b in views)
            decibels = statistics.median(
                float(-10 * (a - b).square().mean().log10()) for a, b in views
            )
            print(
                f"  boxes of {share[0]:.0%} to {share[1]:.0%}: sharpness × {sharp:.2f}, "
                f"{decibels:.1f} dB apart"
            )
    ratios = [b / a for a, b in zip(found["device"], found["host, 2 views"], strict=True)]
    print(f"host / device = {spread(ratios)}")


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*(words + [32, 9][len(words) :]))
