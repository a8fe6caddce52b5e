"""Pretraining: images without labels -> a backbone folder."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.checkpoint import (
    CHANGED,
    TOUCHED,
    changes,
    differences,
    keep_run,
    newest_manifest,
    open_run,
    touched,
    write_recipe,
)
from lookalike.data.images import Images, subset
from lookalike.data.loader import Batch
from lookalike.data.order import order_of
from lookalike.data.passport import labels_digest, passport
from lookalike.doctor import agree
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.evaluation.features import embedder, extract
from lookalike.log import say
from lookalike.methods import METHODS
from lookalike.models import Architecture, Backbone, card, folder_files, make_backbone
from lookalike.nn.batchnorm import global_batchnorm
from lookalike.optim import parameter_groups
from lookalike.recipe import Choice, Count, Index, Recipe, Spec
from lookalike.scoring import knn
from lookalike.training.loop import Job, Settings, make_views, refuse_nothing, train
from lookalike.views import VIEWS

VIEW = Choice(VIEWS)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """Learning without labels. `batch` is global and per step; `accumulate` cuts it into that many
    losses.

    `micro_batch`: how many images, over all ranks, the backbone sees at once; the loss still spans
    the batch. `knn_every_epochs`: how often kNN-20 of the backbone is logged (2,000 training, 1,000
    test images with labels, which training never sees); 0 for never.
    """

    method: Annotated[Spec, Choice(METHODS, supplied={"backbone"})]
    batch: Count
    accumulate: Count = 1
    micro_batch: Count | None = None
    knn_every_epochs: Index = 0
    views: Annotated[Spec, VIEW] = VIEW.spec("asymmetric")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} does not divide into accumulate: {self.accumulate} "
                "micro-batches"
            )
        if self.batch // self.accumulate < 2:
            raise ValueError(
                "a micro-batch of one image has no statistics: raise batch or lower accumulate"
            )
        if self.batch // self.accumulate % (self.micro_batch or 1):
            raise ValueError(
                f"batch {self.batch} / accumulate does not divide into micro_batch "
                f"{self.micro_batch}"
            )
        problem = views_problem(self.method.make, self.views.build())
        if problem:
            raise ValueError(problem)
        if (
            self.optimizer.name == "lars"
            and self.engine is not None
            and self.engine.args.get("stage", 0) > 0
        ):
            raise ValueError(
                "lars needs whole layers, ZeRO shows it one flat tensor from stage 1 on: "
                "engine.stage: 0, or adamw"
            )

    @property
    def pieces(self) -> int:
        """How many parts of a batch the backbone sees one after another."""
        return self.batch // self.accumulate // self.micro_batch if self.micro_batch else 1


def pretrain(
    recipe: Recipe,
    out: str | Path,
    method: Callable[..., nn.Module] | None = None,
    *,
    accept_changes: bool = False,
) -> Path:
    """Runs or resumes the recipe's `pretrain` section in the run folder `out`; returns the backbone
    folder.

    `method`: a class of your own in place of the recipe's, called as method(backbone);
    `accept_changes`: resume even where recipe or images are no longer what the run began with.
    """
    settings, seed = recipe.section(Pretrain), recipe.values["seed"]
    comm.start(seconds=settings.timeout)
    about: dict[str, Any] = {"recipe": recipe.digest("seed", "data", "backbone", "pretrain")}
    about["method"] = (
        f"{method.__module__}.{method.__qualname__}" if method else settings.method.name
    )
    agree(recipe, method=about["method"], accept_changes=accept_changes)
    folder = open_run(Path(out), recipe, accept_changes)
    target = folder / "backbone"
    source = recipe.values["data"].build()
    made_of = learned_from(source.split("train"), method or settings.method.make)
    if finished(target, about, made_of, accept_changes):
        write_recipe(
            folder, recipe
        )  # which may have been damaged, or differ in what changes nothing
        return target
    module, views = make_method(recipe, method), settings.views.build()
    size = module.backbone.architecture.size
    images = source.split("train", size)
    order = order_of(images, settings.batch, settings.accumulate, seed)
    if problem := views_problem(module, views):
        raise RecipeError(f"{recipe.name}: pretrain.{problem}")
    labels_N = labels_for(module, images)
    inputs = partial(
        make_inputs,
        partial(views, dtype=settings.dtype),
        module.backbone.architecture,
        seed,
        labels_N,
    )
    must_match = {**made_of, "batch": settings.batch, "method": about["method"] if method else None}
    every = settings.knn_every_epochs * order.steps_per_epoch
    monitor = (
        make_monitor(module.backbone, images, source.split("test", size), seed) if every else dict
    )
    job = Job(
        "pretrain",
        folder,
        module,
        images,
        order,
        inputs,
        must_match,
        pieces=settings.pieces,
        host_crops=settings.host_crops(views, size),
        monitor=monitor,
        monitor_every=every,
        accept_changes=accept_changes,
        changed=comm.broadcast_object(changes(folder, recipe) if comm.rank() == 0 else []),
        on_resume=partial(write_recipe, folder, recipe),
        kept=partial(keep_run, folder, recipe),
    )
    train(job, settings)
    if comm.rank() == 0:
        about |= {"epochs": settings.epochs, **made_of}
        backbone = module.backbone
        card.write_model(
            target, folder_files(backbone), card.facts(backbone.architecture, backbone.dim, about)
        )
        say(f"pretrain: backbone in {target}")
    comm.barrier()
    return target


def learned_from(images: Images, method: Any) -> dict[str, Any]:
    """What a backbone is made of: the images, and their labels where the method learns from
    them.
    """
    labels = (
        {"labels": labels_digest(images.labels, images.classes)}
        if getattr(method, "needs_labels", False)
        else {}
    )
    return {**passport(images), **labels}


def finished(
    target: Path, about: dict[str, Any], made_of: dict[str, Any], accept_changes: bool
) -> bool:
    """Whether the backbone that the recipe asks for is there.

    Raises RunError when it is damaged, or was trained on other images; `accept_changes` makes a
    warning of the last.
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
    changed, told = "; ".join(differences(earlier, made_of)[:4]), comm.rank() == 0
    if changed and not accept_changes:
        raise RunError(
            f"{target}: was trained on other images ({changed}): choose another --out, keep it as "
            "it is with "
            f"--accept-changes, or remove it with {target.parent / 'checkpoints'} to train anew"
        )
    if changed and told:
        warnings.warn(
            f"{target}: was trained on other images ({changed}), and stays as it is", stacklevel=3
        )
    elif told and touched(earlier, made_of):
        warnings.warn(f"{target}: {TOUCHED}", stacklevel=3)
    return True


