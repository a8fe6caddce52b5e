"""The kNN vote beside scikit-learn's KNeighborsClassifier: time, peak memory and top-1; and with as
many rows as ImageNet has.

    python benchmarks/knn.py [N] [D] [QUERIES] [PAIRS]   both, k 20, 1,000 classes
    python benchmarks/knn.py large [N] [D] [QUERIES]     ours alone: k 10, 20, 100 and 200 at once

Rows round 1,000 centres. Each side runs in a process of its own, alternating; the peak is what the
process held at most above its inputs, which are mapped from a file of float16 where it is `large`.
scikit-learn: brute force, cosine, float32, uniform weights of the temperature. Printed last: the
median of the pairs' ratios with quartiles.
"""

import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lookalike.scoring import knn

CLASSES, TEMPERATURE = 1000, 0.07
Sets = tuple[Tensor, Tensor, Tensor, Tensor]


def part(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """float32 rows and their classes."""
    generator = torch.Generator().manual_seed(seed)
    centre_CD = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
    labels_N = torch.randint(CLASSES, (count,), generator=generator)
    x_ND = torch.randn(count, width, generator=generator).mul_(0.5 * width**0.25)
    for start in range(0, count, 10_000):
        rows = slice(start, start + 10_000)
        x_ND[rows] += centre_CD[labels_N[rows]]
    return x_ND, labels_N


def ours(sets: Sets) -> float:
    """One k."""
    return knn.accuracy(*sets, k=20, temperature=TEMPERATURE)["top1"]


def theirs(sets: Sets) -> float:
    """The same vote, of float32 similarities."""
    train_ND, labels_N, test_MD, true_M = (each.numpy() for each in sets)

    def weights(distance: Any) -> Any:
        return np.exp((1 - distance) / TEMPERATURE)

    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    return float(peer.fit(train_ND, labels_N).score(test_MD, true_M))


def held() -> int:
    """The most anonymous memory that this process has had, in bytes: what is mapped from a file
    goes when another needs the room.
    """
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split("RssAnon:")[1].split()[0])


def watched(work: Callable[[], Any]) -> tuple[Any, float, int]:
    """What it returns, seconds of a processor, and bytes above those before at their peak."""
    import threading

    before, most, over = held(), [0], threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], held() - before)

    looker = threading.Thread(target=look)
    looker.start()
    began = time.thread_time()
    value = work()
    seconds = time.thread_time() - began
    over.set()
    looker.join()
    return value, seconds, most[0]


def measure(side: Callable[[Sets], float], sizes: tuple[int, int, int], answer: Any) -> None:
    """One side; a small one first, so that libraries have started."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    count, width, queries = sizes
    side((*part(2000, width, 1), *part(10, width, 2)))
    sets = (*part(count, width, 1), *part(queries, width, 2))
    answer.send(watched(lambda: side(sets)))


def alone(side: Callable[[Sets], float], sizes: tuple[int, int, int]) -> tuple[float, float, int]:
    """`measure` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(side, sizes, there))
    process.start()
    there.close()
    found: tuple[float, float, int] = here.recv()
    process.join()
    return found


def compare(sizes: tuple[int, int, int], pairs: int) -> None:
    """Alternating pairs."""
    ratios = []
    for _ in range(pairs):
        us, them = alone(ours, sizes), alone(theirs, sizes)
        ratios.append(them[1] / us[1])
        print(
            f"{sizes}: ours {us[1]:.2f} s {us[2] / 2**20:.0f} MiB top-1 {us[0]:.4f}, "
            f"scikit-learn {them[1]:.2f} s {them[2] / 2**20:.0f} MiB top-1 {them[0]:.4f}",
            flush=True,
        )
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else 3 * ratios
    print(f"theirs / ours: {middle:.2f} ({low:.2f} to {high:.2f}); {platform.processor()}")


def large(count: int, width: int, queries: int) -> None:
    """From a mapped file of float16."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as place:
        path, labels_N = Path(place) / "x.npy", torch.empty(count, dtype=torch.int64)
        rows = np.lib.format.open_memmap(path, "w+", np.float16, (count, width))
        for start in range(0, count, 20_000):
            x_BD, label_B = part(min(20_000, count - start), width, start + 1)
            rows[start : start + len(x_BD)] = x_BD.half().numpy()
            labels_N[start : start + len(x_BD)] = label_B
        train_ND = torch.from_numpy(np.load(path, mmap_mode="c"))
        sets = (train_ND, labels_N, *part(queries, width, 2))
        found, seconds, most = watched(lambda: knn.accuracies(*sets))
        print(f"{count} x {width}, {queries} queries: {seconds:.1f} s, {most / 2**20:.0f} MiB")
        print({k: round(each["top1"], 4) for k, each in found.items()})


def main(arguments: list[str]) -> None:
    """The uses above."""
    big = bool(arguments) and arguments[0] == "large"
    given = [int(word) for word in arguments[big:]]
    if big:
        large(*(given + [1_281_167, 16, 4096][len(given) :]))
        return
    count, width, queries, pairs = given + [100_000, 512, 1024, 3][len(given) :]
    compare((count, width, queries), pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
