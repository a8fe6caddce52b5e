"""Folders on NFS and other file systems of several machines: stale handles, requests sent twice,
files that stay while somebody reads them, names that show later, operations that they lack.
"""

import errno
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from lookalike.checkpoint import Checkpoints, meet
from lookalike.errors import RunError
from lookalike.folder import (
    await_visible,
    leftovers,
    patiently,
    read_regular,
    recover,
    shared,
    sweep,
    verify,
    write_file,
    write_folder,
)


def failing(monkeypatch, owner, name: str, number: int, times: int = 10**9, when=None):
    """`owner.name` raises this error so often; returns the list of its calls."""
    calls, real = [], getattr(owner, name)

    def call(*words, **more):
        if when is None or when(*words):
            calls.append(words)
            if len(calls) <= times:
                raise OSError(number, os.strerror(number))
        return real(*words, **more)

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(shared, "_WAITS", (0.0, 0.0, 0.0))


def test_a_stale_handle_is_opened_anew(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"content")
    calls = failing(monkeypatch, os, "fstat", errno.ESTALE, times=2)
    assert read_regular(tmp_path / "x", 100) == b"content"
    assert len(calls) == 3


def test_one_that_stays_stale_is_an_error_in_the_end(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(b"content")
    with monkeypatch.context() as patch:
        calls = failing(patch, os, "fstat", errno.ESTALE)
        with pytest.raises(OSError, match="Stale"):
            read_regular(tmp_path / "x", 100)
    assert len(calls) == 4


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_other_errors_are_not_waited_for(number):
    calls = []

    def work() -> None:
        calls.append(1)
        raise OSError(number, "no")

    with pytest.raises(OSError, match="no"):
        patiently(work)
    assert len(calls) == 1


def test_a_manifest_is_checked_through_stale_handles(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", {"a": b"1", "b": b"2"})
    with monkeypatch.context() as patch:
        calls = failing(
            patch, Path, "stat", errno.ESTALE, times=2, when=lambda p, *_: p.name == "b"
        )
        verify(tmp_path / "x")
        assert len(calls) > 2


def test_a_file_that_cannot_be_read_is_a_broken_checkpoint_and_not_the_end(tmp_path, monkeypatch):
    """Of a bad disk: the one before is gone on from."""
    import torch

    made = Checkpoints(tmp_path / "checkpoints", 3)
    for step in (1, 2):
        made.save(step, {"model": {"w": torch.full((2,), step)}, "optim": {}}, {})
    bad = tmp_path / "checkpoints" / "step_00000002" / "model.safetensors"
    real = Path.open

    def broken(path, *words, **more):
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(path, *words, **more)

    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(RunError, match=r"model.safetensors: cannot be read \(Input/output error\)"):
        verify(bad.parent)
    with pytest.warns(UserWarning, match="going on from step_00000001"):
        found = made.newest({})
    assert found is not None
    assert found.step == 1


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_fsync_of_folders_is_written_to(tmp_path, monkeypatch, number):
    real = os.fsync

    def fsync(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "x", {"a": b"old"})
    write_folder(tmp_path / "x", {"a": b"new"})
    write_file(tmp_path / "y", b"new")
    verify(tmp_path / "x")
    assert (tmp_path / "x" / "a").read_bytes() == (tmp_path / "y").read_bytes() == b"new"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_what_did_not_reach_the_disk_is_no_success(tmp_path, monkeypatch, number):
    failing(monkeypatch, os, "fsync", number)
    with pytest.raises(RunError, match="cannot be written"):
        write_folder(tmp_path / "x", {"a": b"1"})
    with pytest.raises(RunError, match="cannot be written"):
        write_file(tmp_path / "y", b"1")
    assert not list(tmp_path.iterdir())


def twice(monkeypatch, name: str) -> None:
    """Each rename is answered as one that was sent again, and found its work done."""
    real = getattr(Path, name)

    def rename(one: Path, other: Path) -> Path:
        real(one, other)
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(Path, name, rename)


def test_a_rename_that_was_sent_twice_is_done(tmp_path, monkeypatch):
    write_folder(tmp_path / "x", {"a": b"old"})
    twice(monkeypatch, "rename")
    twice(monkeypatch, "replace")
    write_folder(tmp_path / "x", {"a": b"new"})
    write_file(tmp_path / "y", b"new")
    verify(tmp_path / "x")
    assert (tmp_path / "x" / "a").read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_a_rename_that_failed_is_not_taken_for_done(tmp_path, monkeypatch):
    write_file(tmp_path / "y", b"old")
    failing(monkeypatch, Path, "replace", errno.ENOENT)
    with pytest.raises(RunError, match="cannot be written"):
        write_file(tmp_path / "y", b"new")
    assert (tmp_path / "y").read_bytes() == b"old"


def stays(monkeypatch, held: list[str]) -> None:
    """As NFS: a folder with a file that somebody has open is not removed, the file is renamed."""
    real = shutil.rmtree

    def rmtree(path, ignore_errors=False):
        path = Path(path)
        open_ones = [path / name for name in held if (path / name).exists()]
        for one in open_ones:
            one.rename(path / ".nfs0000000000a1b2c300000001")
        if not any(p.name.startswith(".nfs") for p in path.iterdir()):
            real(path, ignore_errors=ignore_errors)
            return
        for p in path.iterdir():
            if not p.name.startswith(".nfs"):
                p.unlink()

    monkeypatch.setattr(shutil, "rmtree", rmtree)


def test_a_folder_that_somebody_reads_is_replaced_again_and_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stays(patch, ["model.safetensors"])
        for content in (b"1", b"2", b"3", b"4"):
            write_folder(tmp_path / "x", {"model.safetensors": content})
            assert (tmp_path / "x" / "model.safetensors").read_bytes() == content
        aside = {p.name for p in tmp_path.iterdir()} - {"x"}
        assert len(aside) == 3
        assert all(name.startswith(".old-x-") for name in aside)
    # The reader has gone, and so has the process that wrote: all that is left is swept.
    monkeypatch.setattr(sys.modules["lookalike.folder.leftovers"], "_lives", lambda pid: False)
    assert len(leftovers(tmp_path)) == 3
    recover(tmp_path / "x")
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    verify(tmp_path / "x")


def test_what_another_machine_wrote_is_waited_for(tmp_path):
    target = tmp_path / "deep" / "x"
    threading.Timer(0.3, lambda: write_folder(target, {"a": b"1"})).start()
    await_visible(target / "manifest.json", seconds=20)
    assert (target / "manifest.json").exists()


def test_a_place_that_is_not_shared_is_told_in_one_line(tmp_path):
    began = time.monotonic()
    with pytest.raises(RunError, match=r"x: written by rank 0, but not to be seen .*all machines"):
        await_visible(tmp_path / "x", seconds=0.2)
    assert time.monotonic() - began < 20


def seen(path: str) -> str:
    """What a rank says of a folder that the first has made."""
    from lookalike import comm

    made = Path(path)
    if comm.rank() == 0:
        write_folder(made, {"a": b"1"})
    elif "hidden" in path:
        made = made.with_name("elsewhere")  # its own disk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.await_visible, "__defaults__", (0.3,))
        try:
            meet(made)
        except RunError as error:
            return str(error)
    return "seen"


def test_ranks_meet_over_a_folder_that_all_see(ranks, tmp_path):
    assert ranks.run(seen, str(tmp_path / "x")) == ["seen", "seen"]
    first, second = ranks.run(seen, str(tmp_path / "hidden"))
    assert first == "seen"
    assert "must be a folder that all machines share" in second
