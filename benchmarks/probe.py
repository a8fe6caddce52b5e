"""The linear probe's own L-BFGS beside others, to the same regularised loss: processor time.

    python benchmarks/probe.py [ROUNDS] [N,D …]        digits and 10000,512 and 5000,2048
    python benchmarks/probe.py sweep [ROUNDS] [N,D …]  the whole grid of l2, as a probe walks it

Mean cross-entropy + l2/2 · ‖W‖² with a free bias, on features standardised by train, float32, one
thread. Sides: ours (`scoring.linear`, its eigenvectors included), scikit-learn's
LogisticRegression(lbfgs), torch.optim.LBFGS with strong Wolfe steps, and 100 epochs of SGD
(Nesterov .9, batch 256, cosine, the best of three rates). The first three do the fewest iterations
that come within 1e-3 of the least loss (float64, tight), found beforehand; then they are timed in
turn. SGD says how near it came. Features, where none are given: 100 classes, eigenvalues falling as
1/k, rotated, rectified. Printed last: each one's time / ours, medians and quartiles of the rounds.

The sweep: eight l2, from strong to weak, each from the one before, ours to its own tolerance,
scikit-learn to three of its own; how much above ours each loss ends.
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import cross_entropy

from lookalike.scoring import linear

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
        with torch.no_grad():
            fits = linear._sweep(linear._problem(raw_ND, y_N, classes), grid, 500, 1e-5)
        return [fits[l2] for l2 in grid]

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


def main() -> None:
    """The uses above."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    words = sys.argv[1:]
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
