"""A recipe as one typed dataclass: its sections, and every key of theirs, on one page.

`FREE` marks a key that changes nothing of what is trained: a run is resumed with another value of
it. Keys of what is chosen by name (a method, an optimizer, a source, …) are the arguments of its
constructor, `backbone`'s are those of `models.Architecture`; docs/recipes.md lists them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from lookalike.data import SOURCES
from lookalike.data.reader import HostCrops
from lookalike.engine import ENGINES
from lookalike.methods import METHODS
from lookalike.metric.fit_head import ESTIMATOR
from lookalike.metric.memory import MemorySettings
from lookalike.metric.objectives import MINER, OBJECTIVE
from lookalike.models import Architecture, Pool
from lookalike.nn.method import Method
from lookalike.optim import OPTIMIZERS
from lookalike.recipe import (
    FREE,
    MOVED_0_2,
    Choice,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Recipe,
    Share,
    Size,
    Spec,
    Width,
    load,
    page,
    schema,
)
from lookalike.scoring import linear
from lookalike.scoring.reidentification import AP
from lookalike.views import VIEWS

_GIVEN = {"module", "optimizer", "accumulate", "precision", "clip"}
ENGINE = Choice(ENGINES, supplied=_GIVEN, moved={"precision", "clip"})
OPTIMIZER = Choice(OPTIMIZERS, supplied={"groups"})
METHOD = Choice(METHODS, supplied={"backbone"})
SOURCE = Choice(SOURCES)
VIEW = Choice(VIEWS)
# What fine-tuning by an estimator knows; gradients know everything but the estimator.
_OF_ESTIMATORS = ("estimator", "held_out", "pool", "workers", "timeout")

Precision = Literal["fp32", "bf16"]
HeldOut = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(gt=0, le=1e6)]
Reranking = TypedDict("Reranking", {"k1": Count, "k2": Count, "lambda": Fraction}, total=False)
Reranking.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training asks for. Learning rates are final; `final_lr` is a share of the base
    rate.

    `final_weight_decay`: what the weight decay goes to by a half cosine, by default it stays;
    `precision`: bf16 computes in bfloat16 by autocast, weights and statistics stay fp32; `clip`:
    the largest norm of a step's gradient, 0 for no clipping; `engine`: by default zero (DeepSpeed)
    on several ranks, else plain; `workers`: loader processes of each rank, by default none for
    images in memory; `max_bad`: the share of images that may be unreadable (at least 100) before
    the run stops; `keep`: how many checkpoints stay; `health_every`: steps between measurements of
    the embeddings, 0 for none; `on_collapse`: what a collapse of the embeddings does; `timeout`:
    seconds without a finished step after which the job ends (LOOKALIKE_TIMEOUT in the environment
    wins); `crop_on`: where views are cut, on the `device` from a canvas decoded once, or on the
    `host` from the full-size image, as the papers do: sharper small crops for more work of the
    processor.
    """

    optimizer: Annotated[Spec, OPTIMIZER]
    epochs: Count
    warmup_epochs: NonNegative = 10.0
    final_lr: Fraction = 0.001
    final_weight_decay: NonNegative | None = None
    precision: Annotated[Precision, MOVED_0_2] = "fp32"
    clip: Annotated[NonNegative, MOVED_0_2] = 0.0
    engine: Annotated[Spec, ENGINE, FREE] | None = None
    workers: Annotated[Index, FREE] | None = None
    log_every: Annotated[Count, FREE] = 10
    save_every_epochs: Annotated[Count, FREE] = 1
    keep: Annotated[Count, FREE] = 2
    max_bad: Annotated[Fraction, FREE] = 0.001
    health_every: Annotated[Index, FREE] = 25
    on_collapse: Annotated[Literal["warn", "stop"], FREE] = "warn"
    timeout: Annotated[Positive, FREE] = 1800.0
    crop_on: Literal["device", "host"] = "device"

    @property
    def dtype(self) -> torch.dtype:
        """What the network reads: in bf16 bfloat16, which autocast would round to anyway."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def host_crops(self, views: Any, size: Size) -> HostCrops | None:
        """How the host crops views of `size`, or None where the device does."""
        return HostCrops(views, size) if self.crop_on == "host" else None

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than epochs {self.epochs}: lower "
                "it"
            )


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Learning without labels. `batch` is global and per step; `accumulate` cuts it into that many
    losses.

    `micro_batch`: how many images, over all ranks, the backbone sees at once; the loss still spans
    the batch. `knn_every_epochs`: how often kNN-20 of the backbone is logged (2,000 training, 1,000
    test images with labels, which training never sees); 0 for never.
    """

    method: Annotated[Spec, METHOD]
    batch: Count
    accumulate: Count = 1
    micro_batch: Count | None = None
    knn_every_epochs: Annotated[Index, FREE] = 0
    views: Annotated[Spec, VIEW] = VIEW.spec("asymmetric")

    def __post_init__(self) -> None:
        super().__post_init__()
        micro = self.batch // self.accumulate
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} does not divide into accumulate: {self.accumulate} "
                "micro-batches"
            )
        if micro < 2:
            raise ValueError(
                "a micro-batch of one image has no statistics: raise batch or lower accumulate"
            )
        if micro % (self.micro_batch or 1):
            raise ValueError(
                f"batch {self.batch} / accumulate does not divide into micro_batch "
                f"{self.micro_batch}"
            )
        if problem := views_problem(METHODS[self.method.name], self.views.build()):
            raise ValueError(problem)
        if self.optimizer.name == "lars" and self.engine and self.engine.args.get("stage", 0) > 0:
            raise ValueError(
                "lars needs whole layers, ZeRO shows it one flat tensor from stage 1 on: "
                "engine.stage: 0, or adamw"
            )

    @property
    def pieces(self) -> int:
        """How many parts of a micro-batch the backbone sees one after another."""
        return self.batch // self.accumulate // self.micro_batch if self.micro_batch else 1


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Linear probe and weighted kNN on frozen features; `baselines` adds raw pixels and the
    untrained backbone.
    """

    k: Count = 20
    temperature: Positive = 0.07
    grid: Annotated[tuple[Strength, ...], Field(min_length=1)] = linear.GRID
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    max_iterations: Count = 300
    batch: Count = 256
    workers: Index | None = None
    baselines: bool = True


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
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

    optimizer: Annotated[Spec, OPTIMIZER] | None = None  # type: ignore[assignment]  # __post_init__
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
    held_out: HeldOut | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator is None and self.optimizer is None:
            raise ValueError("optimizer: missing, add it (or an estimator, which needs none)")
        if self.estimator:
            self._refuse_gradients()
        for name, usual in (("layer_decay", 1.0), ("head_epochs", 0.0)):
            if self.train_blocks == 0 and getattr(self, name) != usual:
                raise ValueError(
                    f"{name}: the backbone is not trained (train_blocks: 0): delete one of the two"
                )
        if self.head_epochs > self.epochs:
            raise ValueError(
                f"head_epochs {self.head_epochs:g} is longer than epochs {self.epochs}: lower it"
            )

    def _refuse_gradients(self) -> None:
        for key in fields(self):
            if key.name not in _OF_ESTIMATORS and getattr(self, key.name) != key.default:
                raise ValueError(
                    f"{key.name}: not for an estimator, which is learned without gradients: delete "
                    "it"
                )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Retrieval, re-identification or verification, by what is known of the images, or by `task`.

    Of `data`'s test split; without it of the recipe's data, of the classes held out of fine-tuning
    if there is one. Of verification: `fars`, of those 0.1, 0.01 and 0.001 that there are pairs for.
    Of re-identification: `ap`, k-reciprocal `rerank`, `multi_query`. `intervals`: their level, 0
    for none. `examples`: queries in evaluate.html.
    """

    task: Literal["auto", "retrieval", "reidentification", "verification"] = "auto"
    data: Annotated[Spec, SOURCE] | None = None
    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    ap: AP = "step"
    rerank: bool | Reranking = False
    multi_query: bool = False
    nmi: bool = False
    fars: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    intervals: HeldOut = 0.95
    breakdown: bool = True
    examples: Annotated[int, Field(ge=0, le=1000)] = 16
    batch: Count = 256
    workers: Index | None = None


