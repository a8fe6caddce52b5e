"""Compare: several runs and the models scored in them, in one table, with what differs between
their recipes.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lookalike.errors import Error, RunError, printable
from lookalike.experiment import load_recipe
from lookalike.folder import at_home, read_regular

FILES = ("probe.json", "evaluate.json", "classify.json", "segment.json")
RECIPE = "recipe.yaml"
OWN = "backbone"
"""What evaluate.json calls the model that the other files call nothing."""
_ASIDE = {
    "others",
    "done",
    "protocols",
    "intervals",
    "draws",
    "breakdown",
    "level",
    "held_out",
    "uncalibrated",
}
_NO_SCORES = {"l2", "lr", "held_out_top1", "dropped", "threshold", "temperature", "accuracy_error"}
_LOWER = {"uniformity", "alignment", "loss", "ece", "nll", "brier", "eer", "error"}
_NEITHER = {"alpha_req"}
_LARGEST = 64 * 2**20
_LONGEST, _DEEPEST = 60, 6
_HEADS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass
class Column:
    """One model of a run, `model` None for the run's own, and its scores by name."""

    run: str
    model: str | None = None
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As people read it."""
        return self.run if self.model is None else f"{self.run}: {self.model}"


@dataclass(frozen=True)
class Compared:
    """Columns of scores, the values of recipe keys that differ, a run each, and what is to be said
    of files that cannot be read.
    """

    runs: list[str]
    columns: list[Column]
    recipes: dict[str, list[Any]]
    remarks: list[str]

    @property
    def names(self) -> list[str]:
        """Every score that any column has."""
        return list(dict.fromkeys(name for column in self.columns for name in column.scores))


def compare(runs: Sequence[str | Path], *, as_json: bool = False) -> str:
    """The table, or the same as JSON. Raises RunError for a folder that is no run."""
    found = read([at_home(run) for run in runs])
    return json.dumps(plain(found), indent=2) if as_json else "\n".join(text(found))


def read(runs: Sequence[Path]) -> Compared:
    """What the files of these run folders say. Raises RunError for a folder that is no run."""
    columns: list[Column] = []
    plains: list[dict[str, Any] | None] = []
    remarks: list[str] = []
    for run in runs:
        _refuse_other(run)
        columns += _columns(run, remarks)
        plains.append(_recipe(run, remarks))
    return Compared([str(run) for run in runs], columns, _differing(plains), remarks)


def _refuse_other(run: Path) -> None:
    if not run.is_dir():
        raise RunError(f"{printable(run)}: no such folder: name the --out of a run")
    if not any((run / name).exists() for name in (RECIPE, *FILES)):
        raise RunError(
            f"{printable(run)}: no run folder, it has neither {RECIPE} nor scores: name the --out "
            "of a run"
        )


def _columns(run: Path, remarks: list[str]) -> list[Column]:
    """The run's own model first, then others in the order in which they were scored."""
    found: dict[str | None, Column] = {None: Column(str(run))}

    def put(model: str | None, file: str, scores: Any) -> None:
        column = found.setdefault(model, Column(str(run), model))
        column.scores |= _flat(scores, f"{file.removesuffix('.json')}/")

    for file in FILES:
        held = _json(run / file, remarks)
        if file == "evaluate.json":
            for name, scores in held.items():
                put(None if name == OWN else name, file, scores)
            continue
        put(None, file, held)
        others = held.get("others")
        for name, scores in others.items() if isinstance(others, dict) else ():
            put(name, file, scores)
    return list(found.values())


def _json(path: Path, remarks: list[str]) -> dict[str, Any]:
    """What lies in a file of scores; {} where there is none, or none that can be read, which is
    remarked.
    """
    if not path.exists():
        return {}
    try:
        held = json.loads(read_regular(path, _LARGEST))
    except (OSError, ValueError, RecursionError):
        held = None
    if isinstance(held, dict):
        return held
    remarks.append(f"{printable(path)}: cannot be read, its scores are left out")
    return {}


def _flat(found: Any, start: str, depth: int = 0) -> dict[str, float]:
    """The finite measures, by the names on the way to them."""
    if not isinstance(found, dict) or depth > _DEEPEST:
        return {}
    flat: dict[str, float] = {}
    for key, value in found.items():
        last = key.rpartition("/")[2]
        if key in _ASIDE or last in _NO_SCORES:
            continue
        if isinstance(value, float) and math.isfinite(value):
            flat[start + key] = value
        else:
            flat |= _flat(value, f"{start}{key}/", depth + 1)
    return flat


