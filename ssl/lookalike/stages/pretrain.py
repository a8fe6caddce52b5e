"""Pretraining: pictures without labels -> a backbone folder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from lookalike import card, comm, draw
from lookalike.backbones import Architecture, folder_files, make_backbone
from lookalike.blocks import global_batchnorm
from lookalike.checkpoint import open_run
from lookalike.data.loader import Batch, Order
from lookalike.log import say
from lookalike.loop import Job, Settings, make_views, train
from lookalike.methods import METHODS
from lookalike.recipe import Choice, Count, Recipe, Spec
from lookalike.views import VIEWS

VIEW = Choice(VIEWS)


@dataclass(frozen=True, kw_only=True)
class Pretrain(Settings):
    """Learning without labels. `batch` is global and per step; `accumulate` cuts it into that many losses."""

    method: Annotated[Spec, Choice(METHODS, given={"backbone"})]
    batch: Count
    accumulate: Count = 1
    views: Annotated[Spec, VIEW] = VIEW.spec("asymmetric")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into accumulate: {self.accumulate} micro-batches")
        if self.batch // self.accumulate < 2:
            raise ValueError("a micro-batch of one picture has no statistics: raise batch or lower accumulate")
        if self.optimizer.name == "lars" and self.engine is not None and self.engine.args.get("stage", 0) > 0:
            raise ValueError(
                "lars needs whole layers, ZeRO stage 1 shows it one flat tensor: engine.stage: 0, or adamw"
            )


def pretrain(recipe: Recipe, out: str | Path, method: Callable[..., nn.Module] | None = None) -> Path:
    """Runs or resumes the recipe's `pretrain` section in the run folder `out`; returns the backbone folder.

    `method`: a class of your own in place of the recipe's, called as method(backbone).
    """
    settings, seed = recipe.section(Pretrain), recipe.values["seed"]
    comm.start(seconds=settings.timeout)
    folder = open_run(Path(out), recipe)
    target = folder / "backbone"
    about: dict[str, Any] = {"recipe": recipe.digest("seed", "data", "backbone", "pretrain")}
    if card.is_done(target, about):
        return target
    pictures = recipe.values["data"].build().split("train")
    order = Order(len(pictures), settings.batch, settings.accumulate, seed)
    module = make_method(recipe, method)
    inputs = partial(make_inputs, settings.views.build(), module.backbone.architecture, seed)
    fixed = {"data": pictures.fingerprint, "batch": settings.batch, "pictures": len(pictures)}
    train(Job("pretrain", folder, module, pictures, order, inputs, fixed), settings)
    if comm.rank() == 0:
        about |= {"method": settings.method.name, "epochs": settings.epochs, "data": pictures.fingerprint}
        backbone = module.backbone
        card.write_model(target, folder_files(backbone), card.facts(backbone.architecture, backbone.dim, about))
        say(f"pretrain: backbone in {target}")
    comm.barrier()
    return target


def make_method(recipe: Recipe, method: Callable[..., nn.Module] | None = None) -> Any:
    """The recipe's method on its backbone, on this rank's device, with weights that only the seed decides."""
    torch.manual_seed(draw.seed(recipe.values["seed"], "weights"))
    backbone = make_backbone(recipe.values["backbone"])
    module = method(backbone) if method else recipe.section(Pretrain).method.build(backbone)
    return global_batchnorm(module.train()).to(comm.device())


def make_inputs(views: Any, architecture: Architecture, seed: int, batch: Batch) -> tuple[list[Tensor]]:
    """The method's input for a batch: its V views."""
    return (make_views(views, architecture, seed, batch),)