@dataclass(frozen=True, kw_only=True)
class Export:
    """The exported folder; `onnx` adds `model.onnx`, images in 0 … 1 in, features out, any batch
    size.
    """

    onnx: bool = True
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    tolerance: NonNegative = 1e-4


@dataclass(frozen=True, kw_only=True)
class Experiment(Recipe):
    """A whole recipe: what to train on what, and what becomes of it. Later sections than those
    `fixed` may change in a resume: what they ask for is done again.
    """

    fixed = ("seed", "data", "backbone", "pretrain")

    seed: Index = 0
    data: Annotated[Spec, SOURCE]
    backbone: Architecture
    pretrain: Pretrain | None = None
    probe: Annotated[Probe, FREE] | None = None
    finetune: Finetune | None = None
    evaluate: Annotated[Evaluate, FREE] | None = None
    export: Annotated[Export, FREE] | None = None

    def __post_init__(self) -> None:
        channels = getattr(self.data.make, "channels", None) or self.data.args.get("channels")
        if self.backbone.name and isinstance(channels, int) and channels != self.backbone.channels:
            raise ValueError(
                f"backbone.channels: {self.backbone.channels}, but data {self.data.name} gives "
                f"{channels}: make them equal"
            )


def views_problem(method: type[Method], views: Any) -> str:
    """Why the method cannot take these views, or nothing."""
    needed, made = method.n_views, views.total
    if made == needed or (made > needed and method.more_views):
        return ""
    return (
        f"views: {made} of each image, but {method.__name__} compares {needed}: set views.views: "
        f"{needed}"
    )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """A checked recipe. `overrides` are `key.path=value`.

    Raises RecipeError with a line for every problem.
    """
    return load(path, overrides, Experiment)


def recipe_page() -> str:
    """The same for readers, docs/recipes.md."""
    return page(Experiment)


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors."""
    return schema(Experiment)
