"""A run, opened once: its recipe, folder, ranks, data source and splits. It decides nothing: the
stages do, each in its `job`.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lookalike import comm
from lookalike.checkpoint import hold_run, open_run
from lookalike.data.images import Images
from lookalike.data.sources import Source
from lookalike.data.sources import Split as Name
from lookalike.doctor import agree
from lookalike.errors import DataError, Error
from lookalike.experiment import Experiment, Training
from lookalike.metric.classes import Split, split_classes
from lookalike.models import Architecture, make_backbone
from lookalike.process import fault
from lookalike.recipe import Size, Spec


class Run:
    """One recipe in one folder `out`. Sources are built once, each split is made once a size.

    `ranks`: how many a launcher will start, by default those of this process group, which the run
    `joins`; `accept_changes`: go on even where the recipe or the images have changed.
    """

    def __init__(
        self,
        experiment: Experiment,
        out: str | Path | None = None,
        *,
        accept_changes: bool = False,
        ranks: int = 0,
    ) -> None:
        self.experiment, self.accept_changes = experiment, accept_changes
        self._out = None if out is None else Path(out)
        self.joins, self.ranks = not ranks, ranks or comm.world_size()
        self._sources: dict[int, Source] = {}
        self._images: dict[tuple[int, Name, Size | None], Images] = {}
        self._classes: dict[Size | None, Split] = {}

    @property
    def name(self) -> str:
        """The recipe's, for messages."""
        return self.experiment.name

    @property
    def seed(self) -> int:
        """What every draw begins with."""
        return self.experiment.seed

    @property
    def out(self) -> Path:
        """The run folder. Raises Error where none was named."""
        if self._out is None:
            raise Error("--out DIR is missing: name the run folder")
        return self._out

    @property
    def folder(self) -> Path | None:
        """The run folder, None for a run that leaves nothing."""
        return self._out

    @cached_property
    def architecture(self) -> Architecture:
        """What the recipe's backbone is; of a folder, what the folder says."""
        named = self.experiment.backbone
        return make_backbone(named).architecture if named.folder else named

    @property
    def unfetched(self) -> Architecture:
        """The same, with weights of its own where published ones would have to be fetched."""
        return replace(self.experiment.backbone, pretrained=False)

    def images(self, name: Name, size: Size | None = None, *, of: Spec | None = None) -> Images:
        """The train or test images for views of `size`, by default the backbone's; `of` another
        source than the recipe's.
        """
        spec, size = of or self.experiment.data, size or self.architecture.size
        source = self._sources.get(id(spec))
        if source is None:
            source = self._sources[id(spec)] = spec.build()
        key = (id(spec), name, size)
        if key not in self._images:
            self._images[key] = source.split(name, size)
        return self._images[key]

    def labelled(self, size: Size | None = None) -> tuple[Images, Images]:
        """Train and test images. Raises DataError unless both have labels."""
        train, test = self.images("train", size), self.images("test", size)
        if train.labels is None or test.labels is None:
            raise DataError(
                "data: no labels, which probe, finetune and evaluate need: use class folders, or "
                "remove them"
            )
        return train, test

    def classes(self, size: Size | None = None) -> Split:
        """Which classes fine-tuning sees, and which it never does."""
        size = size or self.architecture.size
        if size not in self._classes:
            tuning = self.experiment.finetune
            held_out = tuning.held_out if tuning else None
            self._classes[size] = split_classes(*self.labelled(size), held_out)
        return self._classes[size]

    def join(self, **words: Any) -> None:
        """Joins the other ranks. Raises RunError unless all are about to do the same; `words` are
        compared too.
        """
        fault.refuse_unknown()
        sections = (self.experiment.pretrain, self.experiment.finetune)
        patience = [section.timeout for section in sections if isinstance(section, Training)]
        comm.start(seconds=max(patience, default=1800.0))
        self.ranks = comm.world_size()
        agree(self.experiment, self.images, accept_changes=self.accept_changes, **words)

    def hold(self) -> None:
        """Takes the lock of a run folder that is there, and clears it of what a kill left."""
        hold_run(self.out, self.experiment, self.accept_changes)

    def claim(self) -> Path:
        """Makes the run folder, or goes on in it; no other run may write there. Raises RunError."""
        return open_run(self.out, self.experiment, self.accept_changes)
