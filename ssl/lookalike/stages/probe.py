"""The probe: what a frozen backbone knows, by classifiers on its features with many labels and
with few, by its neighbours, and by measures without labels, beside two baselines.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lookalike import comm, rng
from lookalike.checkpoint import differences
from lookalike.data.images import Images
from lookalike.data.passport import passport
from lookalike.errors import DataError, RecipeError
from lookalike.evaluation import few, quality
from lookalike.evaluation.features import PIXELS, cache_key, embedder, extracted, pixels
from lookalike.evaluation.labels import refuse_probe
from lookalike.evaluation.protocols import Found, Numbers, Protocol, Subject, refuse_protocols
from lookalike.evaluation.record import Record, Result, key
from lookalike.experiment import VIEW, Experiment, Probe
from lookalike.folder import refuse_strangers
from lookalike.log import progress, say
from lookalike.models import Architecture, Backbone, card, open_backbone
from lookalike.models.classifier import write_classifier
from lookalike.models.taps import Tap, refuse_tap, tap_digest, tapped
from lookalike.recipe import Spec
from lookalike.report import probing
from lookalike.runs import Run
from lookalike.scoring import knn
from lookalike.scoring.linear import Linear

FORMAT = 2
"""Of what scores mean: another number, and all are scored anew."""
OWN_NAME = "this backbone"


class Set(NamedTuple):
    """Train and test images with labels, and the few of train that lists name."""

    train: Images
    test: Images
    lists: tuple[few.Subset, ...] = ()


@dataclass(frozen=True)
class Job:
    """What is probed: the recipe's images as ``, others by their name."""

    run: Run
    settings: Probe
    data: Mapping[str, Set]

    @property
    def sets(self) -> tuple[Images, ...]:
        """The images that it reads, train and test of each data set."""
        return tuple(images for each in self.data.values() for images in each[:2])


def probe(
    backbone: Backbone | str | Path,
    recipe: Experiment,
    out: str | Path | None = None,
    *,
    name: str | None = None,
) -> dict[str, Any]:
    """Scores of a backbone, a backbone folder or a timm name on the recipe's data, in [0, 1].

    Keys: `linear/top1`, `knn20/top1`, `few/1-shot/linear/top1`, …, with `pixels/` and `untrained/`
    before them for the baselines, and before these the name of another data set; `quality/rankme`,
    …. With `out` they go to `out/probe.json` with their `protocols`, `intervals` and single
    `draws`, those of another model than the run's own under its `name`, as they come: a killed
    probe goes on. All ranks of a launcher share the work.
    """
    recipe.section(Probe)
    run = Run(recipe, out)
    run.visit()
    opened = open_backbone(backbone, run.like(backbone))
    planned = job(run, opened.architecture)
    if (target := _classifier_of(planned, name)) and not card.read(target):
        refuse_strangers(target)
    run.tell()
    run.look(*planned.sets)
    own = run.folder and run.folder / "backbone"
    if own and not isinstance(backbone, Backbone) and Path(backbone) == own:
        tell_other(own, planned.sets[0])
    return do(planned, opened, name)


def job(run: Run, architecture: Architecture) -> Job:
    """Decides what is probed, for views as this backbone takes them. Raises DataError without
    labels, and where a probe could say nothing of them.
    """
    run.read_as(architecture)
    settings, size = run.experiment.section(Probe), architecture.size
    data = {"": Set(*run.labelled(size))}
    for name, spec in (settings.data or {}).items():
        data[name] = _other(run, spec, name, architecture)
    refuse_tap(architecture, settings.tap)
    for name, found in data.items():
        _refuse(run, settings, found, f"probe.data.{name}" if name else "data")
        protocols = (spec.build() for spec in settings.protocols)
        refuse_protocols(protocols, found[:2], architecture, settings.tap)
    if settings.few and settings.few.lists:
        lists = few.listed(settings.few, data[""].train)
        data[""] = data[""]._replace(lists=tuple(lists))
    return Job(run, settings, data)


def _other(run: Run, spec: Spec, name: str, architecture: Architecture) -> Set:
    """Another data set than the recipe's. Raises DataError without labels, RecipeError for another
    number of channels.
    """
    train, test = (run.images(split, architecture.size, of=spec) for split in ("train", "test"))
    if train.labels is None or test.labels is None:
        raise DataError(
            f"probe.data.{name}: no labels, which probe needs: use class folders, or remove it"
        )
    if train.shape[0] != architecture.channels:
        raise RecipeError(
            f"{run.name}: probe.data.{name}: {train.shape[0]} channels, but the model takes "
            f"{architecture.channels}: make them equal"
        )
    return Set(train, test)


