"""Classification: a backbone and labels -> a classifier folder, trained by gradients and scored
once on test; the same with few labels, and from an untrained network.
"""

import copy
import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike import comm, rng
from lookalike.checkpoint import keep_run, meet, written
from lookalike.classification.module import ClassifyModule
from lookalike.classification.scores import Answers, scores_of, table
from lookalike.classification.targets import (
    Targets,
    class_names,
    class_weights,
    one_hot,
    targets_of,
)
from lookalike.data.images import Images
from lookalike.data.loader import Batch
from lookalike.data.passport import passport
from lookalike.engine import speed
from lookalike.engine.speed import settled
from lookalike.engine.tuning import prepared, tuned
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.evaluation.draws import kept_scores, summed_up
from lookalike.evaluation.features import Extracting, embedder, extracted
from lookalike.evaluation.labels import refuse_neighbours
from lookalike.experiment import Classify, Experiment
from lookalike.folder import write_file
from lookalike.log import say
from lookalike.models import Backbone, Own, card, open_backbone, tunable
from lookalike.models.classifier import (
    Classifier,
    load_classifier,
    refuse_names,
    save_classifier,
)
from lookalike.recipe import digests
from lookalike.runs import Run
from lookalike.scoring import calibration
from lookalike.scoring.classification import confusion, predictions
from lookalike.training import early, loop
from lookalike.training.courses import (
    Course,
    chosen,
    divided,
    few_of,
    make_order,
    planned_courses,
    refuse_batch,
)
from lookalike.training.earlier import finished, set_aside
from lookalike.training.inputs import on_device
from lookalike.views.send import send

_MOST_CONFUSED = 4096


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained to classify what: train and test images, the classes, what was held out of
    train to tell a temperature, and the trainings, the main one first.
    """

    run: Run
    settings: Classify
    backbone: Backbone
    sets: tuple[Images, Images]
    classes: tuple[str, ...]
    courses: tuple[Course, ...]
    held_out: Targets
    test: Targets
    system: ClassifyModule

    @property
    def train_steps(self) -> int:
        """Steps an epoch of the main training."""
        return make_order(self.courses[0], self.sets[0]).steps_per_epoch


def classify(
    backbone: Backbone | str | Path,
    recipe: Experiment,
    out: str | Path,
    *,
    accept_changes: bool = False,
) -> Path:
    """Runs or resumes the recipe's `classify` section in the run folder `out`; returns the
    classifier folder.

    `accept_changes`: resume even where the images are no longer what it began with.
    """
    recipe.section(Classify)
    run = Run(recipe, out, accept_changes=accept_changes)
    run.join()
    run.hold()
    planned = job(run, open_backbone(backbone, run.like(backbone)))
    run.begin(*planned.sets)
    return do(planned)[0]


def job(run: Run, backbone: Backbone) -> Job:
    """Decides what is trained from this backbone, and refuses what could not be; nothing is
    written, no rank asked.
    """
    settings = run.experiment.section(Classify)
    opened = tunable(backbone, settings.pool)
    if settings.baseline == "untrained" and opened.fresh() is None:
        raise RecipeError(
            f"{run.name}: classify.baseline: untrained, but {opened.architecture.name} can only be "
            "made anew by its owner: remove it"
        )
    run.read_as(opened.architecture)
    size = opened.architecture.size
    sets = run.images("train", size), run.images("test", size)
    classes = class_names(sets[0])
    refuse_names(classes)
    train, test = (
        targets_of(images, len(classes), multi_label=settings.multi_label) for images in sets
    )
    refuse_targets(train, test, len(classes))
    kept, held_out = divided(train, settings.held_out)
    few = few_of(settings, sets[0], train, run.seed)
    courses = planned_courses(run.name, run.seed, settings, kept, few)
    for course in courses:
        refuse_batch(run.name, course, run.ranks)
        make_order(course, sets[0])
    system = build_system(copy.deepcopy(opened), courses[0], classes)
    loop.make_optimizer(settings, system)
    speed.refuse(f"{run.name}: classify", settings, settings.engine, system)
    refuse_lone(run.name, settings, system)
    if run.folder:
        run.remark(early.little_room(run.folder, "classify", system, settings))
    for line in speed.remarks(f"{run.name}: classify", settings):
        run.remark(line)
    return Job(
        run=run,
        settings=settings,
        backbone=opened,
        sets=sets,
        classes=classes,
        courses=courses,
        held_out=held_out,
        test=test,
        system=system,
    )


def refuse_targets(train: Targets, test: Targets, classes: int) -> None:
    """Raises DataError where labels leave nothing to learn or to score."""
    if train.several_KC is None:
        refuse_neighbours(train.labels_K, test.labels_K, "classify", "remove it")
        return
    if not len(train) or not len(test):
        raise DataError("data: a set without images, which classify needs: add some, or remove it")
    if not classes or test.several_KC is None or not bool(test.several_KC.any()):
        raise DataError(
            "data: no test image has a label that the train images have, so classify could score "
            "nothing: fill the column, or remove it"
        )


def refuse_lone(name: str, settings: Classify, system: ClassifyModule) -> None:
    """Raises RecipeError where the network cannot be trained on one image at a time, and is to
    be.
    """
    if settings.batch // settings.accumulate == 1:
        tried, a = copy.deepcopy(system).train().model, system.model.architecture
        sizes = settings.views.build().sizes(a.size)
        early.refuse_lone_image(f"{name}: classify.batch", tried, a.channels, sizes)


def build_system(backbone: Backbone, course: Course, classes: tuple[str, ...]) -> ClassifyModule:
    """The classifier and its loss, the layer drawn by the training's seed alone.

    Raises RunError, BackboneError or DataError where its parts do not fit.
    """
    settings = course.settings
    torch.manual_seed(rng.seed(course.seed, "classify", "weights"))
    model = Classifier(
        backbone, classes, multi_label=settings.multi_label, dropout=settings.dropout
    )
    return ClassifyModule(
        model,
        train_blocks=settings.train_blocks,
        freeze_batchnorm=settings.freeze_batchnorm,
        layer_decay=settings.layer_decay,
        head_epochs=settings.head_epochs,
        head_lr_factor=settings.head_lr_factor,
        label_smoothing=settings.label_smoothing,
        weight_C=class_weights(settings.class_weights, course.targets, len(classes)),
        ema=settings.ema,
    )


def do(job: Job) -> tuple[Path, dict[str, Any]]:
    """Trains, scores and writes the classifier's folder, on every rank alike; its folder, and its
    scores.
    """
    run, target, first = job.run, job.run.out / "classify" / "classifier", comm.rank() == 0
    about, made_of = made_by(job), made_of_images(job.courses[0], job)
    if not finished(target, about, made_of):
        comm.barrier()
        if first:
            set_aside(target, about, made_of)
        comm.barrier()
        make_classifier(job, target, about, made_of)
    own = isinstance(job.backbone.architecture, Own)
    module = copy.deepcopy(job.backbone.model) if own else None
    model = load_classifier(target, module).to(comm.device())
    answers = answers_of(job, model, run.out / "features")
    found = scored(job, answers, model.temperature, target)
    for course in job.courses[1:]:
        found = {**found, "trainings": [*found.get("trainings", []), trained(job, course)]}
    summary = summed_up(found)
    if first:
        write_file(run.out / "classify.json", json.dumps(summary, indent=2).encode())
        say(table(summary))
    comm.barrier()
    return target, {name: value for name, value in summary.items() if name != "per_class"}


def made_by(job: Job) -> dict[str, Any]:
    """Recipe and backbone, as the classifier's card and checkpoints name them."""
    return {
        "recipe": digests(job.run.experiment, "seed", "data", "classify"),
        "backbone": card.weights_digest(job.backbone),
    }


