"""Fine-tuning: a backbone and labels of some classes -> an embedding folder, by a metric-learning objective."""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lookalike import card, comm, draw
from lookalike.backbones import Backbone, open_backbone
from lookalike.blocks import Loss
from lookalike.checkpoint import open_run
from lookalike.data.loader import Batch, workers_for
from lookalike.data.pictures import Pictures
from lookalike.features import cached, embed, extract, identity
from lookalike.log import say
from lookalike.loop import OPTIMIZER, Job, Settings, make_views, train
from lookalike.metric.classes import of_classes, split_classes
from lookalike.metric.embedding import Embedding, embedding_files
from lookalike.metric.fold import ESTIMATOR, folded
from lookalike.metric.memory import MemorySettings
from lookalike.metric.objectives import MINER, OBJECTIVE, Objective
from lookalike.metric.sampler import PKOrder
from lookalike.recipe import Choice, Count, NonNegative, Recipe, Spec, Width
from lookalike.statistics import global_batchnorm
from lookalike.views import VIEWS

VIEW = Choice(VIEWS)
# What fine-tuning by an estimator knows; gradients know everything but the estimator.
_OF_ESTIMATORS = ("estimator", "held_out", "workers", "timeout")


@dataclass(frozen=True, kw_only=True)
class Finetune(Settings):
    """Metric learning on the first classes; the share `held_out` of the classes is never shown.

    A batch holds `per_class` pictures of each of `classes_per_batch` classes, over all ranks; `memory` compares it
    with earlier ones; `freeze` trains the head alone. `estimator` learns the head on features of the frozen backbone
    instead, without gradients: then there is no optimizer, and only `held_out` and `workers` beside it.
    """

    optimizer: Annotated[Spec, OPTIMIZER] | None = None  # type: ignore[assignment]  # __post_init__ asks for one
    estimator: Annotated[Spec, ESTIMATOR] | None = None
    objective: Annotated[Spec, OBJECTIVE] = OBJECTIVE.spec("FaceNetLoss")
    miner: Annotated[Spec, MINER] | None = None
    memory: MemorySettings | None = None
    views: Annotated[Spec, VIEW] = VIEW.spec("symmetric", views=1, crop=(0.5, 1.0), grey=0.0, blur=0.0)
    epochs: Count = 10
    warmup_epochs: NonNegative = 1.0
    classes_per_batch: Count = 8
    per_class: Count = 8
    dim: Width = 128
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.5
    freeze: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator is None and self.optimizer is None:
            raise ValueError("optimizer: missing, add it (or an estimator, which needs none)")
        for key in fields(self) if self.estimator else ():
            if key.name not in _OF_ESTIMATORS and getattr(self, key.name) != key.default:
                raise ValueError(f"{key.name}: not for an estimator, which is learned without gradients: delete it")


class System(nn.Module):
    """What fine-tuning trains: the embedding model and its objective, which may own parameters (proxies)."""

    def __init__(self, model: Embedding, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, view_BCHW: Tensor, labels_B: Tensor) -> Loss:
        """One view of each picture and its class -> the loss over all ranks."""
        loss: Loss = self.objective(self.model.raw(view_BCHW), labels_B)
        return loss


