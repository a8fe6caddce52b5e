"""Data sets of Hugging Face: Parquet and Arrow files with images in them, in a folder or in the
local cache of the Hub.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from lookalike.data.folders.index import units
from lookalike.data.hf import hub
from lookalike.data.hf.layout import Parts, parts_of, places_in
from lookalike.data.hf.rows import Chain, PartRows, read_part
from lookalike.data.images import Annotations, Images
from lookalike.data.images.parquet import ParquetImages, Shuffle
from lookalike.data.reading import FileSource
from lookalike.data.sources import Split, checked
from lookalike.data.tables.classes import numbered, of_known
from lookalike.data.tables.columns import Columns
from lookalike.data.tables.split_words import part_of, tested
from lookalike.data.tables.spool import Spool
from lookalike.errors import DataError, printable
from lookalike.recipe import Size


@dataclass(frozen=True)
class _Chosen(Columns):
    keys: ClassVar[dict[str, str]] = {"path": "image", "label": "label"}


class Hf(FileSource):
    """A data set of Hugging Face's: a folder that `datasets` saved (`save_to_disk`), a .parquet
    file, a glob or a folder of them as on the Hub (`data/train-00000-of-00004.parquet`), or the
    name of a repository, `user/name`.

    Of a repository what lies in the local cache is read; `lookalike run` fetches what is not there:
    its Parquet files where it has some, else what `datasets` makes of it. No script of a data set
    is ever run. `revision`: a branch, tag or commit of a repository, by default main; `config`: the
    folder or configuration of a data set of several. `train`: the part that is the train set;
    `test`: the part that is the test set, by default test, or else validation; in a data set
    without one a hash of each row's place splits `train`. `test_fraction`: how much of it that
    hash gives to the test set. `image`: the column of images, by default the only one; `label`: the
    column of labels, by default label, class or target. `streaming`: refused, since images in an
    order that the network gives can neither be drawn at random nor be counted before the first
    step. `cache_gb`: how much of the user's cache row groups may fill that are compressed, and so
    have to be unpacked to be read at random; `shuffle`: `window` mixes `window` images of
    neighbouring row groups, permuted anew each epoch, in place of all of them, and `auto` does so
    where more has to be unpacked than `cache_gb`.
    """

    holds_out = names_test = True

    def __init__(
        self,
        path: str,
        config: str | None = None,
        revision: str | None = None,
        train: str = "train",
        test: str | None = None,
        image: str | None = None,
        label: str | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        streaming: bool = False,
        shuffle: Shuffle = "auto",
        window: Annotated[int, Field(ge=1)] = 100_000,
        cache_gb: Annotated[float, Field(gt=0)] = 50.0,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self._repository = hub.Repository(path, revision, config)
        self._train, self._test, self._streaming = train, test, streaming
        self._given = _Chosen(path=image, label=label)
        self._test_fraction = test_fraction
        self._shuffle, self._window, self._spool = shuffle, window, Spool(cache_gb)
        self._found: tuple[str, Parts] | None = None
        self._rows: dict[str, PartRows] = {}

    def fetch(self) -> None:
        """Gets a repository that is not in the local cache. Raises DataError, within seconds where
        there is no network.
        """
        self._refuse_streaming()
        if self._repository.is_remote:
            hub.fetch(self._repository)

    def split(self, name: Split, size: Size | None = None) -> Images:
        self._refuse_streaming()
        wants_test = checked(name) == "test"
        place, parts = self._parts()
        train, test = self._sets(place, parts)
        for unused in sorted(parts.keys() - {train, test}):
            for file in parts[unused]:
                self.inventory.leave_out(f"part {printable(unused)[:40]}", file.name)
        both = [self._read(part, parts) for part in (train, test) if part is not None]
        rows = both[-1] if wants_test else both[0]
        images = rows.images(self.reading(size), self._spool, places_in(place))
        mask_N = np.ones(len(images), bool)
        if test is None:
            share = 0.0 if name == "all" else self._test_fraction
            mask_N = (units(images.keys(), f"hf\0{place}") < share) == wants_test
        if not mask_N.any():
            what = f"none of its {len(images)} rows is in the {name} set"
            raise DataError(f"{place}: {what}; add rows, or change test_fraction")
        images.keep(mask_N, _known(place, both, rows, mask_N))
        if isinstance(images, ParquetImages):
            images.shuffle_by(self._shuffle, self._window)
        return self.settled(images, name)

    def _refuse_streaming(self) -> None:
        if self._streaming:
            raise DataError(
                "data.streaming: images in the order of the network can neither be drawn at random "
                "nor be counted before the first step: delete the key"
            )

    def _parts(self) -> tuple[str, Parts]:
        """What messages call the data set, and its parts."""
        if self._found is None:
            repository = self._repository
            home = hub.cached(repository) if repository.is_remote else repository.local
            self._found = printable(home), parts_of(home, repository.config, self.inventory)
        return self._found

    def _sets(self, place: str, parts: Parts) -> tuple[str, str | None]:
        """The parts that are the train and the test set, None for the latter where a hash splits.

        Raises DataError for a name that is no part.
        """
        train = next(iter(parts)) if len(parts) == 1 and self._test is None else self._train
        names = {"train": train, "test": self._test or tested(parts)}
        found = {key: part_of(name) or name for key, name in names.items()}
        for key, name in found.items():
            if name not in parts and not (key == "test" and self._test is None):
                known = ", ".join(printable(part)[:40] for part in list(parts)[:8])
                what = f"no part {printable(name)[:40]}, it has {known}"
                raise DataError(f"{place}: {what}: change {key}")
        same = found["train"] == found["test"]
        if same and self._test:
            raise DataError(f"{place}: train and test are one part: change one of them")
        return found["train"], found["test"] if found["test"] in parts and not same else None

    def _read(self, part: str, parts: Parts) -> PartRows:
        if part not in self._rows:
            self._rows[part] = read_part(parts[part], self._given)
        return self._rows[part]


def _known(place: str, both: Sequence[PartRows], rows: PartRows, mask_N: np.ndarray) -> Annotations:
    """What the data set says of the rows of the mask; a class has one number in both sets."""
    labelled = [part for part in both if part.words is not None]
    if rows.words is None:
        return Annotations()
    if any(part.classes != rows.classes for part in labelled):
        raise DataError(f"{place}: its sets have other classes: write them alike")
    if rows.classes:
        kept = np.flatnonzero(mask_N).tolist()
        lines, words = ([column[row] for row in kept] for column in (rows.lines, rows.words))
        return Annotations(*of_known(place, lines, words, rows.classes))
    every = [word for part in labelled for word in part.words or ()]
    places = Chain([part.lines for part in labelled])
    labels_N, classes = numbered(place, places, every, "label")
    start = len(labelled[0].words or ()) if rows is not labelled[0] else 0
    labels_N = labels_N[start : start + len(rows.words)]
    return Annotations(labels_N[torch.from_numpy(mask_N)], classes)