def made_of_images(course: Course, job: Job) -> dict[str, Any]:
    """The images that a training learns from, and what they show."""
    images = chosen(job.sets[0], course.targets)
    return {**passport(images), "labels": course.targets.digest(job.classes)}


def make_classifier(job: Job, target: Path, about: dict[str, Any], made_of: dict[str, Any]) -> None:
    """The main training, its temperature, and its folder."""
    course = job.courses[0]
    model = descend(job, course, about, made_of)
    if len(job.held_out):
        logits_NC, targets = logits_of(model, job.sets[0], job.held_out, job.settings, None)
        refuse_numberless(logits_NC)
        model.temperature = calibration.best_temperature(logits_NC, targets.values)
    if comm.rank() == 0:
        facts = {
            **written(about),
            **made_of,
            "method": "classification",
            "epochs": job.settings.epochs,
        }
        save_classifier(target, model.cpu(), facts)
        say(f"classify: classifier in {target}")
    meet(target)


def descend(job: Job, course: Course, about: dict[str, Any], made_of: dict[str, Any]) -> Classifier:
    """One training, from its newest checkpoint on; the classifier in eval mode, on every rank."""
    run, settings = job.run, settled("classify", course.settings)
    system = build_system(start_of(job, course), course, job.classes)
    order = make_order(course, job.sets[0])
    full = order.batch // order.accumulate >= comm.world_size()
    module = prepared(system, settings, full=full)
    views, architecture = settings.views.build(), system.model.architecture
    made = on_device(partial(views, dtype=settings.dtype), architecture, course.seed)
    inputs = partial(make_inputs, made, course, len(job.classes))
    training = loop.Job(
        "classify",
        run.out / course.folder,
        module,
        chosen(job.sets[0], course.targets),
        order,
        inputs,
        {**made_of, "batch": order.batch, **about, **marks(course)},
        host_crops=settings.host_crops(views, architecture.size),
        accept_changes=run.accept_changes,
        on_save=partial(keep_run, run.out, run.experiment),
        label="classify" if course.is_main else f"classify: {course.words}",
    )
    with tuned(module, settings):
        loop.train(training, settings)
    system.finish()
    model: Classifier = system.model.eval()
    return model


def marks(course: Course) -> dict[str, Any]:
    """What tells a training from the main one."""
    if course.is_main:
        return {}
    start = "untrained" if course.untrained else "backbone"
    return {"labelled": course.name, "draw": course.draw, "start": start} | {
        "epochs": course.settings.epochs
    }


