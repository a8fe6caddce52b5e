"""A recipe as one typed dataclass: its sections, and every key of theirs, on one page.

`FREE` marks a key that changes nothing of what is trained: a run is resumed with another value of
it. Keys of what is chosen by name (a method, an optimizer, a source, …) are the arguments of its
constructor, `backbone`'s are those of `models.Architecture`; docs/recipes.md lists them all.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from dataclasses import Field as Key
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from lookalike.data import SOURCES
from lookalike.data.reader import HostCrops
from lookalike.engine import ENGINES
from lookalike.engine.speed import Speed
from lookalike.evaluation.features import Extracting
from lookalike.evaluation.few import FewLabels
from lookalike.evaluation.protocols import PROTOCOLS
from lookalike.methods import METHODS
from lookalike.metric.choices import MINER, OBJECTIVE
from lookalike.metric.fit_head import ESTIMATOR
from lookalike.metric.memory import MemorySettings
from lookalike.models import Architecture, Pool
from lookalike.models.taps import Tap
from lookalike.nn.method import Method
from lookalike.optim import OPTIMIZERS, SCHEDULE, Course, warm_up
from lookalike.recipe import (
    FREE,
    MOVED_0_2,
    SINCE_0_2,
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
from lookalike.views.mixing import Mixing

_GIVEN = {"module", "optimizer", "accumulate", "precision", "clip", "late"}
ENGINE = Choice(ENGINES, supplied=_GIVEN, moved={"precision", "clip"})
OPTIMIZER = Choice(OPTIMIZERS, supplied={"groups"})
METHOD = Choice(METHODS, supplied={"backbone"})
SOURCE = Choice(SOURCES)
VIEW = Choice(VIEWS)
PROTOCOL = Choice(PROTOCOLS)
# What fine-tuning by an estimator knows; gradients know everything but the estimator.
_OF_ESTIMATORS = ("estimator", "held_out", "pool", "workers", "timeout")

# What stands before the probe's scores, and no data set can be called.
_PROBED = ("untrained", "pixels", "few", "quality", "linear")

HeldOut = Annotated[float, Field(ge=0, lt=1)]
Strength = Annotated[float, Field(gt=0, le=1e6)]
Reranking = TypedDict("Reranking", {"k1": Count, "k2": Count, "lambda": Fraction}, total=False)
Reranking.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Training(Speed):
    """What every training asks for. Learning rates are final; `final_lr` is a share of the base
    rate, to which a schedule `cosine` or `linear` goes.

    `warmup_start`: the share of the base rate at which the warm-up begins, by default one step of
    it; `schedule`: how the rate goes on after the warm-up; `final_weight_decay`: what the weight
    decay goes to by a half cosine, by default it stays; `clip`: the largest norm of a step's
    gradient, 0 for no clipping; `engine`: by default zero (DeepSpeed) on several ranks, else plain;
    `workers`: loader processes of each rank, by default none for images in memory; `max_bad`: the
    share of images that may be unreadable (at least 100) before the run stops; `keep`: how many
    checkpoints stay; `health_every`: steps between measurements of the embeddings, 0 for none;
    `on_collapse`: what a collapse of the embeddings does; `timeout`: seconds without a finished
    step after which the job ends (LOOKALIKE_TIMEOUT in the environment wins); `crop_on`: where
    views are cut, on the `device` from a canvas decoded once, or on the `host` from the full-size
    image, as the papers do: sharper small crops for more work of the processor; `decode`: where
    JPEGs become canvases, on the `host` or by nvJPEG on the `device`, whose pixels differ a little,
    for loader processes that then only read.
    """

    optimizer: Annotated[Spec, OPTIMIZER]
    epochs: Count
    warmup_epochs: NonNegative = 10.0
    warmup_start: Annotated[Fraction, SINCE_0_2] | None = None
    schedule: Annotated[Spec, SCHEDULE, SINCE_0_2] = SCHEDULE.spec("cosine")
    final_lr: Fraction = 0.001
    final_weight_decay: NonNegative | None = None
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
    decode: Annotated[Literal["host", "device"], SINCE_0_2] = "host"

    def host_crops(self, views: Any, size: Size) -> HostCrops | None:
        """How the host crops views of `size`, or None where the device does."""
        return HostCrops(views, size) if self.crop_on == "host" else None

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} is longer than epochs {self.epochs}: lower "
                "it"
            )
        if self.schedule.name in ("steps", "constant") and self.final_lr != Training.final_lr:
            raise ValueError(
                f"final_lr: schedule {self.schedule.name} goes to no rate of its own: delete it"
            )
        if self.decode == "device" and self.crop_on == "host":
            raise ValueError(
                "decode: device makes canvases, of which crop_on: host makes none: decode: host, "
                "or crop_on: device"
            )
        if self.schedule.name == "steps":
            self._refuse_steps(self.schedule.args["at"])

    def _refuse_steps(self, at: Sequence[float]) -> None:
        if list(at) != sorted(set(at)):
            raise ValueError(f"schedule.at: {listed(at)}: let the epochs ascend")
        if at[0] < self.warmup_epochs:
            raise ValueError(
                f"schedule.at: epoch {at[0]:g} lies in the warm-up of {self.warmup_epochs:g}: "
                "shorten that, or step later"
            )
        if at[-1] >= self.epochs:
            raise ValueError(
                f"schedule.at: epoch {at[-1]:g} is never reached in {self.epochs}: lower it, or "
                "raise epochs"
            )

    def rate(self, step: int, per_epoch: int) -> float:
        """The factor on every base rate at `step` (from 0), in epochs of so many steps."""
        steps, warmup = self.epochs * per_epoch, round(self.warmup_epochs * per_epoch)
        if step < warmup:
            return warm_up(step, warmup, self.warmup_start)
        course = Course(step, steps, warmup, per_epoch, self.final_lr)
        factor: float = self.schedule.build(course)
        return factor

    @property
    def course(self) -> str:
        """The schedule in words."""
        name, args = self.schedule.name, self.schedule.args
        if name == "steps":
            words = f"times {args['factor']:g} at epochs {listed(args['at'])}"
        else:
            ends = name in ("cosine", "linear")
            words = f"{name} to {self.final_lr:g} of the rate" if ends else name
        if not self.warmup_epochs:
            return f"{words}, no warm-up"
        start = "" if self.warmup_start is None else f" from {self.warmup_start:g} of the rate"
        return f"{words}, after a warm-up of {self.warmup_epochs:g} epochs{start}"


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
class Extraction:
    """How images go once through a frozen model, on all ranks. `batch`: how many at once on each
    GPU: on a CPU they go through in parts of one size, so that features have the same bits on any
    number of ranks; `workers`: loader processes of each rank, by default none for images in memory;
    `precision`: what the network computes in, by autocast; `store`: as what the features are kept
    on disk, float16 in half the space.
    """

    batch: Count = 256
    workers: Index | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    store: Literal["float32", "float16"] = "float32"

    @property
    def how(self) -> Extracting:
        """The same for `evaluation.features`."""
        return Extracting(self.batch, self.workers, self.precision, self.store)


@dataclass(frozen=True, kw_only=True)
class Probe(Extraction):
    """Classifiers on frozen features, by the papers' `protocols`, and weighted kNN.

    `k`: of how many neighbours, one number or several; `temperature`: of their votes. `grid`,
    `held_out`, `max_iterations`: the L2 strengths that `lbfgs` chooses from, the share of train
    that every protocol holds out of each class to choose by, and the most iterations of a fit.
    `baselines`: raw pixels and the untrained backbone, both, none or a list. `blocks`: the features
    of so many of the backbone's last blocks beside one another; `layer`: of which block the last of
    them is, -1 the last; `tokens`: how the tokens of a block become a feature, by default as the
    backbone pools, `cls_mean` the class token beside the mean of the patches. `few`: the same with
    few labels; `quality`: measures of features without labels; `data`: more sets of images with
    labels, by names of your own, beside the recipe's.
    """

    protocols: tuple[Annotated[Spec, PROTOCOL], ...] = (PROTOCOL.spec("lbfgs"),)
    k: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = 20
    temperature: Positive = 0.07
    grid: Annotated[tuple[Strength, ...], Field(min_length=1)] = linear.GRID
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    max_iterations: Count = 300
    baselines: bool | tuple[Literal["untrained", "pixels"], ...] = True
    blocks: Count = 1
    layer: Annotated[int, Field(le=-1)] = -1
    tokens: Literal["pool", "token", "mean", "cls_mean"] = "pool"
    few: FewLabels | None = None
    quality: bool = False
    data: dict[str, Annotated[Spec, SOURCE]] | None = None

    def __post_init__(self) -> None:
        for name in self.data or {}:
            if name in (*_PROBED, *PROTOCOLS) or name.startswith("knn"):
                raise ValueError(
                    f"data: {name} is a name of scores, as {name}/top1: give these images another"
                )
        names = [spec.name for spec in self.protocols]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(
                f"protocols: {twice} stands twice, and its scores have one name: remove one"
            )
        for protocol in self.protocols:
            protocol.build()  # whose keys may contradict one another

    @property
    def ks(self) -> tuple[int, ...]:
        """The numbers of neighbours, ascending."""
        return (self.k,) if isinstance(self.k, int) else tuple(sorted(set(self.k)))

    @property
    def tap(self) -> Tap:
        """Which of the backbone's features are probed."""
        return Tap(self.layer, self.blocks, self.tokens)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The baselines, by name."""
        if isinstance(self.baselines, bool):
            return ("untrained", "pixels") if self.baselines else ()
        return self.baselines


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A linear classifier of the frozen backbone's patches, whose logits are brought bilinearly to
    the pixels, scored by mIoU; no augmentation.

    `data`: images with masks, of which the test set is scored; `blocks`: the features of so many of
    the last blocks beside one another; `lrs`: the learning rates, all learned at once, of which the
    one with the best mIoU on held-out images is scored; `held_out`: the share of the train images
    that it is chosen by, of a single rate nothing; `epochs`: passes over the others; `batch`:
    images of a step, over all ranks; `optimizer`: AdamW, or SGD with momentum 0.9; `weight_decay`:
    of the layer's weights; `baselines`: the pixels of patches and the untrained backbone, both,
    none or a list; `examples`: test images in segment.html, 0 for no page; `clusters`: groups of
    their patches by k-means; `workers`: loader processes of each rank; `precision`: what the
    network computes in, by autocast.
    """

    data: Annotated[Spec, SOURCE]
    blocks: Count = 1
    lrs: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)] = (1e-4, 1e-3, 1e-2)
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epochs: Count = 10
    batch: Count = 16
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: NonNegative = 1e-4
    baselines: bool | tuple[Literal["untrained", "pixels"], ...] = True
    examples: Annotated[int, Field(ge=0, le=200)] = 12
    clusters: Annotated[int, Field(ge=2, le=32)] = 8
    workers: Index | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The baselines, by name."""
        if isinstance(self.baselines, bool):
            return ("untrained", "pixels") if self.baselines else ()
        return self.baselines


@dataclass(frozen=True, kw_only=True)
class Classify(Training):
    """A classifier: the backbone and a linear layer, trained on the train images' labels, scored
    once on test. `batch` is global and per step; `accumulate` cuts it into that many losses.

    `pool`: another pooling than the backbone's own. `train_blocks`: how many of the backbone's last
    blocks are trained, with what follows them; by default all of it, 0: the linear layer alone;
    `freeze_batchnorm`: its BatchNorms are not; `layer_decay`: a layer's rate as a share of the next
    one's; `head_epochs`: how long the backbone waits for the layer; `head_lr_factor`: the rate of
    the layer, in rates of the rest; `dropout`: of the features. `label_smoothing`: of the targets;
    `mixing`: mixup and CutMix of pairs, by their Beta parameters, of which a batch must hold a
    whole number on each rank; `class_weights`: of the loss, none, balanced (each class alike), or
    one number a class; `sampling`: balanced draws each class equally often; `multi_label`: an image
    has any number of labels, each told by a sigmoid; `ema`: scores and folder are of the average of
    the weights, which keeps this share of itself at each step.

    `held_out`: the share of each class of train that is not trained on, but tells the temperature
    of the probabilities (Guo 2017); 0: none is fitted, and the temperature is 1. `intervals`: the
    level of those of the scores. `few`: beside the classifier the same training with few labels,
    of which scores remain; `few_epochs`: how long, by default `epochs`. `baseline`: all of it also
    from an untrained network.
    """

    epochs: Count = 10
    warmup_epochs: NonNegative = 1.0
    batch: Count = 256
    accumulate: Count = 1
    views: Annotated[Spec, VIEW] = VIEW.spec("classify")
    pool: Pool | None = None
    train_blocks: Index | None = None
    freeze_batchnorm: bool = False
    layer_decay: Share = 1.0
    head_epochs: NonNegative = 0.0
    head_lr_factor: Positive = 1.0
    dropout: HeldOut = 0.0
    label_smoothing: HeldOut = 0.0
    mixing: Mixing | None = None
    class_weights: Literal["none", "balanced"] | tuple[Positive, ...] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    multi_label: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    held_out: HeldOut = 0.0
    intervals: Annotated[HeldOut, FREE] = 0.95
    few: Annotated[FewLabels, FREE] | None = None
    few_epochs: Annotated[Count, FREE] | None = None
    baseline: Annotated[Literal["none", "untrained"], FREE] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse_resting(self)
        if self.batch % self.accumulate:
            raise ValueError(
                f"batch {self.batch} does not divide into accumulate: {self.accumulate} "
                "micro-batches"
            )
        if (made := self.views.build().total) != 1:
            raise ValueError(
                f"views: {made} of each image, but a classifier learns from one: set views.views: 1"
            )
        if self.multi_label and self.sampling == "balanced":
            raise ValueError("sampling: balanced needs one label an image: delete one of the two")
        if self.multi_label and self.few:
            raise ValueError("few: draws images by their one label: delete it, or multi_label")
        if self.few_epochs and not self.few:
            raise ValueError("few_epochs: there is no few: add it, or delete this")


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
    the rest; `ema`: the decay of an exponential moving average of the weights over the steps, which
    is what is kept at the end, null for none.
    """

    optimizer: Annotated[Spec, OPTIMIZER] | None = None  # type: ignore[assignment]  # __post_init__
    estimator: Annotated[Spec, ESTIMATOR] | None = None
    objective: Annotated[Spec, OBJECTIVE] = field(
        default_factory=partial(OBJECTIVE.spec, "FaceNetLoss")
    )
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
    ema: Annotated[HeldOut, SINCE_0_2] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator is None and self.optimizer is None:
            raise ValueError("optimizer: missing, add it (or an estimator, which needs none)")
        if self.estimator:
            self._refuse_gradients()
        _refuse_resting(self)

    def _refuse_gradients(self) -> None:
        for key in fields(self):
            if key.name not in _OF_ESTIMATORS and getattr(self, key.name) != _default(key):
                raise ValueError(
                    f"{key.name}: not for an estimator, which is learned without gradients: delete "
                    "it"
                )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Extraction):
    """Retrieval, re-identification or verification, by what is known of the images, or by `task`.

    Of `data`'s test split; without it of the recipe's data, of the classes held out of fine-tuning
    if there is one. Of retrieval: `whole_list: false` leaves out mAP, the only measure that needs
    every place of every list: several times faster, all others the same to the bit.
    Of verification: `fars`, of those 0.1, 0.01 and 0.001 that there are pairs for.
    Of re-identification: `ap`, k-reciprocal `rerank`, `multi_query`. `intervals`: their level, 0
    for none. `examples`: queries in evaluate.html.
    """

    task: Literal["auto", "retrieval", "reidentification", "verification"] = "auto"
    data: Annotated[Spec, SOURCE] | None = None
    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    whole_list: bool = True
    ap: AP = "step"
    rerank: bool | Reranking = False
    multi_query: bool = False
    nmi: bool = False
    fars: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    intervals: HeldOut = 0.95
    breakdown: bool = True
    examples: Annotated[int, Field(ge=0, le=1000)] = 16


