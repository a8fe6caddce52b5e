"""What would spoil a training on several machines, found before step 0: a table, and a line for every problem.

Every machine makes a report of itself. With a hostfile they are asked over ssh, first one by one, then together for
an all-reduce; under a launcher each rank reports through the process group; otherwise this machine alone.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lookalike import comm
from lookalike.errors import Error, RunError
from lookalike.folder import nearest, refuse_unwritable
from lookalike.hostfile import Host
from lookalike.log import say
from lookalike.recipe import Recipe

Report = dict[str, Any]
Remote = Callable[[Host, Sequence[str], float], tuple[int, str, str]]

_SSH = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")
_SKEW = 2.0
_LEAST_FREE = 2**30
_SAME = {
    "python": "Python",
    "torch": "torch",
    "deepspeed": "DeepSpeed",
    "lookalike": "lookalike",
    "data": "the data set",
}
_PORT = "29517"
# What a report must hold to be one.
_SHAPE = {"host": str, **dict.fromkeys(_SAME, str), "gpus": list, "free": int, "error": str}


def report(recipe: Recipe | None, out: Path) -> Report:
    """This machine: versions, GPUs, free disk at `out`, fingerprint of the recipe's pictures, what went wrong."""
    found: Report = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "lookalike": f"{_version('lookalike')} {_source()}".removeprefix("missing "),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())],
        "free": shutil.disk_usage(nearest(out)).free,
        "there": "" if out.exists() else str(nearest(out)),
        "machine": _machine(),
        "data": "",
        "error": "",
    }
    try:
        refuse_unwritable(out)
        if recipe:
            found["data"] = recipe.values["data"].build().split("train").fingerprint[:12]
    except Error as error:
        found["error"] = str(error)
    return found


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _source() -> str:
    """The first letters of a digest over our own files: two checkouts of one version may differ."""
    home = Path(__file__).parent
    files = sorted(home.rglob("*.py"))
    return hashlib.sha256(b"".join(str(f.relative_to(home)).encode() + f.read_bytes() for f in files)).hexdigest()[:8]


def _gpu(i: int) -> str:
    found = torch.cuda.get_device_properties(i)
    return f"{found.name} {found.total_memory / 2**30:.0f} GiB"


def _machine() -> str:
    """The same for two names of one machine: its kernel since it was started, and its network; empty where unknown."""
    try:
        network = Path("/proc/self/ns/net").readlink()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {network}"
    except OSError:
        return ""


def here(recipe: Recipe | None, out: Path) -> list[Report]:
    """Reports of all ranks of this process group, one a machine; alone that of this machine."""
    mine = report(recipe, out)
    if comm.world_size() == 1:
        return [mine]
    comm.start(seconds=60)
    comm.barrier()
    told = comm.from_all({**mine, "clock": time.time()})
    rate = comm.bandwidth()
    reports: dict[str, Report] = {}
    for one in told:
        one["skew"] = one["clock"] - told[0]["clock"]
        reports.setdefault(one["host"], {**one, "slots": 0, "bandwidth": rate})["slots"] += 1
    return list(reports.values())


def everywhere(hosts: Sequence[Host], words: Sequence[str], remote: Remote | None = None) -> list[Report]:
    """Reports of the hosts, asked over ssh by `lookalike doctor --json` with `words` (recipe, overrides, --out)."""
    ask = remote or ssh
    with ThreadPoolExecutor(len(hosts)) as pool:
        reports = list(pool.map(lambda host: _alone(host, words, ask), hosts))
    if len(hosts) > 1 and not any(one["error"] for one in reports):
        _together(hosts, reports, ask)
    return reports


def _alone(host: Host, words: Sequence[str], ask: Remote) -> Report:
    before = time.time()
    code, out, err = ask(host, ["date", "+%s.%N"], 20)
    after = time.time()
    unknown: Report = {"host": host.name, "slots": host.slots, "gpus": [], "error": ""}
    try:
        skew = float(out.split()[-1]) - (before + after) / 2
    except (ValueError, IndexError):
        reason = _last(err) or f"exit code {code}"
        return {**unknown, "error": f"not reachable over ssh ({reason}): does `ssh {host.name} date` work?"}
    code, out, err = ask(host, _lookalike(["doctor", "--json", *words]), 300)
    found = _parsed(out)
    if found is None:
        reason = _last(err) or f"exit code {code}"
        return {**unknown, "error": f"lookalike does not run there ({reason}): install it at the same path"}
    slack = (after - before) / 2
    sure = max(0.0, abs(skew) - slack) * (1 if skew > 0 else -1)
    return {**found, "host": host.name, "slots": host.slots, "skew": sure}


def _together(hosts: Sequence[Host], reports: list[Report], ask: Remote) -> None:
    """One rank a machine meets the others for an all-reduce; every report learns its bandwidth or the failure."""
    ranks = {"WORLD_SIZE": str(len(hosts)), "MASTER_ADDR": hosts[0].name, "MASTER_PORT": _PORT, "LOCAL_RANK": "0"}
    ranks["LOOKALIKE_TIMEOUT"] = "60"
    commands = [_lookalike(["doctor", "--json"], {**ranks, "RANK": str(i)}) for i in range(len(hosts))]
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(lambda host, command: ask(host, command, 120), hosts, commands))
    rates = [(_parsed(out) or {}).get("bandwidth", 0.0) for _, out, _ in answers]
    for one, (code, _, err), rate in zip(reports, answers, rates, strict=True):
        one["bandwidth"] = rate
        if not rate:
            reason = _last(err) or f"exit code {code}"
            one["error"] = f"no all-reduce with the others ({reason}): is {hosts[0].name}, port {_PORT}, open to it?"


