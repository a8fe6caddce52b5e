"""Host work of one image and its two views: (the peer's loader) / (ours), processor time, in one
run.

Ours: open, decode once, resize to a canvas in a slot; the views are the device's work. With
`decode: device` the host only reads and judges the files (the last line; what the GPU then does is
not measured here). The peer's, written from the description of Barlow Twins (arXiv 2103.03230,
appendix A) with torchvision's classes: Pillow decodes, then two full augmentations on the
processor, collated. The images are JPEGs of 500 × 375, made here.

    python benchmarks/decode.py [IMAGES] [ROUNDS]
"""

import io
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms

from lookalike.data import nvjpeg
from lookalike.data.decode import Opened, contents
from lookalike.data.images import FileImages, Reading
from lookalike.data.reader import Reader
from lookalike.geometry import PixelFormat

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth noise of many scales, as sharp as a photograph: uint8 (H, W, 3)."""
    generator = torch.Generator().manual_seed(seed)
    total_3HW = torch.zeros(1, 3, height, width)
    for octave in range(2, 9):
        sides = [max(2, side * 2**octave // 512 + 2) for side in (height, width)]
        noise = torch.randn(1, 3, *sides, generator=generator) * 0.9**octave
        total_3HW += torch.nn.functional.interpolate(
            noise, (height, width), mode="bicubic", align_corners=True
        )
    total_3HW = (total_3HW - total_3HW.mean()) / total_3HW.std() * 55 + 120
    image: np.ndarray = total_3HW[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return image


def write(folder: Path, count: int, height: int = 375, width: int = 500) -> list[str]:
    """Names of that many JPEGs."""
    for i in range(count):
        Image.fromarray(texture(height, width, i)).save(folder / f"{i:03d}.jpg", quality=92)
    return sorted(path.name for path in folder.iterdir())


class Blur:
    """PIL's Gaussian blur with a radius drawn from .1 to 2, for the share `p` of the images."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return (
            image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))
            if random.random() < self.p
            else image
        )


class Solarize:
    """Inverts what is brighter than 128, for the share `p` of the images."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def augmentation(blur: float, solarize: float) -> transforms.Compose:
    """One of the peer's two views."""
    jitter = transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    steps = [
        transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.RandomHorizontalFlip(0.5),
        transforms.RandomApply([jitter], p=0.8),
        transforms.RandomGrayscale(0.2),
        Blur(blur),
        Solarize(solarize),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return transforms.Compose(steps)


def peer(folder: Path, names: list[str]) -> Callable[[], None]:
    """Opens, decodes, augments twice and collates."""
    views = augmentation(1.0, 0.0), augmentation(0.1, 0.2)

    def work() -> None:
        made = []
        for name in names:
            with (folder / name).open("rb") as file:
                image = Image.open(io.BytesIO(file.read())).convert("RGB")
            made.append([view(image) for view in views])
        for v in range(2):
            torch.stack([pair[v] for pair in made])

    return work


def ours(folder: Path, names: list[str]) -> Callable[[], None]:
    """What a loader process does for a batch."""
    reader = Reader(FileImages(folder, names, Reading(256, PixelFormat(3))), seed=0)
    slot = torch.empty(len(names), *reader.shapes[0], dtype=torch.uint8)
    return lambda: print(end="".join(bad.path for bad in reader.fill(0, range(len(names)), [slot])))


def sent(folder: Path, names: list[str]) -> Callable[[], None]:
    """What a loader process does for a batch that nvJPEG decodes (`decode: device`)."""
    reader = Reader(FileImages(folder, names, Reading(256, PixelFormat(3))), seed=0)
    slot = torch.empty(len(names), *reader.shapes[0], dtype=torch.uint8)
    return lambda: print(end="" if nvjpeg.read(reader, 0, range(len(names)), [slot]).jpegs else "?")


def bare(folder: Path, names: list[str]) -> Callable[[], None]:
    """Reading and decoding alone: the limit of any loader that decodes the whole image."""

    def work() -> None:
        for name in names:
            Opened(contents(folder / name), name, PixelFormat(3)).pixels()

    return work


def compare(
    sides: dict[str, Callable[[], None]], images: int, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds of processor time per image, the sides in turn."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            began = time.process_time()
            work()
            if turn:  # the first is for warming up
                found[name].append(1e3 * (time.process_time() - began) / images)
    return found


def spread(times: list[float]) -> str:
    """`median (lower quartile to upper)`."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main(images: int, rounds: int) -> None:
    """Prints milliseconds per image of each side, then the ratio."""
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write(folder, images)
        size = sum((folder / name).stat().st_size for name in names) / images
        sides = {
            "peer": peer(folder, names),
            "ours": ours(folder, names),
            "decoding alone": bare(folder, names),
            "decode: device": sent(folder, names),
        }
        found = compare(sides, images, rounds)
    print(
        f"{images} JPEGs of 500 × 375, {size / 1e3:.0f} kB each; ms of processor time per image, "
        "two views"
    )
    for side, times in found.items():
        print(f"  {side:<15} {spread(times)}")
    ratios = [a / b for a, b in zip(found["peer"], found["ours"], strict=True)]
    limit = statistics.median(found["peer"]) / statistics.median(found["decoding alone"])
    print(f"decoding alone would make it {limit:.1f}")
    print(f"peer / ours = {spread(ratios)}")


if __name__ == "__main__":
    words = [int(word) for word in sys.argv[1:]]
    main(*(words + [32, 9][len(words) :]))