def start_of(job: Job, course: Course) -> Backbone:
    """The network that a training begins with: a copy of the backbone, or fresh weights of its
    seed.
    """
    if not course.untrained:
        return copy.deepcopy(job.backbone)
    torch.manual_seed(rng.seed(course.seed, "classify", "untrained"))
    fresh = job.backbone.fresh()
    assert fresh is not None  # job() has refused the others
    return fresh


def make_inputs(
    views: Callable[..., list[Tensor]], course: Course, classes: int, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One view of each image on the device and what it shows, pairs of them mixed where the recipe
    says so.
    """
    (view_BCHW,) = views(batch.pixels, batch.ids_B, batch.epoch)
    values = send(course.targets.values[batch.ids_B], view_BCHW.device)
    if course.settings.mixing is None:
        return view_BCHW, values
    return course.settings.mixing(
        view_BCHW, one_hot(values, classes), batch.ids_B, seed=course.seed, epoch=batch.epoch
    )


def logits_of(
    model: Classifier, images: Images, targets: Targets, settings: Classify, folder: Path | None
) -> tuple[Tensor, Targets]:
    """Logits (N, C) of those of the images that can be read, on the CPU, and what they show; by
    all ranks.
    """
    found = extracted(
        embedder(model, model.architecture),
        chosen(images, targets),
        digest=f"logits {card.weights_digest(model)}",
        folder=folder,
        how=Extracting(workers=settings.workers),
        labelled=False,
        title="classify",
    )
    return found.x_ND, targets.of(found.ids_N)


def refuse_numberless(logits_NC: Tensor) -> None:
    """Raises RunError where the training has come to nothing."""
    if not bool(logits_NC.isfinite().all()):
        raise RunError(
            "classify: the classifier's logits are NaN or Inf: its training has diverged: lower "
            "classify.optimizer.lr"
        )


def answers_of(job: Job, model: Classifier, folder: Path | None) -> Answers:
    """What the classifier says of test."""
    logits_NC, targets = logits_of(model, job.sets[1], job.test, job.settings, folder)
    refuse_numberless(logits_NC)
    dropped = len(job.test) - len(targets)
    return Answers(logits_NC, targets, dropped, len(job.sets[1]) - len(job.test))


def scored(job: Job, answers: Answers, temperature: float, target: Path) -> dict[str, Any]:
    """The scores of the main classifier, computed by the first rank; who is taken for whom lies
    beside its folder.
    """
    found: dict[str, Any] = {}
    if comm.rank() == 0:
        found = scores_of(answers, job.classes, temperature, job.settings.intervals, job.run.seed)
        on = f"{len(job.held_out)} images held out of train"
        found["temperature_of"] = on if len(job.held_out) else "not fitted: held_out is 0"
        if answers.targets.several_KC is None and len(job.classes) <= _MOST_CONFUSED:
            said_N = predictions(answers.logits_NC)
            matrix_CC = confusion(said_N, answers.targets.labels_K, len(job.classes))
            write_file(target.parent / "confusion.csv", sheet(matrix_CC, job.classes))
    whole: dict[str, Any] = comm.broadcast_object(found)
    return whole


def sheet(confusion_CC: Tensor, classes: tuple[str, ...]) -> bytes:
    """The confusion matrix as CSV: a row a class, a column for each that it is taken for."""
    text = io.StringIO()
    out = csv.writer(text)
    out.writerow(["class", *classes])
    out.writerows([name, *row] for name, row in zip(classes, confusion_CC.tolist(), strict=True))
    return text.getvalue().encode(errors="backslashreplace")


def trained(job: Job, course: Course) -> dict[str, Any]:
    """One of the other trainings: its scores, kept in `scores.json` of its folder, after which
    its checkpoints go; on every rank.
    """
    folder, made_of = job.run.out / course.folder, made_of_images(course, job)
    about = made_by(job)
    whole = {**written(about), **made_of, **marks(course)}
    path = folder / "scores.json"
    kept = comm.broadcast_object(kept_scores(path, whole))
    if kept is None:
        model = descend(job, course, about, made_of)
        answers = answers_of(job, model.to(comm.device()), None)
        own = scores_of(answers, job.classes, 1.0, 0.0, job.run.seed)
        kept = comm.broadcast_object({k: v for k, v in own.items() if isinstance(v, float | int)})
        if comm.rank() == 0:
            text = json.dumps({"about": whole, "scores": kept}, indent=2)
            write_file(path, text.encode())
            for name in ("checkpoints", "tensorboard"):
                shutil.rmtree(folder / name, ignore_errors=True)
            say(f"classify: {course.words}: {best(kept)}")
    comm.barrier()
    return {
        "labels": course.name,
        "draw": course.draw,
        "untrained": course.untrained,
        "images": len(course.targets),
        "scores": kept,
    }


def best(scores: dict[str, Any]) -> str:
    """The first score of some, for a line."""
    name = "top1" if "top1" in scores else "map"
    return f"{name} {100 * scores[name]:.2f} %"
