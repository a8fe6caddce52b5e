"""Reports of other machines, asked over ssh: first one by one, then together for an all-reduce."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lookalike.doctor.machine import SAME, Report
from lookalike.process.hostfile import Host

Remote = Callable[[Host, Sequence[str], float], tuple[int, str, str]]

_SSH = (
    "-o",
    "BatchMode=yes",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
)
_PORT = "29517"
# What a report must hold to be one.
_SHAPE = {"host": str, **dict.fromkeys(SAME, str), "gpus": list, "free": int, "error": str}


def everywhere(
    hosts: Sequence[Host], words: Sequence[str], remote: Remote | None = None
) -> list[Report]:
    """Reports of the hosts, asked over ssh by `lookalike doctor --json` with `words` (recipe,
    overrides, --out).
    """
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
        return {
            **unknown,
            "error": f"not reachable over ssh ({_reason(code, err)}): "
            f"does `ssh {host.name} date` work?",
        }
    code, out, err = ask(host, _lookalike(["doctor", "--json", *words]), 300)
    found = _parsed(out)
    if found is None:
        return {
            **unknown,
            "error": f"lookalike does not run there ({_reason(code, err)}): "
            "install it at the same path",
        }
    slack = (after - before) / 2
    sure = max(0.0, abs(skew) - slack) * (1 if skew > 0 else -1)
    return {**found, "host": host.name, "slots": host.slots, "skew": sure}


def _together(hosts: Sequence[Host], reports: list[Report], ask: Remote) -> None:
    """One rank a machine meets the others for an all-reduce; every report learns its bandwidth or
    the failure.
    """
    ranks = {
        "WORLD_SIZE": str(len(hosts)),
        "MASTER_ADDR": hosts[0].name,
        "MASTER_PORT": _PORT,
        "LOCAL_RANK": "0",
    }
    ranks["LOOKALIKE_TIMEOUT"] = "60"
    commands = [
        _lookalike(["doctor", "--json"], {**ranks, "RANK": str(i)}) for i in range(len(hosts))
    ]
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(lambda host, command: ask(host, command, 120), hosts, commands))
    rates = [(_parsed(out) or {}).get("bandwidth", 0.0) for _, out, _ in answers]
    for one, (code, _, err), rate in zip(reports, answers, rates, strict=True):
        one["bandwidth"] = rate
        if not rate:
            port = f"is {hosts[0].name}, port {_PORT}, open to it?"
            one["error"] = f"no all-reduce with the others ({_reason(code, err)}): {port}"


def _lookalike(words: Sequence[str], environment: dict[str, str] | None = None) -> list[str]:
    """`lookalike …` by the interpreter of this process in its folder, as `env` sets it up."""
    kept = {
        name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ
    }
    variables = [f"{name}={value}" for name, value in {**kept, **(environment or {})}.items()]
    return ["env", "-C", str(Path.cwd()), *variables, sys.executable, "-m", "lookalike", *words]


def ssh(host: Host, words: Sequence[str], seconds: float) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `words` on the host. More options: PDSH_SSH_ARGS_APPEND, as
    pdsh takes them.
    """
    options = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    command = ["ssh", *options, *_SSH, "--", host.name, shlex.join(words)]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return 124, "", f"no answer in {seconds:g} s"
    except OSError as error:
        return 127, "", f"ssh: {error.strerror}"
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


def _reason(code: int, err: str) -> str:
    """The last line that says something, without what a terminal would obey."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return _clean(lines[-1].removeprefix("lookalike: "))[:200] if lines else f"exit code {code}"


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _lines(told: object) -> list[str]:
    """The texts of a list in a report."""
    return [_clean(str(line)) for line in told] if isinstance(told, list) else []


def _parsed(text: str) -> Report | None:
    """The report in the last line that holds one; a greeting of the shell may come before."""
    for line in reversed(text.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and all(
            isinstance(found.get(key), kind) for key, kind in _SHAPE.items()
        ):
            texts = {key: _clean(value) for key, value in found.items() if isinstance(value, str)}
            return {**found, **texts, **{key: _lines(found.get(key)) for key in ("gpus", "notes")}}
    return None
