"""Fine-tuning: a backbone and labels of some classes -> an embedding folder, by a metric-learning
objective.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lookalike import comm, rng
from lookalike.checkpoint import differences, keep_run, open_run
from lookalike.data.images import Images
from lookalike.data.loader import Batch, workers_for
from lookalike.doctor import agree
from lookalike.errors import BackboneError, DataError, RunError
from lookalike.evaluation.features import cache_key, cached, embedder, extract
from lookalike.log import say
from lookalike.metric.classes import split_classes
from lookalike.metric.finetune_module import FinetuneModule
from lookalike.metric.fit_head import ESTIMATOR, folded
from lookalike.metric.memory import MemorySettings
from lookalike.metric.objectives import MINER, OBJECTIVE, Objective
from lookalike.metric.sampler import PKOrder
from lookalike.models import Backbone, Pool, card, open_backbone, repooled
from lookalike.models.embedding import Embedding, embedding_files
from lookalike.nn.batchnorm import global_batchnorm
from lookalike.recipe import Choice, Count, Index, NonNegative, Positive, Recipe, Share, Spec, Width
from lookalike.training.loop import OPTIMIZER, Job, Settings, make_views, train
from lookalike.views import VIEWS

VIEW = Choice(VIEWS)
# What fine-tuning by an estimator knows; gradients know everything but the estimator.
_OF_ESTIMATORS = ("estimator", "held_out", "pool", "workers", "timeout")


@dataclass(frozen=True, kw_only=True)
class Finetune(Settings):
    """Metric learning on the train images; where test has the same classes, on the first, and never
    on the others.

    `held_out`: the share of classes that is never shown, by default 0.5, and nothing where train
    and test share no class already; 0: all are trained on, and scored. A batch holds `per_class`
    images of each of `classes_per_batch` classes, over all ranks; `cameras` distinct: of each class
    no two of one camera, as far as it has so many; `memory` compares it with earlier ones.
    `estimator` learns the head on features of the frozen backbone instead, without gradients: then
    there is no optimizer, and only `held_out`, `pool` and `workers` beside it.

    `pool`: another pooling than the backbone's own. The head is a linear layer to `dim`, null for
    none; `batchnorm` adds a BatchNorm over all ranks, folded into it afterwards; without `unit`
    vectors keep their lengths and are compared by Euclidean distance. `train_blocks`: how many of
    the backbone's last blocks are trained, with what follows them; by default all of it, 0: the
    head alone; `freeze_batchnorm`: its BatchNorms are not, as published recipes for small sets have
    it. `layer_decay`: a layer's rate as a share of the next one's; `head_epochs`: how long the
    backbone waits for the head; `proxy_lr_factor`: the rate of what the objective owns, in rates of
    the rest.
    """

    optimizer: Annotated[Spec, OPTIMIZER] | None = None  # type: ignore[assignment]  # __post_init__ asks for one
    estimator: Annotated[Spec, ESTIMATOR] | None = None
    objective: Annotated[Spec, OBJECTIVE] = OBJECTIVE.spec("FaceNetLoss")
    miner: Annotated[Spec, MINER] | None = None
    memory: MemorySettings | None = None
    views: Annotated[Spec, VIEW] = VIEW.spec(
        "symmetric", views=1, crop=(0.5, 1.0), grey=0.0, blur=0.0
    )
    epochs: Count = 10
    warmup_epochs: NonNegative = 1.0
    classes_per_batch: Count = 8
    per_class: Count = 8
    cameras: Literal["any", "distinct"] = "any"
    pool: Pool | None = None
    dim: Width | None = 128
    batchnorm: bool = False
    unit: bool = True
    train_blocks: Index | None = None
    freeze_batchnorm: bool = False
    layer_decay: Share = 1.0
    head_epochs: NonNegative = 0.0
    proxy_lr_factor: Positive = 1.0
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator is None and self.optimizer is None:
            raise ValueError("optimizer: missing, add it (or an estimator, which needs none)")
        for key in fields(self) if self.estimator else ():
            if key.name not in _OF_ESTIMATORS and getattr(self, key.name) != key.default:
                raise ValueError(
                    f"{key.name}: not for an estimator, which is learned without gradients: delete "
                    "it"
                )
        for name, idle in (("layer_decay", 1.0), ("head_epochs", 0.0)):
            if self.train_blocks == 0 and getattr(self, name) != idle:
                raise ValueError(
                    f"{name}: the backbone is not trained (train_blocks: 0): delete one of the two"
                )
        if self.head_epochs > self.epochs:
            raise ValueError(
                f"head_epochs {self.head_epochs:g} is longer than epochs {self.epochs}: lower it"
            )


def finetune(
    backbone: Backbone | str | Path,
    recipe: Recipe,
    out: str | Path,
    *,
    accept_changes: bool = False,
) -> Path:
    """Runs or resumes the recipe's `finetune` section in the run folder `out`; returns the
    embedding folder.

    `accept_changes`: resume even where the images are no longer what it began with.
    """
    settings, seed = recipe.section(Finetune), recipe.values["seed"]
    comm.start(seconds=settings.timeout)
    agree(recipe, accept_changes=accept_changes)
    folder = open_run(Path(out), recipe, accept_changes) / "finetune"
    opened = repooled(open_backbone(backbone, recipe.values["backbone"]), settings.pool)
    if not all(bool(p.isfinite().all()) for p in opened.parameters()):
        raise BackboneError(
            f"{opened.architecture.timm_name}: some of its weights are NaN or Inf: take another "
            "backbone"
        )
    about = {
        "recipe": recipe.digest("seed", "data", "finetune"),
        "backbone": card.weights_digest(opened),
    }
    target = folder / "embedding"
    source, size = recipe.values["data"].build(), opened.architecture.size
    divided = split_classes(
        source.split("train", size), source.split("test", size), settings.held_out
    )
    images, labels_N, _ = divided
    made_of = divided.passport
    if finished(target, about, made_of):
        return target
    if settings.estimator:
        if comm.rank() == 0:
            set_aside(folder, about, made_of)
            learn(
                settings.estimator,
                opened,
                images,
                {**about, **made_of},
                Path(out),
                seed,
                settings.workers,
            )
        comm.patient_barrier()
        return target
    order = make_order(settings, images, labels_N, seed)
    if order.left_out and comm.rank() == 0:
        say(
            "finetune: classes of one image, which has no positive, are left out of all batches: "
            f"{order.left_out}"
        )
    system = make_system(opened, settings, divided.classes, seed)
    views = settings.views.build()
    inputs = partial(
        make_inputs, partial(views, dtype=settings.dtype), system.model, labels_N, seed
    )
    if comm.rank() == 0:
        set_aside(folder, about, made_of)
    comm.barrier()
    must_match = {**made_of, "batch": order.batch, **about}
    host_crops, kept = settings.host_crops(views, size), partial(keep_run, Path(out), recipe)
    how: dict[str, Any] = {"cuts": host_crops, "kept": kept, "accept_changes": accept_changes}
    train(Job("finetune", folder, system, images, order, inputs, must_match, **how), settings)
    if comm.rank() == 0:
        model = system.model
        facts = {
            **about,
            **made_of,
            "method": settings.objective.name,
            "distance": distance(model),
            "epochs": settings.epochs,
            "classes": divided.classes,
        }
        if folded := system.objective.affine():
            model.fold(*folded)
        card.write_model(
            target, embedding_files(model), card.facts(model.architecture, model.dim, facts)
        )
        say(f"finetune: embedding model in {target}")
    comm.barrier()
    return target


def learn(
    estimator: Spec,
    backbone: Backbone,
    images: Images,
    about: dict[str, Any],
    out: Path,
    seed: int,
    workers: int | None,
) -> None:
    """Features of the frozen backbone -> the estimator -> the embedding folder, on one rank."""
    function = embedder(backbone.to(comm.device()), backbone.architecture)
    key = (about["backbone"], *cache_key(images))
    processes = workers_for(images, workers)
    x_ND, labels_N, dropped, _ = cached(
        out / "features", key, lambda: extract(function, images, workers=processes)
    )
    model = folded(backbone, estimator, x_ND, labels_N, seed)
    facts = {
        **about,
        "method": estimator.name,
        "distance": distance(model),
        "classes": len(torch.unique(labels_N)),
        "rows": len(labels_N),
        "dropped": dropped,
    }
    target = out / "finetune" / "embedding"
    card.write_model(
        target, embedding_files(model), card.facts(model.architecture, model.dim, facts)
    )
    say(f"finetune: embedding model in {target}")


def distance(model: Embedding) -> str:
    """What says how near two of its vectors are."""
    return "cosine" if model.unit else "euclidean"


def finished(target: Path, about: dict[str, Any], made_of: dict[str, Any]) -> bool:
    """Whether the embedding that the recipe asks for is there, of these images and labels. Raises
    RunError if damaged.

    What an earlier release wrote says less of them, and is believed in the rest.
    """
    try:
        done = card.is_done(target, about)
    except RunError as error:
        raise RunError(f"{error}; or remove {target}: the same command makes it again") from error
    return done and not differences(card.read(target), made_of)


def set_aside(folder: Path, about: dict[str, Any], made_of: dict[str, Any]) -> None:
    """Renames an earlier fine-tuning by another recipe or of another backbone, or a finished one of
    other images: this one begins anew. One that was stopped is resumed, or refused by its
    checkpoint.
    """
    earlier: dict[str, Any] = card.read(folder / "embedding")
    made_of = made_of if earlier else {}
    for manifest in [] if earlier else sorted(folder.glob("checkpoints/step_*/manifest.json"))[-1:]:
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(manifest.read_bytes())
    if not isinstance(earlier, dict) or not earlier:
        return
    if any(earlier.get(key) != value for key, value in about.items()) or differences(
        earlier, made_of
    ):
        free = next(
            n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists()
        )
        folder.rename(folder.with_name(f"{folder.name}.{free}"))
        say(
            "finetune: the earlier one, of another recipe, backbone or data, is now "
            f"{folder.name}.{free}"
        )


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


def make_system(backbone: Backbone, settings: Finetune, classes: int, seed: int) -> Any:
    """The embedding model and its objective on this rank's device; head and proxies drawn by the
    seed alone.
    """
    return global_batchnorm(build_system(backbone, settings, classes, seed).train()).to(
        comm.device()
    )


def build_system(backbone: Backbone, settings: Finetune, classes: int, seed: int) -> FinetuneModule:
    """The same before it knows of ranks and devices. Raises RunError or BackboneError when its
    parts do not fit.
    """
    torch.manual_seed(rng.seed(seed, "finetune", "weights"))
    model = Embedding(backbone, settings.dim, unit=settings.unit, batchnorm=settings.batchnorm)
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
    )


def make_inputs(
    views: Callable[..., list[Tensor]], model: Embedding, labels_N: Tensor, seed: int, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One view of each image on the device, and its class."""
    (view_BCHW,) = make_views(views, model.architecture, seed, batch)
    return view_BCHW, labels_N[batch.ids_B].to(view_BCHW.device, non_blocking=True)
