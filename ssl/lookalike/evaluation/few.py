"""Few labels: which train images are seen, drawn several times; what features are worth then."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lookalike import comm, rng
from lookalike.data.images import Images
from lookalike.errors import DataError, printable
from lookalike.evaluation.protocols.contract import Subject
from lookalike.evaluation.protocols.prototype import NAMED
from lookalike.recipe import Count, Share
from lookalike.scoring import knn, prototype, scarce

LEVEL = 0.95
"""Of the interval over draws."""
SOLVER = (
    "L-BFGS to the optimum, standardised by all of train, l2 by cross-validation among the "
    f"labelled, {scarce.L2_OF_ONE:g} of one a class"
)


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """With few labels, several draws of them: mean and interval. `shots`: so many images of each
    class; `share`: so large a part of each class, at least one image; `draws`: how many of each;
    `lists`: images of the recipe's train set by name, a text file of one a line for each name of
    your own, as SimCLR's 1 % and 10 % of ImageNet.
    """

    shots: tuple[Count, ...] = ()
    share: tuple[Share, ...] = ()
    draws: Count = 5
    lists: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not (self.shots or self.share or self.lists):
            raise ValueError("no shots, no share and no lists: give one of them")
        for name in self.lists or {}:
            if not name or not name.isprintable() or "/" in name:
                raise ValueError(f"lists: '{printable(name)}': take a name without /")
            if name.endswith(("-shot", " %")):
                raise ValueError(f"lists: '{name}': draws are called so: take another name")
        for key in ("shots", "share"):
            named = [f"{value:g}" for value in getattr(self, key)]
            if len(set(named)) < len(named):
                raise ValueError(f"{key}: one of them twice: remove it")


class Subset(NamedTuple):
    """Train images with labels: `name`, as `5-shot` or `1 %`; which `draw`; their row numbers,
    ascending.
    """

    name: str
    draw: int
    rows_K: Tensor


def subsets(few: FewLabels, labels_N: Tensor, seed: int) -> list[Subset]:
    """Every draw of `shots` and `share`, the same number or share of each class.

    A pure function of labels, seed and draw: each draw shuffles the images of each class once, and
    takes the first. So a draw of more labels holds all of the same draw of fewer. A class with
    fewer images than shots gives all of them; a label below 0 is no class.
    """
    found = []
    for draw in range(few.draws):
        place_N, size_N = _shuffled(labels_N, seed, draw)
        known_N = labels_N >= 0
        for shots in sorted(set(few.shots)):
            found.append(Subset(f"{shots}-shot", draw, _rows(known_N & (place_N < shots))))
        for share in sorted(set(few.share)):
            most_N = (size_N * share).round().clamp_min(1)
            found.append(Subset(f"{100 * share:g} %", draw, _rows(known_N & (place_N < most_N))))
    return found


def _rows(taken_N: Tensor) -> Tensor:
    return taken_N.nonzero()[:, 0]


def _shuffled(labels_N: Tensor, seed: int, draw: int) -> tuple[Tensor, Tensor]:
    """The place of each image among the shuffled ones of its class, from 0, and how many these
    are.
    """
    _, class_N, count_C = torch.unique(labels_N, return_inverse=True, return_counts=True)
    shuffled_N = rng.permutation(len(labels_N), seed, "few labels", draw)
    order_N = shuffled_N[class_N[shuffled_N].argsort(stable=True)]
    place_N = torch.empty_like(order_N)
    place_N[order_N] = torch.arange(len(order_N)) - (count_C.cumsum(0) - count_C)[class_N[order_N]]
    return place_N, count_C[class_N].double()


def listed(few: FewLabels, images: Images) -> list[Subset]:
    """The images that the `lists` name, one draw each.

    A line is a file's name, or as much of its path as tells it from others. Raises DataError for a
    list that cannot be read, is empty, or names what is not there or there twice.
    """
    return [
        Subset(name, 0, _named(path, images)) for name, path in sorted((few.lists or {}).items())
    ]


def _named(path: str, images: Images) -> Tensor:
    where = printable(path)
    try:
        lines = Path(path).expanduser().read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"probe.few.lists: {where}: {reason}: name a text file") from None
    wanted = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not wanted:
        raise DataError(f"probe.few.lists: {where}: names no image: one name a line")
    known = _by_name(images, {line.count("/") for _, line in wanted})
    rows: dict[int, None] = {}
    for number, line in wanted:
        row = known.get(line)
        if row is None or row < 0:
            problem = "is not among the train images" if row is None else "is the name of several"
            raise DataError(
                f"probe.few.lists: {where}:{number}: {printable(line)[:100]} {problem}: write "
                "names as in the train set, with so many folders before them that each is one"
            )
        rows[row] = None
    return torch.tensor(sorted(rows))


def _by_name(images: Images, depths: set[int]) -> dict[str, int]:
    """The row of each image by the last 1 + depth parts of its name; -1 where several have it."""
    known: dict[str, int] = {}
    for row in range(len(images)):
        parts = images.name(row).split("/")
        for depth in depths:
            if depth < len(parts):
                key = "/".join(parts[-1 - depth :])
                known[key] = -1 if key in known else row
    return known


def short(few: FewLabels, labels_N: Tensor, of: str = "") -> str:
    """In words how many classes, `of` which data set, have fewer images than shots, or nothing."""
    most = max(few.shots, default=0)
    counts = torch.unique(labels_N[labels_N >= 0], return_counts=True)[1]
    lacking = int((counts < most).sum())
    if not lacking:
        return ""
    classes = f"{lacking} of {len(counts)} classes{of}"
    return f"few.shots: {most}, but {classes} have fewer train images: all of them"


class Drawn(NamedTuple):
    """Scores of one group of draws: `means` by name, the `intervals` of those of several draws, and
    every draw's own.
    """

    means: dict[str, float]
    intervals: dict[str, list[float]]
    draws: dict[str, list[float]]


def grouped(few: FewLabels, labels_N: Tensor, lists: Sequence[Subset], seed: int) -> dict[str, Any]:
    """The subsets by their name, in the order of the recipe."""
    groups: dict[str, list[Subset]] = {}
    for subset in [*subsets(few, labels_N, seed), *lists]:
        groups.setdefault(subset.name, []).append(subset)
    return groups


def scores(
    subject: Subject, drawn: Sequence[Subset], ks: Sequence[int], temperature: float
) -> Drawn:
    """`linear/top1`, `knn20/top1`, `prototype/top1`, … of classifiers that know the labels of each
    draw, averaged over draws. All ranks call it.
    """
    rows = [_readable(subset, subject.features[0].ids_N) for subset in drawn]
    solved = _linear(subject, rows)
    found: dict[str, list[float]] = {}
    for number, rows_K in enumerate(rows):
        each = {**solved[number], **_neighbours(subject, rows_K, ks, temperature)}
        for name, value in each.items():
            found.setdefault(name, []).append(value)
    means = {name: statistics.fmean(values) for name, values in found.items()}
    several = {name: values for name, values in found.items() if len(values) > 1}
    return Drawn(means, {name: interval(values) for name, values in several.items()}, several)


def _readable(subset: Subset, ids_N: Tensor) -> Tensor:
    """The rows of the features that belong to these images, without those that cannot be read."""
    return _rows(torch.isin(ids_N, subset.rows_K))


def _linear(subject: Subject, rows: Sequence[Tensor]) -> dict[int, dict[str, float]]:
    """By number of the draw; the ranks take turns."""
    train, test = subject.features
    of_all = scarce.standard(train.x_ND)
    labels_N, grid = train.labels_N, subject.numbers.grid
    mine = {
        number: {
            f"linear/{name}": value
            for name, value in scarce.accuracy(
                train.x_ND, labels_N, rows_K, test.x_ND, test.labels_N, of_all, grid
            ).items()
        }
        for number, rows_K in comm.in_turn(list(enumerate(rows)))
    }
    return {number: found for part in comm.gather_objects(mine) for number, found in part.items()}


def _neighbours(
    subject: Subject, rows_K: Tensor, ks: Sequence[int], temperature: float
) -> dict[str, float]:
    train, test = subject.features
    sets = (train.x_ND[rows_K], train.labels_N[rows_K], test.x_ND, test.labels_N)
    near = knn.accuracies(*sets, ks=ks, temperature=temperature)
    return dict(_named_scores({f"knn{k}": value for k, value in near.items()})) | dict(
        _named_scores({name: prototype.accuracy(*sets, by=by) for name, by in NAMED.items()})
    )


def _named_scores(found: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, float]]:
    for name, values in found.items():
        yield from ((f"{name}/{key}", value) for key, value in values.items())


def interval(values: Sequence[float]) -> list[float]:
    """The `LEVEL` interval of the mean of these draws by Student's t, as if they were independent:
    their test images are the same.
    """
    mean = statistics.fmean(values)
    half = t_quantile(LEVEL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def t_quantile(level: float, freedom: int) -> float:
    """The t for which |T| < t has this probability: Abramowitz & Stegun, 26.7.3 and 26.7.4, by
    bisection of the angle.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _inside(angle: float, freedom: int) -> float:
    """P(|T| < √freedom · tan(angle))."""
    cos, sin = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cos if odd else 1.0), 0.0
    for n in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cos * cos * (n - 1) / n
    return 2 / math.pi * (angle + sin * total) if odd else sin * total
