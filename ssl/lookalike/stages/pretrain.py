"""Pretraining: images without labels -> a backbone folder."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.checkpoint import (
    CHANGED,
    TOUCHED,
    changes,
    differences,
    keep_run,
    meet,
    newest_manifest,
    touched,
    write_recipe,
    written,
)
from lookalike.data.images import Images, subset
from lookalike.data.loader import Batch
from lookalike.data.order import EpochOrder, order_of
from lookalike.data.passport import labels_digest, passport
from lookalike.engine import speed
from lookalike.engine.speed import settled
from lookalike.engine.tuning import prepared, tuned
from lookalike.errors import BackboneError, DataError, RecipeError, RunError
from lookalike.evaluation.features import embedder, extract
from lookalike.evaluation.labels import refuse_neighbours
from lookalike.experiment import Experiment, Pretrain, views_problem
from lookalike.geometry import sides
from lookalike.log import say
from lookalike.models import (
    Backbone,
    card,
    folder_files,
    for_sizes,
    make_backbone,
    open_backbone,
)
from lookalike.nn.method import Method
from lookalike.recipe import digests
from lookalike.runs import Run
from lookalike.scoring import knn
from lookalike.training import early, loop
from lookalike.training.inputs import on_device
from lookalike.views.send import send

Maker = Callable[[Backbone], Method]


@dataclass(frozen=True)
class Work:
    """What is to be trained: a method on a backbone, by these views of these images in this order.

    `must_match`: what an earlier checkpoint has to be made of, if it is to go on.
    """

    module: Method
    images: Images
    order: EpochOrder
    views: Any
    labels_N: Tensor | None
    must_match: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is pretrained, from what; no `work` where the backbone is there already.

    `about`: recipe and method, as the backbone's card names them; `made_of`: the images, and the
    labels where the method learns from them.
    """

    run: Run
    settings: Pretrain
    about: dict[str, Any]
    made_of: dict[str, Any]
    work: Work | None

    @property
    def sets(self) -> tuple[Images, ...]:
        """The images that it reads."""
        return (self.work.images,) if self.work else ()


def pretrain(
    recipe: Experiment,
    out: str | Path,
    method: Maker | None = None,
    *,
    backbone: nn.Module | None = None,
    accept_changes: bool = False,
) -> Path:
    """Runs or resumes the recipe's `pretrain` section in the run folder `out`; returns the backbone
    folder.

    `method`: a class of your own in place of the recipe's, called as method(backbone); `backbone`:
    a network of your own, with `dim`, in place of the recipe's, of which it has size and channels;
    `accept_changes`: resume even where recipe or images are no longer what the run began with.
    """
    recipe.section(Pretrain)
    run = Run(recipe, out, accept_changes=accept_changes)
    run.join(method=method_name(recipe.section(Pretrain), method))
    run.hold()
    opened = None if backbone is None else open_backbone(backbone, run.like(backbone))
    planned = job(run, method, opened)
    run.begin(*planned.sets)
    return do(planned)


def method_name(settings: Pretrain, method: Maker | None = None) -> str:
    """The method's name in cards and checkpoints."""
    return f"{method.__module__}.{method.__qualname__}" if method else settings.method.name


def job(run: Run, method: Maker | None = None, backbone: Backbone | None = None) -> Job:
    """Decides what is pretrained, and refuses what could not be; nothing is written, no rank asked.

    Of a run in the folder the newest checkpoint's manifest is believed, its files are not looked
    into.
    """
    settings = run.experiment.section(Pretrain)
    refuse_more_ranks(run.experiment, run.ranks)
    known = digests(run.experiment, *run.experiment.fixed)
    about: dict[str, Any] = {"recipe": known, "method": method_name(settings, method)}
    if backbone is not None:
        about["architecture"] = backbone.architecture.timm_name
        tell_form(run, backbone)
    labelled = getattr(method or settings.method.make, "needs_labels", False)
    made_of = learned_from(run.images("train"), labelled)
    made_of |= run.weights if backbone is None else {}
    done = run.folder and finished(run.folder / "backbone", about, made_of, run.accept_changes)
    own = about["method"] if method else None
    must_match = {**made_of, "batch": settings.batch, "method": own}
    if done:
        return Job(run, settings, about, made_of, None)
    module = build_method(run.experiment, method, backbone or partial(run.backbone, published=True))
    return Job(run, settings, about, made_of, prepare(run, settings, module, must_match))


