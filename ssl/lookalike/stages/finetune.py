"""Fine-tuning: a backbone and labels of some classes -> an embedding folder, by a metric-learning
objective.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lookalike import comm, rng
from lookalike.checkpoint import keep_run, meet, written
from lookalike.data.images import Images
from lookalike.data.loader import Batch
from lookalike.engine import speed
from lookalike.engine.speed import settled
from lookalike.engine.tuning import prepared, tuned
from lookalike.errors import DataError, RecipeError
from lookalike.evaluation.features import Extracting, embedder, extracted
from lookalike.experiment import Experiment, Finetune
from lookalike.geometry import Distance
from lookalike.log import say
from lookalike.metric.classes import Split
from lookalike.metric.finetune_module import FinetuneModule
from lookalike.metric.fit_head import check as check_estimator
from lookalike.metric.fit_head import folded
from lookalike.metric.objectives import Objective
from lookalike.metric.sampler import PKOrder
from lookalike.models import Backbone, card, open_backbone, tunable
from lookalike.models.embedding import Embedding, embedding_files
from lookalike.recipe import digests
from lookalike.runs import Run
from lookalike.training import early, loop
from lookalike.training.earlier import finished, set_aside
from lookalike.training.inputs import on_device
from lookalike.views.send import send


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is fine-tuned on what; by an estimator there is no `system`, no `order`.

    `made_of`: images, labels and names of the classes.
    """

    run: Run
    settings: Finetune
    backbone: Backbone
    divided: Split
    made_of: dict[str, Any]
    order: PKOrder | None = None
    system: FinetuneModule | None = None

    @property
    def sets(self) -> tuple[Images, ...]:
        """The images that it reads."""
        return (self.divided.seen,)


def finetune(
    backbone: Backbone | str | Path,
    recipe: Experiment,
    out: str | Path,
    *,
    accept_changes: bool = False,
) -> Path:
    """Runs or resumes the recipe's `finetune` section in the run folder `out`; returns the
    embedding folder.

    `accept_changes`: resume even where the images are no longer what it began with.
    """
    recipe.section(Finetune)
    run = Run(recipe, out, accept_changes=accept_changes)
    run.join()
    run.hold()
    planned = job(run, open_backbone(backbone, run.like(backbone)))
    run.begin(*planned.sets)
    return do(planned)


def job(run: Run, backbone: Backbone) -> Job:
    """Decides what is fine-tuned, from this backbone, and refuses what could not be; nothing is
    written, no rank asked.
    """
    settings = run.experiment.section(Finetune)
    refuse_more_ranks(run.name, settings, run.ranks)
    opened = tunable(backbone, settings.pool)
    run.read_as(opened.architecture)
    divided = run.classes(opened.architecture.size)
    decided: dict[str, Any] = {
        "run": run,
        "settings": settings,
        "backbone": opened,
        "divided": divided,
        "made_of": divided.passport,
    }
    if settings.estimator:
        check_estimator(settings.estimator, opened.dim, divided.labels_N, run.seed)
        return Job(**decided)
    order = make_order(settings, divided.seen, divided.labels_N, run.seed)
    system = build_system(opened, settings, divided.classes, run.seed)
    refuse_batch(run.name, settings, system)
    loop.make_optimizer(settings, system)
    speed.refuse(f"{run.name}: finetune", settings, settings.engine, system)
    if run.folder:
        run.remark(early.little_room(run.folder, "finetune", system, settings))
    for line in speed.remarks(f"{run.name}: finetune", settings):
        run.remark(line)
    return Job(**decided, order=order, system=system)


def refuse_more_ranks(name: str, settings: Finetune, ranks: int) -> None:
    """Raises RecipeError unless every rank has an image of each batch, and the engine takes it."""
    images = settings.classes_per_batch * settings.per_class
    if images < ranks:
        raise RecipeError(
            f"{name}: finetune.per_class: {images} images a batch for {ranks} ranks: raise it, "
            "every rank needs one"
        )
    loop.refuse_engine(name, "finetune", settings, ranks)
    early.refuse_decode(name, "finetune", settings)


def do(job: Job) -> Path:
    """Trains and writes the embedding folder, on every rank alike; returns it."""
    folder, about = job.run.out / "finetune", made_by(job)
    target, first = folder / "embedding", comm.rank() == 0
    if finished(target, about, job.made_of):
        return target
    comm.barrier()
    if first:
        set_aside(target, about, job.made_of)
    comm.barrier()
    if job.settings.estimator:
        learn(job, target, about)
        comm.barrier(patient=True)
        return target
    descend(job, folder, about)
    if first:
        write(job, target, about)
    meet(target)
    return target


def made_by(job: Job) -> dict[str, Any]:
    """Recipe and backbone, as the embedding's card and checkpoints name them."""
    return {
        "recipe": digests(job.run.experiment, "seed", "data", "finetune"),
        "backbone": card.weights_digest(job.backbone),
    }


