"""The linear probe's own L-BFGS beside others, to the same regularised loss: processor time.

    python benchmarks/probe.py [ROUNDS] [N,D …]        digits and 10000,512 and 5000,2048
    python benchmarks/probe.py sweep [ROUNDS] [N,D …]  the whole grid of l2, as a probe walks it
    python benchmarks/probe.py growth [N,D,C …]        time and memory, and what ImageNet would take
    python benchmarks/probe.py large [N,D,C]           a whole probe of 200000,1024,100
    python benchmarks/probe.py dry [N,D,C]             a probe of 1280000,16,100, fits cut short

Mean cross-entropy + l2/2 · ‖W‖² with a free bias, on features standardised by train, float32, one
thread. Sides: ours (`scoring.linear`, its eigenvectors included), scikit-learn's
LogisticRegression(lbfgs), torch.optim.LBFGS with strong Wolfe steps, and 100 epochs of SGD
(Nesterov .9, batch 256, cosine, the best of three rates). The first three do the fewest iterations
that come within 1e-3 of the least loss (float64, tight), found beforehand; then they are timed in
turn. SGD says how near it came. Features, where none are given: 100 classes, eigenvalues falling as
1/k, rotated, rectified. Printed last: each one's time / ours, medians and quartiles of the rounds.

Growth: one fit at l2 1e-3, each side in a process of its own: processor time, the most anonymous
memory beyond what the imports took, and the loss above the least of all four. Ours reads a mapped
file, whose pages the system may drop; the others hold the features, which is counted. Exponents:
slopes of log time and log memory over log N·D·C. ImageNet's size: 1,281,167 × 2,048 × 1,000; ours
by the seconds of one slope, which grow as N·D·C.

Large and dry: `linear.probe` on train and a tenth as many test rows, separable features;
scikit-learn on the same train rows, one fit at the l2 that ours chose, tol 1e-5. Dry: two l2 of 12
iterations each, enough to hold all that a fit holds.

The sweep: eight l2, from strong to weak, each from the one before, ours to its own tolerance,
scikit-learn to three of its own; how much above ours each loss ends.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy

from lookalike.scoring import linear
from lookalike.scoring.linear.rows import Rows

NEAR, MOST = 1e-3, 256
PENALTIES = (1e-2, 1e-5)
Solved = tuple[Tensor, Tensor]
Solver = Callable[[int], Solved]


class Problem(NamedTuple):
    """Features as given and standardised, labels, penalty."""

    raw_ND: Tensor
    x_ND: Tensor
    y_N: Tensor
    l2: float

    def loss(self, weight_CD: Tensor, bias_C: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """What all of them minimise."""
        weight_CD, bias_C = weight_CD.to(dtype), bias_C.to(dtype)
        logits_NC = self.x_ND.to(dtype) @ weight_CD.T + bias_C
        return cross_entropy(logits_NC, self.y_N) + weight_CD.square().sum() * self.l2 / 2

    @property
    def classes(self) -> int:
        """As many as there are labels."""
        return int(self.y_N.max()) + 1


def features(n: int, d: int, classes: int = 100) -> tuple[Tensor, Tensor]:
    """float32 (n, d), as average-pooled features look, and their classes."""
    generator = torch.Generator().manual_seed(0)
    y_N = torch.arange(n) % classes
    centre_CD = torch.randn(classes, d, generator=generator)
    x_ND = 0.5 * centre_CD[y_N] + torch.randn(n, d, generator=generator)
    turn_DD = torch.linalg.qr(torch.randn(d, d, generator=generator))[0]
    return ((x_ND / torch.arange(1, d + 1).sqrt()) @ turn_DD).relu(), y_N


def ours(problem: Problem) -> Solver:
    """The probe's."""

    def solve(iterations: int) -> Solved:
        words = {"classes": problem.classes, "max_iterations": iterations, "tolerance": 0.0}
        found = linear.fit(problem.raw_ND, problem.y_N, problem.l2, **words)
        return found.weight_CD, found.bias_C

    return solve


