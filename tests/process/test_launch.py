"""Launch scripts: refuse early in one line, hand every word on as it came, tell each rank who it
is, go on rightly.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

import children
import toy

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# What a shell, ssh or pdsh would take for something else.
HOSTILE = [
    "pretrain.method={name: barlow_twins, projector: [8, 8]}",
    "a=$(touch hacked)",
    "b=`touch hacked`",
    "c=x;touch hacked",
]
HOSTILE += ["d='\"\\", "e=%n%h", "{f,g}", "h=*", "", "i=two\nlines", "--out", "a b & touch hacked"]


def stub(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def launch(
    script: str, *words: str, stubs: Path | None = None, cwd: Path | None = None, **environment: str
):
    path = f"{stubs}:{os.environ['PATH']}" if stubs else os.environ["PATH"]
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "LOOKALIKE", "MASTER"))
    }
    clean |= {"PATH": path, "PYTHON": sys.executable, **environment}
    command = ["bash", str(LAUNCH / script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=clean)


@pytest.fixture
def recorded(tmp_path) -> Path:
    """Stubs in place of Python, pdsh, srun and scontrol: each call's words end up in `calls`, one
    JSON line each.
    """
    folder = tmp_path / "stubs"
    record = f"""'{sys.executable}' -c 'import json, os, sys; \
names = [n for n in os.environ if n.startswith(
        ("MASTER", "OMP", "RANK", "LOCAL_", "WORLD", "TORCH_D", "PDSH"))]
print(json.dumps([sys.argv[1:], {{n: os.environ[n] for n in names}}]))' \
"${{0##*/}}" "$@" >> '{tmp_path}/calls'"""
    stub(folder, "python", f'{record}\nexit "${{CODE:-0}}"')
    stub(folder, "pdsh", "exit 0")
    stub(folder, "scontrol", f'{record}\n[ "$1" != show ] || printf "node1\\nnode2\\n"')
    stub(folder, "srun", f'{record}\nexit "$SRUN_CODE"')
    return folder


