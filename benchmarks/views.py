"""Fused views beside kornia's sequential and torchvision's transforms, same operations, one
process.

    python benchmarks/views.py kornia|torchvision|classify [size] [batch] [rounds]

Both make the two views of Barlow Twins (Asymmetric) of a uint8 canvas 8/7 as large, normalised,
float32; with `classify` the one view of Classification, RandAugment and erasing, beside
torchvision's. Ours twice: by torch's form and, where it is installed, by the native kernel. A round
is one batch by each, in alternation; the last lines are the medians of the rounds' ratios.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import kornia.augmentation as K
import torch
from torch import Tensor
from torchvision.transforms import v2

from lookalike.views import Asymmetric, Classification, Symmetric, native

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERNEL = 13
BLUR, SOLARIZE = (1.0, 0.1), (0.0, 0.2)


def ours(size: int, policy: Symmetric, by_kernel: bool) -> Callable[[Tensor, int], list[Tensor]]:
    """A policy of views/, by the native kernel or by torch's form."""

    def views(canvas_BCHW: Tensor, epoch: int) -> list[Tensor]:
        os.environ[native.SWITCH] = str(int(by_kernel))
        ids_B = torch.arange(len(canvas_BCHW))
        return policy(canvas_BCHW, ids_B, seed=0, epoch=epoch, size=size, mean=MEAN, std=STD)

    return views


def kornia(size: int) -> Callable[[Tensor, int], list[Tensor]]:
    """Its own sequential, a batch at a time."""
    policies = [
        K.AugmentationSequential(
            K.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bicubic"),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((KERNEL, KERNEL), (0.1, 2.0), p=blur),
            K.RandomSolarize(thresholds=0.0, additions=0.0, p=solarize),
            K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
            data_keys=["input"],
        )
        for blur, solarize in zip(BLUR, SOLARIZE, strict=True)
    ]

    def views(canvas_BCHW: Tensor, epoch: int) -> list[Tensor]:
        x_BCHW = canvas_BCHW.float() / 255
        return [policy(x_BCHW) for policy in policies]

    return views


def torchvision(size: int) -> Callable[[Tensor, int], list[Tensor]]:
    """Its transforms, an image at a time, as a data set's worker applies them."""
    policies = [
        v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, scale=(0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(KERNEL, (0.1, 2.0))], p=blur),
                v2.RandomSolarize(128, p=solarize),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        for blur, solarize in zip(BLUR, SOLARIZE, strict=True)
    ]

    def views(canvas_BCHW: Tensor, epoch: int) -> list[Tensor]:
        return [torch.stack([policy(x) for x in canvas_BCHW]) for policy in policies]

    return views


def torchvision_classify(size: int) -> Callable[[Tensor, int], list[Tensor]]:
    """Its transforms for a classifier, an image at a time."""
    policy = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(
                interpolation=v2.InterpolationMode.BILINEAR, fill=[255 * mean for mean in MEAN]
            ),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(0.25, value="random"),
        ]
    )

    def views(canvas_BCHW: Tensor, epoch: int) -> list[Tensor]:
        return [torch.stack([policy(x) for x in canvas_BCHW])]

    return views


PEERS = {
    "kornia": (Asymmetric(), kornia),
    "torchvision": (Asymmetric(), torchvision),
    "classify": (Classification(), torchvision_classify),
}


def seconds(views: Callable[[Tensor, int], list[Tensor]], canvas_BCHW: Tensor, epoch: int) -> float:
    """Time of one batch, by the wall; of one thread the processor's, which no other process
    lengthens.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began = clock()
    made = views(canvas_BCHW, epoch)
    made[-1].sum().item()
    return clock() - began


def main(peer: str, size: int = 224, batch: int = 64, rounds: int = 15) -> None:
    """Alternates and prints."""
    torch.manual_seed(0)
    side = round(size * 8 / 7)
    coarse = torch.rand(batch, 3, side // 8, side // 8)
    canvas = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    canvas_BCHW = (canvas * 235 + 20 * torch.rand(batch, 3, side, side)).to(torch.uint8)
    policy, its_views = PEERS[peer]
    forms = ["torch", "native"] if native.available() else ["torch"]
    makers = [ours(size, policy, form == "native") for form in forms]
    sides = [partial(seconds, views, canvas_BCHW) for views in (its_views(size), *makers)]
    for one in sides:
        one(0)
    times = [[one(r) for one in sides] for r in range(1, rounds + 1)]
    its, *mine = (statistics.median(column) * 1000 / batch for column in zip(*times, strict=True))
    views = "one view" if policy.total == 1 else "two views"
    what = f"{size} pixels, batch {batch}, {torch.get_num_threads()} threads, {views}"
    print(f"{what}: {peer} {its:.2f} ms an image")
    if len(forms) == 1:
        print(f"no native kernel: {native.found().why}")
    for place, (form, ms) in enumerate(zip(forms, mine, strict=True), 1):
        low, middle, high = statistics.quantiles([row[0] / row[place] for row in times], n=4)
        ratio = f"{peer} / ours: {middle:.2f} (quartiles {low:.2f} to {high:.2f})"
        print(f"{form} {ms:.3f} ms an image; {ratio}")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in PEERS:
        main(sys.argv[1], *(int(word) for word in sys.argv[2:]))
    else:
        print(__doc__)
