"""Retrieval scores beside pytorch-metric-learning's AccuracyCalculator: time, peak memory, values.

    python benchmarks/scores.py [N] [PAIRS]        P@1, R-precision, MAP@R, whole-list mAP (k=None)
    python benchmarks/scores.py short [N] [PAIRS]  without mAP (its k="max_bin_count")
    python benchmarks/scores.py once [N]    ours alone: seconds and memory
    python benchmarks/scores.py rerank [N]  re-ranking alone: the same; 3,368 queries, N in gallery

N rows of 512, five of each class, as in Stanford Online Products; cosine similarity, queries =
gallery. Each side runs in a process of its own, alternating; the peak is what the process held at
most above its inputs. Its CustomKNN takes 256 rows at a time. Printed last: the medians of the
pairs' ratios.
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
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch import Tensor

from lookalike.scoring import rerank, retrieval

D, PER_CLASS = 512, 5
NAMES = {
    "precision_at_1": "p@1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map@r",
    "mean_average_precision": "map",
}


def rows(n: int) -> tuple[Tensor, Tensor]:
    """Classes that overlap: a part of the queries finds no match first."""
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(n) // PER_CLASS
    x_ND = torch.randn(n, D, generator=generator)
    centre_CD = torch.randn(n // PER_CLASS + 1, D, generator=generator)
    for start in range(0, n, 1000):
        part = slice(start, start + 1000)
        x_ND[part].mul_(2.4).add_(centre_CD[labels_N[part]])
    return x_ND, labels_N


def ours(x_ND: Tensor, labels_N: Tensor, short: bool) -> list[float]:
    """By counting, or by the top alone."""
    found = retrieval.scores(x_ND, labels_N, ks=(1,), whole=not short)
    return [found[name] for name in list(NAMES.values())[: 3 if short else 4]]


def theirs(x_ND: Tensor, labels_N: Tensor, short: bool) -> list[float]:
    """By AccuracyCalculator."""
    names = list(NAMES)[: 3 if short else 4]
    calculator = AccuracyCalculator(
        include=tuple(names),
        k="max_bin_count" if short else None,
        device=torch.device("cpu"),
        knn_func=CustomKNN(CosineSimilarity(), batch_size=256),
        kmeans_func=lambda *_: None,
    )
    found = calculator.get_accuracy(x_ND, labels_N)
    return [found[name] for name in names]


def reranked(x_ND: Tensor, _labels_N: Tensor, _short: bool) -> list[float]:
    """Re-ranked distances of shuffled rows, the first being the queries."""
    order_N = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(1))
    query_Q, gallery_N = order_N.split(
        [min(3368, len(x_ND) // 2), len(x_ND) - min(3368, len(x_ND) // 2)]
    )
    return [float(rerank.distances(x_ND[query_Q], x_ND[gallery_N]).mean())]


def peak() -> int:
    """The most this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side: Callable[..., list[float]], n: int, short: bool, answer: Any) -> None:
    """Values, seconds of a processor and bytes; a small one first, so that libraries have
    started.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    side(*rows(200), short)
    data = rows(n)
    before, began = peak(), time.process_time()
    values = side(*data, short)
    answer.send((values, time.process_time() - began, peak() - before))


def alone(
    side: Callable[..., list[float]], n: int, short: bool
) -> tuple[list[float], float, float]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(side, n, short, there))
    process.start()
    there.close()
    found: tuple[list[float], float, float] = here.recv()
    process.join()
    return found


def compare(n: int, pairs: int, short: bool) -> None:
    """Alternating pairs and the medians of their ratios."""
    times, memory = [], []
    for _ in range(pairs):
        us, them = alone(ours, n, short), alone(theirs, n, short)
        times.append(them[1] / us[1])
        memory.append(them[2] / max(1, us[2]))
        print(
            f"N {n}: ours {us[1]:.2f} s {us[2] / 2**20:.0f} MiB, theirs {them[1]:.2f} s "
            f"{them[2] / 2**20:.0f} MiB, "
            f"values {max(abs(a - b) for a, b in zip(us[0], them[0], strict=True)):.1e} apart: "
            + " ".join(f"{value:.6f}" for value in us[0]),
            flush=True,
        )
    low, middle, high = statistics.quantiles(times, n=4)
    print(
        f"theirs / ours: time {middle:.2f} (quartiles {low:.2f} to {high:.2f}), memory "
        f"{statistics.median(memory):.1f}"
    )


def main(arguments: list[str]) -> None:
    """The uses above."""
    word = arguments.pop(0) if arguments and not arguments[0].isdigit() else ""
    if word == "once":
        n = int(arguments[0]) if arguments else 60_000
        values, seconds, held = alone(ours, n, False)
        print(f"N {n}: {seconds:.1f} s, {held / 2**20:.0f} MiB above the inputs; {values}")
        return
    if word == "rerank":
        n = 3368 + (int(arguments[0]) if arguments else 15_913)
        _, seconds, held = alone(reranked, n, False)
        print(
            f"{n} rows: {seconds:.1f} s, {held / 2**20:.0f} MiB above the inputs; n × n: "
            f"{4 * n * n / 2**20:.0f} MiB"
        )
        return
    n, pairs = (
        int(arguments[i]) if i < len(arguments) else default for i, default in ((0, 6000), (1, 3))
    )
    compare(n, pairs, word == "short")


if __name__ == "__main__":
    main(sys.argv[1:])
