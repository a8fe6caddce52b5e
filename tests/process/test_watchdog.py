"""One rank dies, raises, hangs or freezes: the job ends in time with the first cause, and goes on
to the same end.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import children
import toy
from lookalike import cli, comm
from lookalike.checkpoint import Checkpoints
from lookalike.comm import group
from lookalike.errors import HUNG, LOST, LostError, RunError
from lookalike.process.watchdog import Watchdog

TIMEOUT = 6
SLACK = 20
# The fault comes in the second epoch, so that one checkpoint is there to go on from.
STEP = 11


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def rank_main(said: Path, environment: dict[str, str], words: list[str]) -> None:
    """A forked process that has imported everything becomes one rank of a job, as a launcher would
    start it.
    """
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= environment
    torch.set_num_threads(1)
    sys.argv[1:] = words
    cli.main()


class Rank:
    """One of two ranks; `process` is its own, and what it said lies in a file."""

    def __init__(self, rank: int, port: str, run: Path, environment: dict[str, str]) -> None:
        recipe = toy.write(run.parent / f"r{rank}.yaml")
        stages = [f"{name}=null" for name in ("probe", "finetune", "evaluate", "export")]
        words = ["run", str(recipe), *stages, "--out", str(run)]
        ranks = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        self.said = run.parent / f"{run.name}_{rank}.txt"
        arguments = (self.said, {**ranks, "LOOKALIKE_TIMEOUT": str(TIMEOUT), **environment}, words)
        self.process = children.child(rank_main, *arguments)

    def wait(self, seconds: float = 100) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def frozen(self) -> bool:
        return (
            Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
        )

    def end(self) -> None:
        self.process.kill()
        self.process.join(20)


@contextlib.contextmanager
def job(run: Path, **environment: str) -> Iterator[list[Rank]]:
    port = free_port()
    ranks = [Rank(rank, port, run, environment) for rank in (0, 1)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.end()


def ended(run: Path, **environment: str) -> tuple[list[int | None], list[str]]:
    """Exit codes of two ranks and what each said."""
    with job(run, **environment) as ranks:
        return [rank.wait() for rank in ranks], [rank.said.read_text() for rank in ranks]


def state(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / "step_00000018"
    return {
        f"{n}:{k}": v
        for n in ("model", "optim")
        for k, v in load_file(folder / f"{n}.safetensors").items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    codes, said = ended(run)
    assert codes == [0, 0], said
    return run


def goes_on_to_the_same_end(run: Path, uninterrupted: Path) -> None:
    codes, said = ended(run)
    assert codes == [0, 0], said
    one, other = state(run), state(uninterrupted)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)


def last_saved(run: Path) -> int:
    """The step of the newest checkpoint that is whole."""
    found = Checkpoints(run / "checkpoints", 2).newest({})
    return found.step if found else 0


LOST_LINE = (
    r"lookalike: another rank has ended or hangs \(.*\): "
    r"see the first error.* goes on from the last checkpoint"
)


@pytest.mark.parametrize(("kind", "code"), [("kill", -signal.SIGKILL), ("raise", 1)])
def test_a_rank_that_dies_or_raises_ends_the_job_at_once_and_the_job_goes_on(
    tmp_path, uninterrupted, kind, code
):
    run = tmp_path / "run"
    codes, (survivor, faulty) = ended(run, LOOKALIKE_FAULT=f"{kind}:rank=1,step={STEP}")
    assert codes == [LOST, code], survivor + faulty
    assert len(re.findall(LOST_LINE, survivor)) == 1, survivor
    assert "Traceback" not in survivor
    assert ("raised on rank 1 at step 11, as asked" in faulty) == (kind == "raise")
    assert survivor.count("lookalike: warning: LOOKALIKE_FAULT=") == 1
    if kind == "kill":  # each of these ends leaves the same: the checkpoint before it
        goes_on_to_the_same_end(run, uninterrupted)
    assert last_saved(run) == (9 if kind == "raise" else 18)


def test_a_rank_that_hangs_ends_the_job_in_time_with_the_place_and_all_stacks(tmp_path):
    run = tmp_path / "run"
    codes, said = ended(run, LOOKALIKE_FAULT=f"hang:rank=1,step={STEP}")
    assert codes[1] == HUNG, said
    assert codes[0] in (HUNG, LOST), said
    assert re.search(
        r"lookalike: rank 1: no step ended for 6 s after step 10; it stands in fault\.py:\d+ ",
        said[1],
    )
    assert "fault.py" in (run / "stacks_rank1.txt").read_text()
    assert "fault.py" in said[1]
    assert last_saved(run) == 9


def test_a_rank_that_freezes_ends_the_others_in_time(tmp_path):
    run = tmp_path / "run"
    with job(run, LOOKALIKE_FAULT=f"stop:rank=1,step={STEP}") as (survivor, faulty):
        deadline = time.monotonic() + 60
        while not faulty.frozen() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert survivor.wait(TIMEOUT + SLACK) == HUNG, survivor.said.read_text()
        assert faulty.frozen()
    text = survivor.said.read_text()
    assert re.search(
        r"rank 0: no step ended for 6 s after step 10; it stands in .*, waiting for another rank;",
        text,
    )
    assert "Thread" in (run / "stacks_rank0.txt").read_text()


WATCHED = """
import sys, time
from pathlib import Path
from lookalike.process.watchdog import Watchdog
with Watchdog(Path(sys.argv[1]), 1.5) as watchdog:
    for step in range(4):
        time.sleep(0.5)
        watchdog.step(step + 1)
    {then}