def finetune(backbone: Backbone | str | Path, recipe: Recipe, out: str | Path) -> Path:
    """Runs or resumes the recipe's `finetune` section in the run folder `out`; returns the embedding folder."""
    settings, seed = recipe.section(Finetune), recipe.values["seed"]
    comm.start(seconds=settings.timeout)
    folder = open_run(Path(out), recipe) / "finetune"
    opened = open_backbone(backbone, recipe.values["backbone"])
    about = {"recipe": recipe.digest("seed", "data", "finetune"), "backbone": card.weights_digest(opened)}
    target = folder / "embedding"
    if card.is_done(target, about):
        return target
    everything = recipe.values["data"].build().split("train", opened.architecture.size)
    seen, _ = split_classes(len(everything.classes), settings.held_out)
    pictures, labels_N = of_classes(everything, seen)
    if settings.estimator:
        if comm.rank() == 0:
            set_aside(folder, about)
            learn(settings.estimator, opened, pictures, about, Path(out), seed, settings.workers)
        comm.patient_barrier()
        return target
    order = PKOrder(labels_N, settings.classes_per_batch, settings.per_class, seed)
    system = make_system(opened, settings, len(seen), seed)
    views = settings.views.build()
    inputs = partial(make_inputs, partial(views, dtype=settings.dtype), system.model, labels_N, seed)
    if comm.rank() == 0:
        set_aside(folder, about)
    comm.barrier()
    fixed = {"data": pictures.fingerprint, "batch": order.batch, **about}
    cuts = settings.cuts(views, opened.architecture.size)
    train(Job("finetune", folder, system, pictures, order, inputs, fixed, cuts=cuts), settings)
    if comm.rank() == 0:
        facts = {**about, "method": settings.objective.name, "epochs": settings.epochs, "classes": len(seen)}
        model = system.model
        if folded := system.objective.affine():
            model.fold(*folded)
        card.write_model(target, embedding_files(model), card.facts(model.architecture, model.dim, facts))
        say(f"finetune: embedding model in {target}")
    comm.barrier()
    return target


def learn(
    estimator: Spec,
    backbone: Backbone,
    pictures: Pictures,
    about: dict[str, Any],
    out: Path,
    seed: int,
    workers: int | None,
) -> None:
    """Features of the frozen backbone -> the estimator -> the embedding folder, on one rank."""
    function = embed(backbone.to(comm.device()), backbone.architecture)
    key = (about["backbone"], *identity(pictures))
    processes = workers_for(pictures, workers)
    x_ND, labels_N, dropped, _ = cached(out / "features", key, lambda: extract(function, pictures, workers=processes))
    model = folded(backbone, estimator, x_ND, labels_N, seed)
    facts = {
        **about,
        "method": estimator.name,
        "distance": "cosine" if model.unit else "euclidean",
        "classes": len(torch.unique(labels_N)),
        "rows": len(labels_N),
        "dropped": dropped,
    }
    target = out / "finetune" / "embedding"
    card.write_model(target, embedding_files(model), card.facts(model.architecture, model.dim, facts))
    say(f"finetune: embedding model in {target}")


def set_aside(folder: Path, about: dict[str, Any]) -> None:
    """Renames an earlier fine-tuning by another recipe or of another backbone: this one begins anew."""
    for manifest in sorted(folder.glob("checkpoints/step_*/manifest.json"))[-1:]:
        try:
            earlier = json.loads(manifest.read_bytes())
        except ValueError:
            return
        if isinstance(earlier, dict) and any(earlier.get(key) != value for key, value in about.items()):
            free = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists())
            folder.rename(folder.with_name(f"{folder.name}.{free}"))
            say(f"finetune: the earlier one, of another recipe or backbone, is now {folder.name}.{free}")


def make_system(backbone: Backbone, settings: Finetune, classes: int, seed: int) -> Any:
    """The embedding model and its objective on this rank's device; head and proxies drawn by the seed alone."""
    torch.manual_seed(draw.seed(seed, "finetune", "weights"))
    backbone.requires_grad_(not settings.freeze)
    system = System(Embedding(backbone, settings.dim), make_objective(settings, classes, seed))
    return global_batchnorm(system.train()).to(comm.device())


def make_objective(settings: Finetune, classes: int, seed: int) -> Objective:
    """The section's objective with its miner and memory. Raises RunError when they do not fit one another."""
    chosen = (settings.objective, settings.miner)
    return Objective(*chosen, num_classes=classes, embedding_size=settings.dim, seed=seed, memory=settings.memory)


def make_inputs(
    views: Callable[..., list[Tensor]], model: Embedding, labels_N: Tensor, seed: int, batch: Batch
) -> tuple[Tensor, Tensor]:
    """One view of each picture on the device, and its class."""
    (view_BCHW,) = make_views(views, model.architecture, seed, batch)
    return view_BCHW, labels_N[batch.ids_B].to(view_BCHW.device, non_blocking=True)