def _lookalike(words: Sequence[str], environment: dict[str, str] | None = None) -> list[str]:
    """`lookalike …` by the interpreter of this process in its folder, as `env` sets it up."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    variables = [f"{name}={value}" for name, value in {**kept, **(environment or {})}.items()]
    return ["env", "-C", str(Path.cwd()), *variables, sys.executable, "-m", "lookalike", *words]


def ssh(host: Host, words: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `words` on the host. More options: PDSH_SSH_ARGS_APPEND, as pdsh takes them."""
    options = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    command = ["ssh", *options, *_SSH, "--", host.name, shlex.join(words)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {seconds:g} s"
    except OSError as error:
        return 127, "", f"ssh: {error.strerror}"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _last(text: str) -> str:
    """The last line that says something, without what a terminal would obey."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _clean(lines[-1].removeprefix("lookalike: "))[:200] if lines else ""


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _parsed(text: str) -> Report | None:
    """The report in the last line that holds one; a greeting of the shell may come before."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in _SHAPE.items()):
            texts = {key: _clean(value) for key, value in found.items() if isinstance(value, str)}
            return {**found, **texts, "gpus": [_clean(str(gpu)) for gpu in found["gpus"]]}
    return None


def problems(reports: Sequence[Report]) -> list[str]:
    """One line a problem, with its machine and its remedy."""
    found = [f"{one['host']}: {one['error']}" for one in reports if one["error"]]
    sound = [one for one in reports if "torch" in one]
    for key, name in _SAME.items():
        found += _differing(sound, key, name)
    known: dict[str, str] = {}
    for one in sound:
        found += _own(one)
        first = known.setdefault(one.get("machine") or one["host"], one["host"])
        if first != one["host"]:
            found.append(f"{one['host']}: is the same machine as {first}: one line a machine, with all its slots")
    gpus = {one["host"]: len(one["gpus"]) for one in sound}
    if len(set(gpus.values())) > 1:
        counts = ", ".join(f"{host} {count}" for host, count in gpus.items())
        found.append(f"GPUs differ ({counts}): mend the driver there, or leave those machines out")
    return found


def _differing(reports: Sequence[Report], key: str, name: str) -> list[str]:
    """Each machine that has something else than most."""
    values = [one.get(key, "") for one in reports]
    usual = max(values, key=values.count, default="")
    first = next((one["host"] for one in reports if one.get(key, "") == usual), "")
    same = "make them the same"
    return [
        f"{one['host']}: {name} is {one.get(key) or 'absent'}, on {first} {usual}: {same}"
        for one in reports
        if one.get(key, "") != usual
    ]


def _own(one: Report) -> list[str]:
    """What is wrong with a machine by itself."""
    found = []
    if one["deepspeed"] == "missing" and one.get("slots", 1) * one.get("bandwidth", 0) > 0:
        found.append(f"{one['host']}: DeepSpeed is missing, which trains several ranks: pip install deepspeed")
    if one["gpus"] and one.get("slots", 1) > len(one["gpus"]):
        found.append(f"{one['host']}: {one['slots']} slots for {len(one['gpus'])} GPUs: lower slots in the hostfile")
    if one["free"] < _LEAST_FREE:
        left = f"{one['free'] / 2**20:.0f} MiB"
        found.append(f"{one['host']}: {left} free for the run folder: free some, or choose another --out")
    if abs(one.get("skew", 0.0)) > _SKEW:
        found.append(f"{one['host']}: its clock is {one['skew']:+.1f} s from this one's: run an NTP client, as chrony")
    return found


def tell(reports: Sequence[Report], as_json: bool) -> None:
    """Prints the reports, the first rank for all. Raises RunError with a line for each problem."""
    if as_json:
        say(json.dumps(reports[0]))
        return
    found = problems(reports)
    if comm.rank() == 0:
        say(table(reports))
        if found:
            raise RunError("\nlookalike: ".join(found))
        for one in reports:
            if one.get("there"):
                say(f"{one['host']}: the run folder is not there yet, it will be made in {one['there']}")
        say(f"{len(reports)} machine{'s' * (len(reports) > 1)}, no problem found")
    elif found:
        raise SystemExit(2)


def table(reports: Sequence[Report]) -> str:
    """A line a machine, in columns."""
    head = [
        "machine",
        "slots",
        "python",
        "torch",
        "deepspeed",
        "lookalike",
        "GPUs",
        "all-reduce",
        "data",
        "free",
        "clock",
    ]
    rows = [head, *map(_row, reports)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _row(one: Report) -> list[str]:
    rate, gpus = one.get("bandwidth", 0.0), one["gpus"]
    return [
        one["host"],
        str(one.get("slots", 1)),
        *(one.get(key, "?") for key in ("python", "torch", "deepspeed", "lookalike")),
        f"{len(gpus)} × {gpus[0]}" if gpus else "none" if "torch" in one else "?",
        f"{rate / 1e9:.2f} GB/s" if rate else "-",
        one.get("data") or "-",
        f"{one['free'] / 2**30:.0f} GiB" if "free" in one else "?",
        f"{one['skew']:+.2f} s" if "skew" in one else "-",
    ]
