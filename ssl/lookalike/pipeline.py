"""A recipe from end to end: its stages in order, decided once, then done."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lookalike import comm
from lookalike.checkpoint import refuse_other
from lookalike.errors import RecipeError
from lookalike.experiment import Experiment, Export
from lookalike.folder import refuse_strangers, refuse_unwritable
from lookalike.log import note, say
from lookalike.models import Backbone, card, load_backbone
from lookalike.models.embedding import open_model
from lookalike.models.fitting import Taken
from lookalike.process import fault
from lookalike.runs import Run
from lookalike.stages import evaluate, export, fetch, finetune, pretrain, preview, probe


class Plan(NamedTuple):
    """What each stage of a recipe will do, in order; None for a stage that it does not name."""

    pretrain: pretrain.Job | None
    fetch: fetch.Job | None
    probe: probe.Job | None
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
    made += [out / "backbone"] if planned.fetch and planned.fetch.folder is None else []
    for target in made:
        if not card.read(target):
            refuse_strangers(target)
    if planned.export:
        refuse_strangers(out / "export" / "backbone")
    if planned.export and planned.finetune:
        refuse_strangers(out / "export" / "embedding")


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

    Training stages run on all ranks, scores and export on the first.
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
    if planned.probe and first:
        probe.tell_other(backbone, planned.probe.sets[0])
        scores = probe.do(planned.probe, load_backbone(backbone))
    comm.barrier(patient=True)
    embedding = None
    if planned.finetune:
        embedding = finetune.do(finetune.job(run, load_backbone(backbone)))
    if first:
        found = scored(planned, backbone, embedding) if planned.evaluate else {}
        if planned.export:
            export.do(planned.export, backbone, folder / "export" / "backbone", scores)
        if planned.export and embedding:
            export.do(planned.export, embedding, folder / "export" / "embedding", found)
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
    say(evaluate.table(scores))
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
        "probe.json": "linear probe and kNN",
        "finetune/embedding": "the embedding model",
        "evaluate.json": "retrieval, re-identification or verification on unseen classes",
        "evaluate.html": "the same, with the worst queries to look at",
        "export": "folders that timm loads" + (", with model.onnx" if onnx else ""),
    }
    lines = [f"  {folder / name}  {what}" for name, what in named.items()]
    there = [line for line, name in zip(lines, named, strict=True) if (folder / name).exists()]
    return "\n".join(["results:", *there])


def draw(recipe: Experiment, out: Path, *, images: int = 8, epoch: int = 0) -> list[str]:
    """A preview of the views that pretraining would see: see stages/preview.py."""
    if not recipe.pretrain:
        raise RecipeError(
            f"{recipe.name}: pretrain: not there, so there are no views to show: add the section"
        )
    preview.refuse(out)
    run = Run(recipe)
    work = pretrain.job(run).work
    assert work is not None
    for line in run.told():
        note(line)
    shown = preview.Shown(work.images, work.views, work.module.backbone.architecture.size)
    return preview.preview(shown, recipe, work.order.ids(epoch, 0)[:images], epoch, out)
