"""What a recipe will do, before it is done: resolved values, shapes, parameters, steps, optimizer
groups, memory.
"""

from torch import nn
from torch.optim import Optimizer

from lookalike.data.images import Images
from lookalike.experiment import Experiment, Pretrain, Training
from lookalike.geometry import sides
from lookalike.models import Backbone
from lookalike.nn.ema import Averaged
from lookalike.pipeline import Plan, bare, plan
from lookalike.runs import Run
from lookalike.stages import classify, finetune, pretrain
from lookalike.training.loop import make_optimizer


def show(recipe: Experiment) -> str:
    """The resolved recipe and what follows from it: shapes, parameters, steps, optimizer groups,
    memory.
    """
    run = Run(recipe)
    planned = plan(run)
    return "\n".join([recipe.text().rstrip(), "", *describe(run, planned)])


def describe(run: Run, planned: Plan) -> list[str]:
    """The jobs of a plan, as lines."""
    lines = [_data(run.images("train")), *run.told(), *_shapes(bare(run, planned.pretrain))]
    lines += [f"weights     {planned.taken.line()}"] if planned.taken else []
    if planned.pretrain and planned.pretrain.work:
        lines += _pretraining(planned.pretrain.settings, planned.pretrain.work)
    if planned.classify:
        lines += _classifying(planned.classify)
    if planned.finetune:
        lines += _finetuning(planned.finetune)
    return lines


def _data(images: Images) -> str:
    shape = "×".join(map(str, images.shape))
    raw = "" if images.form.plain else f", {images.form.words}"
    return f"data        {len(images)} images of {shape}{raw}, {len(images.classes)} classes"


def _shapes(backbone: Backbone) -> list[str]:
    a = backbone.architecture
    shapes = f"(B, {a.channels}, {', '.join(map(str, sides(a.size)))}) -> (B, {backbone.dim})"
    return [f"backbone    {a.timm_name}: {shapes}, {_parameters(backbone)}"]


def _pretraining(settings: Pretrain, work: pretrain.Work) -> list[str]:
    module = work.module
    views = f"{module.n_views} views, {_parameters(module)} with its heads"
    return [
        f"method      {settings.method.name}: {views}",
        _steps(settings, work.order.steps_per_epoch, settings.batch),
        *_groups(settings, module),
    ]


def _classifying(job: classify.Job) -> list[str]:
    settings, course = job.settings, job.courses[0]
    kind = "any number of labels an image" if settings.multi_label else "one label an image"
    held = f", {len(job.held_out)} held out for the temperature" if len(job.held_out) else ""
    more = len(job.courses) - 1
    shapes = f"(B, {job.backbone.dim}) -> (B, {len(job.classes)})"
    return [
        f"classify    {len(job.classes)} classes, {kind}: {len(course.targets)} images to learn "
        f"from{held}, {len(job.test)} to score",
        f"classifier  {shapes}, {_parameters(job.system)}",
        *([f"trainings   {more} more: few labels, or from an untrained network"] if more else []),
        _steps(settings, job.train_steps, settings.batch),
        *_groups(settings, job.system),
    ]


def _finetuning(job: finetune.Job) -> list[str]:
    settings, divided = job.settings, job.divided
    classes = (
        f"{len(divided.labels_N)} images of {divided.classes} classes, "
        f"{len(divided.unseen)} of others to score"
    )
    if settings.estimator:
        features = f"{settings.estimator.name} on features (B, {job.backbone.dim})"
        return [f"finetune    {features}: {classes}"]
    assert job.system is not None
    assert job.order is not None
    shapes = f"(B, {job.backbone.dim}) -> (B, {job.system.model.dim})"
    return [
        f"finetune    {settings.objective.name}: {classes}",
        f"embedding   {shapes}, {_parameters(job.system)} with the objective's",
        _steps(settings, job.order.steps_per_epoch, job.order.batch),
        *_groups(settings, job.system),
    ]


def _steps(settings: Training, per_epoch: int, batch: int) -> str:
    steps = settings.epochs * per_epoch
    return f"steps       {steps} = {settings.epochs} epochs × {per_epoch} of {batch} images"


def _groups(settings: Training, module: nn.Module) -> list[str]:
    optimizer: Optimizer = make_optimizer(settings, module)
    lines = []
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        lines.append(
            f"group       {group['name']}: {len(group['params'])} tensors, {count:,} parameters, "
            f"lr {group['base_lr']:g}, weight decay {group['weight_decay']:g}"
        )
    averages = {
        id(p) for part in module.modules() if isinstance(part, Averaged) for p in part.values
    }
    frozen = [
        p.numel() for p in module.parameters() if not p.requires_grad and id(p) not in averages
    ]
    if frozen:
        lines.append(f"frozen      {len(frozen)} tensors, {sum(frozen):,} parameters")
    memory = f"{_mebibytes(module, settings.optimizer.name)} MiB of weights, gradient and optimizer"
    if averages:
        lines.append(f"average     of {len(averages)} tensors, which is kept at the end")
    lines.append(f"schedule    {settings.course}")
    return [*lines, f"memory      {memory} state, without activations"]


def _parameters(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()):,} parameters"


def _mebibytes(module: nn.Module, optimizer: str) -> int:
    """fp32 weights and, of those that are trained, the gradient and one (momentum) or two (Adam)
    moments.
    """
    more = 3 if optimizer in ("adam", "adamw") else 2
    return round(
        4 * sum((1 + more * p.requires_grad) * p.numel() for p in module.parameters()) / 2**20
    )