def _recipe(run: Path, remarks: list[str]) -> dict[str, Any] | None:
    """The recipe of a run, defaults filled in; None where it cannot be read."""
    try:
        return load_recipe(run / RECIPE).plain()
    except Error as error:
        reason = printable(str(error).splitlines()[0])
        remarks.append(f"{reason[:200]}: its recipe is not compared")
        return None


def _differing(values: Sequence[Any], key: str = "") -> dict[str, list[Any]]:
    """The dotted keys of which the recipes that could be read say different things, and what each
    says; of a section that one of them lacks, no more than that.
    """
    if all(isinstance(value, dict) for value in values if value is not None):
        known = [value for value in values if value is not None]
        if not known or (key and len(known) < len(values)):
            return {} if not known else {key: [None if v is None else "there" for v in values]}
        found: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for value in known for name in value):
            each = [value.get(name) for value in known]
            dotted = f"{key}.{name}" if key else str(name)
            found |= _spread(_differing(each, dotted), values)
        return found
    same = all(value == values[0] for value in values)
    return {} if same else {key: list(values)}


def _spread(found: dict[str, list[Any]], values: Sequence[Any]) -> dict[str, list[Any]]:
    """With None for a recipe that could not be read."""
    spread = {}
    for key, each in found.items():
        left = iter(each)
        spread[key] = [None if value is None else next(left) for value in values]
    return spread


def best(name: str, values: Sequence[float | None]) -> set[int]:
    """Which columns are best by this score; none where fewer than two have it, all are alike, or it
    has no better and worse.
    """
    last = name.rpartition("/")[2]
    there = [value for value in values if value is not None]
    if len(there) < 2 or min(there) == max(there) or last in _NEITHER:
        return set()
    wanted = min(there) if last in _LOWER else max(there)
    return {number for number, value in enumerate(values) if value == wanted}


def plain(found: Compared) -> dict[str, Any]:
    """JSON data of all of it; `best`: the numbers of the columns that are best by a score."""
    return {
        "columns": [
            {"run": each.run, "model": each.model, "scores": each.scores} for each in found.columns
        ],
        "best": {name: sorted(best(name, _values(found, name))) for name in found.names},
        "recipes": {"runs": found.runs, "differ": found.recipes},
        "remarks": found.remarks,
    }


def _values(found: Compared, name: str) -> list[float | None]:
    return [column.scores.get(name) for column in found.columns]


def text(found: Compared) -> Iterator[str]:
    """The table as lines for a person: a legend, scores, recipes; `*` stands at the best."""
    heads = [_head(number) for number in range(len(found.columns))]
    for head, column in zip(heads, found.columns, strict=True):
        yield f"{head}  {printable(column.name)}"
    yield ""
    lines = [["score", *(f"{head} " for head in heads)]]
    names = [name for name in found.names if _is_shown(found, name)]
    for name in names:
        values = _values(found, name)
        marked = best(name, values)
        cells = (_cell(value, number in marked) for number, value in enumerate(values))
        lines.append([name, *cells])
    yield from _aligned(lines) if found.names else ["no scores yet: run lookalike probe"]
    if more := len(found.names) - len(names):
        yield f"(and {more} more, top-5 or of one column only: --json has them)"
    if found.recipes:
        own = [h for h, column in zip(heads, found.columns, strict=True) if column.model is None]
        lines = [["recipe", *own]]
        lines += [[key, *map(_value, values)] for key, values in found.recipes.items()]
        yield from ["", *_aligned(lines)]
    elif len(found.runs) > 1 and not any(RECIPE in remark for remark in found.remarks):
        yield from ["", "the recipes say the same"]
    yield from found.remarks


def _is_shown(found: Compared, name: str) -> bool:
    """Whether a score says something here: it stands in two columns, and is no top-5."""
    several = sum(value is not None for value in _values(found, name)) > 1
    return not name.endswith("/top5") and (several or len(found.columns) == 1)


def _head(number: int) -> str:
    """A, B, … Z, A1, …"""
    more, letter = divmod(number, len(_HEADS))
    return f"{_HEADS[letter]}{more or ''}"


def _cell(value: float | None, is_best: bool) -> str:
    return "- " if value is None else f"{value:.4f}{'*' if is_best else ' '}"


def _value(value: Any) -> str:
    told = "-" if value is None else value if value == "there" else json.dumps(value)
    return _cut(printable(told))


def _cut(word: str) -> str:
    return word if len(word) <= _LONGEST else f"{word[: _LONGEST - 1]}…"


def _aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, all others to the right."""
    shown = [[_cut(printable(cell)) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for line in shown:
        cells = (f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        yield "  ".join([f"{line[0]:<{widths[0]}}", *cells]).rstrip()
