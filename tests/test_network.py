"""No verb asks the network for anything, or leaves anything at home but in lookalike's own cache,
unless told to.

Python's sockets are watched by an audit hook in every process, what C++ asks the system for by
strace.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

import toy

GUARD = """
import json, os, sys, traceback

def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        told = args[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr",
                   "socket.getnameinfo"):
        told = args[0]
    elif event in ("socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        told = args[1][0]
    else:
        return
    with open(os.environ["GUARD_LOG"], "a") as log:
        stack = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()[-9:-1]]
        told = told[0] if isinstance(told, tuple) else told
        log.write(json.dumps([event, str(told), stack]) + "\\n")

sys.addaudithook(watch)
"""

VERBS = """
import json, sys
from lookalike.cli import app
for words in json.loads(sys.argv[1]):
    print("---", *words, flush=True)
    app(words, standalone_mode=False)
"""


CLASSIFY = "classify={optimizer: {name: adamw, lr: 1e-3}, epochs: 1, warmup_epochs: 0, workers: 0}"


class Seen(NamedTuple):
    """What a program asked for: names and addresses, by Python and by the system; what is at home;
    what it printed.
    """

    asked: list[tuple[str, str, list[str]]]
    system: list[str]
    home: list[str]
    printed: str


def traced() -> bool:
    """Whether strace is there and may trace."""
    return (
        bool(shutil.which("strace"))
        and subprocess.run(["strace", "-qo", os.devnull, "true"]).returncode == 0
    )


def watched(folder: Path, words: list[str]) -> Seen:
    """Runs `python *words` with an empty home, and says what it and its children asked for."""
    (folder / "guard").mkdir(parents=True)
    (folder / "guard" / "sitecustomize.py").write_text(GUARD)
    home, log, trace = folder / "home", folder / "asked.jsonl", folder / "trace"
    home.mkdir()
    log.touch()
    kept = {
        name: os.environ[name] for name in ("PATH", "LANG", "LD_LIBRARY_PATH") if name in os.environ
    }
    path = os.pathsep.join([str(folder / "guard"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": path}
    env |= {"GUARD_LOG": str(log), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    strace = (
        [
            "strace",
            "-fqq",
            "--seccomp-bpf",  # stops at these calls alone, not at every one
            "-s",
            "200",
            "-e",
            "trace=connect,sendto,sendmsg,sendmmsg",
            "-o",
            str(trace),
        ]
        if traced()
        else []
    )
    command = [*strace, sys.executable, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    asked = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
    system = list(foreign(trace.read_text(errors="replace"))) if strace else []
    return Seen(
        [one for one in asked if not is_near(one[1])],
        system,
        [*below(home)],
        done.stdout + done.stderr,
    )


def foreign(trace: str) -> Iterator[str]:
    """The lines of strace that name an address of another machine, or a resolver of names on this.

    But for one question: torch's store has the name of each rank that joins looked up, for what it
    might have to say, and 127.0.0.1 in the dress of IPv6 stands in no hosts file.
    """
    lines = trace.splitlines()
    for number, line in enumerate(lines):
        address = re.search(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', line)
        if address and (not is_near(address[1] or address[2]) or "port=htons(53)" in line):
            question = next(
                (later for later in lines[number + 1 :] if _same_socket(line, later)), ""
            )
            if not re.search(LOOPBACK, question):
                yield f"{line}: {question}"


# 1.0.0.127.in-addr.arpa, as it stands in a question to a resolver.
LOOPBACK = re.escape(r"\0011\0010\0010\003127\7in-addr\4arpa")


def _same_socket(line: str, later: str) -> bool:
    """Whether `later` sends through the socket that `line` connects, in the same thread."""
    one = re.match(r"(\d+) +connect\((\d+),", line)
    return bool(one and re.match(rf"{one[1]} +send\w+\({one[2]},", later))


def is_near(host: str) -> bool:
    """Whether it is this machine, by address or by the one name that needs no resolver."""
    try:
        address = ip_address(host)
        address = getattr(address, "ipv4_mapped", None) or address
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host in ("localhost", "None", "")


def below(home: Path) -> Iterator[str]:
    """The files at home that are not lookalike's own."""
    for path in sorted(home.rglob("*")):
        name = str(path.relative_to(home))
        if path.is_file() and not name.startswith(".cache/lookalike/"):
            yield name


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Seen, Path]:
    """Every verb, one after another in one process."""
    folder = tmp_path_factory.mktemp("alone")
    recipe = str(toy.write(folder / "toy.yaml"))
    images = folder / "images"
    for n in range(12):
        (images / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(images / "ab"[n % 2] / f"{n}.png")
    short = [recipe, "pretrain.epochs=1", "pretrain.warmup_epochs=0"]
    short += ["data.test_fraction=0.8", "pretrain.batch=48"]
    short += ["probe={grid: [0.1], max_iterations: 5}", "evaluate={intervals: 0, examples: 2}"]
    out = ["--out", str(folder / "run")]
    index, found, model = (
        str(folder / "index"),
        str(folder / "found.html"),
        str(folder / "run/finetune/embedding"),
    )
    verbs = [
        ["schema"],
        ["show", *short],
        ["check", *short, *out],
        ["doctor", *short, "--out", str(folder)],
        ["preview", *short, "--out", str(folder / "preview.html"), "--images", "2"],
        ["pretrain", *short, *out],
        ["probe", *short, *out],
        ["finetune", *short, *out],
        ["evaluate", *short, *out, "--gallery", str(folder / "examples.html")],
        ["classify", *short, CLASSIFY, *out],
        ["predict", str(folder / "run/classify/classifier"), str(images)],
        ["embed", str(folder / "run/backbone"), str(images), "--out", str(folder / "x.csv")],
        ["compare", str(folder / "run"), str(folder / "run")],
        ["export", *short, *out],
        ["run", *short, *out],
        ["pack", str(images), str(folder / "shards"), "--workers", "2"],
        [
            "search",
            index,
            str(images / "a" / "0.png"),
            "--from",
            str(images),
            "--model",
            model,
            "--show",
            found,
        ],
    ]
    return watched(folder / "watched", ["-c", VERBS, json.dumps(verbs)]), folder


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> tuple[Seen, Path]:
    """Two ranks with DeepSpeed."""
    folder = tmp_path_factory.mktemp("together")
    recipe = str(toy.write(folder / "toy.yaml"))
    words = [
        "pretrain",
        recipe,
        "pretrain.epochs=1",
        "pretrain.warmup_epochs=0",
        "pretrain.engine={name: zero, stage: 2}",
    ]
    words += ["--out", str(folder / "run")]
    return watched(
        folder / "watched", ["-m", "lookalike.process.ranks", "2", "-m", "lookalike", *words]
    ), folder


@pytest.fixture(params=["alone", pytest.param("together", marks=pytest.mark.slow)])
def seen(request) -> Seen:
    return request.getfixturevalue(request.param)[0]


def test_every_verb_did_its_work(alone):
    _, folder = alone
    written = (
        "preview.html",
        "examples.html",
        "found.html",
        "run/probe.json",
        "run/evaluate.json",
        "run/classify.json",
        "x.csv",
        "index/manifest.json",
    )
    for name in (
        *written,
        "run/export/backbone/model.onnx",
        "run/export/embedding/model.onnx",
        "shards/index.json",
    ):
        assert (folder / name).exists(), name


@pytest.mark.slow
def test_two_ranks_did_their_work(together):
    assert (together[1] / "run/backbone/model.safetensors").exists()


def test_python_asks_no_other_machine(seen):
    assert seen.asked == []


def test_the_system_is_asked_for_no_other_machine(seen):
    if not traced():
        pytest.skip("strace is not there, or may not trace")
    assert seen.system == []


def test_nothing_is_left_at_home(seen):
    assert seen.home == []


def test_the_guard_sees_what_there_is_to_see(tmp_path):
    """In a child process too, by Python and below it, and what is left at home."""
    child = (
        "import ctypes, os, pathlib, socket\n"
        "pathlib.Path.home().joinpath('.number').write_text('1')\n"
        "for host in ('192.0.2.1', '127.0.0.1'):\n"
        "    with socket.socket(type=socket.SOCK_DGRAM) as s: s.connect((host, 9))\n"
        "try: socket.getaddrinfo('no.such.host.invalid', 80)\n"
        "except OSError: pass\n"
    )
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    found = watched(tmp_path / "watched", ["-c", parent])
    assert [one[:2] for one in found.asked] == [
        ("socket.connect", "192.0.2.1"),
        ("socket.getaddrinfo", "no.such.host.invalid"),
    ]
    assert found.home == [".number"]
    if traced():
        assert any("192.0.2.1" in line for line in found.system)
