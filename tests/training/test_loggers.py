"""What a training tells: a log that goes on as if nothing had been, and loggers, disks and folders
that fail.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import children
import toy
from lookalike.data.reader import Bad
from lookalike.errors import RunError
from lookalike.evaluation.blocks import Form
from lookalike.evaluation.store import Made, stored
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain
from lookalike.training import nonfinite
from lookalike.training.bad_samples import BadSamples, keep_first
from lookalike.training.meter import Meter
from lookalike.training.metrics import Metrics
from lookalike.training.metrics import _cut as cut

TIMED = ("images_per_s", "waiting")
# A line covers several steps and never ends with an epoch of 9; measured every 4.
UNEVEN = ("pretrain.log_every=5", "pretrain.health_every=4", "pretrain.keep=100")


def told(run: Path) -> list[dict]:
    """metrics.jsonl, less what depends on the clock."""
    lines = toy.lines(run / "metrics.jsonl")
    assert all(set(TIMED) <= line.keys() for line in lines)
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return pretrain(toy.recipe(*UNEVEN), tmp_path_factory.mktemp("uneven") / "run").parent


# ---- the log goes on as if nothing had been


@pytest.mark.parametrize(
    "step", [7, 9, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 4, 13, 17))]
)
def test_the_log_of_a_resumed_run_is_that_of_the_uninterrupted_one(tmp_path, uneven, step):
    with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped):
        pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    assert told(tmp_path / "run") == told(uneven)
    assert [line["step"] for line in told(uneven)] == [1, 5, 10, 15, 18]


def test_the_log_goes_on_from_a_checkpoint_between_two_lines_also_after_a_kill(tmp_path, uneven):
    """As a kill leaves it: lines beyond the checkpoint, the last one torn."""
    run = tmp_path / "run"
    shutil.copytree(uneven, run)
    for left in [run / "backbone", *run.glob("checkpoints/step_*1[0-9]")]:
        shutil.rmtree(left)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 19, "lo')
    pretrain(toy.recipe(*UNEVEN), run)
    assert told(run) == told(uneven)


def test_a_rollback_leaves_the_log_of_a_run_without(tmp_path, uneven):
    with fault.plan(toy.once_nan(tmp_path)), toy.heard():
        pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    for line, wanted in zip(told(tmp_path / "run"), told(uneven), strict=True):
        assert {**line, "skipped": 0.0} == {**wanted, "skipped": 0.0}
    assert told(tmp_path / "run")[-1]["skipped"] == 3


def test_skipped_steps_are_counted_on_after_a_resume(tmp_path):
    faults = "nan:rank=0,step=3;term:rank=0,step=8"
    with fault.plan(faults), toy.heard(), pytest.raises(Stopped):
        pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    assert [line["skipped"] for line in told(tmp_path / "run")] == [0, 1, 1, 1, 1]


def test_a_meter_goes_on_from_its_state_bit_for_bit():
    values = torch.rand(7, generator=torch.Generator().manual_seed(0)) * 1e3

    def filled(meter: Meter, some) -> Meter:
        for value in some:
            meter.add(value, {"term": value / 3})
        return meter

    whole = filled(Meter(8), values).values()
    first = filled(Meter(8), values[:4])
    first.record({"health/std": 0.1})
    state = json.loads(json.dumps(first.state()))
    assert first.has_values
    second = filled(Meter(8, state), values[4:]).values()
    assert (second["loss"], second["term"], second["health/std"]) == (
        whole["loss"],
        whole["term"],
        0.1,
    )
    assert not Meter(8, {}).has_values
    assert Meter(8, state).has_values


SHORT = [
    "data.test_fraction=0.8",
    "pretrain.batch=48",
    "pretrain.log_every=4",
    "finetune.log_every=3",
]
SHORT += [
    "probe={grid: [0.1], max_iterations: 5}",
    "evaluate={intervals: 0, examples: 2}",
    "export.onnx=false",
]
# Everything is imported once: a child is a copy that trains at once.
MOTHER = """
import os, sys, torch, sklearn.datasets, torch.utils.tensorboard
torch.set_num_threads(1)
from lookalike import pipeline, experiment
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        pipeline.run(experiment.load_recipe(sys.argv[1], sys.argv[2:]), line.strip())
        os._exit(0)
    print("STARTED", pid, flush=True)
    print("ENDED", os.waitpid(pid, 0)[1], flush=True)
