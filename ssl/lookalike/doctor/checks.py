"""Reports compared: a line for every problem, with its machine and its remedy, and a table."""

import json
from collections.abc import Sequence

from lookalike import comm
from lookalike.doctor.machine import SAME, Report
from lookalike.errors import RunError
from lookalike.log import say

_SKEW = 2.0
_LEAST_FREE = 2**30


def problems(reports: Sequence[Report]) -> list[str]:
    """One line a problem, with its machine and its remedy."""
    found = [f"{one['host']}: {one['error']}" for one in reports if one["error"]]
    sound = [one for one in reports if "torch" in one]
    for key, name in SAME.items():
        found += _differing(sound, key, name)
    known: dict[str, str] = {}
    for one in sound:
        found += _own(one)
        first = known.setdefault(one.get("machine") or one["host"], one["host"])
        if first != one["host"]:
            found.append(
                f"{one['host']}: is the same machine as {first}: one line a machine, with all its "
                "slots"
            )
    gpus = {one["host"]: len(one["gpus"]) for one in sound}
    if len(set(gpus.values())) > 1:
        counts = ", ".join(f"{host} {count}" for host, count in gpus.items())
        found.append(f"GPUs differ ({counts}): fix the driver there, or leave those machines out")
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
        found.append(
            f"{one['host']}: DeepSpeed is missing, which trains several ranks: pip install "
            "deepspeed"
        )
    if one["gpus"] and one.get("slots", 1) > len(one["gpus"]):
        found.append(
            f"{one['host']}: {one['slots']} slots for {len(one['gpus'])} GPUs: lower slots in the "
            "hostfile"
        )
    if one["free"] < _LEAST_FREE:
        left = f"{one['free'] / 2**20:.0f} MiB"
        found.append(
            f"{one['host']}: {left} free for the run folder: free some, or choose another --out"
        )
    if abs(one.get("skew", 0.0)) > _SKEW:
        found.append(
            f"{one['host']}: its clock is {one['skew']:+.1f} s from this one's: run an NTP client, "
            "as chrony"
        )
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
            for line in [*told(one.get("able", ())), *one.get("notes", ())]:
                say(f"{one['host']}: {line}")
            if one.get("pace"):
                say(f"{one['host']}: {one['pace']}")
            if one.get("there"):
                say(
                    f"{one['host']}: the run folder is not there yet, it will be made in "
                    f"{one['there']}"
                )
        say(f"{len(reports)} machine{'s' * (len(reports) > 1)}, no problem found")
    elif found:
        raise SystemExit(2)


def told(able: Sequence[str]) -> list[str]:
    """Lines on GPUs, equal ones together."""
    counts = {line: list(able).count(line) for line in able}
    return [f"{count} × {line}" if count > 1 else line for line, count in counts.items()]


def table(reports: Sequence[Report]) -> str:
    """A line a machine, in columns."""
    head = ["machine", "slots", "python", "torch", "deepspeed", "lookalike"]
    head += ["GPUs", "all-reduce", "data", "free", "clock"]
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