def tell_form(run: Run, backbone: Backbone) -> None:
    """Lets images and a backbone that was handed over agree on depth and range: its own where it
    has been told any, else those of the images.
    """
    if backbone.architecture.recorded():
        run.read_as(backbone.architecture)
    else:
        backbone.architecture = backbone.architecture.reading(run.images("train").form)


def prepare(run: Run, settings: Pretrain, module: Method, must_match: dict[str, Any]) -> Work:
    """The work on this method. Raises what would end it before its first step."""
    images, views = run.images("train"), settings.views.build()
    if len(images) < settings.batch:
        raise DataError(
            f"pretrain.batch: {len(images)} images are fewer than one batch of {settings.batch}: "
            "lower it"
        )
    order = order_of(images, settings.batch, settings.accumulate, run.seed)
    if problem := views_problem(type(module), views):
        raise RecipeError(f"{run.name}: pretrain.{problem}")
    loop.make_optimizer(settings, module)
    speed.refuse(f"{run.name}: pretrain", settings, settings.engine, module, settings.pieces)
    labels_N = labels_for(module, images)
    if settings.micro_batch == 1:
        tried, a = copy.deepcopy(module.backbone).train(), module.backbone.architecture
        place, sizes = f"{run.name}: pretrain.micro_batch", views.sizes(a.size)
        early.refuse_lone_image(place, tried, a.channels, sizes)
    if settings.knn_every_epochs:
        refuse_unmonitored(run)
    if run.folder:
        refuse_other_checkpoint(run, must_match, settings.epochs * order.steps_per_epoch)
        run.remark(early.little_room(run.folder, "pretrain", module, settings))
    for line in speed.remarks(f"{run.name}: pretrain", settings):
        run.remark(line)
    return Work(module, images, order, views, labels_N, must_match)


def do(job: Job) -> Path:
    """Trains and writes the backbone folder, on every rank alike; returns it."""
    run, settings, target = job.run, job.settings, job.run.out / "backbone"
    if job.work is None:
        write_recipe(run.out, run.experiment)  # which may have been damaged, or say more now
        return target
    run.tell_weights(job.work.module.backbone)
    settings = settled("pretrain", settings)
    planned = training(run, settings, job.work)
    with tuned(planned.module, settings):
        loop.train(planned, settings)
    if comm.rank() == 0:
        about = {**written(job.about), "epochs": settings.epochs, **job.made_of}
        backbone = job.work.module.backbone
        facts = card.facts(backbone.architecture, backbone.dim, about)
        card.write_model(target, folder_files(backbone), facts)
        say(f"pretrain: backbone in {target}")
    meet(target)
    return target


def training(run: Run, settings: Pretrain, work: Work) -> loop.Job:
    """The work as the loop takes it, its module on this rank's device."""
    module, recipe = placed(work.module, settings), run.experiment
    architecture = module.backbone.architecture
    every = settings.knn_every_epochs * work.order.steps_per_epoch
    sets = (work.images, run.images("test") if every else work.images)
    views = on_device(partial(work.views, dtype=settings.dtype), architecture, run.seed)
    return loop.Job(
        "pretrain",
        run.out,
        module,
        work.images,
        work.order,
        partial(make_inputs, views, work.labels_N),
        work.must_match,
        pieces=settings.pieces,
        host_crops=settings.host_crops(work.views, architecture.size),
        monitor=make_monitor(module.backbone, *sets, run.seed) if every else dict,
        monitor_every=every,
        accept_changes=run.accept_changes,
        changed=comm.broadcast_object(changes(run.out, recipe) if comm.rank() == 0 else []),
        on_resume=partial(write_recipe, run.out, recipe),
        on_save=partial(keep_run, run.out, recipe),
    )


