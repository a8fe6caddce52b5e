"""The scores of evaluate.json as tables for people, a table a task: in the terminal, and in a
page.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lookalike.evaluation.tasks import POOLED, RERANKED

_TITLES = {
    "r_precision": "R-precision",
    "map@r": "MAP@R",
    "map": "mAP",
    "minp": "mINP",
    "nmi": "NMI",
    "auc": "AUC",
    "eer": "EER",
    "accuracy": "Accuracy",
    "best_accuracy": "Best accuracy",
}
_VARIANTS = {"": "", RERANKED: ", re-ranked", POOLED: ", multi-query"}
_TASKS = {"reidentification": "re-identification"}
_WORST = 3

Found = Mapping[str, Any]


class Row(NamedTuple):
    """What the table calls a model, and its cells by measure."""

    name: str
    cells: dict[str, str]


class Table(NamedTuple):
    """Lines of cells under heads; perhaps a bar behind each, its length in [0, 1]."""

    heads: list[str]
    lines: list[list[str]]
    bars: Sequence[float] = ()


class Summary(NamedTuple):
    """What a page says of a model, the tables that it stands in, and its lowest groups."""

    about: str
    tables: Sequence[Table]
    lowest: Sequence[Table] = ()


def title(measure: str) -> str | None:
    """The usual name of a measure; None for what is no measure or says the same as another."""
    if known := re.fullmatch(r"(recall|cmc)@(\d+)", measure):
        return f"Recall@{known[2]}" if known[1] == "recall" else f"Rank-{known[2]}"
    return f"TAR@FAR={measure[8:]}" if measure.startswith("tar@far=") else _TITLES.get(measure)


def by_task(scores: Mapping[str, Any]) -> list[tuple[str, dict[str, Found]]]:
    """The entries of evaluate.json that may be compared, same task and same images; what is none is
    left out.
    """
    found: dict[tuple[str, str], dict[str, Found]] = {}
    for name, one in scores.items():
        if isinstance(one, dict):
            found.setdefault((str(one.get("task", "retrieval")), str(one.get("data"))), {})[
                name
            ] = one
    return [(task, each) for (task, _), each in found.items()]


def rows(scores: Mapping[str, Found]) -> tuple[list[str], list[Row]]:
    """The measures that any of these models has, in order, and a row a model and variant of its
    lists.
    """
    columns: dict[str, None] = {}
    out = []
    for name, found in scores.items():
        for prefix, words in _VARIANTS.items():
            own = {
                m.removeprefix(prefix): m
                for m in found
                if m.startswith(prefix) and title(m.removeprefix(prefix))
            }
            own = {short: m for short, m in own.items() if isinstance(found[m], int | float)}
            if own:
                columns |= dict.fromkeys(own)
                out.append(Row(name + words, {short: _cell(found, m) for short, m in own.items()}))
    return list(columns), out


def _cell(found: Found, measure: str) -> str:
    """Percent, with half the interval's width or the standard error where there is one."""
    half, intervals = found.get(f"{measure}_error"), found.get("intervals")
    match intervals.get(measure) if isinstance(intervals, dict) else None:
        case [float(low), float(high)]:
            half = (high - low) / 2
    spread = f" ± {100 * half:.2f}" if isinstance(half, float) else ""
    return f"{100 * found[measure]:.2f}{spread} %"


def counts(found: Found) -> str:
    """How many were asked, in words."""
    if "pairs" in found:
        words = f"{found['pairs']} pairs, {found['same']} of them the same, {found['folds']} folds"
    else:
        words = f"{found.get('queries', 0):.0f} queries of {found.get('classes', 0)} classes"
        words += f", gallery of {found['gallery']}" if "gallery" in found else ""
        words += (
            f"; {found['dropped']:.0f} more had nothing to find" if found.get("dropped") else ""
        )
    words += f"; {found['unreadable']} images could not be read" if found.get("unreadable") else ""
    return words


def spreads(found: Found) -> str:
    """What ± stands for, nothing where there is none."""
    if found.get("intervals"):
        return f"±: half of a {100 * found.get('level', 0):g} % interval, whole classes drawn again"
    return "±: standard error over the folds" if "accuracy_error" in found else ""


def worst(found: Found) -> dict[str, list[tuple[str, float, int]]]:
    """The groups with the lowest mAP (MAP@R where lists are not ranked to their end) or accuracy,
    (name, value, size) of each, worst first; by kind of group.
    """
    out = {}
    for kind, groups in found.get("breakdown", {}).items():
        measure = _judged_by(kind, found)
        size = "pairs" if kind == "fold" else "queries"
        each = [(name, float(one[measure]), int(one[size])) for name, one in groups.items()]
        if len(each) > 1:
            out[kind] = sorted(each, key=lambda group: group[1])
    return out


def _judged_by(kind: str, found: Found) -> str:
    """By which measure a group of this kind is good or bad."""
    if kind == "fold":
        return "accuracy"
    each = found["breakdown"][kind].values()
    return "map" if all("map" in one for one in each) else "map@r"


def _word(kind: str, found: Found) -> str:
    return "accuracy" if kind == "fold" else _TITLES[_judged_by(kind, found)]


def text(scores: Mapping[str, Any]) -> str:
    """The tables as lines for a terminal."""
    return "\n".join(line for task, some in by_task(scores) for line in _lines(task, some))


def _table(task: str, scores: Mapping[str, Found]) -> Table:
    columns, body = rows(scores)
    heads = [_TASKS.get(task, task), *(title(m) or m for m in columns)]
    return Table(heads, [[row.name, *(row.cells.get(m, "–") for m in columns)] for row in body])


def _lines(task: str, scores: Mapping[str, Found]) -> Iterator[str]:
    table = _table(task, scores)
    widths = [max(map(len, column)) for column in zip(table.heads, *table.lines, strict=True)]
    for line in (table.heads, *table.lines):
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        yield "  ".join([line[0].ljust(len(first)), *others])
    notes = [counts(found) for found in scores.values()] + [
        spreads(found) for found in scores.values()
    ]
    yield from (f"({note})" for note in dict.fromkeys(filter(None, notes)))
    for name, found in scores.items():
        for kind, groups in worst(found).items():
            listed = ", ".join(
                f"{group} ({100 * value:.2f} %)" for group, value, _ in groups[:_WORST]
            )
            yield f"{name}: lowest {_word(kind, found)} by {kind}: {listed}"


def summary(scores: Mapping[str, Any], name: str) -> Summary:
    """The tables for a page, the one that has `name` first, and what is said of it alone."""
    found, tasks = scores[name], sorted(by_task(scores), key=lambda table: name not in table[1])
    protocol = [
        f"{key}: {word}" for key, word in found["protocol"].items() if isinstance(word, str)
    ]
    about = (counts(found), ", ".join(protocol), spreads(found))
    return Summary(
        " · ".join(filter(None, about)),
        [_table(task, some) for task, some in tasks],
        [_lowest(kind, _word(kind, found), groups[:10]) for kind, groups in worst(found).items()],
    )


def _lowest(kind: str, measure: str, groups: Sequence[tuple[str, float, int]]) -> Table:
    size = "pairs" if kind == "fold" else "queries"
    body = [[name, str(count), f"{100 * value:.2f} %"] for name, value, count in groups]
    return Table([f"lowest by {kind}", size, measure], body, [value for _, value, _ in groups])