def calls(folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    path = folder.parent / "calls"
    return (
        [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    )


SCRIPTS = ["local.sh", "torchrun.sh", "hostfile.sh", "slurm.sbatch"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_in_the_program_and_says_how_it_is_used(script):
    assert '-m lookalike run "$@"' in (LAUNCH / script).read_text()
    done = launch(script)
    assert done.returncode == 2
    assert f"launch/{script}" in done.stderr
    assert "RECIPE [key.path=value ...] --out DIR" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "words", "environment"),
    [
        ("local.sh", ["two", "r.yaml"], {}),
        ("local.sh", ["0", "r.yaml"], {}),
        ("local.sh", ["1; touch hacked", "r.yaml"], {}),
        ("torchrun.sh", ["0", "node1", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "-oX", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "$(touch hacked)", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "node1:port", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "localhost", "x", "r.yaml"], {}),
        ("torchrun.sh", ["2", "localhost:99999", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "[::1]:99999", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "[::1;touch hacked]:1", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "[::1", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "fe80::1%eth0", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "node1:2:3", "2", "r.yaml"], {}),
        ("torchrun.sh", ["2", "no-such-host.invalid", "2", "r.yaml"], {}),
        (
            "torchrun.sh",
            ["2", "localhost", "2", "r.yaml"],
            {"LOOKALIKE_RESTARTS": "a[$(touch hacked)]"},
        ),
        ("hostfile.sh", ["hosts", "r.yaml"], {"MASTER_PORT": "1;touch hacked"}),
        ("hostfile.sh", ["hosts", "r.yaml"], {"PYTHONPATH": "/a;touch hacked"}),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line_before_anything_starts(
    tmp_path, recorded, script, words, environment
):
    (tmp_path / "hosts").write_text("node1 slots=1\n")
    environment = {"PYTHON": str(recorded / "python"), **environment}
    done = launch(script, *words, stubs=recorded, cwd=tmp_path, **environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"launch/{script}: ")
    assert not calls(recorded)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "line", ["node1;touch hacked slots=1", "-oProxyCommand=x slots=1", "node1"]
)
def test_a_hostfile_with_anything_but_names_is_refused(tmp_path, recorded, line):
    recipe = toy.write(tmp_path / "r.yaml")
    (tmp_path / "hosts").write_text(f"node0 slots=1\n{line}\n")
    done = launch("hostfile.sh", "hosts", str(recipe), "--out", "run", stubs=recorded, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("lookalike: hosts:2: "), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "hacked").exists()


def test_a_wrong_recipe_is_refused_once_and_not_by_every_rank(tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    done = launch(
        "local.sh", "2", str(recipe), "pretrain.epochs=ten", "--out", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pretrain.epochs: "ten" is not a whole number' in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_run_folder_every_script_ends_in_one_line(tmp_path, recorded, script):
    recipe = toy.write(tmp_path / "r.yaml")
    (tmp_path / "hosts").write_text("node1 slots=1\n")
    first = {
        "local.sh": ["2"],
        "torchrun.sh": ["1", "localhost", "2"],
        "hostfile.sh": ["hosts"],
    }.get(script, [])
    job = (
        {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n", "SLURM_SUBMIT_DIR": str(ROOT)}
        if "slurm" in script
        else {}
    )
    done = launch(
        script, *first, str(recipe), "--accept-changes", stubs=recorded, cwd=tmp_path, **job
    )
    assert done.returncode == 2
    assert (
        done.stderr == "lookalike: --out DIR is missing: name the run folder, "
        "one of an earlier run is resumed\n"
    )
    assert not calls(recorded)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("sys.exit(2)", 2, marks=pytest.mark.slow),
        ("time.sleep(0.2 * (rank == '0')); sys.exit(200 if rank == '0' else 1)", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_torchrun_ends_with_the_code_of_a_rank_and_without_its_traceback(code, expected):
    first = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "0", "--no-python"]
    words = [sys.executable, str(LAUNCH / "elastic.py"), *first, sys.executable, "-c", RANK + code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == expected
    # A line a rank stays: it is what tells of restarts.
    assert done.stderr.count("\n") <= 2, done.stderr
    assert "Traceback" not in done.stderr


RANK = """
import os, signal, sys, time
rank = os.environ["RANK"]
"""


def ranks(code: str, *, world: int = 2, **how) -> subprocess.Popen:
    """The launcher of one machine with ranks that run `code`; its end is waited for by
    `communicate`.
    """
    words = [sys.executable, "-m", "lookalike.process.ranks", str(world), "-c", RANK + code]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("sys.exit(2 if rank == '0' else 0)", 2),
        # A rank that hears of another one's end may be gone before it.
        ("time.sleep(0.5 * (rank == '1')); sys.exit(200 if rank == '0' else 1)", 1),
        ("sys.exit(200)", 200),
        ("sys.exit(201 if rank == '1' else 200)", 201),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else sys.exit(200)", 137),
    ],
)
def test_the_launcher_ends_with_the_code_of_the_first_cause(code, expected):
    process = ranks(code)
    _, err = process.communicate(timeout=30)
    assert process.returncode == expected
    assert err == (
        "lookalike: rank 1 was ended by SIGKILL: the same command goes on\n"
        if expected == 137
        else ""
    )


def test_each_rank_is_told_who_it_is():
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    code = f"os.write(1, ' '.join(os.environ[n] for n in {names}).encode() + b'\\n')"
    process = ranks(code, env={**os.environ, "MASTER_PORT": "junk", "RANK": "x"})
    lines = sorted(process.communicate(timeout=30)[0].splitlines())
    assert [line.split()[:4] for line in lines] == [[r, r, "2", "127.0.0.1"] for r in "01"]
    assert len({line.split()[4] for line in lines}) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_launcher_hands_signals_on_to_every_rank_once(number):
    code = """
for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(n, lambda n, f: (os.write(1, b"got %d\\n" % n), sys.exit(128 + n)))
os.write(1, b"ready\\n")
time.sleep(30)"""
    process = ranks(code)
    assert [process.stdout.readline(), process.stdout.readline()] == ["ready\n"] * 2
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == f"got {int(number)}\n" * 2


def test_a_rank_that_hears_nothing_is_killed_in_the_end():
    hasty = "from lookalike.process import ranks; ranks._GRACE = ranks._LEAVE = 0.5; "
    code = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); rank == '0' and time.sleep(60); "
        "time.sleep(1); sys.exit(3)"
    )
    words = [
        sys.executable,
        "-c",
        f"{hasty}raise SystemExit(ranks.launch(2, ['-c', {RANK + code!r}]))",
    ]
    assert subprocess.run(words, timeout=30).returncode == 3


def training(tmp_path: Path, *first: str, epochs: int = 300) -> tuple[subprocess.Popen, Path, str]:
    """Two ranks that train, from launch/local.sh, after their first steps; their run folder and a
    word of theirs.
    """
    run, recipe = tmp_path / "run", toy.write(tmp_path / "r.yaml")
    stages = [f"{name}=null" for name in ("probe", "finetune", "evaluate", "export")]
    words = [
        "bash",
        str(LAUNCH / first[0]),
        *first[1:],
        str(recipe),
        f"pretrain.epochs={epochs}",
        *stages,
    ]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said").open("w") as said:
        how = {"stdout": subprocess.DEVNULL, "stderr": said, "env": environment}
        process = subprocess.Popen([*words, "--out", str(run)], **how)
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and len(toy.lines(run / "metrics.jsonl")) > 2):
        assert process.poll() is None, (tmp_path / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return process, run, f"--out\0{run}\0"


def running(word: str) -> list[int]:
    """Processes with this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def saved(run: Path) -> bool:
    last = toy.lines(run / "metrics.jsonl")[-1]["step"]
    return (run / "checkpoints" / f"step_{last:08d}" / "manifest.json").exists()


# The launcher of one machine, whose ranks are forks of it that have imported everything.
FORKING = """
import os, subprocess, sys, types
import children
from lookalike import cli
from lookalike.process import ranks

class Forked:
    def __init__(self, words, env, **how):
        self.returncode, self.pid = None, os.fork()
        if not self.pid:
            os.setsid()
            children.take_environment(env)
            sys.argv[1:] = words[3:]
            code = 1
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
            finally:
                os._exit(code or 0)
        with open(sys.argv[1], "a") as file:
            print(self.pid, file=file)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number):
        os.kill(self.pid, number)

ranks.subprocess = types.SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
sys.exit(ranks.launch(2, sys.argv[2:]))
"""


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(fact: Callable[[], bool], seconds: float = 120) -> bool:
    """Waits for it; whether it came about."""
    end = time.monotonic() + seconds
    while not fact() and time.monotonic() < end:
        time.sleep(0.05)
    return fact()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_ranks_save_and_leave_when_their_launcher_is_stopped_or_killed(tmp_path, number):
    run, pids = tmp_path / "run", tmp_path / "pids"
    stages = [f"{name}=null" for name in ("probe", "finetune", "evaluate", "export")]
    words = ["run", str(toy.write(tmp_path / "r.yaml")), "pretrain.epochs=300", *stages]
    # A test's process is a daemon, whose forks would be refused children of their own.
    code = "import multiprocessing; multiprocessing.current_process()._config['daemon'] = False"
    program = children.Program(
        f"{code}\n{FORKING}", str(pids), "-m", "lookalike", *words, "--out", str(run)
    )
    metrics = run / "metrics.jsonl"
    assert until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    assert all(alive(pid) for pid in started)
    program.send_signal(number)
    try:
        assert until(lambda: not any(alive(pid) for pid in started), 60)
    finally:
        for pid in filter(alive, started):
            os.kill(pid, signal.SIGKILL)
    code, _, said = program.wait()
    assert code == (-9 if number == signal.SIGKILL else 138), said
    assert saved(run)
    assert re.search(r"stopped by SIG(USR1|TERM) after step \d+ of 2700, saved", said)
    assert "Traceback" not in said


@pytest.mark.slow  # from the shell on; in every suite the test above
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_a_launcher_that_is_stopped_or_killed_leaves_no_rank_and_everything_saved(tmp_path, number):
    process, run, word = training(tmp_path, "local.sh", "2")
    try:
        process.send_signal(number)
        assert process.wait(40) == (-9 if number == signal.SIGKILL else 138)
        deadline = time.monotonic() + 30
        while running(word) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not running(word)
        assert saved(run)
        said = (tmp_path / "said").read_text()
        assert re.search(r"stopped by SIG(USR1|TERM) after step \d+ of 2700, saved", said)
        assert "Traceback" not in said
    finally:
        for pid in running(word):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "first", [["local.sh", "3"], ["torchrun.sh", "1:2", "localhost:2990", "3"]]
)
def test_every_word_reaches_the_program_as_it_came(tmp_path, recorded, first):
    done = launch(*first, *HOSTILE, stubs=recorded, cwd=tmp_path, PYTHON=str(recorded / "python"))
    assert done.returncode == 0, done.stderr
    (check, _), (run, environment) = calls(recorded)
    assert check == ["python", "-m", "lookalike", "check", "--ranks", "3", *HOSTILE]
    assert run[-len(HOSTILE) - 3 :] == ["-m", "lookalike", "run", *HOSTILE]
    assert "3" in run[: -len(HOSTILE)]
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    assert not (tmp_path / "hacked").exists()


def test_words_survive_ssh_and_the_shell_of_the_other_machine(tmp_path, recorded):
    (tmp_path / "hosts").write_text("# two\nnode1 slots=1\nnode2 slots=1\n")
    plain = {"PYTHON": str(recorded / "python"), "LOOKALIKE_TIMEOUT": "60", "PYTHONPATH": "/x"}
    done = launch("hostfile.sh", "hosts", *HOSTILE, stubs=recorded, cwd=tmp_path, **plain)
    assert done.returncode == 0, done.stderr
    (check, _), (start, environment) = calls(recorded)
    assert check == ["python", "-m", "lookalike", "check", "--hostfile", "hosts", *HOSTILE]
    assert start[start.index("--master_addr") + 1] == "node1"
    assert "ServerAliveCountMax=3" in environment["PDSH_SSH_ARGS_APPEND"]
    # What DeepSpeed sends is joined with spaces and read by a shell, unquoted.
    sent = " ".join(start[start.index("--no_local_rank") + 1 :])
    environment = {**os.environ, "RANK": "1", "OMP_NUM_THREADS": "9"}
    subprocess.run(["bash", "-c", sent], check=True, timeout=20, cwd=tmp_path, env=environment)
    run, seen = calls(recorded)[-1]
    assert run == ["python", "-m", "lookalike", "run", *HOSTILE]
    assert (seen["RANK"], seen["OMP_NUM_THREADS"]) == ("1", "1")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("first", "here"), [("localhost", "1"), ("127.0.1.1", "1"), ("192.0.2.7", "0")]
)
def test_torchrun_knows_whether_it_is_the_first_machine(tmp_path, recorded, first, here):
    done = launch(
        "torchrun.sh",
        "2",
        first,
        "1",
        "r",
        stubs=recorded,
        cwd=tmp_path,
        PYTHON=str(recorded / "python"),
    )
    assert done.returncode == 0, done.stderr
    run, environment = calls(recorded)[-1]
    assert run[run.index("--rdzv-conf") + 1] == f"is_host={here}"
    assert run[run.index("--rdzv-endpoint") + 1] == f"{first}:29400"
    assert run[run.index("--max-restarts") + 1] == "3"
    assert environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"


@pytest.mark.parametrize(
    ("first", "endpoint"),
    [
        ("::1", "[::1]:29400"),
        ("[::1]", "[::1]:29400"),
        ("[::1]:1234", "[::1]:1234"),
        ("localhost:1234", "localhost:1234"),
        ("127.0.0.1", "127.0.0.1:29400"),
    ],
)
def test_torchrun_is_given_ipv6_addresses_as_it_reads_them(tmp_path, recorded, first, endpoint):
    python = {"PYTHON": str(recorded / "python")}
    words = ("2", first, "1", "r")
    done = launch("torchrun.sh", *words, stubs=recorded, cwd=tmp_path, **python)
    assert done.returncode == 0, done.stderr
    run, _ = calls(recorded)[-1]
    assert run[run.index("--rdzv-endpoint") + 1] == endpoint
    assert run[run.index("--rdzv-conf") + 1] == "is_host=1"
    host, port = parse_rendezvous_endpoint(endpoint, 0)
    assert (host, port) == (first.strip("[]").split("]")[0].removesuffix(":1234"), port)
    assert str(port) == endpoint.rpartition(":")[2]


def submit(tmp_path: Path, recorded: Path, code: int, restarts: int = 0, **environment: str):
    """The batch script as SLURM would run it, with tasks that end with `code`; and what scontrol
    was told.
    """
    job = {
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    job |= {
        "SRUN_CODE": str(code),
        "SLURM_RESTART_COUNT": str(restarts),
        "PYTHON": str(recorded / "python"),
    }
    done = launch("slurm.sbatch", *HOSTILE, stubs=recorded, cwd=tmp_path, **job, **environment)
    return done, [
        words[1:] for words, _ in calls(recorded) if words[0] == "scontrol" and words[1] != "show"
    ]


AGAIN = [["requeue", "12345"], ["update", "JobId=12345", "StartTime=now+5"]]


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (0, 0, []),
        (138, 9, AGAIN),
        (200, 0, AGAIN),
        (201, 2, AGAIN),
        (137, 0, AGAIN),
        (200, 3, []),
        (1, 0, []),
        (2, 0, []),
    ],
)
def test_a_slurm_job_requeues_itself_when_it_can_go_on(tmp_path, recorded, code, restarts, again):
    done, told = submit(tmp_path, recorded, code, restarts)
    assert (done.returncode, told) == (code, again), done.stderr


def test_a_recipe_that_is_wrong_starts_no_tasks_and_is_not_requeued(tmp_path, recorded):
    done, told = submit(tmp_path, recorded, 0, CODE="2")
    assert (done.returncode, told) == (2, [])
    assert not [words for words, _ in calls(recorded) if words[0] == "srun"]


def test_each_slurm_task_knows_its_rank_and_gets_every_word(tmp_path, recorded):
    submit(tmp_path, recorded, 0)
    words, environment = next(call for call in calls(recorded) if call[0][0] == "srun")
    assert words[1] == "--kill-on-bad-exit=1"
    assert environment["MASTER_ADDR"] == "node1"
    assert 20000 <= int(environment["MASTER_PORT"]) < 32000
    task = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "CODE": "0"}
    subprocess.run(words[2:], check=True, timeout=20, env={**os.environ, **task}, cwd=tmp_path)
    run, seen = calls(recorded)[-1]
    assert run == ["python", "-m", "lookalike", "run", *HOSTILE]
    assert {k: seen[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
    }


SCHEMA = json.loads((Path(__file__).parent / "pytorchjob.schema.json").read_text())


def manifest() -> dict:
    return yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())


def test_the_kubernetes_job_has_the_fields_of_its_kind():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(manifest(), SCHEMA)


def test_the_kubernetes_schema_refuses_what_the_api_server_would_drop():
    for wrong in ({"backofLimit": 3}, {"cleanPodPolicy": "Sometimes"}):
        job = manifest()
        job["spec"]["runPolicy"] |= wrong
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, SCHEMA)


def test_all_kubernetes_pods_mount_what_they_name_and_run_a_recipe_that_is_there():
    replicas = manifest()["spec"]["pytorchReplicaSpecs"]
    assert replicas.keys() == {"Master", "Worker"}
    assert replicas["Master"]["replicas"] == 1
    for replica in replicas.values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["command"] == ["torchrun", "-m", "lookalike", "run"]
        assert (ROOT / "recipes" / Path(container["args"][0]).name).exists()
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        limit = container["resources"]["limits"]["nvidia.com/gpu"]
        assert str(limit) == manifest()["spec"]["nprocPerNode"]
