"""What an engine costs beside a plain loop: (step of the engine) / (forward, backward, optimizer by
hand), one run.

The method of a recipe on ready views; every engine and stage takes one step in turn, so that all
see the same machine. On two processes the plain loop is torch's DistributedDataParallel. Ratios of
steps that follow each other, by the clock and by the process's processor time, which a busy machine
spoils less and which knows nothing of overlap.

    python benchmarks/engine.py [RECIPE] [STEPS] [PROCESSES] [STAGE ...]
"""

import os
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.nn.parallel import DistributedDataParallel

import lookalike
from lookalike import comm
from lookalike.engine import ENGINES
from lookalike.experiment import Pretrain
from lookalike.optim import OPTIMIZERS, parameter_groups
from lookalike.stages.pretrain import make_method

Step = Callable[[list[Tensor]], Any]
STAGES = (0, 1, 2, 3)


def by_hand(module: Any, optimizer: Any) -> Step:
    """The loop that anyone would write."""

    def step(views: list[Tensor]) -> None:
        module(views).value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def by_engine(engine: Any) -> Step:
    """The same as the training loop asks for it."""

    def step(views: list[Tensor]) -> None:
        engine.backward(engine(views).value)
        engine.step()

    return step


def made(recipe: Any) -> tuple[Any, Any]:
    """A fresh method and AdamW, which every stage can cut."""
    module = make_method(recipe)
    return module, OPTIMIZERS["adamw"](parameter_groups(module), lr=1e-4)


def competitors(recipe: Any, stages: Sequence[int]) -> dict[str, Step]:
    """The plain loop first, then what is compared with it."""
    module, optimizer = made(recipe)
    if comm.world_size() == 1:
        found = {
            "by hand": by_hand(module, optimizer),
            "plain": by_engine(ENGINES["plain"](*made(recipe))),
        }
    else:
        found = {
            "by hand": by_hand(DistributedDataParallel(module, broadcast_buffers=False), optimizer)
        }
    for stage in stages:
        found[f"zero, stage {stage}"] = by_engine(ENGINES["zero"](*made(recipe), stage=stage))
    return found


def measure(path: str, steps: int, stages: Sequence[int]) -> None:
    """Trains all in turn and, on rank 0, prints each ratio with its quartiles."""
    comm.start()
    recipe = lookalike.load_recipe(path, ["pretrain.accumulate=1", "pretrain.engine=plain"])
    architecture, batch = (
        recipe.backbone,
        recipe.section(Pretrain).batch // comm.world_size(),
    )
    shape = (batch, architecture.channels, architecture.size, architecture.size)
    views = [torch.randn(shape, device=comm.device()) for _ in range(2)]
    steppers = competitors(recipe, stages)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    for _ in range(steps + 5):
        for name, step in steppers.items():
            begun, worked = wait(), time.process_time()
            step(views)
            times[name].append((wait() - begun, time.process_time() - worked))
    if comm.rank() == 0:
        report(path, batch, {name: seconds[5:] for name, seconds in times.items()})
    comm.stop()


def wait() -> float:
    """The time, after all that the device still had to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def report(path: str, batch: int, times: dict[str, list[tuple[float, float]]]) -> None:
    """One line for each competitor."""
    base = times["by hand"]
    where = f"{torch.get_num_threads()} threads each, {comm.device()}"
    print(
        f"{path}: {comm.world_size()} process(es), {batch} images each, {where}, {len(base)} "
        "rounds",
        flush=True,
    )
    for name, both in times.items():
        told = []
        for kind, word in enumerate(("clock", "processor")):
            ratios = [one[kind] / other[kind] for one, other in zip(both, base, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            told.append(f"{word} {middle:.3f} ({low:.3f} to {high:.3f})")
        clock = 1e3 * statistics.median(seconds for seconds, _ in both)
        print(f"{name:14} {clock:8.1f} ms, by hand x {', '.join(told)}", flush=True)


def rank(number: int, port: int, path: str, steps: int, stages: Sequence[int]) -> None:
    """One of two processes."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    measure(path, steps, stages)


def main(path: str, steps: int, processes: str, stages: Sequence[int]) -> None:
    """One process, then two."""
    if "1" in processes:
        multiprocessing.spawn(measure_alone, (path, steps, stages), nprocs=1)
    if "2" not in processes:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(rank, (port, path, steps, stages), nprocs=2)


def measure_alone(_number: int, path: str, steps: int, stages: Sequence[int]) -> None:
    """The one process."""
    warnings.simplefilter("ignore")
    measure(path, steps, stages)


if __name__ == "__main__":
    words = [*sys.argv[1:4], *["recipes/quickstart.yaml", "40", "1,2"][len(sys.argv) - 1 :]]
    main(words[0], int(words[1]), words[2], [int(stage) for stage in sys.argv[4:]] or STAGES)