def _refuse(run: Run, settings: Probe, found: Set, where: str) -> None:
    train_N, test_M = found.train.labels, found.test.labels
    assert train_N is not None
    assert test_M is not None
    refuse_probe(train_N, test_M, where)
    of = "" if where == "data" else f" of {where}"
    if max(settings.ks) > len(train_N):
        there = f"there are {len(train_N)} train images{of}: all of them vote"
        run.remark(f"probe.k: {max(settings.ks)}, but {there}")
    if settings.few and (short := few.short(settings.few, train_N, of)):
        run.remark(f"probe.{short}")


class Model(NamedTuple):
    """What is probed under a prefix: a name for weights and tap, and the model on this rank's
    device, None for raw pixels.
    """

    digest: str
    model: nn.Module | None


@dataclass(frozen=True)
class Probed:
    """One model on one data set, `name`; `start` stands before the names of its scores, `marks` say
    which images these are.
    """

    job: Job
    name: str
    prefix: str
    model: Model
    marks: tuple[str, ...]

    @property
    def start(self) -> str:
        """`flowers/untrained/`, …"""
        return self.data + self.prefix

    @property
    def data(self) -> str:
        """`flowers/`, and nothing before scores on the recipe's data."""
        return f"{self.name}/" if self.name else ""

    @property
    def images(self) -> Set:
        """Train and test."""
        return self.job.data[self.name]

    @cached_property
    def subject(self) -> Subject:
        """With its features, which are extracted once, when the first score needs them."""
        folder, how = self.job.run.folder, self.job.settings.how
        form, model = self.images.train.form, self.model.model
        known: Any = None if model is None else model.architecture
        function = partial(pixels, form=form) if model is None else embedder(model, known)
        keep = folder / "features" if folder and model is not None else None
        work = folder / "probe" if folder else None
        shown = (self.name, self.prefix.rstrip("/"))
        train, test = (
            extracted(
                function,
                images,
                digest=self.model.digest,
                folder=keep,
                how=how,
                title=": ".join(["probe", " ".join([*filter(None, shown), split])]),
            )
            for split, images in (("train", self.images.train), ("test", self.images.test))
        )
        return Subject((train, test), self.images[:2], model, numbers(self.job), work)


class Piece(NamedTuple):
    """One thing that is scored at once, and its key in probe.json."""

    of: Probed
    key: str
    make: Callable[[], Result | Found]


def do(job: Job, backbone: Backbone, name: str | None = None) -> dict[str, Any]:
    """The scores of the backbone and of the baselines on every data set, said and kept as they
    come; what an earlier probe kept is not scored again. All ranks call it.
    """
    record = Record(job.run.folder and job.run.folder / "probe.json", name)
    models = _models(backbone, job.settings, job.run.seed)
    marks = {
        name: (*cache_key(each.train), *cache_key(each.test)) for name, each in job.data.items()
    }
    groups = [
        list(pieces(Probed(job, data, prefix, model, marks[data])))
        for data in job.data
        for prefix, model in models.items()
    ]
    wanted = [piece.key for group in groups for piece in group]
    target = _classifier_of(job, name)
    exported = comm.broadcast_object(card.read(target).get("probe") if target else None)
    kept = exported in wanted
    record.keep(wanted, lambda about: kept or target is None or "held_out" not in about)
    shown: list[str] = []
    first = comm.rank() == 0
    for group in groups:
        title = f"probe: {group[0].of.start.rstrip('/') or name or OWN_NAME}"
        with progress(title, len(group), unit="scores", active=first, bar=False) as tell:
            for done, piece in enumerate(group, 1):
                if piece.key not in record:
                    _add(record, piece, target, backbone, wanted)
                tell(done)
        shown = _tell(record.plain(), group[0].of, name or OWN_NAME, shown)
        if first and group[0].of.prefix == list(models)[-1]:
            say("\n".join(probing.protocols(record.plain(), group[0].of.data)))
    job.run.leave_recipe()
    if first and job.run.folder:
        with contextlib.suppress(OSError):  # the work folder of the protocols, where it is empty
            (job.run.folder / "probe").rmdir()
    comm.barrier(patient=True)  # the files are the first rank's work
    return record.scores