def check(recipe: Recipe, out: Path, accept_changes: bool = False) -> None:
    """Raises what `pretrain` would raise before its first step, after building on the CPU what it
    would build.

    Of a run in `out` the newest checkpoint's manifest is believed, its files are not looked into.
    """
    settings, source = recipe.section(Pretrain), recipe.values["data"].build()
    about = {
        "recipe": recipe.digest("seed", "data", "backbone", "pretrain"),
        "method": settings.method.name,
    }
    made_of = learned_from(source.split("train"), settings.method.make)
    if finished(out / "backbone", about, made_of, accept_changes):
        return
    module, size = build_method(recipe), recipe.values["backbone"].size
    settings.optimizer.build(parameter_groups(module))
    images = source.split("train", size)
    labels_for(module, images)
    must_match = {**made_of, "batch": settings.batch, "method": None}
    steps = (
        settings.epochs * order_of(images, settings.batch, settings.accumulate, 0).steps_per_epoch
    )
    earlier = newest_manifest(out / "checkpoints")
    if earlier and not accept_changes and (changed := differences(earlier, must_match)):
        raise RunError(
            f"{out}: was trained on something else ({'; '.join(changed[:4])}): {CHANGED}"
        )
    if earlier:
        changed = [*changes(out, recipe), *differences(earlier, must_match)]
        refuse_nothing(out, "pretrain", earlier["step"], steps, changed)
    if settings.knn_every_epochs:
        make_monitor(module.backbone, images, source.split("test", size), recipe.values["seed"])


