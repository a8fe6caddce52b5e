"""A column of words as numbers: sorted, whole numbers as such, written 3 or 3.0."""

import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookalike.errors import DataError

_WHOLE = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_FLOAT = re.compile(r"-?[0-9]{1,18}(\.0{0,18})?", re.ASCII)
_MISSING = ("", "nan", "NaN", "<NA>")


def numbered(
    file: str, lines: Sequence[Any], words: Sequence[str], name: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The column as numbers of its sorted values, int64 (N,), and these values.

    Whole numbers are sorted as such; where all values are numbers and some are written as floats,
    3.0 is 3. Raises DataError for a row without a value.
    """
    values = set(words)
    floats = _are_floats(values)
    for missing in _MISSING if floats else ("",):
        if missing in values:
            what = f"{name} is {missing or 'empty'}"
            remedy = "fill it, or leave the whole column out"
            raise DataError(f"{file}:{lines[words.index(missing)]}: {what}: {remedy}")
    of = {value: str(_number(value)) for value in values} if floats else {}
    names = _ordered(set(of.values()) or values)
    index = {value: number for number, value in enumerate(names)}
    number = {value: index[of.get(value, value)] for value in values}
    labels_N = np.fromiter(map(number.__getitem__, words), np.int64, len(words))
    return torch.from_numpy(labels_N), tuple(names)


def _number(word: str) -> int:
    """The whole number that the word is, as 3 or 3.0."""
    return int(word.partition(".")[0])


def of_known(
    file: str, lines: Sequence[Any], words: Sequence[str], names: tuple[str, ...]
) -> tuple[Tensor | None, tuple[str, ...]]:
    """The labels of a table that names its classes, int64 (N,), and these; none where every label
    is -1, as in sets whose labels are kept secret.

    Raises DataError for a row whose value is no number of a class.
    """
    values = set(words)
    if values == {"-1"}:
        warnings.warn(f"{file}: every label is -1: the set has none", stacklevel=4)
        return None, ()
    for value in values:
        if not _WHOLE.fullmatch(value) or not 0 <= int(value) < len(names):
            what = f"label {value[:40]!r} is none of its {len(names)} classes"
            remedy = "leave the row out, or fill it"
            raise DataError(f"{file}:{lines[words.index(value)]}: {what}: {remedy}")
    labels_N = np.fromiter(map(int, words), np.int64, len(words))
    return torch.from_numpy(labels_N), names


def several(words: Sequence[str], separator: str) -> tuple[Tensor, tuple[str, ...]]:
    """A column of any number of labels a row, as `cat|dog`: which each row has, bool (N, C), of
    its sorted values, and these. Spaces around a label do not count; an empty field has none.
    """
    parts = [[part.strip() for part in word.split(separator)] for word in words]
    names = tuple(_ordered({part for row in parts for part in row if part}))
    index = {name: number for number, name in enumerate(names)}
    several_NC = torch.zeros(len(words), len(names), dtype=torch.bool)
    for row, found in enumerate(parts):
        several_NC[row, [index[part] for part in found if part]] = True
    return several_NC, names


def _are_floats(values: Collection[str]) -> bool:
    """Whether all are whole numbers, at least one of them written as a float, apart from
    missing ones.
    """
    some = [value for value in values if value not in _MISSING]
    return any("." in value for value in some) and all(map(_FLOAT.fullmatch, some))


def _ordered(values: Collection[str]) -> list[str]:
    whole = all(len(value) < 19 and _WHOLE.fullmatch(value) for value in values)
    return sorted(values, key=lambda value: (int(value), value)) if whole else sorted(values)
