"""What a recipe will do, before it is done: resolved values, shapes, parameters, steps, optimizer
groups, memory.
"""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lookalike.data.images import Images
from lookalike.data.order import EpochOrder
from lookalike.metric.classes import split_classes
from lookalike.models import Backbone
from lookalike.optim import parameter_groups
from lookalike.pipeline import bare, preflight, tuned
from lookalike.recipe import Recipe, sides
from lookalike.stages.finetune import Finetune, build_system, make_order
from lookalike.stages.pretrain import Pretrain, make_method


def show(recipe: Recipe) -> str:
    """The resolved recipe and what follows from it: shapes, parameters, steps, optimizer groups,
    memory.
    """
    preflight(recipe)
    lines = [recipe.text().rstrip(), ""]
    backbone = bare(recipe)
    images = recipe.values["data"].build().split("train", backbone.architecture.size)
    shape = "×".join(map(str, images.shape))
    lines.append(f"data        {len(images)} images of {shape}, {len(images.classes)} classes")
    if recipe.values["pretrain"]:
        lines += _training(recipe, len(images))
    else:
        lines += _shapes(backbone)
    if recipe.values["finetune"]:
        lines += _tuning(recipe, images)
    return "\n".join(lines)


def _shapes(backbone: Backbone) -> list[str]:
    a = backbone.architecture
    shapes = f"(B, {a.channels}, {', '.join(map(str, sides(a.size)))}) -> (B, {backbone.dim})"
    return [f"backbone    {a.timm_name}: {shapes}, {_parameters(backbone)}"]


def _training(recipe: Recipe, images: int) -> list[str]:
    settings = recipe.section(Pretrain)
    module = make_method(recipe)
    order = EpochOrder(images, settings.batch, settings.accumulate, recipe.values["seed"])
    optimizer = settings.optimizer.build(parameter_groups(module))
    steps = settings.epochs * order.steps_per_epoch
    lines = _shapes(module.backbone)
    lines.append(
        f"method      {settings.method.name}: {module.n_views} views, {_parameters(module)} with "
        "its heads"
    )
    lines.append(
        f"steps       {steps} = {settings.epochs} epochs × {order.steps_per_epoch} of "
        f"{settings.batch} images"
    )
    return lines + _groups(optimizer, module, settings.optimizer.name)


def _tuning(recipe: Recipe, images: Images) -> list[str]:
    settings, seed, backbone = recipe.section(Finetune), recipe.values["seed"], tuned(recipe)
    size = backbone.architecture.size
    divided = split_classes(
        images, recipe.values["data"].build().split("test", size), settings.held_out
    )
    labels_N = divided.labels_N
    classes = f"{len(labels_N)} images of {divided.classes} classes, {len(divided.unseen)} of others to score"
    if settings.estimator:
        return [f"finetune    {settings.estimator.name} on features (B, {backbone.dim}): {classes}"]
    system = build_system(backbone, settings, divided.classes, seed)
    order = make_order(settings, divided.seen, labels_N, seed)
    chosen: Any = settings.optimizer
    optimizer = chosen.build(parameter_groups(system))
    shapes = f"(B, {backbone.dim}) -> (B, {system.model.dim})"
    steps = settings.epochs * order.steps_per_epoch
    return [
        f"finetune    {settings.objective.name}: {classes}",
        f"embedding   {shapes}, {_parameters(system)} with the objective's",
        f"steps       {steps} = {settings.epochs} epochs × {order.steps_per_epoch} of "
        f"{order.batch} images",
        *_groups(optimizer, system, chosen.name),
    ]


def _groups(optimizer: Optimizer, module: nn.Module, name: str) -> list[str]:
    lines = []
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        lines.append(
            f"group       {group['name']}: {len(group['params'])} tensors, {count:,} numbers, "
            f"lr {group['base_lr']:g}, weight decay {group['weight_decay']:g}"
        )
    frozen = [p.numel() for p in module.parameters() if not p.requires_grad]
    if frozen:
        lines.append(f"frozen      {len(frozen)} tensors, {sum(frozen):,} numbers")
    return [
        *lines,
        f"memory      {_mebibytes(module, name)} MiB of weights, gradient and optimizer state, "
        "without activations",
    ]


def _parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,} parameters"


def _mebibytes(module: nn.Module, optimizer: str) -> int:
    """fp32 weights and, of those that are trained, the gradient and one (momentum) or two (Adam)
    moments.
    """
    more = 3 if optimizer == "adamw" else 2
    return round(
        4 * sum((1 + more * p.requires_grad) * p.numel() for p in module.parameters()) / 2**20
    )