def _add(
    record: Record, piece: Piece, target: Path | None, backbone: Backbone, wanted: Sequence[str]
) -> None:
    """Scores a piece and keeps it: the scores first, then the head."""
    made, of = piece.make(), piece.of
    train, test = of.subject.features
    result = _result(made) if isinstance(made, Found) else made
    counts = {"train images": len(train.labels_N), "test images": len(test.labels_N)}
    told = {name: {**about, **counts} for name, about in result.protocols.items()}
    scores = {**result.scores, "dropped": train.dropped + test.dropped}
    ours = target is not None and not of.start
    held_out = result.held_out if ours else None
    result = replace(result, scores=scores, protocols=told, held_out=held_out)
    record.add(piece.key, result.under(of.start, of.data))
    if ours and target and isinstance(made, Found) and made.head is not None:
        _export(target, backbone, of, made.head, _Head(piece.key, held_out, wanted))


def _result(found: Found) -> Result:
    held = [v for name, v in found.scores.items() if name.endswith("/held_out_top1")]
    held_out = (held[0] if held else 0.0) if found.head is not None else None
    return Result(found.scores, found.protocol, held_out=held_out)


class _Head(NamedTuple):
    """Of a head: the key of what it scored, how good it was on held-out images, and the keys of all
    that may be compared with it.
    """

    key: str
    held_out: float | None
    wanted: Sequence[str]


def _classifier_of(job: Job, name: str | None) -> Path | None:
    """Where the best head goes: of the run's own backbone, on its own features."""
    own = name is None and job.settings.tap == Tap() and bool(job.settings.protocols)
    return job.run.folder / "probe" / "classifier" if job.run.folder and own else None


def _export(target: Path, backbone: Backbone, of: Probed, head: Linear, about: _Head) -> None:
    """Backbone and head as a classifier, if no better one of this probe is there: the
    standardisation goes into weights and bias.
    """
    there = card.read(target) if comm.rank() == 0 else {}
    better = there.get("probe") in about.wanted and there.get("held_out_top1", 0) >= about.held_out
    if comm.rank() != 0 or (better and there.get("probe") != about.key):
        return
    weight_CD = head.weight_CD.double() / head.std_D
    bias_C = head.bias_C.double() - weight_CD @ head.mean_D.double()
    train = of.images.train
    facts = {
        "method": "linear probe",
        "recipe": of.job.run.name,
        "data": train.fingerprint,
        "probe": about.key,
        "held_out_top1": about.held_out,
    }
    classes = class_names(train)
    write_classifier(
        target, backbone, weight_CD.float().cpu(), bias_C.float().cpu(), classes, facts
    )


def class_names(images: Images) -> list[str]:
    """The names of the classes that the images have, in the order of their labels."""
    assert images.labels is not None
    names = images.classes
    labels = torch.unique(images.labels).tolist()
    return [names[label] if 0 <= label < len(names) else str(label) for label in labels]


def _tell(record: Mapping[str, Any], of: Probed, name: str, shown: list[str]) -> list[str]:
    """Says the rows of one model on one data set, and before the first, its columns; which were
    shown.
    """
    first = not of.prefix
    wanted = probing.columns(record, of.start) if first else shown
    if comm.rank() == 0:
        lines = [probing.head(of.name or "probe", wanted)] if first else []
        label = probing.ROWS.get(of.prefix, name)
        lines += probing.rows(record, of.start, label, wanted)
        say("\n".join(lines))
    return wanted


def pieces(of: Probed) -> Iterator[Piece]:
    """What is scored of one model on one data set, in the order in which it is."""
    settings, run, images = of.job.settings, of.job.run, of.images
    shared = numbers(of.job)._replace(batch=0, workers=None)
    seen = (FORMAT, of.model.digest, *of.marks, settings.how[2:], shared)
    for spec in settings.protocols:
        protocol = spec.build()
        if of.model.model is not None or not protocol.needs_model:
            about = key(*seen, "protocol", spec.name, spec.args)
            yield Piece(of, about, partial(_protocol, protocol, of))
    votes = (settings.ks, settings.temperature)
    yield Piece(of, key(*seen, "knn", *votes), lambda: _neighbours(of, *votes))
    if settings.few:
        assert images.train.labels is not None
        groups = few.grouped(settings.few, images.train.labels, images.lists, run.seed)
        for name, drawn in groups.items():
            rows = [subset.rows_K.tolist() for subset in drawn]
            about = key(*seen, "few", *votes, name, rows)
            yield Piece(of, about, partial(_few, of, drawn))
    if settings.quality and of.model.model is not None and not of.name:
        views = _views(run)
        about = key(*seen, "quality", quality.IMAGES, quality.VIEWS, views.name, views.args)
        yield Piece(of, about, lambda: _quality(of, views))


