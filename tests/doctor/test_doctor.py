"""doctor: what differs between machines, or is wrong with one, is found and named with its
remedy.
"""

import json
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import toy
from lookalike import cli, doctor
from lookalike.doctor import machine
from lookalike.errors import RunError
from lookalike.process.hostfile import Host, read_hosts

SOUND = {
    "host": "inside",
    "python": "3.12.1",
    "torch": "2.11.0",
    "deepspeed": "0.19.8",
    "lookalike": "0.1.0 abcdef01",
    "gpus": ["H100 79 GiB"] * 2,
    "free": 10**12,
    "data": "d1",
    "error": "",
}
HOSTS = [Host("node1", 2), Host("node2", 2), Host("node3", 2)]


def network(changes=None, *, deaf=(), dumb=(), ahead=None, split=()):
    """An ssh to machines that report SOUND with `changes`; also the commands that were asked
    for.
    """
    asked = []

    def remote(host, words, seconds):
        asked.append((host.name, list(words)))
        if host.name in deaf:
            return 255, "", "ssh: connect to host: No route to host\r\n"
        if words[0] == "date":
            return 0, f"Welcome!\n{time.time() + (ahead or {}).get(host.name, 0):.9f}\n", ""
        if host.name in dumb:
            return 1, "", "Traceback\nModuleNotFoundError: No module named '\x1b[2Jlookalike'\n"
        together = any(word.startswith("RANK=") for word in words)
        if together and split:
            return 2, "", "lookalike: process group: timed out: is every rank up and reachable?\n"
        found = {
            **SOUND,
            **(changes or {}).get(host.name, {}),
            **({"bandwidth": 9e9} if together else {}),
        }
        return 0, f"Last login: today\n{json.dumps(found)}\n", ""

    return remote, asked


def found(**how) -> list[str]:
    remote, _ = network(**how)
    return doctor.problems(doctor.everywhere(HOSTS, ["--out", "x"], remote))


def test_sound_machines_have_no_problem_and_a_table_with_a_line_each():
    remote, asked = network()
    reports = doctor.everywhere(HOSTS, ["r.yaml", "a=1; touch x", "--out", "x"], remote)
    assert doctor.problems(reports) == []
    lines = doctor.table(reports).splitlines()
    assert [line.split()[0] for line in lines] == ["machine", "node1", "node2", "node3"]
    assert all("9.00 GB/s" in line and "2 × H100" in line for line in lines[1:])
    together = [
        dict(w.split("=", 1) for w in words if re.match("[A-Z_]+=", w))
        for _, words in asked
        if "-C" in words
    ]
    assert sorted(ranks["RANK"] for ranks in together if "RANK" in ranks) == ["0", "1", "2"]
    assert {ranks["MASTER_ADDR"] for ranks in together if "RANK" in ranks} == {"node1"}


@pytest.mark.parametrize("key", ["python", "torch", "deepspeed", "lookalike", "data"])
def test_a_machine_that_differs_from_most_is_named(key):
    (line,) = found(changes={"node2": {key: "other"}})
    assert re.match(
        rf"node2: .* is other, on node1 {re.escape(SOUND[key])}: make them the same", line
    )
    (line,) = found(changes={"node1": {key: "other"}})
    assert line.startswith("node1: ")


@pytest.mark.parametrize(
    ("how", "pattern"),
    [
        (
            {"deaf": ["node3"]},
            r"node3: not reachable over ssh \(ssh: connect.*No route to host\): does `ssh node3 "
            r"date`",
        ),
        (
            {"dumb": ["node2"]},
            r"node2: lookalike does not run there \(ModuleNotFoundError.*\?\[2J.*\): install it",
        ),
        (
            {"ahead": {"node2": 37.0}},
            r"node2: its clock is \+3[67]\.\d s from this one's: run an NTP",
        ),
        ({"ahead": {"node2": -9.0}}, r"node2: its clock is -[89]\.\d s"),
        ({"changes": {"node1": {"free": 2**20}}}, r"node1: 1 MiB free for the run folder"),
        (
            {"changes": {"node2": {"gpus": ["H100 79 GiB"]}}},
            r"node2: 2 slots for 1 GPUs: lower slots",
        ),
        (
            {"changes": {"node2": {"error": "photos: no such folder"}}},
            r"node2: photos: no such folder",
        ),
        ({"changes": {"node2": {"free": "much"}}}, r"node2: lookalike does not run there"),
        (
            {"split": [1]},
            r"node1: no all-reduce with the others \(process group: timed out.*\): is node1, port "
            r"\d+, open",
        ),
    ],
)
def test_what_is_wrong_with_a_machine_is_one_line_with_its_remedy(how, pattern):
    lines = found(**how)
    assert [line for line in lines if re.match(pattern, line)], lines
    assert all("\x1b" not in line and "\n" not in line for line in lines)


def test_one_machine_under_two_names_is_told_by_itself():
    machines = {"node1": {"machine": "boot1 net1"}, "node2": {"machine": "boot2 net1"}}
    assert found(changes=machines) == []
    lines = found(changes={**machines, "node3": {"machine": "boot1 net1"}})
    assert lines == ["node3: is the same machine as node1: one line a machine, with all its slots"]
    assert machine._machine() == machine._machine()


