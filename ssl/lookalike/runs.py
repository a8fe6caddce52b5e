"""A run, opened once: its recipe, folder, ranks, data source and splits. It decides nothing: the
stages do, each in its `job`.
"""

import json
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from lookalike import comm
from lookalike.checkpoint import (
    earlier_recipe,
    hold_run,
    leave_recipe,
    newest_manifest,
    open_run,
    visit_run,
)
from lookalike.data import readable
from lookalike.data.account import FILE, Account
from lookalike.data.images import Images
from lookalike.data.inventory import Inventory
from lookalike.data.reading import fit_to, refuse_other
from lookalike.data.sources import Source
from lookalike.data.sources import Split as Name
from lookalike.data.together import found_once
from lookalike.doctor import agree
from lookalike.errors import DataError, Error
from lookalike.experiment import Experiment, Training
from lookalike.folder import at_home, refuse_unwritable, write_file
from lookalike.geometry import PixelFormat
from lookalike.log import note, say
from lookalike.metric.classes import Split, split_classes
from lookalike.models import Architecture, Backbone, make_architecture, make_backbone, weights_mark
from lookalike.models.card import read as read_card
from lookalike.process import fault
from lookalike.recipe import Size, Spec, digest

_SPLITS: tuple[Name, ...] = ("train", "test")