def learned_from(images: Images, labelled: bool) -> dict[str, Any]:
    """What a backbone is made of: the images, and their labels where the method learns from
    them.
    """
    made_of: dict[str, Any] = dict(passport(images))
    if labelled:
        made_of["labels"] = labels_digest(images.labels, images.classes)
    return made_of


def finished(
    target: Path, about: dict[str, Any], made_of: dict[str, Any], accept_changes: bool
) -> bool:
    """Whether the backbone that the recipe asks for is there.

    Raises RunError when it is damaged, or was made of other images or weights; `accept_changes`
    makes a warning of the last.
    """
    try:
        if not card.is_done(target, about):
            return False
    except RunError as error:
        if any(target.parent.glob("checkpoints/step_*")):
            raise RunError(
                f"{error}; or remove {target}: the same command makes it again, bit for bit"
            ) from error
        raise
    earlier = card.read(target)
    lines, told = differences(earlier, made_of), comm.rank() == 0
    of_weights = all(line.startswith("weights: ") for line in lines)
    other = "began with other weights" if of_weights else "was trained on other images"
    changed = "; ".join(lines[:4])
    if changed and not accept_changes:
        raise RunError(
            f"{target}: {other} ({changed}): choose another --out, keep it as "
            "it is with "
            f"--accept-changes, or remove it with {target.parent / 'checkpoints'} to train anew"
        )
    if changed and told:
        warnings.warn(f"{target}: {other} ({changed}), and stays as it is", stacklevel=3)
    elif told and touched(earlier, made_of):
        warnings.warn(f"{target}: {TOUCHED}", stacklevel=3)
    return True


def refuse_other_checkpoint(run: Run, must_match: dict[str, Any], steps: int) -> None:
    """Raises RunError where the newest checkpoint is not one that this training may go on from."""
    earlier = newest_manifest(run.out / "checkpoints")
    if earlier is None:
        return
    changed = differences(earlier, must_match)
    if changed and not run.accept_changes:
        raise RunError(
            f"{run.out}: was trained on something else ({'; '.join(changed[:4])}): {CHANGED}"
        )
    changed = [*changes(run.out, run.experiment), *changed]
    loop.refuse_nothing(run.out, "pretrain", earlier["step"], steps, changed)


def refuse_more_ranks(recipe: Experiment, ranks: int) -> None:
    """Raises RecipeError unless every rank has an image of all that the backbone sees at once."""
    settings = recipe.section(Pretrain)
    key, images = "micro_batch", settings.micro_batch
    if images is None:
        key = "batch" if settings.accumulate == 1 else "batch / accumulate"
        images = settings.batch // settings.accumulate
    if images < ranks:
        raise RecipeError(
            f"{recipe.name}: pretrain.{key}: {images} images for {ranks} ranks: raise it, every "
            "rank needs one"
        )
    loop.refuse_engine(recipe.name, "pretrain", settings, ranks)
    early.refuse_decode(recipe.name, "pretrain", settings)


def refuse_unmonitored(run: Run) -> None:
    """Raises DataError where there are no labels for the kNN monitor, or too few kinds of them."""
    train, test = run.images("train"), run.images("test")
    if train.labels is None or test.labels is None:
        raise DataError(
            "data: no labels, which knn_every_epochs needs: use class folders, or set it to 0"
        )
    bank, asked = (images.labels for images in monitored(train, test, run.seed))
    assert bank is not None
    assert asked is not None
    refuse_neighbours(bank, asked, "knn_every_epochs", "set it to 0")