def test_the_gpus_of_a_machine_that_is_not_there_are_unknown():
    remote, _ = network(deaf=["node2"], changes={"node3": {"gpus": []}})
    lines = doctor.table(doctor.everywhere(HOSTS, [], remote)).splitlines()
    assert "none" not in lines[2]
    assert "none" in lines[3]


def test_no_common_run_is_tried_with_a_machine_that_is_not_there():
    remote, asked = network(deaf=["node2"])
    doctor.everywhere(HOSTS, [], remote)
    assert not [words for _, words in asked if "RANK=0" in words]


def test_ssh_gets_one_quoted_word_and_options_that_notice_a_dead_machine(monkeypatch, tmp_path):
    script = '#!/bin/sh\nfor word; do printf "%s\\n" "[$word]"; done\n'
    (tmp_path / "ssh").write_text(script)
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-F 'my config'")
    code, out, _ = doctor.ssh(Host("node1", 1), ["echo", "a b", "$(touch x)", "'; reboot"], 20)
    assert code == 0
    words = out.splitlines()
    assert words[:2] == ["[-F]", "[my config]"]
    assert "[ServerAliveCountMax=3]" in words
    assert words[-3:] == ["[--]", "[node1]", """[echo 'a b' '$(touch x)' ''"'"'; reboot']"""]


def test_ssh_is_waited_for_only_so_long(monkeypatch, tmp_path):
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor.ssh(Host("node1", 1), ["date"], 0.5) == (124, "", "no answer in 0.5 s")


@pytest.mark.parametrize(
    "line",
    [
        "node1",
        "node1 slots=0",
        "node1 slots=x",
        "-oProxyCommand=x slots=1",
        "a;reboot slots=1",
        "$(x) slots=1",
        "a b slots=1",
        "me@node1 slots=1",
        "node1 slots=1 # x",
        "nöde slots=1",
        "a" * 300 + " slots=1",
        "n%h slots=1",
    ],
)
def test_a_line_that_is_no_machine_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "hosts"
    path.write_text(f"# machines\n\nnode0 slots=2\n{line}\n")
    with pytest.raises(
        RunError, match=r"hosts(:4: .* is no machine: write `name slots=N`|: cannot be read)"
    ):
        read_hosts(path)


def test_hostfiles_that_name_nothing_or_one_machine_twice_are_refused(tmp_path):
    path = tmp_path / "hosts"
    with pytest.raises(RunError, match="cannot be read"):
        read_hosts(path)
    path.write_text("# nothing\n")
    with pytest.raises(RunError, match="lists no host"):
        read_hosts(path)
    path.write_text("a slots=1\nb slots=2\na slots=3\n")
    with pytest.raises(RunError, match="a stands twice"):
        read_hosts(path)
    path.write_text("localhost slots=1\nLOCALHOST slots=2\n")
    with pytest.raises(RunError, match="LOCALHOST, localhost stands twice"):
        read_hosts(path)
    path.write_text("a slots=1\n  b.example-1  slots=16 \r\n")
    assert read_hosts(path) == [Host("a", 1), Host("b.example-1", 16)]


def call(capsys, *words) -> tuple[int, str, str]:
    code = cli.guarded(lambda: cli.app([str(w) for w in words], standalone_mode=False))
    return code, *capsys.readouterr()


def test_doctor_of_this_machine_knows_the_data(capsys, tmp_path):
    code, out, _ = call(
        capsys, "doctor", toy.write(tmp_path / "r.yaml"), "--out", tmp_path / "not" / "yet"
    )
    assert code == 0
    place = re.escape(str(tmp_path))
    assert re.search(
        rf"run folder is not there yet, it will be made in {place}\n1 machine, no problem found\n$",
        out,
    )
    code, _, err = call(capsys, "doctor", "--out", tmp_path / "r.yaml" / "run")
    assert code == 2
    assert "r.yaml/run: cannot be written" in err
    code, out, _ = call(capsys, "doctor", "--json")
    mine = json.loads(out)
    assert mine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.search(r"[0-9a-f]{8}$", mine["lookalike"])


def test_doctor_refuses_a_bad_hostfile_before_it_asks_anybody(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    (tmp_path / "hosts").write_text("node1;reboot slots=1\n")
    code, _, err = call(capsys, "doctor", "--hostfile", tmp_path / "hosts")
    assert code == 2
    assert re.match(r"lookalike: .*hosts:1: .*is no machine", err)


def test_problems_are_a_line_each_and_exit_2(capsys, tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    remote, _ = network(changes={"node2": {"torch": "2.10.0", "free": 0}})
    monkeypatch.setattr("lookalike.doctor.remote.ssh", remote)
    code, out, err = call(capsys, "doctor", "--hostfile", tmp_path / "hosts")
    assert code == 2
    assert out.count("\n") == 3
    assert [line[:17] for line in err.splitlines()] == ["lookalike: node2:"] * 2


def across_ranks(out: str) -> tuple[int, float, list[str]]:
    reports = doctor.here(partial(toy.recipe().data.build().split, "train"), Path(out))
    return reports[0]["slots"], reports[0]["bandwidth"], doctor.problems(reports)


def test_doctor_under_a_launcher_asks_all_ranks(ranks, tmp_path):
    answers = ranks.run(across_ranks, str(tmp_path))
    assert [slots for slots, _, _ in answers] == [2, 2]
    assert all(rate > 1e6 and lines == [] for _, rate, lines in answers)