class Run:
    """One recipe in one folder `out`. Sources are built once, each split is made once a size.

    `ranks`: how many a launcher will start, by default those of this process group, which the run
    `joins`; `accept_changes`: go on even where the recipe or the images have changed. It `fetches`
    published weights only once it has joined: what is only shown or checked asks no network.
    """

    def __init__(
        self,
        experiment: Experiment,
        out: str | Path | None = None,
        *,
        accept_changes: bool = False,
        ranks: int = 0,
    ) -> None:
        self._out = None if out is None else at_home(out)
        self.experiment, self.accept_changes = self._as_measured(experiment), accept_changes
        self._data = self.experiment.data
        self._form: PixelFormat | None = None  # of a model that came from elsewhere
        self.joins, self.ranks = not ranks, ranks or comm.world_size()
        self.fetches = False
        self._unfitted: dict[int, Source] = {}
        self._sources: dict[int, Source] = {}
        self._images: dict[tuple[int, Name, Size | None], Images] = {}
        self._classes: dict[Size | None, Split] = {}
        self._looked: list[Images] = []
        self._said: set[str] = set()
        self._together = False

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
    def _named(self) -> Architecture:
        """What the recipe's backbone is; of a folder or of a repository of the Hub, what that
        says.
        """
        return make_architecture(self.experiment.backbone, fetch=self.fetches)

    def backbone(self, *, published: bool) -> Backbone:
        """The recipe's backbone. Published weights are fetched where they are wanted and the run
        `fetches`; else it has fresh ones in their place.
        """
        wanted = self.asked if published else replace(self.asked, pretrained=False)
        return make_backbone(wanted, fetch=self.fetches)

    @property
    def architecture(self) -> Architecture:
        """The same, with depth, range and alpha of the train images where it is made for them."""
        named = self._named
        asks = not self.experiment.backbone.folder
        return named.reading(self.images("train").form) if asks else named

    @property
    def asked(self) -> Architecture:
        """The recipe's backbone section with depth, range and alpha of the train images; of a
        folder, which says them, the section as it is.
        """
        named = self.experiment.backbone
        return named if named.folder else named.reading(self.images("train").form)

    def like(self, what: nn.Module | str | Path) -> Architecture:
        """What a timm name or a module takes on; of a folder or a backbone, which know what they
        take, no image is looked at.
        """
        there = not isinstance(what, nn.Module) and Path(what).exists()
        return self.experiment.backbone if there or hasattr(what, "architecture") else self.asked

    @property
    def weights(self) -> dict[str, str]:
        """`weights`: the file from which the backbone's weights come; {} where they come from none,
        or none that is here yet.
        """
        return weights_mark(self.experiment.backbone, fetch=self.fetches)

    def tell_weights(self, backbone: Backbone) -> None:
        """Says what was taken from a file of weights, and writes every name to `weights.json`, on
        the first rank.
        """
        if backbone.taken is not None and comm.rank() == 0:
            say(f"weights: {backbone.taken.line()}")
            told = json.dumps(backbone.taken.plain(), indent=2)
            write_file(self.out / "weights.json", told.encode())

    def images(self, name: Name, size: Size | None = None, *, of: Spec | None = None) -> Images:
        """The train or test images for views of `size`, by default the backbone's; `of` another
        source than the recipe's. Files are read as the backbone of a folder takes them.
        """
        spec, size = of or self._data, size or self._named.size
        source, key = self._source(spec), (id(spec), name, size)
        if key not in self._images:
            keep = name == "train" and spec is self._data and not self.needs_test
            images = self._whole(source, size) if keep else source.split(name, size)
            if wanted := self._wanted(spec):
                refuse_other(images.form, wanted)
            self._images[key] = images
        return self._images[key]

    def read_as(self, architecture: Architecture) -> None:
        """Images are from now on what a model of this architecture takes. Raises DataError where
        the recipe wants others.
        """
        if self._form == architecture.form:
            return
        self._form = architecture.form
        for source in self._sources.values():
            fit_to(source, self._form)
        if any(images.form[1:] != self._form[1:] for images in self._images.values()):
            self._images.clear()
            self._classes.clear()

    def _source(self, spec: Spec) -> Source:
        if id(spec) not in self._sources:
            source = self._built(spec)
            if wanted := self._wanted(spec):
                fit_to(source, wanted)
            self._sources[id(spec)] = source
        return self._sources[id(spec)]

    def _built(self, spec: Spec) -> Source:
        """The source as it is asked for, before a model says how it takes images."""
        if id(spec) not in self._unfitted:
            self._unfitted[id(spec)] = spec.build()
        return self._unfitted[id(spec)]

    def _wanted(self, spec: Spec) -> PixelFormat | None:
        """The form that a model wants images in; None where they decide."""
        if self._form or self.experiment.backbone.folder:
            return self._form or self._named.form
        return None if spec is self._data else self.images("train").form

    def _as_measured(self, experiment: Experiment) -> Experiment:
        """The recipe with what the run in the folder measured for the same data."""
        args = experiment.data.args
        if self._out is None or not isinstance(args.get("range"), dict) or args.get("measured"):
            return experiment
        earlier = earlier_recipe(self._out, experiment)
        if earlier is None or digest(earlier, "data") != digest(experiment, "data"):
            return experiment
        return _measured(experiment, earlier.data.args.get("measured"))

    @property
    def needs_test(self) -> bool:
        """Whether a stage of the recipe asks for a test set of its `data`."""
        recipe = self.experiment
        scored = recipe.evaluate is not None and recipe.evaluate.data is None
        watched = recipe.pretrain is not None and recipe.pretrain.knn_every_epochs > 0
        named = (recipe.probe, recipe.classify, recipe.finetune)
        return scored or watched or any(section is not None for section in named)

    def _whole(self, source: Source, size: Size | None) -> Images:
        """The train set, of images without labels with what would be held out of it for nobody; not
        in a run folder that was begun without, by an earlier release or by a recipe that had a
        stage more. Labelled images may be scored later, by a recipe of its own: their test set
        stays unseen.
        """
        whole = source.split("all", size) if getattr(source, "holds_out", False) else None
        if whole is None or whole.labels is not None:
            return source.split("train", size)
        begun = begun_with(self.folder) if self.folder else None
        if begun not in (None, len(whole)):
            held = source.split("train", size)
            return held if begun == len(held) else whole
        return whole

    def accounts(self) -> list[Account]:
        """What the sources gave so far and left out, as the recipe names them."""
        named = {"data": self._data, **self._more}
        found = []
        for key, spec in named.items():
            made = {
                name: images for (of, name, _), images in self._images.items() if of == id(spec)
            }
            sets: dict[str, Images] = {name: made[name] for name in _SPLITS if name in made}
            if sets:
                source = self._sources[id(spec)]
                idle = key == "data" and not self.needs_test
                if idle and "train" in sets:
                    sets = {"train": sets["train"], **_idle(source, len(sets["train"]))}
                inventory = getattr(source, "inventory", Inventory())
                found.append(Account(key, sets, inventory, idle))
        return found

    @property
    def _more(self) -> dict[str, Spec]:
        """The sources beside the recipe's own, by their keys."""
        evaluate, probe = self.experiment.evaluate, self.experiment.probe
        scored = {"evaluate.data": evaluate.data} if evaluate and evaluate.data else {}
        segmented = self.experiment.segment
        masked = {"segment.data": segmented.data} if segmented else {}
        probed = (probe.data or {}) if probe else {}
        return masked | scored | {f"probe.data.{name}": spec for name, spec in probed.items()}

    def told(self, file: Path | None = None) -> list[str]:
        """The same in lines for people, a line a source; `file`: where the whole list lies."""
        return [line for account in self.accounts() for line in account.lines(file)]

    def fetch(self) -> None:
        """Has the sources get what they read from elsewhere; `show` and `check` never do. Raises
        DataError.
        """
        for spec in (self.experiment.data, *self._more.values()):
            fetch = getattr(self._built(spec), "fetch", None)
            if fetch:
                fetch()

    def labelled(self, size: Size | None = None) -> tuple[Images, Images]:
        """Train and test images. Raises DataError unless both have labels."""
        train, test = self.images("train", size), self.images("test", size)
        if train.labels is None or test.labels is None:
            raise DataError(
                "data: no labels, which probe, classify, finetune and evaluate need: use class "
                "folders, or remove them"
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

    def look(self, *sets: Images) -> None:
        """Raises DataError where of one of these sets not one image of some can be read; where only
        some cannot, that is said. All ranks call it, and the first looks, once at each set.
        """
        for images in sets:
            whole = getattr(images, "whole", images)
            if any(whole is looked for looked in self._looked):
                continue
            self._looked.append(whole)
            key = self._key_of(images)
            found = readable.look(images, key) if comm.rank() == 0 else ("", "")
            refusal, warning = comm.broadcast_object(found)
            if refusal:
                raise DataError(refusal)
            self.remark(warning)

    def _key_of(self, images: Images) -> str:
        """Where the recipe names the source of these images."""
        inner = {id(images), *(id(getattr(images, name, None)) for name in ("whole", "images"))}
        sources = {of for (of, _, _), one in self._images.items() if id(one) in inner}
        return next((key for key, spec in self._more.items() if id(spec) in sources), "data")

    def remark(self, text: str) -> None:
        """Says a line to be read before the first step, if it is none that was said; the first rank
        does.
        """
        if text and text not in self._said and comm.rank() == 0:
            self._said.add(text)
            note(text)

    def join(self, **words: Any) -> None:
        """Joins the other ranks. Raises RunError unless all are about to do the same; `words` are
        compared too.
        """
        self.fetches = True
        recipe = self.experiment
        sections = (recipe.pretrain, recipe.classify, recipe.finetune)
        patience = [section.timeout for section in sections if isinstance(section, Training)]
        join_ranks(max(patience, default=1800.0))
        self.ranks = comm.world_size()
        self.fetch()
        self._find_together()
        words |= self.weights if self.experiment.backbone.weights else {}
        agree(self.experiment, self._asked, accept_changes=self.accept_changes, **words)

    def _find_together(self) -> None:
        """Lists the images of the recipe's `data` once a machine; the other ranks map what one of
        them found.
        """
        if self._together or comm.world_size() == 1:
            return
        self._together = True
        wants = self.experiment.text()
        answer = found_once(self._find, lambda found: [images for _, _, images in found[1]], wants)
        if answer.why:
            self.remark(f"data: each rank lists the images itself: {answer.why}")
        if answer.found is None:
            return
        key = id(self._data)
        self._unfitted[key] = self._sources[key] = answer.found[0]
        for name, size, images in answer.found[1]:
            self._images.setdefault((key, name, size), images)

    def _find(self) -> tuple[Source, list[tuple[Name, Size | None, Images]]]:
        """The source of `data`, and of its sets those that a stage asks for and that there are."""
        for name in _SPLITS:
            with suppress(DataError):
                self._asked(name)
        made = self._images.items()
        sets = [(name, size, images) for (of, name, size), images in made if of == id(self._data)]
        return self._source(self._data), sets

    def visit(self, **words: Any) -> None:
        """For a verb that adds scores to the run folder, or to none, without training there: joins
        the other ranks, and removes what a kill left. Raises RunError as `join`, and where nothing
        can be written.
        """
        if self.folder:
            refuse_unwritable(self.folder)
        self.join(**words)
        if self.folder:
            visit_run(self.folder)

    def leave_recipe(self) -> None:
        """Writes the recipe beside the scores of a model that was trained elsewhere; the first rank
        does.
        """
        if self.folder:
            leave_recipe(self.folder, self.experiment)

    def tell(self) -> None:
        """Says which images were found, beside the answer; the first rank does."""
        if comm.rank() == 0:
            for line in self.told():
                note(line)

    def _asked(self, name: Name) -> Images:
        """The images of a split that a stage may ask for. Raises DataError for another."""
        if name == "test" and not self.needs_test:
            raise DataError("no stage asks for a test set")
        return self.images(name)

    def hold(self) -> None:
        """Takes the lock of a run folder that is there, and clears it of what a kill left."""
        hold_run(self.out, self.experiment, self.accept_changes)

    def begin(self, *sets: Images) -> None:
        """Looks at the images of what was planned, and claims the folder once no rank refuses."""
        self.look(*sets)
        comm.barrier()
        self.claim()

    def claim(self) -> Path:
        """Makes the run folder, or goes on in it; no other run may write there. Raises RunError.

        Says what images were found, and writes what was left out into it; what was measured of the
        images is from now on in the recipe.
        """
        known = getattr(self._sources.get(id(self._data)), "measured", None)
        self.experiment = _measured(self.experiment, known)
        folder = open_run(self.out, self.experiment, self.accept_changes)
        if comm.rank() == 0:
            whole = {account.key: account.plain() for account in self.accounts()}
            text = json.dumps(whole, indent=1, ensure_ascii=False)
            write_file(folder / FILE, text.encode(errors="backslashreplace"))
            for line in self.told(folder / FILE):
                say(line)
        return folder


def join_ranks(seconds: float = 1800.0) -> None:
    """Joins the other ranks, for what has no recipe to agree on. Raises RunError."""
    fault.refuse_unknown()
    comm.start(seconds=seconds)


def _idle(source: Source, trained: int) -> dict[str, Images]:
    """The test set that no stage asks for, where the source has one by name, so that it can be
    said.
    """
    try:
        if getattr(source, "names_test", False) and len(source.split("train")) == trained:
            return {"test": source.split("test")}
    except DataError:
        pass
    return {}


def begun_with(out: Path) -> int | None:
    """How many images the backbone in a run folder is made of, as its newest checkpoint or its card
    says; None for a folder without.
    """
    about = newest_manifest(out / "checkpoints") or read_card(out / "backbone")
    count = about.get("images", about.get("pictures"))  # as 0.1.0 had it
    return count if isinstance(count, int) else None


def _measured(experiment: Experiment, known: tuple[float, float] | None) -> Experiment:
    """The recipe with what its data measured, if anything."""
    spec = experiment.data
    if known is None or spec.args.get("measured") == known:
        return experiment
    made = replace(experiment, data=replace(spec, args={**spec.args, "measured": known}))
    object.__setattr__(made, "name", experiment.name)
    return made
