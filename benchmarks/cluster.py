"""What a cluster would give, computed: from counted parameters, layers and collectives, and from
links and GPUs that are assumed. Nothing here is measured.

    python benchmarks/cluster.py [KEY=VALUE ...]

prints the tables of cluster.md. Any assumption can be another, in the units of `Links` and
`Works`: `python benchmarks/cluster.py nic=100 nics=1 nvlink=60` is a cluster whose machines have
one link of 100 Gb/s each.
"""

import math
import sys
from dataclasses import dataclass, fields, replace

import torch
from torch import nn

from lookalike.methods import METHODS
from lookalike.models import Architecture


@dataclass(frozen=True)
class Links:
    """The machines. `nvlink`: GB/s that an all-reduce reaches inside one (2 (W - 1) / W of its
    bytes over its time); `nics` of `nic` Gb/s leave it, of which it reaches the share `reached`;
    `near`, `far`: µs of a hop inside and between; `gpus` of each; `host`: µs of a hop of the
    host's ring of messages (gloo over TCP); `hbm`: TB/s of a GPU's memory; `drain`: µs until a GPU
    works again whose host has waited for it.
    """

    nvlink: float = 300.0
    nic: float = 400.0
    nics: int = 8
    reached: float = 0.75
    near: float = 3.0
    far: float = 8.0
    gpus: int = 8
    host: float = 20.0
    hbm: float = 2.7
    drain: float = 30.0


@dataclass(frozen=True)
class Works:
    """The GPUs: `cnn`, how many images of 224 pixels a second one trains of a ResNet-50 in bf16;
    `vit`, teraflops a second that a ViT reaches; `batch`, images a GPU; `mb`, MiB of a bucket;
    `first`, the share of a backward of two views after which gradients begin to be whole: they are
    only when backward comes to the first view.
    """

    cnn: float = 2800.0
    vit: float = 300.0
    batch: int = 64
    mb: float = 25.0
    first: float = 0.5


@dataclass(frozen=True)
class Counted:
    """`gradient`: numbers; `passes`: layers of BatchNorm a step goes forward through; `channels`:
    of all of them; `asked`: how often ranks asked for rows; `own`: collectives of the loss itself,
    which are short; `work`: seconds of forward, backward and optimizer, assumed.
    """

    name: str
    gradient: int
    passes: int
    channels: int
    asked: int
    own: int
    work: float


RESNET = Architecture("resnet50", size=224, channels=3)
VIT = Architecture(
    "vit_small_patch16_224", size=224, channels=3, pool="token", args={"dynamic_img_size": True}
)


def counted(name: str, architecture: Architecture, asked: int, own: int, work: float) -> Counted:
    """Builds the method and looks. Two views go through the network one after the other."""
    module: nn.Module = METHODS[name](architecture.build())
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    gradient = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return Counted(
        f"{name}, {architecture.name}",
        gradient,
        2 * len(norms),
        2 * sum(norm.num_features for norm in norms),
        asked,
        own,
        work,
    )


def systems(works: Works) -> list[Counted]:
    """`asked` and `own` were counted on two ranks, by what tests/engine/test_collectives.py counts
    with, before rows were known.
    """
    cnn = 2 * works.batch / works.cnn
    # GFLOP of a forward, two to a multiply-add: 9.2 an image of 224 pixels, 1.7 of 96. The student
    # sees two and eight and goes three times as far with backward, the teacher two.
    vit = works.batch * (3 * (2 * 9.2 + 8 * 1.7) + 2 * 9.2) / 1e3 / works.vit
    return [
        counted("barlow_twins", RESNET, 4, 11, cnn),
        counted("simclr", RESNET, 3, 7, cnn),
        counted("dino", VIT, 21, 39, vit),
    ]


