"""Labels of many shards -> numbers of one list of classes."""

import os
from collections.abc import Iterable, Sequence

import numpy as np

from lookalike.data.webdataset.keys import MOST_CLASSES, NO_LABEL
from lookalike.data.webdataset.samples import Samples
from lookalike.errors import DataError


def numbered(
    found: Sequence[Samples], before: Sequence[Samples], place: str
) -> tuple[list[Samples], tuple[str, ...]]:
    """The shards' samples with labels that are numbers of the classes, and these: 0 … the highest
    number, or where shards name them the names sorted, those of the train set's shards, `before`,
    first. Raises DataError for more than MOST_CLASSES.
    """
    if not any(len(samples.texts) for samples in (*found, *before)):
        return list(found), _numbers((*found, *before))
    first = _ordered({name for samples in before for name in _names(samples)})
    more = {name for samples in found for name in _names(samples)}.difference(first)
    classes = (*first, *_ordered(more))
    if len(classes) > MOST_CLASSES:
        raise DataError(f"{place}: more than {MOST_CLASSES:,} classes: choose another label_key")
    index = {name: number for number, name in enumerate(classes)}
    return [_renumbered(samples, index) for samples in found], classes


def by_folder(samples: Samples) -> Samples:
    """The samples with the name of each member's folder as its label; none for a member in none."""
    texts: dict[str, int] = {}
    labels = []
    for name in samples.names:
        folder = os.fsdecode(name.rpartition(b"/")[0].rpartition(b"/")[2])
        known = folder not in ("", ".")
        labels.append(texts.setdefault(folder, len(texts)) if known else NO_LABEL)
    return samples._replace(labels_N=np.array(labels, np.int64), texts=list(texts))


def _numbers(found: Iterable[Samples]) -> tuple[str, ...]:
    """0 … the highest label, as names."""
    highest = max((int(s.labels_N.max(initial=NO_LABEL)) for s in found), default=NO_LABEL)
    return tuple(map(str, range(1 + highest)))


def _names(samples: Samples) -> list[str]:
    """The classes that these samples have."""
    numbers = np.unique(samples.labels_N[samples.labels_N != NO_LABEL]).tolist()
    return [samples.texts[n] for n in numbers] if samples.texts else list(map(str, numbers))


def _ordered(names: Iterable[str]) -> list[str]:
    """Sorted; whole numbers as such, where all are."""
    names = list(names)
    if all(name.isascii() and name.isdigit() and len(name) < 19 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _renumbered(samples: Samples, index: dict[str, int]) -> Samples:
    texts, labels_N = samples.texts, samples.labels_N
    if not texts:
        texts = list(map(str, range(1 + int(labels_N.max(initial=NO_LABEL)))))
    table = np.array([*(index.get(text, NO_LABEL) for text in texts), NO_LABEL], np.int64)
    return samples._replace(labels_N=table[labels_N])  # -1 is the last of the table
