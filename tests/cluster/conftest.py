"""The clusters, each up for all its tests and gone afterwards; and the run that none of them
interrupts.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import toy
from cluster import one_slurm, two_hosts
from lookalike.stages.pretrain import pretrain

ROOT = Path(__file__).parents[2]
EPOCHS = 12
STEPS = 9 * EPOCHS
TIMEOUT = 15
STAGES = ["probe=null", "finetune=null", "evaluate=null", "export=null"]
# Without batch statistics and by AdamW: test_loop.py says why this curve is the same on any number
# of ranks.
CHANGES = [
    f"pretrain.epochs={EPOCHS}",
    "pretrain.optimizer={name: adamw, lr: 5e-4}",
    "pretrain.save_every_epochs=1",
]
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHON": sys.executable,
    "PYTHONPATH": os.environ.get("PYTHONPATH") or str(ROOT / "ssl"),
    "OMP_NUM_THREADS": "1",
    "LOOKALIKE_TIMEOUT": str(TIMEOUT),
}


def recipe(folder: Path) -> list[str]:
    """The words after a launch script, less --out."""
    return [str(toy.write(folder / "r.yaml", backbone=toy.VIT)), *CHANGES, *STAGES]


def wait_for_steps(run: Path, steps: int, process=None, seconds: float = 90) -> None:
    """Returns when `run` has trained so many steps."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + seconds
    while not (metrics.exists() and metrics.read_text().count("\n") >= steps):
        assert process is None or process.poll() is None, "ended before its time"
        assert time.monotonic() < deadline, "too slow"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def hosts(tmp_path_factory) -> Iterator[two_hosts.Hosts]:
    if reason := two_hosts.missing():
        pytest.skip(reason)
    with two_hosts.Hosts(tmp_path_factory.mktemp("hosts")) as up:
        yield up


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[one_slurm.Slurm]:
    if reason := one_slurm.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    with one_slurm.Slurm(folder) as up:
        yield up


def run_toy(out: str) -> None:
    pretrain(toy.recipe(*CHANGES, *STAGES, backbone=toy.VIT), out)


@pytest.fixture(scope="session")
def uninterrupted(ranks, tmp_path_factory) -> Path:
    """Two ranks, no launcher, no accident."""
    run = tmp_path_factory.mktemp("whole") / "run"
    ranks.run(run_toy, str(run))
    return run
