"""The lock of a run folder, and that of the cache: held by one, freed by the kernel."""

import errno
import os
import signal
import subprocess
import sys

import pytest

import children
from lookalike.data import cache
from lookalike.errors import RunError
from lookalike.folder import held, lock, sweep, unlock

HOLDER = """
import sys, time
from pathlib import Path
from lookalike.folder import lock
lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_comes_second_is_refused_in_one_line_until_the_first_is_killed(holder, tmp_path):
    with pytest.raises(RunError) as told:
        lock(tmp_path)
    assert str(told.value) == (
        f"{tmp_path}: another run writes here: wait for it, or choose another --out"
    )
    assert not held(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock(tmp_path)
    assert held(tmp_path)
    unlock(tmp_path)
    assert not held(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_frees_no_lock_of_its_parent(tmp_path):
    lock(tmp_path)
    child = os.fork()
    if not child:
        unlock(tmp_path)
        os._exit(0)
    os.waitpid(child, 0)
    done = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert "another run writes here" in done.stderr
    unlock(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EPERM, errno.ENOSYS], ids=str)
def test_where_no_lock_can_be_had_a_warning_says_so_and_the_work_goes_on(
    tmp_path, monkeypatch, number
):
    def refused(*words):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.warns(UserWarning, match=r": no lock can be had here \(.*\): start no second run"):
        lock(tmp_path)
    assert not held(tmp_path)
    with cache.locked("key"):
        pass


def test_the_lock_file_is_the_only_trace_and_no_leftover(tmp_path):
    lock(tmp_path)
    sweep(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert held(tmp_path)
    unlock(tmp_path)


def test_a_folder_deleted_under_its_holder_is_locked_anew(tmp_path):
    lock(tmp_path)
    (tmp_path / ".lock").unlink()
    assert not held(tmp_path)
    lock(tmp_path)
    assert held(tmp_path)
    unlock(tmp_path)


def test_the_cache_is_entered_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = (
        "import time; from lookalike.data import cache\n"
        "with cache.locked('key'):\n"
        "    print('in', flush=True); time.sleep(1); print('out', flush=True)"
    )
    program = children.Program(script)
    assert program.printed("in\n")
    with cache.locked("key"):
        assert program.printed("out\n", 0)
    assert program.wait() == (0, "in\nout\n", "")
