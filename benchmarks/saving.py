"""How long a save stops the training, beside copying the state alone and beside writing it at once.

    python benchmarks/saving.py RECIPE [ROUNDS]

Printed last: medians of (what the loop waits) / (copy), and (copy, write, flush, rename) / (copy).
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lookalike.checkpoint import Checkpoints, Saver
from lookalike.experiment import load_recipe
from lookalike.stages.pretrain import make_method
from lookalike.training.loop import make_engine, save


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Alternates the three on one engine with full optimizer state."""
    recipe = load_recipe(sys.argv[1])
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    settings, module = recipe.pretrain, make_method(recipe)
    engine = make_engine(settings, module)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    engine.step()
    size = sum(t.numel() * t.element_size() for group in engine.save() for t in group.values())
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Checkpoints(Path(folder) / "behind", 2))
        at_once = Checkpoints(Path(folder) / "once", 2)
        rows = []
        for step in range(rounds):
            saver.wait()
            copy = seconds(engine.save)
            waits = seconds(lambda step=step: save(engine, saver, step, {}))
            saver.wait()
            whole = seconds(lambda step=step: at_once.save(step, engine.save()._asdict(), {}))
            rows.append((copy, waits, whole))
    copy, waits, whole = (statistics.median(column) for column in zip(*rows, strict=True))
    times = (
        f"copy {1e3 * copy:.1f} ms, the loop waits {1e3 * waits:.1f} ms, "
        f"at once {1e3 * whole:.1f} ms"
    )
    print(f"{size / 2**20:.0f} MiB of state; {times}")
    for name, column in (("waits", 1), ("at once", 2)):
        low, middle, high = statistics.quantiles([row[column] / row[0] for row in rows], n=4)
        print(f"{name} / copy: {middle:.2f} (quartiles {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
