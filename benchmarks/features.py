"""Images through a frozen network: what keeping the features costs beside a plain loop, and what
opening them again does.

    OMP_NUM_THREADS=1 python benchmarks/features.py [IMAGES] [ROUNDS] [WIDTH]

A ResNet-18 that nobody trained sees IMAGES random images of 32 pixels, in this process. The loop:
torch's DataLoader in batches of 256, `model(x)` under inference_mode, `torch.cat`: the usual code.
Ours: `extracted` with a folder and without, to the disk with checksums. Alternating, processor
time, medians. Then a store of a million rows of WIDTH (64) is written, opened and verified: time,
and how much of this process's own memory (anonymous, not the page cache) it took. Printed last:
the loop's time / ours.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lookalike.data.images import ArrayImages
from lookalike.evaluation.blocks import BLOCK, Form
from lookalike.evaluation.features import Embed, Extracting, embedder, extracted
from lookalike.evaluation.store import Made, Stored, stored
from lookalike.models import Architecture

SIDE = 32


@torch.inference_mode()
def loop(function: Embed, images_NCHW: Tensor) -> Tensor:
    """As a script would."""
    batches = DataLoader(TensorDataset(images_NCHW), batch_size=256)
    return torch.cat([function(x_BCHW) for (x_BCHW,) in batches])


def ours(function: Embed, images_NCHW: Tensor, folder: Path | None) -> Tensor:
    """The same, kept or not."""
    images = ArrayImages(images_NCHW)
    how = Extracting(workers=0)
    return extracted(function, images, digest="", folder=folder, how=how, labelled=False).x_ND


def seconds(work: Callable[[], object]) -> float:
    """Of a core."""
    began = time.process_time()
    work()
    return time.process_time() - began


def own_memory() -> int:
    """Bytes that are this process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def compared(count: int, rounds: int) -> None:
    """The loop, and ours twice, in turn."""
    torch.manual_seed(0)
    backbone = Architecture("resnet18", SIDE).build()
    function = embedder(backbone, backbone.architecture)
    images_NCHW = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8)
    times: dict[str, list[float]] = {"loop": [], "ours": [], "ours, kept": []}
    with tempfile.TemporaryDirectory() as place:
        for n in range(rounds):
            times["loop"].append(seconds(partial(loop, function, images_NCHW)))
            times["ours"].append(seconds(partial(ours, function, images_NCHW, None)))
            folder = Path(place, str(n))
            times["ours, kept"].append(seconds(partial(ours, function, images_NCHW, folder)))
        again = seconds(partial(ours, function, images_NCHW, Path(place, "0")))
    for name, all_of_them in times.items():
        middle = statistics.median(all_of_them)
        told = f"{middle:.2f} s ({min(all_of_them):.2f} … {max(all_of_them):.2f})"
        print(f"{name:<12}{count / middle:>8.0f} images/s  {told}")
    print(f"opened again, with its checksums: {again:.3f} s")
    for name in ("ours", "ours, kept"):
        ratios = sorted(a / b for a, b in zip(times["loop"], times[name], strict=True))
        print(
            f"loop / {name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"
        )


def million(width: int) -> None:
    """A large store, written and opened."""
    form = Form(1_000_000, "float32")
    one_KD = torch.rand(BLOCK, width)

    def make(numbers: Sequence[int]) -> Iterator[Made]:
        yield from (Made(n, (), one_KD[: len(form.images_of(n))]) for n in numbers)

    found: list[Stored] = []
    with tempfile.TemporaryDirectory() as place:
        for what in ("written", "opened"):
            before = own_memory()
            spent = seconds(lambda: found.append(stored(Path(place, "f"), form, make)))
            size = found[-1].x_ND.numel() * 4
            grown = (own_memory() - before) / 1e6
            print(f"{size / 1e6:.0f} MB {what}: {spent:.2f} s of a core, {grown:.0f} MB of memory")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    compared(*(numbers[:2] + [1024, 5][len(numbers[:2]) :]))
    million(*(numbers[2:3] or [64]))