"""


class Mother:
    """Starts runs, one at a time; `start` gives a process, `end` how it ended."""

    def __init__(self, recipe: Path) -> None:
        command = [sys.executable, "-c", MOTHER, str(recipe), *SHORT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)

    def start(self, run: Path) -> int:
        self.process.stdin.write(f"{run}\n")
        self.process.stdin.flush()
        return self._heard("STARTED")

    def end(self) -> int:
        return self._heard("ENDED")

    def _heard(self, word: str) -> int:
        return next(int(line.split()[1]) for line in self.process.stdout if line.startswith(word))


@pytest.mark.parametrize("most", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_kills_end_bit_equal_to_an_uninterrupted_run(tmp_path, most):
    """Over whole runs, later stages too: weights, log and every file that a clean run has, and no
    other.
    """
    mother, chance, kills = Mother(toy.write(tmp_path / "toy.yaml")), random.Random(0), 0
    clean, run = tmp_path / "clean", tmp_path / "killed"
    with mother.process:
        mother.start(clean)
        assert mother.end() == 0
        began = time.monotonic()
        mother.start(tmp_path / "again")
        assert mother.end() == 0
        took = time.monotonic() - began
        assert_same(tmp_path / "again", clean)
        while kills < most:
            pid = mother.start(run)
            time.sleep(chance.uniform(0, took))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status = mother.end()
            assert status in (0, signal.SIGKILL)
            kills += status == signal.SIGKILL
            if status == 0:  # it had come to its end: the other kills fall into a new one
                assert_same(run, clean)
                shutil.rmtree(run)
        mother.start(run)
        assert mother.end() == 0
        mother.process.stdin.close()
    assert_same(run, clean)


def assert_same(run: Path, clean: Path) -> None:
    """The same files, and in those that hold results the same bytes; TensorBoard's names hold
    times.
    """

    def names(folder: Path) -> set[str]:
        return {
            str(p.relative_to(folder)) for p in folder.rglob("*") if "tensorboard" not in str(p)
        }

    assert names(run) == names(clean)
    for part in ("", "finetune"):
        assert told(run / part) == told(clean / part)
    for name in names(run):
        if name.endswith((".safetensors", "probe.json", "evaluate.json", "card.json")):
            assert (run / name).read_bytes() == (clean / name).read_bytes(), name


def test_bad_samples_of_steps_that_are_done_again_are_counted_once(tmp_path):
    """What a kill leaves: a list that is ahead of the last checkpoint."""
    path = tmp_path / "bad_samples.jsonl"
    first = BadSamples(path, 100, 0)
    for sample in (4, 7, 9):
        first.check(first.add([Bad(sample, "x.png", "empty", 1)]))
    keep_first(path, 2)
    again = BadSamples(path, 100, 2)
    assert again.count == 2
    assert again.add([Bad(4, "x.png", "empty", 1)]) == 0
    again.check(again.add([Bad(9, "x.png", "empty", 1)]))
    assert again.count == 3
    assert [line["sample"] for line in toy.lines(path)] == [4, 7, 9]


# ---- a disk that is full


def full(monkeypatch, path: Path, *, room: int = 0, error: int = errno.ENOSPC) -> list[bool]:
    """From when the list's entry is True no more than `room` bytes a write fit into this file."""
    switch = [False]

    class Full(io.FileIO):
        def write(self, data):
            if not switch[0]:
                return super().write(data)
            left = room - (self.tell() - self.begun)
            if left <= 0:
                raise OSError(error, os.strerror(error))
            return super().write(bytes(data)[:left])

        def seek(self, *arguments):
            self.begun = super().seek(*arguments)
            return self.begun

    original = builtins.open

    def opened(self, mode="r", *arguments, **how):
        return (
            Full(str(self), mode.replace("b", ""))
            if self == path and mode == "ab"
            else original(self, mode, *arguments, **how)
        )

    monkeypatch.setattr(Path, "open", opened)
    return switch


@pytest.mark.parametrize("room", [pytest.param(0, marks=pytest.mark.slow), 17])
def test_a_full_disk_buffers_the_log_and_stops_no_training(tmp_path, monkeypatch, uneven, room):
    run = tmp_path / "run"
    switch = full(monkeypatch, run / "metrics.jsonl", room=room)

    def fill(step: int) -> None:
        switch[0] = 5 <= step < 16

    with fault.plan(fill), toy.heard() as texts:
        pretrain(toy.recipe(*UNEVEN), run)
    assert texts == [
        f"{run}/metrics.jsonl: cannot be written (No space left on device): training goes on, its "
        "lines wait in memory"
    ]
    assert told(run) == told(uneven)


def test_log_lines_never_written_are_reported(tmp_path, monkeypatch):
    switch = full(monkeypatch, tmp_path / "metrics.jsonl", room=9)
    with toy.heard() as texts, Metrics(tmp_path, 0) as metrics:
        metrics.write(1, {"loss": 1.0})
        switch[0] = True
        metrics.write(2, {"loss": 1.0})
        metrics.write(3, {"loss": 1.0})
    assert len(texts) == 2
    assert "the last 2 lines could not be written" in texts[1]
    assert [line["step"] for line in toy.lines(tmp_path / "metrics.jsonl")] == [1]


