"""A recipe from end to end: its stages in order, decided once, then done."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lookalike import comm
from lookalike.checkpoint import refuse_other
from lookalike.errors import RecipeError
from lookalike.experiment import Experiment, Export, Training
from lookalike.folder import refuse_strangers, refuse_unwritable
from lookalike.log import note, say
from lookalike.models import Backbone, card, load_backbone
from lookalike.models.embedding import open_model
from lookalike.models.fitting import Taken
from lookalike.process import fault
from lookalike.runs import Run
from lookalike.stages import (
    classify,
    evaluate,
    export,
    fetch,
    finetune,
    pretrain,
    preview,
    probe,
    segment,
)
from lookalike.training.courses import chosen, make_order


class Plan(NamedTuple):
    """What each stage of a recipe will do, in order; None for a stage that it does not name."""

    pretrain: pretrain.Job | None
    fetch: fetch.Job | None
    probe: probe.Job | None
    segment: segment.Job | None
    classify: classify.Job | None
    finetune: finetune.Job | None
    evaluate: evaluate.Job | None
    export: Export | None

    def jobs(self) -> Iterator[Any]:
        """Those that are there."""
        return (job for job in self if job is not None)

    @property
    def taken(self) -> Taken | None:
        """What of a file of weights the backbone begins with."""
        if self.pretrain and self.pretrain.work:
            backbone: Backbone = self.pretrain.work.module.backbone
            return backbone.taken
        return self.fetch.taken if self.fetch else None


def plan(run: Run) -> Plan:
    """Decides what every stage will do. Raises what one of them refuses; writes nothing.

    Later stages are decided for the backbone as it is before it is trained.
    """
    wanted = run.experiment
    first = pretrain.job(run) if wanted.pretrain else None
    given = None if first else fetch.job(run)
    backbone = bare(run, first)
    given = replace(given, taken=backbone.taken) if given else None
    architecture = backbone.architecture
    channels = run.images("train").shape[0]
    if architecture.channels != channels:
        raise RecipeError(
            f"{run.name}: backbone.folder: takes {architecture.channels} channels, the data has "
            f"{channels}"
        )
    tuned = finetune.job(run, backbone) if wanted.finetune else None  # knows more of the classes
    planned = Plan(
        first,
        given,
        probe.job(run, architecture) if wanted.probe else None,
        segment.job(run, architecture) if wanted.segment else None,
        classify.job(run, backbone) if wanted.classify else None,
        tuned,
        evaluate.job(run, architecture) if wanted.evaluate else None,
        export.job(wanted) if wanted.export else None,
    )
    if run.folder:
        refuse_others_work(run.folder, planned)
    run.look(*(images for job in planned.jobs() for images in getattr(job, "sets", ())))
    return planned


def refuse_others_work(out: Path, planned: Plan) -> None:
    """Raises RunError where a folder that a stage is to write holds what lookalike did not write:
    each is replaced whole, and only once all is trained.
    """
    if planned.pretrain and planned.pretrain.work:
        refuse_strangers(out / "backbone")
    made = [out / "finetune" / "embedding"] if planned.finetune else []
    made += [out / "classify" / "classifier"] if planned.classify else []
    made += [out / "probe" / "classifier"] if planned.probe else []
    made += [out / "backbone"] if planned.fetch and planned.fetch.folder is None else []
    for target in made:
        if not card.read(target):
            refuse_strangers(target)
    if planned.export:
        refuse_strangers(out / "export" / "backbone")
    if planned.export and planned.finetune:
        refuse_strangers(out / "export" / "embedding")
    if planned.export and planned.classify:
        refuse_strangers(out / "export" / "classifier")


def bare(run: Run, first: pretrain.Job | None) -> Backbone:
    """The backbone as the first stage begins with it, published weights not fetched."""
    if first and first.work:
        module: Backbone = first.work.module.backbone
        return module
    return run.backbone(published=False)


def check(run: Run) -> Plan:
    """The plan of a run in its folder, if `run` would get to its first step; else raises what it
    would. Leaves nothing behind.

    Only whether another run holds the folder is not asked: a machine may join one that is under
    way.
    """
    fault.refuse_unknown()
    if run.joins:
        comm.environment()
    else:
        comm.timeout(1.0)
    with warnings.catch_warnings(action="ignore"):  # the run itself says what it goes on with
        refuse_other(run.out, run.experiment, run.accept_changes)
        refuse_unwritable(run.out)
        planned = plan(run)
    if (taken := planned.taken) is not None:
        say(f"weights: {taken.line()}")
    return planned


def run(recipe: Experiment, out: str | Path, *, accept_changes: bool = False) -> Path:
    """Every stage the recipe names, in order, in the run folder `out`; goes on where an earlier run
    stopped.

    All stages but export run on all ranks.
    """
    return go(Run(recipe, out, accept_changes=accept_changes))


def go(run: Run) -> Path:
    """Does what was planned: see `run`."""
    settings = run.experiment.pretrain
    run.join(**({"method": pretrain.method_name(settings)} if settings else {}))
    run.hold()
    refuse_unwritable(run.out)
    planned = plan(run)
    comm.barrier()
    folder, scores, first = run.claim(), {}, comm.rank() == 0
    backbone = pretrain.do(planned.pretrain) if planned.pretrain else fetched(planned)
    if planned.probe:
        probe.tell_other(backbone, planned.probe.sets[0])
        scores = probe.do(planned.probe, load_backbone(backbone))
    if planned.segment:
        segment.do(planned.segment, load_backbone(backbone))
    models: list[tuple[str, Path, dict[str, Any]]] = [("backbone", backbone, scores)]
    if planned.classify:
        classifier, known = classify.do(classify.job(run, load_backbone(backbone)))
        models.append(("classifier", classifier, known))
    embedding = None
    if planned.finetune:
        embedding = finetune.do(finetune.job(run, load_backbone(backbone)))
    found = scored(planned, backbone, embedding) if planned.evaluate else {}
    if embedding:
        models.append(("embedding", embedding, found))
    if planned.export and first:
        for name, model, about in models:
            export.do(planned.export, model, folder / "export" / name, about)
    if first:
        say(results(folder))
    comm.barrier(patient=True)
    return folder


def fetched(planned: Plan) -> Path:
    """The backbone of a recipe without pretraining."""
    assert planned.fetch is not None
    return fetch.do(planned.fetch)


def scored(planned: Plan, backbone: Path, embedding: Path | None) -> dict[str, Any]:
    """Scores before fine-tuning and after; returns the last, without its groups."""
    assert planned.evaluate is not None
    run, scores = planned.evaluate.run, {}
    for name, folder in (("backbone", backbone), ("fine-tuned", embedding)):
        if folder is not None:
            model = open_model(folder, None)
            job = evaluate.job(run, model.architecture, embedding if name == "fine-tuned" else None)
            scores[name] = evaluate.do(job, model, name)
    if comm.rank() == 0:
        say(evaluate.table(scores))
    comm.barrier(patient=True)  # the pages are the first rank's work
    return {key: value for key, value in list(scores.values())[-1].items() if key != "breakdown"}


def results(folder: Path) -> str:
    """Where everything lies, one line each, of what is there."""
    onnx = any(folder.glob("export/*/model.onnx"))
    named = {
        "weights.json": "what was taken from backbone.weights, and what was not",
        "backbone": "pretrained, timm layout",
        "data.json": "which images were found, and what was left out",
        "metrics.jsonl": "the training curve",
        "tensorboard": "the same for TensorBoard",
        "probe.json": "scores of the frozen backbone",
        "probe/classifier": "backbone and the best linear probe, timm layout",
        "segment.json": "linear segmentation of patches",
        "segment.html": "the same, with test images to look at",
        "classify/classifier": "the classifier, timm layout",
        "classify.json": "the classifier's scores on the test set",
        "finetune/embedding": "the embedding model",
        "evaluate.json": "retrieval, re-identification or verification on unseen classes",
        "evaluate.html": "the same, with the worst queries to look at",
        "export": "folders that timm loads" + (", with model.onnx" if onnx else ""),
    }
    lines = [f"  {folder / name}  {what}" for name, what in named.items()]
    there = [line for line, name in zip(lines, named, strict=True) if (folder / name).exists()]
    return "\n".join(["results:", *there])


def draw(recipe: Experiment, out: Path, *, images: int = 8, epoch: int = 0) -> list[str]:
    """A preview of the views that the recipe's first training by gradients would see: see
    stages/preview.py.
    """
    preview.refuse(out)
    run = Run(recipe)
    shown, order = _shown(run)
    for line in run.told():
        note(line)
    return preview.preview(shown, recipe, order.ids(epoch, 0)[:images], epoch, out)


def _shown(run: Run) -> tuple[preview.Shown, Any]:
    """What a preview shows, and the order of its images: of pretraining, else of classification,
    else of fine-tuning.
    """
    recipe = run.experiment
    if recipe.pretrain:
        work = pretrain.job(run).work
        assert work is not None
        architecture = work.module.backbone.architecture
        images, policy = work.images, work.views
        order: Any = work.order
        settings: Training = recipe.pretrain
    elif recipe.classify:
        settings, backbone = recipe.classify, run.backbone(published=False)
        planned = classify.job(run, backbone)
        main, architecture = planned.courses[0], backbone.architecture
        images, order = chosen(planned.sets[0], main.targets), make_order(main, planned.sets[0])
        policy = settings.views.build()
    elif recipe.finetune and not recipe.finetune.estimator:
        settings, backbone = recipe.finetune, run.backbone(published=False)
        tuned = finetune.job(run, backbone)
        architecture = backbone.architecture
        images, policy, order = tuned.divided.seen, settings.views.build(), tuned.order
    else:
        raise RecipeError(
            f"{recipe.name}: pretrain: not there, so there are no views to show: add the section"
        )
    mean, _ = architecture.normalisation()
    return preview.Shown(settings, images, policy, architecture.size, mean), order
