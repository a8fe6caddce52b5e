"""Two hosts: a node that loses its power ends the job in time, and the same command goes on to the
same end.
"""

import re
import time
from pathlib import Path

import pytest

import toy
from cluster.conftest import (
    CHANGES,
    ENVIRONMENT,
    ROOT,
    STAGES,
    STEPS,
    TIMEOUT,
    recipe,
    wait_for_steps,
)
from lookalike.errors import HUNG, LOST
from lookalike.stages.pretrain import pretrain

SLACK = 5
# Of two options the first one counts, so that ssh notices a lost machine sooner than
# launch/hostfile.sh would have it.
SSH = "-o ServerAliveInterval=3"


@pytest.fixture
def hostfile(tmp_path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# two machines\nnode1 slots=1\nnode2 slots=1\n")
    return path


def by_pdsh(hosts, hostfile: Path, run: Path) -> tuple[list[str], dict[str, str]]:
    words = [
        "bash",
        str(ROOT / "launch/hostfile.sh"),
        str(hostfile),
        *recipe(run.parent),
        "--out",
        str(run),
    ]
    return ["env", "-C", str(ROOT), *words], {
        **ENVIRONMENT,
        "PDSH_SSH_ARGS_APPEND": f"-F {hosts.config} {SSH}",
    }


def test_a_host_without_power_ends_the_job_in_time_and_the_same_command_goes_on(
    hosts, hostfile, tmp_path, uninterrupted
):
    run, said = tmp_path / "two words", tmp_path / "said.txt"
    words, environment = by_pdsh(hosts, hostfile, run)
    try:
        with hosts.start(*words, said=said, environment=environment) as process:
            wait_for_steps(run, 12, process)
            hosts.cut(2)
            began = time.monotonic()
            assert process.wait(TIMEOUT + SLACK + 10) != 0
            lasted = time.monotonic() - began
        assert lasted < TIMEOUT + SLACK
        text = said.read_text()
        assert re.search(
            r"rank 0: no step ended for 15 s after step \d+; .*waiting for another rank; stacks in",
            text,
        )
        assert f"return code = {HUNG}" in text
        assert not hosts.processes(1)
    finally:
        hosts.power(2)
    done = hosts.run(*words, environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert toy.same(toy.tensors(run, STEPS), toy.tensors(uninterrupted, STEPS))
    assert toy.curve(run) == toy.curve(uninterrupted)
    assert '"world": 2' in (run / f"checkpoints/step_{STEPS:08d}/manifest.json").read_text()


def test_two_ranks_have_the_loss_curve_of_one_process(tmp_path, uninterrupted):
    pretrain(toy.recipe(*CHANGES, *STAGES, backbone=toy.VIT), tmp_path / "one")
    one, two = toy.curve(tmp_path / "one"), toy.curve(uninterrupted)
    assert len(one) == len(two) == STEPS
    for (_, a), (_, b) in zip(one[:20], two[:20], strict=True):
        assert b == pytest.approx(a, rel=1e-5)


def test_torchrun_starts_lost_ranks_again_on_both_hosts(hosts, tmp_path, uninterrupted):
    run, marker = tmp_path / "run", tmp_path / "happened"
    words = ["env", "-C", str(ROOT), "bash", str(ROOT / "launch/torchrun.sh"), "2", "node1", "1"]
    words += [*recipe(tmp_path), "--out", str(run)]
    environment = {
        **ENVIRONMENT,
        "LOOKALIKE_FAULT": f"kill:rank=1,step=12,once={marker}",
        "LOOKALIKE_RESTARTS": "1",
    }
    said = [tmp_path / "1.txt", tmp_path / "2.txt"]
    with (
        hosts.start(*words, said=said[0], on=1, environment=environment) as one,
        hosts.start(*words, said=said[1], on=2, environment=environment) as two,
    ):
        codes = [one.wait(120), two.wait(60)]
    texts = [path.read_text() for path in said]
    assert codes == [0, 0], "\n".join(texts)
    assert marker.exists()
    assert len(re.findall("lookalike: another rank has ended or hangs", "".join(texts))) == 1
    assert any(f"exitcode: {LOST}" in text or "exitcode: -9" in text for text in texts)
    assert toy.same(toy.tensors(run, STEPS), toy.tensors(uninterrupted, STEPS))
    assert not hosts.processes(1)
    assert not hosts.processes(2)


def test_doctor_names_the_host_that_was_made_wrong(hosts, hostfile, tmp_path):
    changed = tmp_path / "signals.py"
    changed.write_text((ROOT / "ssl/lookalike/process/signals.py").read_text() + "# mine\n")
    hosts.cut(2)
    hosts.power(2, also=f"mount --bind {changed} {ROOT}/ssl/lookalike/process/signals.py")
    try:
        words = [
            "env",
            "-C",
            str(ROOT),
            ENVIRONMENT["PYTHON"],
            "-m",
            "lookalike",
            "doctor",
            "--hostfile",
            str(hostfile),
        ]
        environment = {**ENVIRONMENT, "PDSH_SSH_ARGS_APPEND": f"-F {hosts.config}"}
        done = hosts.run(*words, str(toy.write(tmp_path / "r.yaml")), environment=environment)
    finally:
        hosts.cut(2)
        hosts.power(2)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.fullmatch(
        r"lookalike: node2: lookalike is \S+.*, on node1 \S+.*: make them the same\n", done.stderr
    )
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["machine", "node1", "node2"]
    assert all(re.search(r"\d\.\d\d GB/s", row) for row in rows[1:])
