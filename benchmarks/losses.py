"""Losses that do not grow, beside the dense forms they replace: time and peak memory of loss and
gradient.

    python benchmarks/losses.py correlation [N] [D]  Barlow Twins: Gram form beside the D × D matrix
    python benchmarks/losses.py contrastive [N] [D]  SimCLR: tiles beside the 2N × 2N matrix
    python benchmarks/losses.py growth               exponents of time in N and in D
    python benchmarks/losses.py bytes                    bytes sent per rank and step, 2 and 4 ranks

Each form runs in a process of its own, alternating with the other; the peak is what the process
held at most above what it held before the loss. Printed last: the medians of the pairs' ratios.
"""

import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.methods.barlow_twins import barlow_twins_loss
from lookalike.methods.moco_v3 import moco_v3_loss
from lookalike.methods.simclr import simclr_loss
from lookalike.methods.vicreg import vicreg_loss

PAIRS, TEMPERATURE = 3, 0.1


def dense_correlation(za_ND: Tensor, zb_ND: Tensor) -> Tensor:
    """The D × D cross-correlation, its diagonal and its copied off-diagonal, as the authors of
    Barlow Twins have it.
    """
    sa, sb = (F.batch_norm(z, None, None, training=True) for z in (za_ND, zb_ND))
    c_DD = sa.T @ sb / len(sa)
    on = (torch.diagonal(c_DD) - 1).square().sum()
    d = len(c_DD)
    off = c_DD.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten().square().sum()
    return on + 0.0051 * off


def dense_contrastive(za_ND: Tensor, zb_ND: Tensor) -> Tensor:
    """The 2N × 2N logits, the diagonal taken out, and cross-entropy."""
    z = F.normalize(torch.cat([za_ND, zb_ND]), dim=1)
    logits = (z @ z.T).div_(TEMPERATURE)
    logits.masked_fill_(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(za_ND)))


FORMS: dict[str, dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "correlation": {
        "ours": lambda a, b: barlow_twins_loss(a, b, 0.0051).value,
        "dense": dense_correlation,
    },
    "contrastive": {
        "ours": lambda a, b: simclr_loss(a, b, TEMPERATURE).value,
        "dense": dense_contrastive,
    },
}


def peak() -> int:
    """The most this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def inputs(n: int, d: int) -> list[Tensor]:
    """Two leaves, correlated."""
    common = torch.randn(n, d)
    return [(common + 0.5 * torch.randn(n, d)).requires_grad_() for _ in range(2)]


def measure(kind: str, form: str, n: int, d: int, answer: Any) -> None:
    """Value, seconds and bytes of one loss and gradient; a small one first, so that libraries have
    started.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    FORMS[kind][form](*inputs(64, 64)).backward()
    a, b = inputs(n, d)
    before, began = peak(), time.perf_counter()
    value = FORMS[kind][form](a, b)
    value.backward()
    answer.send((value.item(), time.perf_counter() - began, peak() - before))


def alone(kind: str, form: str, n: int, d: int) -> tuple[float, float, float]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(kind, form, n, d, there))
    process.start()
    found: tuple[float, float, float] = here.recv()
    process.join()
    return found


def compare(kind: str, n: int, d: int) -> None:
    """Alternating pairs and the medians of their ratios."""
    times, memory = [], []
    for _ in range(PAIRS):
        ours, dense = (alone(kind, form, n, d) for form in ("ours", "dense"))
        times.append(dense[1] / ours[1])
        memory.append(dense[2] / max(1, ours[2]))
        print(
            f"{kind} N {n} D {d}: ours {ours[1]:.3f} s {ours[2] / 2**20:.0f} MiB, dense "
            f"{dense[1]:.3f} s "
            f"{dense[2] / 2**20:.0f} MiB, values {ours[0]:.6g} {dense[0]:.6g}",
            flush=True,
        )
    low, middle, high = statistics.quantiles(times, n=4)
    print(
        f"dense / ours: time {middle:.2f} (quartiles {low:.2f} to {high:.2f}), memory "
        f"{statistics.median(memory):.1f}"
    )


def slope(sizes: list[int], seconds: list[float]) -> float:
    """The exponent e of seconds ~ size^e, by least squares on logarithms."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum(
        (a - mx) ** 2 for a in x
    )


def growth() -> None:
    """How time grows with the batch and with the width."""
    for kind, ns, ds in (
        ("correlation", [128, 256, 512, 1024], [2048, 4096, 8192]),
        ("contrastive", [1024, 2048, 4096, 8192], [64, 128, 256]),
    ):
        d, n = ds[len(ds) // 2], ns[len(ns) // 2]
        in_n = [min(alone(kind, "ours", size, d)[1] for _ in range(3)) for size in ns]
        in_d = [min(alone(kind, "ours", n, size)[1] for _ in range(3)) for size in ds]
        print(
            f"{kind}: time ~ N^{slope(ns, in_n):.2f} at D {d}, ~ D^{slope(ds, in_d):.2f} at N {n}",
            flush=True,
        )


SENT = {
    "barlow_twins": lambda a, b: barlow_twins_loss(a, b, 0.0051),
    "vicreg": lambda a, b: vicreg_loss(a, b, 25.0, 25.0, 1.0),
    "simclr": lambda a, b: simclr_loss(a, b, TEMPERATURE),
    "moco_v3": lambda a, b: moco_v3_loss(a, b, TEMPERATURE),
}


def count(rank: int, world: int, port: int, n: int, d: int, answer: Any) -> None:
    """Bytes that this rank hands to collectives in one loss and gradient, each counted once."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    comm.start()
    total = [0]
    for name in ("all_reduce", "all_gather"):
        original = getattr(dist, name)

        def counted(*arguments: Any, original: Any = original, **named: Any) -> Any:
            tensor = arguments[0] if torch.is_tensor(arguments[0]) else arguments[1]
            total[0] += tensor.numel() * tensor.element_size()
            return original(*arguments, **named)

        setattr(dist, name, counted)
    found = {}
    for name, loss in SENT.items():
        a, b = inputs(n // world, d)
        total[0] = 0
        loss(a, b).value.backward()
        found[name] = total[0]
    if rank == 0:
        answer.send(found)
    comm.barrier()
    comm.stop()


def sent() -> None:
    """Bytes for a global batch of 512 at D 8192, beside reducing the D × D matrix."""
    n, d = 512, 8192
    print(f"N {n}, D {d}, fp32; reducing D × D once: {4 * d * d / 1e6:.0f} MB")
    for world in (2, 4):
        context = multiprocessing.get_context("forkserver")
        here, there = context.Pipe()
        port = 29500 + os.getpid() % 1000 + world
        ranks = [
            context.Process(target=count, args=(r, world, port, n, d, there)) for r in range(world)
        ]
        for rank in ranks:
            rank.start()
        found = here.recv()
        for rank in ranks:
            rank.join()
        print(
            f"{world} ranks: "
            + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in found.items()),
            flush=True,
        )


if __name__ == "__main__":
    kind, *sizes = sys.argv[1:] or [""]
    if kind in FORMS:
        defaults = {"correlation": (512, 8192), "contrastive": (16384, 128)}[kind]
        compare(kind, *(int(size) for size in (*sizes, *defaults[len(sizes) :])))
    elif kind in ("growth", "bytes"):
        {"growth": growth, "bytes": sent}[kind]()
    else:
        print(__doc__)
