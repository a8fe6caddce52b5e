"""What a verb costs before it works, beside `import torch`: processor time of whole processes.

    python benchmarks/startup.py [--rounds 5]

Kinds alternate, each a process of its own with one thread; the medians, their quartiles, and the
ratio to torch's import in the same round. A small index and a recipe of the quickstart's kind are
made first. `plain rank` is a training of one step, which includes the step and torch's own import
of its compiler at it; `optimizer` is the same floor without lookalike.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lookalike.folder import write_folder
from lookalike.models import Architecture, folder_files

QUICKSTART = str(Path(__file__).parent.parent / "recipes" / "quickstart.yaml")
OPTIMIZER = """
import torch
w = torch.nn.Parameter(torch.zeros(2))
s = torch.optim.AdamW([w])
w.sum().backward()
s.step()
"""
ONE_STEP = ["pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.batch=1400"]


def processor(*command: str) -> float:
    """Seconds of processor time, its children's included, of a command that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: Path) -> tuple[str, str]:
    """An index of forty images, and one of them."""
    for i in range(40):
        pixels_HWC = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels_HWC).save(folder / "images" / f"{i}.png")
    small = {"channels": [16, 16, 16, 16], "layers": [1, 1, 1, 1]}
    model = Architecture(name="resnet18", size=32, args=small).build()
    write_folder(folder / "model", folder_files(model))
    index, images, query = folder / "index", folder / "images", folder / "images" / "3.png"
    made = ["search", str(index), "--from", str(images), "--model", str(folder / "model")]
    processor("-m", "lookalike", *made)
    return str(index), str(query)


def main() -> None:
    """Prints one line a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ.setdefault("PYTHONPYCACHEPREFIX", str(folder / "bytecode"))
        index, query = prepare(folder)
        own = ("-m", "lookalike")
        kinds: dict[str, tuple[str, ...]] = {
            "import torch": ("-c", "import torch"),
            "--help": (*own, "--help"),
            "search": (*own, "search", index, query),
            "check": (*own, "check", QUICKSTART, "--out", str(folder / "run")),
            "show": (*own, "show", QUICKSTART),
            "optimizer": ("-c", OPTIMIZER),
            "plain rank": (*own, "pretrain", QUICKSTART, *ONE_STEP, "--out", str(folder / "one")),
        }
        for command in kinds.values():
            processor(*command)
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for turn in range(rounds):
            for kind, command in kinds.items():
                fresh = (*command[:-1], str(folder / f"one{turn}"))
                taken[kind].append(processor(*(fresh if kind == "plain rank" else command)))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for kind, seconds in taken.items():
        ratios = [s / t for s, t in zip(seconds, taken["import torch"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        median = statistics.median(seconds)
        print(f"{kind:14} {median:6.2f} s  {middle:5.2f} ({low:.2f} to {high:.2f}) of torch's")


if __name__ == "__main__":
    main()
