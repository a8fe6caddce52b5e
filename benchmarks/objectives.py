"""Quadruplet and constellation beside the library's triplet loss with batch-hard mining: time and
memory at B = 1,024.

    python benchmarks/objectives.py [B] [D] [ROUNDS]

Loss and gradient of each form in turn, one of each a round, 8 images a class; memory is what a
fresh process holds at most above what it held with the inputs made and the libraries warm. Printed
last: the medians of the rounds' ratios.
"""

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lookalike.metric.objectives import MINER, OBJECTIVE, Objective

FORMS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "triplet, batch-hard (library)": ("TripletMarginLoss", {}, "BatchHardMiner"),
    "quadruplet hard": ("QuadrupletLoss", {"form": "hard"}, None),
    "quadruplet all": ("QuadrupletLoss", {"form": "all"}, None),
    "constellation hard": ("ConstellationLoss", {"negatives": "hard"}, None),
    "constellation random": ("ConstellationLoss", {"negatives": "random"}, None),
    "constellation all": ("ConstellationLoss", {"negatives": "all"}, None),
    "facenet, all semi-hard": ("FaceNetLoss", {}, None),
}
PEER = next(iter(FORMS))


def form(name: str, b: int, d: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective of that name, as fine-tuning runs it."""
    objective, arguments, miner = FORMS[name]
    spec = OBJECTIVE.spec(objective, **arguments)
    made = Objective(
        spec, MINER.spec(miner) if miner else None, num_classes=b // 8, embedding_size=d
    )
    return lambda z, labels: made(z, labels).value


def inputs(b: int, d: int) -> tuple[Tensor, Tensor]:
    """Rows around b // 8 centres, and their classes."""
    torch.manual_seed(0)
    labels = torch.arange(b) % (b // 8)
    z = torch.randn(b // 8, d)[labels] + torch.randn(b, d)
    return torch.nn.functional.normalize(z, dim=1).requires_grad_(), labels


def memory(name: str, b: int, d: int, answer: Any) -> None:
    """MiB above the inputs; a small batch first, so that libraries have started."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    form(name, 64, d)(*inputs(64, d)).backward()
    loss, (z, labels) = form(name, b, d), inputs(b, d)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loss(z, labels).backward()
    answer.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def alone(name: str, b: int, d: int) -> float:
    """`memory` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    here, there = context.Pipe()
    process = context.Process(target=memory, args=(name, b, d, there))
    process.start()
    found: float = here.recv()
    process.join()
    return found


def main(b: int = 1024, d: int = 128, rounds: int = 11) -> None:
    """Seconds of every form in turn, then memory, then ratios."""
    forms, seconds = {name: form(name, b, d) for name in FORMS}, {name: [] for name in FORMS}
    for turn in range(rounds + 1):
        for name, loss in forms.items():
            z, labels = inputs(b, d)
            began = time.process_time()
            loss(z, labels).backward()
            if turn:
                seconds[name].append(time.process_time() - began)
    held = {name: alone(name, b, d) for name in FORMS}
    for name in FORMS:
        print(
            f"{name}: {1e3 * statistics.median(seconds[name]):.1f} ms of a processor, "
            f"{held[name]:.0f} MiB"
        )
    print(f"B {b}, D {d}: (form) / ({PEER}), medians of {rounds} rounds and quartiles")
    for name in [name for name in FORMS if name != PEER]:
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], seconds[PEER], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{name}: {middle:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main(*(int(word) for word in sys.argv[1:]))
