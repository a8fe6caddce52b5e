"""doctor says what is unusual about a machine: a line each, with what becomes of it."""

import io
import os
import sys
from pathlib import Path

import pytest

import machine
from forked import forked
from lookalike import doctor
from lookalike.doctor import conditions, remote
from lookalike.doctor import machine as reported
from lookalike.errors import RunError

REFUSED = forked(machine.all_of_it).value
odd = pytest.mark.skipif(bool(REFUSED), reason=f"odd machines {REFUSED}")


def said(folder: Path) -> list[str]:
    return conditions.conditions(folder)


def test_of_a_usual_machine_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert said(tmp_path) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
@odd
def test_each_condition_of_an_odd_machine_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "dev").mkdir()
    (tmp_path / "tmp").mkdir()
    for folder in (tmp_path, tmp_path / "tmp"):
        folder.chmod(0o777)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    def work() -> list[str]:
        machine.own_mounts()
        machine.without_shm(tmp_path / "dev")
        machine.without_locks()
        machine.become_nobody()
        for name in ("HOME", "XDG_CACHE_HOME"):
            os.environ.pop(name, None)
        os.environ["CUDA_VISIBLE_DEVICES"] = "GPU-0b6e4dbd"
        sys.stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        return said(tmp_path / "run")

    assert forked(work).value == [
        "no loader processes (/dev/shm: No such file or directory): each rank reads its images "
        "itself: mount a /dev/shm",
        f"there is no home folder (HOME): the cache is kept in {tmp_path}/tmp/lookalike-54321: set "
        "XDG_CACHE_HOME to a folder of yours",
        f"{tmp_path}: no locks in this file system: start no second run in one folder",
        "stdout is ascii: other characters are escaped: set PYTHONUTF8=1",
        "environment: CUDA_VISIBLE_DEVICES=GPU-0b6e4dbd, but no such GPU can be used: trains on "
        "the CPU: mend it (nvidia-smi -L lists them), or unset it",
    ]


@odd
def test_little_shared_memory_is_said_of_several_gpus_only(tmp_path, monkeypatch):
    def work(gpus: int) -> list[str]:
        machine.own_mounts()
        machine.tmpfs("/dev/shm", "size=64m")
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        return list(conditions._memory())

    assert forked(lambda: work(1)).value == []
    (line,) = forked(lambda: work(8)).value
    assert line.startswith("/dev/shm has 64 MiB, which NCCL may find too little between GPUs: ")


REPORT = {
    "host": "n",
    "python": "3.12",
    "torch": "2.11",
    "deepspeed": "0.19.8",
    "lookalike": "0.2",
    "gpus": [],
    "able": [],
    "addresses": [],
    "free": 10**12,
    "data": "",
    "error": "",
    "notes": ["stdout is ascii"],
}


def test_notes_are_said_and_are_no_problem(capsys):
    doctor.tell([REPORT], as_json=False)
    assert "\nn: stdout is ascii\n1 machine, no problem found\n" in capsys.readouterr().out
    told = remote._parsed(
        '{"host": "n", "python": "", "torch": "", "deepspeed": "", "data": "", '
        '"lookalike": "", "gpus": [], "free": 1, "error": "", '
        '"notes": ["a\\u001b[2J", 7]}'
    )
    assert told is not None
    assert told["notes"] == ["a?[2J", "7"]
    assert (remote._lines("no list"), remote._lines(None)) == ([], [])


def test_ranks_that_each_see_their_own_gpu_have_as_many_as_slots():
    """As SLURM's --gpus-per-task=1 shows them; four that share one are a problem."""
    for names, enough in ((["a", "b", "c", "d"], True), (["a"] * 4, False)):
        first: dict = {}
        for name in names:
            one = {**REPORT, "gpus": ["H200 139 GiB"], "able": ["H200"], "addresses": [name]}
            first = first or {**one, "slots": 0}
            first["slots"] += 1
            reported._add_gpus(first, one)
        found = doctor.problems([first])
        assert found == [] if enough else found[0].startswith("n: 4 slots for 1 GPUs: lower slots")
    with pytest.raises(RunError, match="4 slots for 1 GPUs"):
        doctor.tell([first], as_json=False)