def build_method(
    recipe: Experiment,
    method: Maker | None = None,
    backbone: Backbone | Callable[[], Backbone] | None = None,
) -> Method:
    """The recipe's method on its backbone, with weights that only the seed decides; `backbone`:
    another, or what makes it.

    A backbone that timm lets take the sizes of all the views is asked to. Raises BackboneError
    where it cannot, RecipeError where its parts do not fit, RunError where a `method` of one's own
    is no Method.
    """
    torch.manual_seed(rng.seed(recipe.seed, "weights"))
    settings, made_by = (
        recipe.section(Pretrain),
        backbone or partial(make_backbone, recipe.backbone),
    )
    opened = made_by if isinstance(made_by, Backbone) else made_by()
    opened = for_views(opened, settings.views.build(), recipe.name)
    try:
        made = method(opened) if method else settings.method.build(opened)
    except ValueError as error:
        name = method_name(recipe.section(Pretrain), method)
        raise RecipeError(f"{recipe.name}: pretrain.method: {name}: {error}") from error
    if not isinstance(made, Method):
        raise RunError(
            f"method: {type(made).__name__} is not a lookalike.methods.Method: derive it from that"
        )
    return made


def for_views(backbone: Backbone, views: Any, name: str) -> Backbone:
    """The backbone as it takes every view of a policy. Raises BackboneError where it cannot."""
    size = sides(backbone.architecture.size)
    others = sorted({view for view in views.sizes(size) if view != size})
    if not others:
        return backbone
    try:
        return for_sizes(backbone, [size, *others])
    except BackboneError as error:
        raise BackboneError(f"{name}: pretrain.views: {error}") from error


def make_method(recipe: Experiment) -> Any:
    """The recipe's method as it is trained, on this rank's device."""
    return placed(build_method(recipe), recipe.section(Pretrain))


def placed(module: Method, settings: Pretrain) -> Any:
    """The method as it is trained: BatchNorm over all ranks, on this rank's device."""
    for part in module.modules():
        if isinstance(part, Backbone):
            part.pieces = settings.pieces
    at_once = settings.batch // settings.accumulate // settings.pieces
    return prepared(module, settings, full=at_once >= comm.world_size())


def labels_for(method: Method, images: Images) -> Tensor | None:
    """The class of each image, for the one kind of method that asks for it.

    Raises DataError without labels.
    """
    if not method.needs_labels:
        return None
    if images.labels is None:
        raise DataError(
            f"data: no labels, which {type(method).__name__} learns from: use class folders"
        )
    return torch.as_tensor(images.labels)


def monitored(train: Images, test: Images, seed: int) -> list[Images]:
    """The training and test images that kNN is asked of while training goes on."""
    return [
        subset(images, rng.permutation(len(images), seed, "judge", split)[:most].tolist())
        for split, (images, most) in enumerate(((train, 2000), (test, 1000)))
    ]


def make_monitor(
    backbone: Backbone, train: Images, test: Images, seed: int
) -> Callable[[], dict[str, float]]:
    """kNN-20 of the backbone as it stands, on some images with labels."""
    some = monitored(train, test, seed)

    def monitor() -> dict[str, float]:
        function = embedder(backbone, backbone.architecture)
        bank, asked = (extract(function, images) for images in some)
        backbone.train()
        scores = knn.accuracy(bank.x_ND, bank.labels_N, asked.x_ND, asked.labels_N)
        return {"knn20/top1": scores["top1"]}

    return monitor


def make_inputs(
    views: Callable[..., list[Tensor]], labels_N: Tensor | None, batch: Batch
) -> tuple[Any, ...]:
    """The method's inputs for a batch: its V views and, where it asks for them, the labels."""
    made = views(batch.pixels, batch.ids_B, batch.epoch)
    if labels_N is None:
        return (made,)
    return made, send(labels_N[batch.ids_B], made[0].device)
