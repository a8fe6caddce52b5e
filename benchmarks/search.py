"""One image's nearest among 50,000: the search alone beside others, and the whole command from the
shell.

    python benchmarks/search.py [N] [ROUNDS]          both
    python benchmarks/search.py alone [N] [ROUNDS]    the search of a mapped file alone, any N

Rows of 512 round a tenth as many centres. The search: ours over the mapped file (float32 products,
what they leave open in float64, ties by order), scikit-learn's NearestNeighbors (brute force,
cosine), pytorch-metric-learning's CustomKNN, and where it is installed faiss, flat and by our
cells; in turn, for 1 and for 100 queries, processor time. The command: a ResNet-18 (512 features)
that nobody trained, a JPEG, seconds of a core; beside it the imports alone. Printed last: each
side's time / ours, median and quartiles of the rounds.
"""

import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from lookalike.models import Architecture
from lookalike.scoring.ivf import train_ivf
from lookalike.search.index import SearchIndex, Seen, open_index, write_index

D, K = 512, 10
IMPORTS = "import lookalike.stages.search"


def rows(n: int) -> Tensor:
    """float32 (n, D)."""
    generator = torch.Generator().manual_seed(0)
    centre_CD = torch.randn(max(1, n // 10), D, generator=generator)
    x_ND = torch.randn(n, D, generator=generator)
    return x_ND.add_(centre_CD[torch.arange(n) % len(centre_CD)])


def sides(index: SearchIndex) -> dict[str, Callable[[Tensor], object]]:
    """What is compared: queries (Q, D) -> rows (Q, K)."""
    x_ND = index.x_ND.clone()
    brute = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(x_ND.numpy())
    custom = CustomKNN(CosineSimilarity(), batch_size=256)
    found: dict[str, Callable[[Tensor], object]] = {
        "ours": lambda query_QD: index.nearest(query_QD, K)[0],
        "scikit-learn": lambda query_QD: brute.kneighbors(query_QD.numpy())[1],
        "CustomKNN": lambda query_QD: custom(query_QD, K, x_ND, False)[1],
    }
    if importlib.util.find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(1)
        flat = faiss.IndexFlatIP(D)
        flat.add(torch.nn.functional.normalize(x_ND).numpy())
        began = time.process_time()
        index.cells = train_ivf(index.x_ND, "cosine")
        print(
            f"cells: {len(index.cells.centre_CD)} by faiss in {time.process_time() - began:.1f} s"
        )
        found["faiss flat"] = lambda query_QD: flat.search(
            torch.nn.functional.normalize(query_QD).numpy(), K
        )[1]
        found["ours, cells"] = lambda query_QD: index.nearest(query_QD, K, approximate=True)[0]
    else:
        print("faiss: not installed")
    return found


def agreement(found: object, wanted: object) -> float:
    """The share of the K that both have."""
    pairs = zip(np.asarray(found).tolist(), np.asarray(wanted).tolist(), strict=True)
    return statistics.mean(len(set(one) & set(other)) / K for one, other in pairs)


def alone(index: SearchIndex, rounds: int) -> None:
    """The search itself, in turn; each side's time / ours."""
    many = sides(index)
    for count in (100, 1):
        generator = torch.Generator().manual_seed(1)
        query_QD = index.x_ND[:count] + 0.5 * torch.randn(count, D, generator=generator)
        times: dict[str, list[float]] = {name: [] for name in many}
        answers = {}
        for _ in range(rounds):
            for name, side in many.items():
                began = time.process_time()
                answers[name] = side(query_QD)
                times[name].append(1000 * (time.process_time() - began))
        for name, each in times.items():
            ratios = [theirs / ours for theirs, ours in zip(each, times["ours"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            same = 100 * agreement(answers[name], answers["ours"])
            print(
                f"{count:>4} queries, {name}: {statistics.median(each):.1f} ms, / ours "
                f"{middle:.2f} ({low:.2f} to {high:.2f}), {same:.1f} % of ours",
                flush=True,
            )


def mapped_alone(n: int, rounds: int) -> None:
    """Without a folder: the rows in a file, which is read as an index is."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.npy"
        np.save(path, rows(n).numpy())
        x_ND = torch.from_numpy(np.load(path, mmap_mode="c"))
        model = Architecture("resnet18").build().eval()
        index = SearchIndex(model, x_ND, [""] * n, canvas=(256, 256))
        began = time.process_time()
        index.frame  # noqa: B018 (what an index keeps)
        print(f"N {n}; lengths, once: {time.process_time() - began:.2f} s of a core", flush=True)
        alone(index, rounds)


def seconds(words: list[str]) -> float:
    """What a command takes of a core."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """The uses above."""
    words = sys.argv[1:]
    search_only = bool(words) and words[0] == "alone"
    given = [int(word) for word in words[search_only:]]
    n, rounds = given + [50_000, 9][len(given) :]
    torch.set_num_threads(1)
    if search_only:
        mapped_alone(n, rounds)
        return
    with tempfile.TemporaryDirectory() as place:
        folder, image = Path(place) / "index", Path(place) / "query.jpg"
        torch.manual_seed(0)
        model = Architecture("resnet18").build().eval()
        names = [f"folder/image{i:07d}.jpg" for i in range(n)]
        write_index(
            folder,
            SearchIndex(model, rows(n), names, canvas=(256, 256), root="/nowhere"),
            Seen([""] * n, {}),
        )
        pixels_HWC = np.random.default_rng(0).integers(0, 255, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(image)
        mine = time.process_time()
        index = open_index(folder)
        print(f"opening and checking: {time.process_time() - mine:.2f} s of a core")
        mine = time.process_time()
        index.nearest(index.embed([str(image)]), K)
        print(f"image to answer: {time.process_time() - mine:.2f} s of a core", flush=True)
        words = ["-m", "lookalike", "search", str(folder), str(image)]
        pairs = [(seconds(words), seconds(["-c", IMPORTS])) for _ in range(3)]
        whole, imports = (statistics.median(each) for each in zip(*pairs, strict=True))
        print(f"command: {whole:.2f} s of a core, imports alone {imports:.2f}", flush=True)
        print(f"N {n}")
        alone(index, rounds)


if __name__ == "__main__":
    main()