print("left", flush=True)
time.sleep(2)
"""


def test_steps_keep_the_watchdog_quiet_and_leaving_ends_it(tmp_path):
    done = children.run(WATCHED.format(then="pass"), str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


def test_the_report_does_not_need_a_folder_that_can_be_written(tmp_path):
    code = WATCHED.format(then="time.sleep(60)")
    done = children.run(code, str(tmp_path / "missing"))
    assert (done.returncode, done.stdout) == (HUNG, "")  # not waited for its sleep
    assert "after step 4; it stands in <string>:9 <module>" in done.stderr
    assert "cannot be written" in done.stderr
    assert "Thread" in done.stderr


def test_suspended_time_does_not_count_for_the_watchdog(tmp_path):
    code = WATCHED.format(then="print('go', flush=True); time.sleep(0.7)")
    program = children.Program(code, str(tmp_path))
    assert program.printed("go\n")
    program.send_signal(signal.SIGSTOP)
    time.sleep(2)
    program.send_signal(signal.SIGCONT)
    assert program.wait() == (0, "go\nleft\n", "")


def test_the_watchdog_ends_with_a_training_that_raises(tmp_path):
    with pytest.raises(ValueError), Watchdog(tmp_path, 0.2):
        raise ValueError
    time.sleep(0.5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["abc", "0", "-1", "nan", "inf"])
def test_an_invalid_timeout_is_refused(monkeypatch, text):
    monkeypatch.setenv(comm.TIMEOUT, text)
    with pytest.raises(RunError, match=r"LOOKALIKE_TIMEOUT=.* not a number of seconds"):
        comm.timeout(5)


def test_the_environments_timeout_wins(monkeypatch):
    monkeypatch.delenv(comm.TIMEOUT, raising=False)
    assert comm.timeout(5) == 5
    monkeypatch.setenv(comm.TIMEOUT, "7.5")
    assert comm.timeout(5) == 7.5


def ranks_of(monkeypatch, **environment: str) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_PORT": free_port(),
        **environment,
    }.items():
        monkeypatch.setenv(name, value)


def test_a_first_node_without_an_address_is_refused_at_once(monkeypatch):
    ranks_of(monkeypatch, MASTER_ADDR="no-such-host.invalid")
    began = time.monotonic()
    with pytest.raises(RunError, match=r"MASTER_ADDR='no-such-host.invalid' cannot be resolved"):
        comm.start()
    assert time.monotonic() - began < 60  # of the minutes that ranks are waited for


@pytest.mark.parametrize("port", ["junk", "-1", "0", "99999", ""])
def test_an_invalid_port_is_refused_by_name(monkeypatch, port):
    ranks_of(monkeypatch, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    with pytest.raises(
        RunError, match=rf"environment: MASTER_PORT='{port}' is no port: say 1 to 65535"
    ):
        comm.start()


def test_a_port_that_another_program_holds_is_refused_at_once(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        ranks_of(
            monkeypatch, RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(other.getsockname()[1])
        )
        with pytest.raises(
            RunError,
            match=r"MASTER_PORT=\d+ cannot be had on 127.0.0.1 \(.*in use\): choose another",
        ):
            comm.start()


def test_a_rank_that_finds_no_first_one_says_so_in_one_line(tmp_path):
    """In an interpreter of its own: what torch may log is settled before it is imported."""
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = ["run", str(toy.write(tmp_path / "r.yaml")), "--out", str(tmp_path / "r")]
    environment = {**os.environ, **ranks, "LOOKALIKE_TIMEOUT": "0.1"}
    command = [sys.executable, "-m", "lookalike", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == LOST, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.match(
        r"lookalike: process group at MASTER_ADDR=127.0.0.1, MASTER_PORT=\d+: ", done.stderr
    )


def test_a_first_rank_that_never_comes_is_waited_for_only_so_long(monkeypatch):
    ranks_of(monkeypatch, MASTER_ADDR="127.0.0.1", LOOKALIKE_TIMEOUT="0.5")
    monkeypatch.setattr(group, "_LATER", 0.5)
    before = torch.distributed.distributed_c10d.default_pg_timeout
    with pytest.raises(LostError, match="is every rank up and reachable"):
        comm.start()
    assert torch.distributed.distributed_c10d.default_pg_timeout.total_seconds() == 1
    torch.distributed.distributed_c10d.default_pg_timeout = before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (
            "[/x/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
            "[::1]:81. Typically",
            LOST,
        ),
        (
            "[/x/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
            "4000ms for recv",
            LOST,
        ),
        ("Application timeout caused pair closure", LOST),
        ("NCCL error: remote process exited or there was a network error, NCCL version 2.27", LOST),
        ("CUDA error: device-side assert triggered", None),
        ("a request timed out", None),
    ],
)
def test_what_a_lost_peer_leaves_is_one_line_and_other_errors_stay(capsys, text, code):
    def verb() -> None:
        raise RuntimeError(text)

    assert cli.guarded(verb) == (code or 1)
    err = capsys.readouterr().err
    if code is None:
        assert "a defect of lookalike" in err
        return
    assert re.fullmatch(LOST_LINE + "\n", err), err


def wait_patiently() -> float:
    comm.barrier()
    began = time.monotonic()
    if comm.rank() == 0:
        time.sleep(0.5)
    comm.barrier(patient=True)
    return time.monotonic() - began


def test_ranks_wait_patiently_for_one_that_works_alone(ranks):
    assert all(seconds > 0.4 for seconds in ranks.run(wait_patiently))


def everyone() -> tuple[list[int], float]:
    return comm.gather_objects(comm.rank() * 10), comm.bandwidth(1, 2)


def test_every_rank_hears_all_and_the_bandwidth_is_measured(ranks):
    answers = ranks.run(everyone)
    assert [heard for heard, _ in answers] == [[0, 10]] * 2
    assert all(rate > 1e6 for _, rate in answers)
    assert comm.gather_objects(1) == [1]
    assert comm.bandwidth() == 0


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


@pytest.mark.parametrize("verb", [out_of_memory, lambda: torch.empty(2**60)])
def test_memory_that_is_not_there_is_one_line_with_a_remedy(capsys, verb):
    assert cli.guarded(verb) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(
        r"lookalike: not enough memory \(.*allocate.*\): lower the batch of this stage, .*\n", told
    )


def test_another_error_of_torch_is_no_lack_of_memory(capsys):
    def verb() -> None:
        raise RuntimeError("cannot allocate a name to this operator")

    assert cli.guarded(verb) == 1
    assert "cannot allocate a name to this operator at test_watchdog.py:" in capsys.readouterr().err
