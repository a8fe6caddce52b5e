"""Checkpoints under kills and signals, on a disk that fails, and damaged: nothing saved is lost."""

import contextlib
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from children import child
from lookalike.checkpoint import Checkpoints
from lookalike.errors import RunError
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain

STEPS = 18


def save_for_ever(folder: str, tell: Connection) -> None:
    checkpoints = Checkpoints(Path(folder), 2)
    found = checkpoints.newest({})
    first = found.step + 1 if found else 1
    for step in itertools.count(first):
        value = torch.full((200_000,), float(step))
        checkpoints.save(step, {"model": {"x": value}, "optim": {"x/y": value}}, {})
        tell.send(step)


@pytest.mark.parametrize("kills", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_of_a_saver_lose_nothing_that_was_acknowledged(tmp_path, kills):
    chance, acknowledged = random.Random(0), 0
    for _ in range(kills):
        here, there = multiprocessing.get_context("forkserver").Pipe()
        process = child(save_for_ever, str(tmp_path), there)
        assert here.poll(60)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join(20)
        there.close()
        with contextlib.suppress(EOFError):
            while here.poll():
                acknowledged = here.recv()
        found = Checkpoints(tmp_path, 2).newest({})
        assert found.step >= acknowledged
        assert bool((found.tensors["model"]["x"] == found.step).all())
    assert acknowledged > kills


def test_a_signal_during_a_save_ends_the_run_with_everything_saved(tmp_path, monkeypatch):
    original = Checkpoints.save

    def slow(self, step, *arguments):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return original(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", slow)
    with pytest.raises(Stopped, match="SIGTERM"):
        pretrain(toy.recipe(), tmp_path / "run")
    steps = {int(f.name[5:]) for f in (tmp_path / "run/checkpoints").glob("step_*")}
    assert 9 in steps
    assert max(steps) in (9, 10, 11, 12)
    for step in steps:
        assert toy.tensors(tmp_path / "run", step)


def failing(monkeypatch, times: Iterator[bool]) -> None:
    original = Checkpoints.save

    def save(self, *arguments):
        if next(times):
            raise RunError("disk: cannot be written: No space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", save)


def test_a_save_that_fails_stops_no_training(tmp_path, monkeypatch, whole):
    failing(monkeypatch, iter([True, True, False]))
    with toy.heard() as texts:
        pretrain(toy.recipe("pretrain.epochs=3", "pretrain.warmup_epochs=0.5"), tmp_path / "run")
    assert texts == ["disk: cannot be written: No space left on device; training goes on"] * 2
    assert toy.tensors(tmp_path / "run", 27)


def test_three_saves_that_fail_in_a_row_stop_it(tmp_path, monkeypatch):
    failing(monkeypatch, iter([False, *[True] * 9]))
    with (
        toy.heard(),
        pytest.raises(RunError, match="No space left on device; 3 saves in a row have failed"),
    ):
        pretrain(toy.recipe("pretrain.epochs=9"), tmp_path / "run")
    assert toy.tensors(tmp_path / "run", 9)


def test_a_failed_last_save_is_an_error(tmp_path, monkeypatch):
    failing(monkeypatch, iter([False, True]))
    with pytest.raises(RunError, match="No space left"):
        pretrain(toy.recipe(), tmp_path / "run")
    assert not (tmp_path / "run/backbone").exists()


def save_with_little_space(folder: str, limit: int, tell: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(Path(folder), 2)
    checkpoints.save(1, {"model": {"x": torch.zeros(100)}, "optim": {}}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoints.save(2, {"model": {"x": torch.zeros(10_000)}, "optim": {}}, {})
        tell.send("saved")
    except RunError as error:
        tell.send(str(error))


@pytest.mark.parametrize("limit", [0, 1, 1000, 39_999])
def test_a_disk_full_at_any_byte_keeps_the_previous_checkpoint(tmp_path, limit):
    here, there = multiprocessing.get_context("forkserver").Pipe()
    process = child(save_with_little_space, str(tmp_path), limit, there)
    assert here.poll(60)
    assert "cannot be written: File too large: free space" in here.recv()
    process.join(20)
    assert Checkpoints(tmp_path, 2).newest({}).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step_00000001"]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped first byte": lambda p: p.write_bytes(
        bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]
    ),
    "flipped last byte": lambda p: p.write_bytes(
        p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 128])
    ),
    "one byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "one byte long": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "missing": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a link": lambda p: (p.rename(p.with_suffix(".moved")), p.symlink_to(p.with_suffix(".moved"))),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
}


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "manifest.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_corruption_is_found_before_a_tensor_is_used(tmp_path, whole, file, kind):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    DAMAGE[kind](tmp_path / "checkpoints" / f"step_{STEPS:08d}" / file)
    with pytest.warns(UserWarning, match=rf"{file.split('.')[0]}.*going on from step_00000009"):
        assert Checkpoints(tmp_path / "checkpoints", 2).newest({}).step == 9


@pytest.mark.parametrize("kind", ["missing", "empty", "dangling", "a lie"])
def test_latest_json_is_never_trusted(tmp_path, whole, kind):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    hint = run / "checkpoints/latest.json"
    hint.unlink()
    if kind == "empty":
        hint.write_text("")
    elif kind == "dangling":
        hint.symlink_to("nowhere")
    elif kind == "a lie":
        hint.write_text(json.dumps({"step": 0, "folder": "step_00000000"}))
    pretrain(toy.recipe(), run)
    assert toy.same(toy.tensors(run), toy.tensors(whole))
    assert len(toy.lines(run / "metrics.jsonl")) == STEPS


def test_a_checkpoint_of_the_first_format_still_loads(tmp_path):
    """Written when the format was made, and kept: what reads it today must read it for ever."""
    shutil.copytree(Path(__file__).parent / "fixtures/format1", tmp_path / "checkpoints")
    found = Checkpoints(tmp_path / "checkpoints", 2).newest({"batch": 4})
    assert found.step == 7
    assert found.tensors["model"]["layer.weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert found.tensors["optim"]["layer.weight/exp_avg"].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_checkpoint_of_a_later_format_is_refused_clearly(tmp_path):
    shutil.copytree(Path(__file__).parent / "fixtures/format1", tmp_path / "checkpoints")
    manifest = tmp_path / "checkpoints/step_00000007/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match="format 2, this version reads 1: update lookalike"):
        Checkpoints(tmp_path / "checkpoints", 2).newest({})


def test_a_later_format_is_refused_and_not_passed_over(tmp_path, whole):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    manifest = tmp_path / f"checkpoints/step_{STEPS:08d}/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match="format 2, this version reads 1: update lookalike"):
        Checkpoints(tmp_path / "checkpoints", 2).newest({})
    assert manifest.exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_checkpoint_displaces_no_whole_one(tmp_path, whole, keep):
    """The broken ones lie at later steps than what is saved next; a stray file and a rogue name do
    too.
    """
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    (folder / f"step_{STEPS:08d}/model.safetensors").write_bytes(b"torn")
    (folder / "step_99999999999999999999").mkdir()
    (folder / "step_00000099").write_text("stray")
    checkpoints = Checkpoints(folder, keep)
    with toy.heard() as texts:
        found = checkpoints.newest({})
    assert found.step == 9
    assert len(texts) == 3
    checkpoints.save(11, found.tensors, {})
    assert [f.name for f in sorted(folder.glob("step_*"))] == [
        f"step_{s:08d}" for s in (9, 11)[-keep:]
    ]
    assert Checkpoints(folder, keep).newest({}).step == 11
    assert (folder / f"damaged.step_{STEPS:08d}/model.safetensors").read_bytes() == b"torn"