def refuse_more_ranks(recipe: Recipe, ranks: int) -> None:
    """Raises RecipeError unless every rank has an image of all that the backbone sees at once."""
    settings = recipe.section(Pretrain)
    key, images = "micro_batch", settings.micro_batch
    if images is None:
        key, images = (
            "batch" if settings.accumulate == 1 else "batch / accumulate",
            settings.batch // settings.accumulate,
        )
    if images < ranks:
        raise RecipeError(
            f"{recipe.name}: pretrain.{key}: {images} images for {ranks} ranks: raise it, every "
            "rank needs one"
        )


def build_method(recipe: Recipe, method: Callable[..., nn.Module] | None = None) -> Any:
    """The recipe's method on its backbone, with weights that only the seed decides."""
    torch.manual_seed(rng.seed(recipe.values["seed"], "weights"))
    backbone = make_backbone(recipe.values["backbone"])
    if method:
        return method(backbone)
    try:
        return recipe.section(Pretrain).method.build(backbone)
    except ValueError as error:
        raise RecipeError(
            f"{recipe.name}: pretrain.method: {recipe.section(Pretrain).method.name}: {error}"
        ) from error


def make_method(recipe: Recipe, method: Callable[..., nn.Module] | None = None) -> Any:
    """The method as it is trained, on this rank's device."""
    refuse_more_ranks(recipe, comm.world_size())
    settings, module = recipe.section(Pretrain), build_method(recipe, method)
    for part in module.modules():
        if isinstance(part, Backbone):
            part.pieces = settings.pieces
    even = settings.batch // settings.accumulate // settings.pieces % comm.world_size() == 0
    return global_batchnorm(module.train(), even=even).to(comm.device())


def views_problem(method: Any, views: Any) -> str:
    """Why the method cannot take these views, or nothing."""
    needed, made = method.n_views, views.total
    if made == needed or (made > needed and getattr(method, "more_views", False)):
        return ""
    name = method.__name__ if isinstance(method, type) else type(method).__name__
    return f"views: {made} of each image, but {name} compares {needed}: set views.views: {needed}"


def labels_for(method: Any, images: Images) -> Tensor | None:
    """The class of each image, for the one kind of method that asks for it. Raises DataError
    without labels.
    """
    if not getattr(method, "needs_labels", False):
        return None
    if images.labels is None:
        raise DataError(
            f"data: no labels, which {type(method).__name__} learns from: use class folders"
        )
    return torch.as_tensor(images.labels)


def make_monitor(
    backbone: Backbone, train: Images, test: Images, seed: int
) -> Callable[[], dict[str, float]]:
    """kNN-20 of the backbone as it stands, on some images with labels. Raises DataError where there
    are none.
    """
    if train.labels is None or test.labels is None:
        raise DataError(
            "data: no labels, which knn_every_epochs needs: use class folders, or set it to 0"
        )
    some = [
        subset(images, rng.permutation(len(images), seed, "judge", split)[:most].tolist())
        for split, (images, most) in enumerate(((train, 2000), (test, 1000)))
    ]

    def monitor() -> dict[str, float]:
        function = embedder(backbone, backbone.architecture)
        bank, asked = (extract(function, images) for images in some)
        backbone.train()
        return {
            "knn20/top1": knn.accuracy(bank.x_ND, bank.labels_N, asked.x_ND, asked.labels_N)["top1"]
        }

    return monitor


def make_inputs(
    views: Any, architecture: Architecture, seed: int, labels_N: Tensor | None, batch: Batch
) -> tuple[Any, ...]:
    """The method's inputs for a batch: its V views and, where it asks for them, the labels."""
    made = make_views(views, architecture, seed, batch)
    if labels_N is None:
        return (made,)
    return made, labels_N[batch.ids_B].to(made[0].device, non_blocking=True)
