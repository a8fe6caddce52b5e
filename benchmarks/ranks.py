"""The gradient of every method on 2 and 4 ranks beside that of one process on the whole batch: norm
and cosine.

    python benchmarks/ranks.py [BATCH]

A small ResNet with batch statistics and each method's heads, fp64, uneven shares. 1 and 1 is exact;
a loss that sees only its own rank's rows, or that averages a sum, shows up here (the last line:
SimCLR on each rank alone).
"""

import os
import socket
import sys
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from lookalike import comm
from lookalike.methods import METHODS
from lookalike.models import Architecture
from lookalike.nn.batchnorm import global_batchnorm

HEADS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projector": (64, 64)},
    "byol": {"projector": (64, 32), "predictor": (64, 32)},
    "dcl": {"projector": (64, 32), "sigma": 0.5},
    "dino": {"hidden": 64, "bottleneck": 32, "prototypes": 64, "frozen_epochs": 0},
    "moco_v2": {"projector": (64, 32), "queue": 256},
    "moco_v3": {"projector": (64, 32), "predictor": (64, 32)},
    "nnclr": {"projector": (64, 32), "predictor": (64, 32), "queue": 256},
    "simclr": {"projector": (64, 32)},
    "simsiam": {"projector": (64, 32), "predictor": 16},
    "supcon": {"projector": (64, 32)},
    "swav": {"projector": (64, 32), "prototypes": 64, "frozen_epochs": 0},
    "tico": {"projector": (64, 32)},
    "vicreg": {"projector": (64, 64)},
    "w_mse": {"projector": (64, 16), "slice_size": 32},
}
TINY = {"channels": (16, 16, 32, 32), "layers": (1, 1, 1, 1)}


def shares(batch: int, world: int) -> list[int]:
    """Uneven parts: each rank but the last gives one row to the last."""
    even = batch // world - 1
    return [even] * (world - 1) + [batch - even * (world - 1)]


def gradient(name: str, batch: int, alone: bool = False) -> Tensor:
    """All parameters' gradient in one row, as an engine averages it; `alone`: each rank's loss
    knows its own rows.
    """
    torch.manual_seed(0)
    module = METHODS[name](
        Architecture("resnet18", size=16, channels=1, args=TINY).build(), **HEADS[name]
    )
    module = module.train().double()
    if not alone:
        module = global_batchnorm(module)
    generator = torch.Generator().manual_seed(1)
    common = torch.randn(batch, 1, 16, 16, generator=generator, dtype=torch.float64)
    views = [
        common + 0.3 * torch.randn(common.shape, generator=generator, dtype=torch.float64)
        for _ in range(2)
    ]
    cut, rank, world = shares(batch, comm.world_size()), comm.rank(), comm.world_size()
    given: list[Any] = [[view.split(cut)[rank] for view in views]]
    if name == "supcon":
        given.append((torch.arange(batch) % 5).split(cut)[rank])
    loss = apart(module, *given) if alone else module(*given)
    loss.value.backward()
    flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    return comm.all_sum(flat) / world


def apart(module: Any, *given: Any) -> Any:
    """The method on this rank as if there were no other."""
    original = comm.world_size
    comm.world_size = lambda: 1
    try:
        return module(*given)
    finally:
        comm.world_size = original


def serve(rank: int, world: int, port: int, batch: int, answer: Any) -> None:
    """One rank: every method's gradient."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    comm.start()
    found = {name: gradient(name, batch).numpy() for name in METHODS}
    found["simclr, each rank alone"] = gradient("simclr", batch, alone=True).numpy()
    if rank == 0:
        answer.put(found)
    comm.barrier()
    comm.stop()


def on_ranks(world: int, batch: int) -> dict[str, Tensor]:
    """What rank 0 found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    ranks = [
        context.Process(target=serve, args=(r, world, port, batch, answer)) for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    found = {name: torch.from_numpy(row) for name, row in answer.get().items()}
    for rank in ranks:
        rank.join()
    return found


def main() -> None:
    """One line a method: norm × and cosine on 2 and on 4 ranks."""
    batch = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    torch.set_num_threads(1)
    whole = {name: gradient(name, batch) for name in METHODS}
    whole["simclr, each rank alone"] = whole["simclr"]
    found = {world: on_ranks(world, batch) for world in (2, 4)}
    print(
        f"{'method':26}" + "".join(f"{f'{w} ranks: norm ×':>22}{'1 - cosine':>14}" for w in found)
    )
    for name, one in whole.items():
        line = f"{name:26}"
        for many in found.values():
            other = many[name]
            cosine = float(one @ other / one.norm() / other.norm())
            line += f"{float(other.norm() / one.norm()):22.12f}{1 - cosine:14.1e}"
        print(line)


if __name__ == "__main__":
    main()