@dataclass(frozen=True, kw_only=True)
class Export:
    """The exported folder; `onnx` adds `model.onnx`, images in 0 … 1 in, features out, any batch
    size; of a classifier logits, or with `softmax` probabilities at its temperature.
    """

    onnx: bool = True
    opset: Annotated[int, Field(ge=18, le=23)] = 20
    softmax: bool = False
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
    segment: Annotated[Segment, FREE] | None = None
    classify: Annotated[Classify, SINCE_0_2] | None = None
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


def _default(key: Key[Any]) -> Any:
    return key.default if key.default_factory is MISSING else key.default_factory()


def listed(epochs: Sequence[float]) -> str:
    """Numbers as a recipe has them."""
    return ", ".join(f"{epoch:g}" for epoch in epochs)


def _refuse_resting(section: Classify | Finetune) -> None:
    """Raises ValueError for rates of a backbone that is not trained, and for one that always
    waits.
    """
    for name, usual in (("layer_decay", 1.0), ("head_epochs", 0.0)):
        if section.train_blocks == 0 and getattr(section, name) != usual:
            raise ValueError(
                f"{name}: the backbone is not trained (train_blocks: 0): delete one of the two"
            )
    if section.head_epochs > section.epochs:
        raise ValueError(
            f"head_epochs {section.head_epochs:g} is longer than epochs {section.epochs}: lower it"
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