def _protocol(protocol: Protocol, of: Probed) -> Found:
    return protocol.score(of.subject)


def _neighbours(of: Probed, ks: tuple[int, ...], temperature: float) -> Result:
    train, test = of.subject.features
    sets = (train.x_ND, train.labels_N, test.x_ND, test.labels_N)
    near = knn.accuracies(*sets, ks=ks, temperature=temperature)
    scores = {f"knn{k}/{name}": v for k, found in near.items() for name, v in found.items()}
    solver = "cosine votes of the k nearest, weight exp(similarity / temperature)"
    told = {f"knn{k}": {"solver": solver, "k": k, "temperature": temperature} for k in ks}
    known, asked = class_names(of.images.train), class_names(of.images.test)
    lacking = sorted(set(asked) - set(known))
    classes = {"classes": len(known)} | ({"not in train": lacking[:20]} if lacking else {})
    return Result(scores, {**told, "data": classes})


def _few(of: Probed, drawn: list[few.Subset]) -> Result:
    settings, start = of.job.settings, f"few/{drawn[0].name}/"
    found = few.scores(of.subject, drawn, settings.ks, settings.temperature)
    sizes = sorted({len(subset.rows_K) for subset in drawn})
    told = {
        "labels": sizes[0] if len(sizes) == 1 else sizes,
        "draws": len(drawn),
        **({"interval": f"Student's t, {100 * few.LEVEL:g} %"} if len(drawn) > 1 else {}),
        "linear": few.SOLVER,
    }
    means, intervals, draws = ({start + name: v for name, v in each.items()} for each in found)
    return Result(means, {start.rstrip("/"): told}, intervals, draws)


def _views(run: Run) -> Spec:
    """The recipe's augmentation policy, or what it would be by default."""
    pretrain = run.experiment.pretrain
    return pretrain.views if pretrain else VIEW.spec("symmetric")


def _quality(of: Probed, views: Spec) -> Result:
    model: Any = of.model.model
    viewed = quality.Viewed(views.build(), rng.seed(of.job.run.seed, "quality"))
    features_ND = of.subject.features[0].x_ND
    scores, told = quality.measured(features_ND, of.images.train, model, model.architecture, viewed)
    named = {f"quality/{name}": value for name, value in scores.items()}
    return Result(named, {f"quality/{name}": about for name, about in told.items()})


def numbers(job: Job) -> Numbers:
    """What all protocols share."""
    s = job.settings
    fit = (s.grid, s.held_out, s.max_iterations)
    return Numbers(*fit, s.batch, s.workers, s.precision, job.run.seed)


def tell_other(backbone: Path, train: Images) -> None:
    """Warns, on the first rank, where the run's backbone was pretrained on other images than those
    it is now judged on.
    """
    if comm.rank() != 0:
        return
    if changed := differences(card.read(backbone), passport(train)):
        warnings.warn(
            f"{backbone}: was pretrained on other images ({'; '.join(changed)})", stacklevel=3
        )


def _models(backbone: Backbone, settings: Probe, seed: int) -> dict[str, Model]:
    """What is probed, by the prefix of its scores."""
    named: dict[str, Backbone | None] = {"": backbone}
    if "untrained" in settings.kinds:
        torch.manual_seed(rng.seed(seed, "weights"))
        named[probing.UNTRAINED] = backbone.fresh()
    tap = settings.tap
    found = {
        prefix: Model(tap_digest(b, tap), tapped(b, tap).to(comm.device()).eval())
        for prefix, b in named.items()
        if b is not None
    }
    raw = {probing.PIXELS: Model(f"pixels {PIXELS}", None)} if "pixels" in settings.kinds else {}
    return found | raw