def crossing(numbers: float, size: int, world: int, links: Links) -> float:
    """Seconds of an all-reduce of so many numbers of `size` bytes: a tree of hops, and the bytes
    through the slowest link.
    """
    inside = min(world, links.gpus)
    machines = math.ceil(world / links.gpus)
    hops = 2 * (math.log2(inside) * links.near + math.log2(machines) * links.far)
    speed = links.nvlink
    if machines > 1:
        speed = min(speed, links.nics * links.nic / 8 * links.reached)
    return hops * 1e-6 + 2 * (world - 1) / world * size * numbers / speed / 1e9


def before(one: Counted, world: int, links: Links) -> float:
    """A step as it was: torch's SyncBatchNorm, which lets the host wait in every forward; rows
    asked for on the host; the gradient in fp32 after backward, with six passes over it (flatten,
    divide, unflatten).
    """
    waits = one.passes * links.drain * 1e-6
    rows = one.asked * 2 * (world - 1) * links.host * 1e-6
    copies = 6 * 4 * one.gradient / links.hbm / 1e12
    sent = crossing(one.gradient, 4, world, links)
    return one.work + short(one, world, links) + waits + rows + copies + sent


def after(one: Counted, world: int, links: Links, works: Works, size: int) -> float:
    """A step as it is: as many bytes of statistics, no waits, no rows; buckets that leave while
    backward runs, of which at least the last one is left over; four passes over the gradient (into
    the bucket, mean), and in bf16 four halves more.
    """
    buckets = max(1, math.ceil(4 * one.gradient / 2**20 / works.mb))
    each = crossing(one.gradient / buckets, size, world, links)
    window = 2 / 3 * one.work * (1 - works.first)
    left = max(each, buckets * each - window)
    copies = (4 * 4 + (0 if size == 4 else 2 * (4 + 2))) * one.gradient / links.hbm / 1e12
    return one.work + short(one, world, links) + copies + left


def short(one: Counted, world: int, links: Links) -> float:
    """Statistics, forward and backward, and what the loss sums: before and after alike."""
    channels = one.channels / max(1, one.passes)
    statistics = 2 * one.passes * crossing(2 * channels, 4, world, links)
    return statistics + one.own * crossing(1, 4, world, links)


def table(links: Links, works: Works) -> list[str]:
    """A row for each system and number of GPUs: ms of a step and the share of it that is work."""
    rows = [
        "| system | GPUs | work | before | fp32 | bf16 | images/s a GPU before, fp32, bf16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in systems(works):
        for world in (8, 64, 512):
            times = [
                before(one, world, links),
                after(one, world, links, works, 4),
                after(one, world, links, works, 2),
            ]
            steps = " | ".join(f"{1e3 * t:.0f} ms ({one.work / t:.2f})" for t in times)
            speed = ", ".join(f"{works.batch / t:.0f}" for t in times)
            rows.append(f"| {one.name} | {world} | {1e3 * one.work:.0f} ms | {steps} | {speed} |")
    return rows


def facts(works: Works) -> list[str]:
    """What was counted."""
    rows = [
        "| system | gradient | bytes in fp32, bf16 | buckets | BatchNorm passes a step | their "
        "collectives, bytes a step | rows were asked for |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in systems(works):
        megabytes = 4 * one.gradient / 1e6
        rows.append(
            f"| {one.name} | {one.gradient / 1e6:.1f} M | {megabytes:.0f}, {megabytes / 2:.0f} MB "
            f"| {math.ceil(4 * one.gradient / 2**20 / works.mb)} | {one.passes} | "
            f"{2 * one.passes}, {2 * 2 * 4 * one.channels / 1e6:.1f} MB | {one.asked} |"
        )
    return rows


def main(words: list[str]) -> None:
    """Two tables, with the assumptions between them."""
    given = {key: float(value) for key, _, value in (word.partition("=") for word in words)}
    mine = {f.name for f in fields(Links)}
    links = replace(Links(), **{k: v for k, v in given.items() if k in mine})
    works = replace(Works(), **{k: v for k, v in given.items() if k not in mine})
    torch.manual_seed(0)
    print("\n".join([*facts(works), "", str(links), str(works), "", *table(links, works)]))


if __name__ == "__main__":
    main(sys.argv[1:])