def descend(job: Job, folder: Path, about: dict[str, Any]) -> None:
    """Trains by gradients, in `folder`."""
    run, settings, order = job.run, settled("finetune", job.settings), job.order
    assert job.system is not None and order is not None  # noqa: PT018 (one or none of both)
    if order.left_out and comm.rank() == 0:
        say(
            "finetune: classes of one image, which has no positive, are left out of all batches: "
            f"{order.left_out}"
        )
    full = order.batch // order.accumulate >= comm.world_size()
    module = prepared(job.system, settings, full=full)
    model, views = job.system.model, settings.views.build()
    made = on_device(partial(views, dtype=settings.dtype), model.architecture, run.seed)
    inputs = partial(make_inputs, made, job.divided.labels_N)
    training = loop.Job(
        "finetune",
        folder,
        module,
        job.divided.seen,
        order,
        inputs,
        {**job.made_of, "batch": order.batch, **about},
        host_crops=settings.host_crops(views, model.architecture.size),
        accept_changes=run.accept_changes,
        on_save=partial(keep_run, run.out, run.experiment),
    )
    with tuned(module, settings):
        loop.train(training, settings)
    job.system.finish()


def write(job: Job, target: Path, about: dict[str, Any]) -> None:
    """The folder of the embedding that was trained, what the objective has learned folded in."""
    assert job.system is not None
    model, settings = job.system.to(comm.exact_device()).model, job.settings
    facts = {
        **written(about),
        **job.made_of,
        "method": settings.objective.name,
        "distance": model.distance,
        "epochs": settings.epochs,
        "classes": job.divided.classes,
    }
    if folded := job.system.objective.affine():
        model.fold(*folded)
    told = card.facts(model.architecture, model.dim, facts)
    card.write_model(target, embedding_files(model), told)
    say(f"finetune: embedding model in {target}")


def learn(job: Job, target: Path, about: dict[str, Any]) -> None:
    """Features of the frozen backbone, by all ranks -> the estimator -> the embedding folder, on
    the first.
    """
    run, settings, backbone = job.run, job.settings, job.backbone
    estimator, images = settings.estimator, job.divided.seen
    assert estimator is not None
    function = embedder(backbone.to(comm.device()), backbone.architecture)
    x_ND, labels_N, dropped, _ = extracted(
        function,
        images,
        digest=about["backbone"],
        folder=run.out / "features",
        how=Extracting(workers=settings.workers),
        title="finetune: features",
    )
    if comm.rank() != 0:
        return
    model = folded(backbone, estimator, x_ND, labels_N, run.seed)
    facts = {
        **written(about),
        **job.made_of,
        "method": estimator.name,
        "distance": model.distance,
        "classes": len(torch.unique(labels_N)),
        "rows": len(labels_N),
        "dropped": dropped,
    }
    told = card.facts(model.architecture, model.dim, facts)
    card.write_model(target, embedding_files(model), told)
    say(f"finetune: embedding model in {target}")


def make_order(settings: Finetune, images: Images, labels_N: Tensor, seed: int) -> PKOrder:
    """The section's P × K batches. Raises DataError where there are too few classes, or no cameras
    to be distinct.
    """
    cameras_N = images.cameras if settings.cameras == "distinct" else None
    if settings.cameras == "distinct" and cameras_N is None:
        raise DataError("finetune.cameras: distinct, but these images name no cameras: remove it")
    return PKOrder(
        labels_N, settings.classes_per_batch, settings.per_class, seed, cameras_N=cameras_N
    )


def build_system(backbone: Backbone, settings: Finetune, classes: int, seed: int) -> FinetuneModule:
    """The embedding model and its objective, head and proxies drawn by the seed alone.

    Raises RunError or BackboneError when its parts do not fit.
    """
    torch.manual_seed(rng.seed(seed, "finetune", "weights"))
    distance: Distance = "cosine" if settings.unit else "euclidean"
    model = Embedding(backbone, settings.dim, distance=distance, batchnorm=settings.batchnorm)
    return FinetuneModule(
        model,
        Objective(
            settings.objective,
            settings.miner,
            num_classes=classes,
            embedding_size=model.dim,
            seed=seed,
            memory=settings.memory,
        ),
        train_blocks=settings.train_blocks,
        freeze_batchnorm=settings.freeze_batchnorm,
        layer_decay=settings.layer_decay,
        head_epochs=settings.head_epochs,
        proxy_lr_factor=settings.proxy_lr_factor,
        ema=settings.ema,
    )


def refuse_batch(name: str, settings: Finetune, system: FinetuneModule) -> None:
    """Raises RecipeError where a batch of so many classes and images of each teaches nothing, or
    RunError where the objective cannot take one.
    """
    classes, per_class = settings.classes_per_batch, settings.per_class
    if classes * per_class == 1:
        tried, a = copy.deepcopy(system).train().model, system.model.architecture
        place, sizes = f"{name}: finetune.per_class", settings.views.build().sizes(a.size)
        early.refuse_lone_image(place, tried, a.channels, sizes)
    if not system.objective.learns(classes, per_class):
        key = "per_class" if per_class == 1 else "classes_per_batch"
        lacks = "two of one class" if per_class == 1 else "two of different classes"
        raise RecipeError(
            f"{name}: finetune.{key}: 1, but {system.objective.name} learns nothing from a batch "
            f"without {lacks}: raise it"
        )


def make_inputs(
    views: Callable[..., list[Tensor]], labels_N: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One view of each image on the device, and its class."""
    (view_BCHW,) = views(batch.pixels, batch.ids_B, batch.epoch)
    return view_BCHW, send(labels_N[batch.ids_B], view_BCHW.device)
