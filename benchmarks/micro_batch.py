"""One step of a big batch by `micro_batch` beside the same step in one pass: peak memory and time.

    python benchmarks/micro_batch.py [BATCH] [MICRO] [ROUNDS]

Barlow Twins on a ViT without batch statistics at 64 pixels, so that both find the same gradient;
each side runs in a process of its own, in turn, after a small step. Printed last: memory in one
pass / in parts, and time the other way.
"""

import multiprocessing
import os
import statistics
import sys
import time
from typing import Any

import torch
from losses import peak

from lookalike.experiment import Experiment
from lookalike.recipe import from_text
from lookalike.stages.pretrain import make_method

TEXT = """
data: {{name: digits}}
backbone: {{name: vit_tiny_patch16_224, size: 64, args: {{patch_size: 8, depth: 6}}}}
pretrain:
  method: {{name: barlow_twins, projector: [512, 512]}}
  optimizer: {{name: adamw, lr: 1e-3}}
  epochs: 1
  warmup_epochs: 0
  batch: {batch}
  micro_batch: {micro}
"""


def measure(batch: int, micro: int, answer: Any) -> None:
    """(loss, norm of the gradient, seconds, bytes) of one step."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    module = make_method(from_text(TEXT.format(batch=batch, micro=micro), "micro", [], Experiment))
    module([torch.randn(2 * batch // micro, 3, 64, 64) for _ in range(2)]).value.backward()
    module.zero_grad()
    torch.manual_seed(0)
    views = [torch.randn(batch, 3, 64, 64) for _ in range(2)]
    before, began = peak(), time.perf_counter()
    loss = module(views).value
    loss.backward()
    seconds = time.perf_counter() - began
    norm = torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm()
    answer.send((loss.item(), norm.item(), seconds, peak() - before))


def alone(batch: int, micro: int) -> tuple[float, float, float, float]:
    """`measure` in a fresh process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(batch, micro, there)
    )
    process.start()
    found: tuple[float, float, float, float] = here.recv()
    process.join()
    return found


def main(batch: int = 512, micro: int = 32, rounds: int = 3) -> None:
    """Alternates and prints."""
    memory, slower = [], []
    for _ in range(rounds):
        parts, whole = alone(batch, micro), alone(batch, batch)
        memory.append(whole[3] / parts[3])
        slower.append(parts[2] / whole[2])
        for name, (loss, norm, seconds, held) in (("in parts", parts), ("one pass", whole)):
            print(
                f"{name}: loss {loss:.6g}, gradient {norm:.6g}, {seconds:.1f} s, "
                f"{held / 2**20:.0f} MiB",
                flush=True,
            )
    print(
        f"batch {batch} by {micro}: memory / {statistics.median(memory):.1f} ({min(memory):.1f} to "
        f"{max(memory):.1f}), "
        f"time × {statistics.median(slower):.2f} ({min(slower):.2f} to {max(slower):.2f})"
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