def test_bad_samples_that_cannot_be_listed_are_counted(tmp_path, monkeypatch):
    full(monkeypatch, tmp_path / "bad_samples.jsonl")[0] = True
    bad = BadSamples(tmp_path / "bad_samples.jsonl", 100)
    with toy.heard() as texts:
        assert [bad.add([Bad(n, "x.png", "empty", 1)]) for n in (1, 2, 1)] == [1, 1, 0]
    assert len(texts) == 1


def test_features_that_cannot_be_kept_are_not_lost(tmp_path, capsys):
    (tmp_path / "features").write_text("a file where the folder should be")
    made = Made(0, (), torch.ones(2, 3))
    found = stored(tmp_path / "features/of", Form(2, "float32"), lambda numbers: [made])
    assert torch.equal(found.x_ND, torch.ones(2, 3))
    assert "these features are not kept" in capsys.readouterr().err


def test_a_bundle_that_cannot_be_written_stops_no_rollback(tmp_path, monkeypatch, uneven):
    def refuse(*arguments):
        raise RunError("nonfinite: cannot be written: No space left on device")

    monkeypatch.setattr(nonfinite, "write_folder", refuse)
    with fault.plan(toy.once_nan(tmp_path)), toy.heard() as texts:
        pretrain(toy.recipe(*UNEVEN), tmp_path / "run")
    assert "nonfinite: cannot be written: No space left on device; training goes on" in texts
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(uneven))


# ---- loggers that fail


@pytest.mark.parametrize(
    "verb",
    [
        "__init__",
        *(pytest.param(v, marks=pytest.mark.slow) for v in ("add_scalar", "close")),
        "thread",
    ],
)
def test_tensorboard_may_fail_anywhere(tmp_path, monkeypatch, whole, verb):
    from torch.utils.tensorboard import SummaryWriter

    def fail(*arguments, **how):
        raise OSError(errno.ENOSPC, "No space left on device")

    if verb == "thread":
        from tensorboard.summary.writer import record_writer

        monkeypatch.setattr(record_writer.RecordWriter, "write", fail)
        monkeypatch.setattr(record_writer.RecordWriter, "flush", fail)
    else:
        monkeypatch.setattr(SummaryWriter, verb, fail)
    stray: list[object] = []
    monkeypatch.setattr(threading, "excepthook", stray.append)
    with toy.heard() as texts:
        pretrain(toy.recipe(), tmp_path / "run")
    assert texts == [
        "TensorBoard stopped ([Errno 28] No space left on device); metrics.jsonl goes on"
    ]
    assert toy.curve(tmp_path / "run") == toy.curve(whole)
    assert (tmp_path / "run/backbone/card.json").exists()
    assert threading.excepthook == stray.append
    assert not stray


# ---- cutting the log


def test_tensorboard_purges_the_steps_of_a_rollback(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(tmp_path, 0) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
        metrics.cut(2)
        metrics.write(3, {"loss": 30.0})
    with Metrics(tmp_path, 3) as metrics:
        metrics.write(4, {"loss": 40.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [(event.step, event.value) for event in board.Scalars("loss")] == expected
    assert toy.curve(tmp_path) == expected


def test_the_log_is_never_empty_while_it_is_cut(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 19)).encode()
    path.write_bytes(text)
    seen = []

    def killed(*arguments):
        seen.append(path.read_bytes())
        raise KeyboardInterrupt

    for name in ("fsync", "replace", "write"):
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, name, killed)
            cut(path, 6)
        assert path.read_bytes() in (text, b"".join(text.splitlines(keepends=True)[:6]))
        path.write_bytes(text)
    assert seen == [text] * len(seen)
    assert seen
    cut(path, 6)
    assert path.read_bytes() == b"".join(text.splitlines(keepends=True)[:6])
    for torn in (b'{"step": 7, "lo', b"{}\n", b"\xff\xfe\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(text + torn)
        cut(path, 99)
        assert path.read_bytes() == text


# ---- a folder that vanishes


def test_a_run_folder_deleted_under_a_run_can_be_resumed(tmp_path, capfd):
    run = tmp_path / "run"

    def delete(step: int) -> None:
        if step == 14:
            while run.exists():  # a logger's own thread may write between two unlinks
                shutil.rmtree(run, ignore_errors=True)

    with fault.plan(delete), toy.heard() as texts:
        pretrain(toy.recipe(), run)
    assert f"{run}: was deleted while the training ran: written anew" in texts
    assert "Traceback" not in capfd.readouterr().err
    assert (run / "recipe.yaml").exists()
    assert [line["step"] for line in told(run)] == [14, 15, 16, 17, 18]
    shutil.rmtree(run / "backbone")
    pretrain(toy.recipe(), run)
    code = f"from lookalike.folder import lock\nfrom pathlib import Path\nlock(Path({str(run)!r}))"
    assert "another run writes here" in children.run(code).stderr  # the lock, too, was taken anew
