"""The probe's scores as lines for a person: a row a backbone, its few-label scores below it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lookalike.errors import printable

PIXELS, UNTRAINED = "pixels/", "untrained/"
ROWS = {UNTRAINED: "untrained backbone", PIXELS: "raw pixels"}
_LEFT, _WIDTH = 20, 16


def columns(scores: Mapping[str, Any], prefix: str) -> list[str]:
    """What is scored under a prefix, with many labels or few: `linear`, `knn20`, …"""
    found: dict[str, None] = {}
    for name in scores:
        parts = name.removeprefix(prefix).split("/")
        if not name.startswith(prefix) or parts[-1] != "top1":
            continue
        if len(parts) == 2:
            found[parts[0]] = None
        elif len(parts) == 4 and parts[0] == "few":
            found[parts[2]] = None
    return list(found)


def head(title: str, wanted: Sequence[str]) -> str:
    """What stands above the rows."""
    cells = (f"{_title(name):>{_width(name)}}" for name in wanted)
    return f"{title + ' (top-1)':<{_LEFT}}{''.join(cells)}"


def _title(name: str) -> str:
    return f"kNN-{name[3:]}" if name.startswith("knn") else name


def _width(name: str) -> int:
    return max(_WIDTH, len(_title(name)) + 2)


def rows(record: Mapping[str, Any], prefix: str, name: str, wanted: Sequence[str]) -> Iterator[str]:
    """The scores under a prefix of one backbone, `name`, with few labels, and without labels."""
    yield _row(record, prefix, printable(name), wanted)
    names = (each.removeprefix(prefix) for each in record if each.startswith(f"{prefix}few/"))
    for few in dict.fromkeys(each.split("/")[1] for each in names):
        yield _row(record, f"{prefix}few/{few}/", f"  {printable(few)}", wanted)
    start = f"{prefix}quality/"
    found = {each.removeprefix(start): v for each, v in record.items() if each.startswith(start)}
    if found:
        yield f"  quality: {', '.join(f'{each} {value:.4g}' for each, value in found.items())}"


def _row(record: Mapping[str, Any], prefix: str, name: str, wanted: Sequence[str]) -> str:
    cells = (f"{cell(record, f'{prefix}{each}/top1'):>{_width(each)}}" for each in wanted)
    short = name if len(name) < _LEFT else f"…{name[2 - _LEFT :]}"
    return f"{short:<{_LEFT}}{''.join(cells)}"


def cell(record: Mapping[str, Any], name: str) -> str:
    """A share in per cent, with half its interval where there is one; - where there is no such
    score.
    """
    value = record.get(name)
    if not isinstance(value, int | float):
        return "-"
    ends = record.get("intervals", {}).get(name)
    more = f" ± {50 * (ends[1] - ends[0]):.2f}" if ends else ""
    return f"{100 * value:.2f}{more} %"


def protocols(record: Mapping[str, Any], start: str) -> Iterator[str]:
    """How the scores of a data set, whose names begin so, came to be: a line for all that came to
    be alike; of another data set than the recipe's, its images.
    """
    alike: dict[str, list[str]] = {}
    for name, about in record.get("protocols", {}).items():
        own = name.removeprefix(start)
        if name.startswith(start) and (own == "data" or (not start and _is_own(own))):
            alike.setdefault(_told(own, about), []).append(own)
    for text, names in alike.items():
        yield f"  {printable(', '.join(names))}: {printable(text)}"
    few = {about["linear"] for about in record.get("protocols", {}).values() if "linear" in about}
    yield from (f"  few, linear: {printable(text)}" for text in few if not start)


def _is_own(name: str) -> bool:
    """Whether a protocol is of the recipe's own data set."""
    return "/" not in name or name.split("/")[0] in ("few", "quality")


def _told(name: str, about: Mapping[str, Any]) -> str:
    left = set() if name == "data" else {"train images", "test images", "k", "linear"}
    words = (key if key != "solver" else "" for key in about)
    pairs = zip(words, about.items(), strict=True)
    return ", ".join(f"{word} {_short(v)}".strip() for word, (key, v) in pairs if key not in left)


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        few = value if len(value) < 6 else [*value[:2], "…", value[-1]]
        return " ".join(map(_short, few))
    return f"{value:g}" if isinstance(value, float) else str(value)