def sklearn(problem: Problem) -> Solver:
    """scikit-learn's, whose C is a sum's, not a mean's."""
    x, y = problem.x_ND.numpy(), problem.y_N.numpy()

    def solve(iterations: int) -> Solved:
        model = LogisticRegression(
            C=1 / (problem.l2 * len(x)), solver="lbfgs", tol=1e-12, max_iter=iterations
        ).fit(x, y)
        return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)

    return solve


def zeros(problem: Problem) -> list[Tensor]:
    """Weights and bias to begin with."""
    weight_CD = torch.zeros(problem.classes, problem.x_ND.shape[1], requires_grad=True)
    return [weight_CD, torch.zeros(problem.classes, requires_grad=True)]


def torch_lbfgs(problem: Problem) -> Solver:
    """torch's."""

    def solve(iterations: int) -> Solved:
        weight_CD, bias_C = zeros(problem)
        optimizer = torch.optim.LBFGS(
            [weight_CD, bias_C],
            max_iter=iterations,
            max_eval=10 * iterations,
            history_size=10,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(weight_CD, bias_C, torch.float32)
            loss.backward()
            return loss

        optimizer.step(closure)
        return weight_CD.detach(), bias_C.detach()

    return solve


def sgd(problem: Problem, lr: float) -> Solver:
    """`epochs` of it."""

    def solve(epochs: int) -> Solved:
        both = weight_CD, bias_C = zeros(problem)
        optimizer = torch.optim.SGD(both, lr=lr, momentum=0.9, nesterov=True)
        generator = torch.Generator().manual_seed(0)
        steps = epochs * -(-len(problem.y_N) // 256)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(problem.y_N), generator=generator).split(256):
                batch = problem._replace(x_ND=problem.x_ND[rows], y_N=problem.y_N[rows])
                optimizer.zero_grad()
                batch.loss(weight_CD, bias_C, torch.float32).backward()
                optimizer.step()
                schedule.step()
        return weight_CD.detach(), bias_C.detach()

    return solve


def fewest(solver: Solver, problem: Problem, enough: float) -> int:
    """Iterations until the loss is at most `enough`, to an eighth; MOST where they do not do."""

    def does(iterations: int) -> bool:
        return float(problem.loss(*solver(iterations))) <= enough

    high = 8
    while high < MOST and not does(high):
        high *= 2
    low, step = high // 2, high // 4
    while step >= max(1, high // 16) and high < MOST:
        if does(low + step):
            high = low + step
        else:
            low += step
        step = (high - low) // 2
    return high


def seconds(work: Callable[[], object]) -> float:
    """Of the processor."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(name: str, raw_ND: Tensor, y_N: Tensor, l2: float, rounds: int) -> None:
    """One row of the table."""
    exact = linear.fit(
        raw_ND.double(), y_N, l2, classes=int(y_N.max()) + 1, max_iterations=5000, tolerance=1e-8
    )
    x_ND = ((raw_ND.double() - exact.mean_D) / exact.std_D).float()
    problem = Problem(raw_ND, x_ND, y_N, l2)
    least = float(problem.loss(exact.weight_CD, exact.bias_C))
    print(f"{name}, l2 {l2:g}: least loss {least:.6f}, converged {exact.converged}", flush=True)
    sides = {"ours": ours, "scikit-learn": sklearn, "torch": torch_lbfgs}
    work: dict[str, tuple[Solver, int]] = {}
    for side, make in sides.items():
        solver = make(problem)
        work[side] = solver, fewest(solver, problem, least * (1 + NEAR))
    rates = {lr: float(problem.loss(*sgd(problem, lr)(100))) for lr in (0.3, 0.03, 0.003)}
    best = min(rates, key=lambda lr: rates[lr])
    work["SGD"] = sgd(problem, best), 100
    times: dict[str, list[float]] = {side: [] for side in work}
    for _ in range(rounds):
        for side, (solver, iterations) in work.items():
            times[side].append(seconds(lambda s=solver, i=iterations: s(i)))
    for side, (solver, iterations) in work.items():
        gap = float(problem.loss(*solver(iterations))) / least - 1
        ratios = [one / mine for one, mine in zip(times[side], times["ours"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"  {side}: {iterations} iterations, {statistics.median(times[side]):.3f} s, gap "
            f"{gap:.1e}, / ours {middle:.2f} ({low:.2f} to {high:.2f})",
            flush=True,
        )


def sweep(name: str, raw_ND: Tensor, y_N: Tensor, rounds: int) -> None:
    """Ours and scikit-learn's with warm starts over the grid."""
    grid = sorted(linear.GRID, reverse=True)
    classes = int(y_N.max()) + 1

    def mine() -> list[linear.Linear]:
        fits: list[linear.Linear] = []
        with torch.no_grad():
            posed = linear.problem.problem(Rows(raw_ND), y_N, classes)
            for l2 in grid:
                fits.append(posed.solve(l2, fits[-1] if fits else None, 500, 1e-5))
        return fits

    fits = mine()
    x_ND = ((raw_ND.double() - fits[0].mean_D) / fits[0].std_D).float()
    problems = [Problem(raw_ND, x_ND, y_N, l2) for l2 in grid]

    def theirs(tol: float) -> list[Solved]:
        found = []
        model = LogisticRegression(solver="lbfgs", tol=tol, max_iter=500, warm_start=True)
        for l2 in grid:
            model.C = 1 / (l2 * len(x_ND))
            model.fit(x_ND.numpy(), y_N.numpy())
            found.append((torch.tensor(model.coef_), torch.tensor(model.intercept_)))
        return found

    least = [
        float(one.loss(own.weight_CD, own.bias_C)) for one, own in zip(problems, fits, strict=True)
    ]
    for tol in (1e-4, 1e-5, 1e-6):
        found = zip(problems, theirs(tol), least, strict=True)
        worse = [float(one.loss(*solved)) / best - 1 for one, solved, best in found]
        pairs = [(seconds(mine), seconds(lambda t=tol: theirs(t))) for _ in range(rounds)]
        low, middle, high = statistics.quantiles([other / own for own, other in pairs], n=4)
        own = statistics.median(own for own, _ in pairs)
        print(
            f"{name}, sweep: ours {own:.2f} s; scikit-learn at tol {tol:g} / ours {middle:.2f} "
            f"({low:.2f} to {high:.2f}), its losses above ours by up to {max(worse):.0e}, of the "
            f"six strongest l2 by {max(worse[:6]):.0e}",
            flush=True,
        )


SIZES = ("5000,128,20", "20000,256,50", "60000,512,100")
SIDES = ("ours", "scikit-learn", "torch", "SGD")
IMAGENET = (1_281_167, 2048, 1000)


def anonymous() -> int:
    """Bytes of this process that no file stands for."""
    line = next(x for x in Path("/proc/self/status").read_text().split("\n") if "RssAnon" in x)
    return int(line.split()[1]) * 1024


@contextmanager
def most_memory(found: dict[str, Any]) -> Iterator[None]:
    """The most anonymous memory meanwhile, and processor seconds."""
    before, ended = anonymous(), threading.Event()
    peak = [before]

    def watch() -> None:
        while not ended.wait(0.02):
            peak.append(max(peak.pop(), anonymous()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    try:
        yield
    finally:
        found["seconds"] = time.process_time() - began
        ended.set()
        watcher.join()
        found["bytes"] = peak[0] - before


@contextmanager
def counted(found: dict[str, Any]) -> Iterator[None]:
    """How many slopes are taken, and the processor seconds of the fastest quarter."""
    real, seconds = linear.problem.Problem._data, []

    def data(*words: Any) -> Any:
        began = time.process_time()
        value = real(*words)
        seconds.append(time.process_time() - began)
        return value

    linear.problem.Problem._data = data  # type: ignore[method-assign]
    try:
        yield
    finally:
        linear.problem.Problem._data = real  # type: ignore[method-assign]
        found |= {"slopes": len(seconds), "slope": sorted(seconds)[len(seconds) // 4]}


def solved(side: str, path: Path, l2: float) -> dict[str, Any]:
    """What a side takes for a fit of `path`.x.npy and .y.npy, and its loss."""
    y_N = torch.from_numpy(np.load(f"{path}.y.npy"))
    classes, found = int(y_N.max()) + 1, {}
    warm = Problem(torch.eye(4), torch.eye(4), torch.arange(4), l2)
    if side != "ours":
        peer(side, warm)  # what it imports late
    if side == "ours":
        with most_memory(found), counted(found):
            x_ND = torch.from_numpy(np.load(f"{path}.x.npy", mmap_mode="c"))
            fitted = linear.fit(x_ND, y_N, l2, classes=classes)
        problem = Problem(x_ND, (x_ND - fitted.mean_D) / fitted.std_D, y_N, l2)
        both = fitted.weight_CD, fitted.bias_C
    else:
        with most_memory(found):
            x_ND = torch.from_numpy(np.load(f"{path}.x.npy"))
            x_ND = x_ND.sub_(x_ND.mean(0)).div_(x_ND.std(0, correction=0))
            problem = Problem(x_ND, x_ND, y_N, l2)
            both = peer(side, problem)
    return {**found, "loss": float(problem.loss(*both, dtype=torch.float32))}


def peer(side: str, problem: Problem) -> Solved:
    """Another's fit: scikit-learn's to tol 1e-5, 100 iterations of torch's, 20 epochs of SGD."""
    if side == "torch":
        return torch_lbfgs(problem)(100)
    if side == "SGD":
        return sgd(problem, 0.03)(20)
    model = LogisticRegression(C=1 / (problem.l2 * len(problem.y_N)), tol=1e-5, max_iter=500)
    model.fit(problem.x_ND.numpy(), problem.y_N.numpy())
    return torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)


def alone(*words: str) -> dict[str, Any]:
    """What another process of this program prints last."""
    run = subprocess.run(
        [sys.executable, __file__, *words], check=True, capture_output=True, text=True
    )
    answer: dict[str, Any] = json.loads(run.stdout.strip().split("\n")[-1])
    return answer


def exponent(products: list[float], values: list[float]) -> float:
    """Of the power by which values grow."""
    x, y = (np.log(np.array(each)) for each in (products, values))
    return float(np.polyfit(x, y, 1)[0])


def growth(sizes: list[str]) -> None:
    """The table of three sizes."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    products = [float(math.prod(map(int, size.split(",")))) for size in sizes]
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / "features"
            store(path, *map(int, size.split(",")))
            for side in SIDES:
                rows[side].append(alone("solved", side, str(path), "1e-3"))
            least = min(rows[side][-1]["loss"] for side in SIDES)
            for side in SIDES:
                one = rows[side][-1]
                print(
                    f"{size} {side}: {one['seconds']:.2f} s, {one['bytes'] / 2**20:.0f} MiB, loss "
                    f"{one['loss'] / least - 1:.1e} above the least",
                    flush=True,
                )
    for side in SIDES:
        time_power = exponent(products, [one["seconds"] for one in rows[side]])
        memory_power = exponent(products, [one["bytes"] for one in rows[side]])
        print(f"{side}: time grows as (N·D·C)^{time_power:.2f}, memory ^{memory_power:.2f}")
    mine, ratio = rows["ours"][-1], math.prod(IMAGENET) / products[-1]
    print(
        f"ours, a slope of ImageNet's size: {mine['slope'] * ratio:.0f} s of this core; the "
        f"{mine['slopes']} slopes of the last fit: "
        f"{mine['slopes'] * mine['slope'] * ratio / 3600:.1f} hours of one core"
    )


def store(path: Path, n: int, d: int, classes: int) -> None:
    """Features and labels as files."""
    x_ND, y_N = features(n, d, classes)
    np.save(f"{path}.x.npy", x_ND.numpy())
    np.save(f"{path}.y.npy", y_N.numpy())


def whole(path: Path, *, dry: bool) -> dict[str, Any]:
    """A probe of a store whose last eleventh is its test set."""
    words = {"grid": (1e-1, 1e-3), "max_iterations": 12} if dry else {}
    y_N = torch.from_numpy(np.load(f"{path}.y.npy"))
    found: dict[str, Any] = {}
    train = len(y_N) * 10 // 11
    with most_memory(found), counted(found):
        x_ND = torch.from_numpy(np.load(f"{path}.x.npy", mmap_mode="c"))
        probed = linear.probe(x_ND[:train], y_N[:train], x_ND[train:], y_N[train:], **words)
    return {**found, **probed, "grid": {f"{l2:g}": top1 for l2, top1 in probed["grid"].items()}}


def large(size: str, *, dry: bool = False) -> None:
    """A whole probe, ours and one fit of scikit-learn's; dry: ours alone, its fits cut short."""
    n, d, classes = map(int, size.split(","))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features"
        store(path, n * 11 // 10, d, classes)
        mine = alone("dry_run" if dry else "whole", str(path))
        print(f"{size}, ours, a whole probe: {json.dumps(mine)}", flush=True)
        print(
            f"  {mine['seconds']:.0f} s, {mine['bytes'] / 2**20:.0f} MiB beside the store of "
            f"{n * 11 // 10 * d * 4 / 2**20:.0f} MiB, {mine['slopes']} slopes of "
            f"{mine['slope']:.2f} s",
            flush=True,
        )
        if not dry:
            x_ND = np.load(f"{path}.x.npy")[:n]
            np.save(f"{path}.x.npy", x_ND)
            np.save(f"{path}.y.npy", np.load(f"{path}.y.npy")[:n])
            del x_ND
            other = alone("solved", "scikit-learn", str(path), str(mine["l2"]))
            print(
                f"  scikit-learn, one fit at l2 {mine['l2']:g}: {other['seconds']:.0f} s, "
                f"{other['bytes'] / 2**20:.0f} MiB, the features among them",
                flush=True,
            )


def others(words: list[str]) -> bool:
    """The uses by a first word; False where it is none of them."""
    match words:
        case ["growth", *sizes]:
            growth(sizes or list(SIZES))
        case ["large", *size]:
            large(size[0] if size else "200000,1024,100")
        case ["dry", *size]:
            large(size[0] if size else "1280000,16,100", dry=True)
        case ["solved", side, path, l2]:
            print(json.dumps(solved(side, Path(path), float(l2))))
        case ["whole" | "dry_run" as kind, path]:
            print(json.dumps(whole(Path(path), dry=kind == "dry_run")))
        case _:
            return False
    return True


def main() -> None:
    """The uses above."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    words = sys.argv[1:]
    if others(words):
        return
    swept = words[:1] == ["sweep"]
    rounds, *sizes = words[swept:] or ["7"]
    sizes = sizes or ["digits", "10000,512", "5000,2048"]
    for size in sizes:
        if size == "digits":
            data, target = load_digits(return_X_y=True)
            raw_ND, y_N = torch.from_numpy(data).float(), torch.from_numpy(target).long()
        else:
            raw_ND, y_N = features(*map(int, size.split(",")))
        if swept:
            sweep(size, raw_ND, y_N, int(rounds))
            continue
        # Of few rows in many dimensions the least loss is nearly 0: float32 gets no 1e-3 near it.
        few = len(raw_ND) < 4 * raw_ND.shape[1]
        for l2 in PENALTIES[:1] if few else PENALTIES:
            compare(size, raw_ND, y_N, l2, int(rounds))


if __name__ == "__main__":
    main()
