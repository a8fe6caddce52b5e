"""Evaluation: what a model is worth on images that fine-tuning has never seen, in numbers and to be
looked at.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookalike import comm
from lookalike.checkpoint import differences, read_or_set_aside
from lookalike.data.decode import BadImage
from lookalike.data.images import Images
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.evaluation import tasks
from lookalike.evaluation.features import Features, embedder, extracted
from lookalike.experiment import Evaluate, Experiment
from lookalike.folder import refuse_unwritable, write_file
from lookalike.geometry import Distance
from lookalike.log import say
from lookalike.models import Architecture, Backbone
from lookalike.models.card import read as read_card
from lookalike.models.card import weights_digest
from lookalike.models.embedding import Embedding, open_model
from lookalike.recipe import Size
from lookalike.report import examples, page, tables, tiles
from lookalike.report import gallery as galleries
from lookalike.runs import Run


@dataclass(frozen=True)
class Job:
    """What is scored: the images that no stage has learned from, and the task that they allow."""

    run: Run
    settings: Evaluate
    images: Images
    task: tasks.Task

    @property
    def sets(self) -> tuple[Images, ...]:
        """The images that it reads."""
        return (self.images,)


def evaluate(
    model: Backbone | Embedding | str | Path,
    recipe: Experiment,
    out: str | Path | None = None,
    *,
    name: str = "model",
    gallery: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of a model, a folder or a timm name, with what they are scores of: task, protocol,
    counts, groups.

    Similarity is the cosine, or the Euclidean distance of an embedding that is not on the unit
    sphere. With `out` the scores go to `out/evaluate.json` under `name`, beside those of other
    names, and `out/evaluate.html` shows the worst queries and some others; `gallery`, .html or
    .png, shows them elsewhere.
    """
    target = _gallery_file(gallery, recipe.section(Evaluate))
    run = Run(recipe, out)
    run.visit()
    opened = open_model(model, run.like(model))
    planned = job(run, opened.architecture, _own_embedding(model, run.folder))
    run.tell()
    run.look(*planned.sets)
    return do(planned, opened, name, target)


def job(run: Run, architecture: Architecture, embedding: Path | None = None) -> Job:
    """Decides what a model of this architecture is scored on, and refuses what cannot be.

    Raises RunError where the run's own `embedding` was fine-tuned on others than those that are
    held out now.
    """
    settings = run.experiment.section(Evaluate)
    run.read_as(architecture)
    images = scored(run, architecture.size, embedding)
    return Job(run, settings, images, _fitting(images, settings, run.name, architecture.channels))


def do(job: Job, model: Any, name: str, target: Path | None = None) -> dict[str, Any]:
    """The model's scores, on every rank; the first writes them, and the pages that show them."""
    settings, seed, folder, task = job.settings, job.run.seed, job.run.folder, job.task
    features = _features(model, job.images, settings, folder, labelled=task != "verification")
    tasks.refuse_numberless(features.x_ND, name)
    scene = scene_of(job.images, features, model.distance)
    named = examples.Named(job.images, features.ids_N)
    answers, sections = _results(task, scene, settings, named, seed)
    if settings.nmi:
        answers["scores"]["nmi"] = tasks.clusters(scene, seed)
    found = _record(task, answers, settings, job.images, features)
    if comm.rank() != 0:
        return found
    job.run.leave_recipe()
    standing = keep(folder / "evaluate.json", name, found) if folder else {name: found}
    files = [folder / "evaluate.html"] if folder and settings.examples else []
    for file in files + ([target] if target else []):
        title = f"{Path(job.run.name).stem}: {name}"
        write_file(file, _drawn(file, title, tables.summary(standing, name), sections, job.images))
    return found


def measures(settings: Evaluate, seed: int) -> tasks.Measures:
    """What to measure, in the words of `tasks`."""
    given: dict[str, Any] = {} if isinstance(settings.rerank, bool) else dict(settings.rerank)
    rerank = tasks.Reranking(given.get("k1", 20), given.get("k2", 6), given.get("lambda", 0.3))
    return tasks.Measures(
        ks=settings.ks,
        ap=settings.ap,
        rerank=None if settings.rerank is False else rerank,
        multi_query=settings.multi_query,
        fars=settings.fars,
        level=settings.intervals,
        breakdown=settings.breakdown,
        seed=seed,
        whole_list=settings.whole_list,
    )


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Several models' scores as lines for a person."""
    return tables.text(scores)


def scored(run: Run, size: Size | None = None, embedding: Path | None = None) -> Images:
    """The test images to score on, for views of `size` pixels.

    Raises RunError where the run's own `embedding` was fine-tuned on others than those that are
    held out now.
    """
    settings, recipe = run.experiment.evaluate, run.experiment
    own = settings is None or settings.data is None
    if recipe.finetune is None or not own:
        return run.images("test", size, of=settings.data if settings else None)
    divided = run.classes(size)
    if changed := differences(read_card(embedding), divided.passport) if embedding else []:
        raise RunError(
            f"{embedding}: was fine-tuned on other images or classes ({'; '.join(changed[:4])}), "
            "which are not those "
            "that the recipe trains on now: run its finetune stage again"
        )
    kept = divided.unseen
    if run.images("test", size).pairs is not None and kept.pairs is None:
        raise DataError(
            "data: no pair lies within the classes held out of fine-tuning: set evaluate.data, or "
            "another evaluate.task"
        )
    return kept


def _own_embedding(model: Backbone | Embedding | str | Path, out: Path | None) -> Path | None:
    """The embedding folder of the run `out`, if that is the model."""
    if out is None or isinstance(model, nn.Module):
        return None
    embedding = out / "finetune" / "embedding"
    return embedding if Path(model).resolve() == embedding.resolve() else None


def own(out: Path, recipe: Experiment) -> tuple[str, Path]:
    """The run's own model, the fine-tuned one where there is one, and its name in evaluate.json."""
    embedding = out / "finetune" / "embedding"
    backbone = Path(recipe.backbone.folder or out / "backbone")
    return ("fine-tuned", embedding) if embedding.exists() else ("backbone", backbone)


def keep(path: Path, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Adds these scores to the file's; returns all. One that cannot be read is set aside, and that
    is said.
    """
    earlier: dict[str, Any] | None = read_or_set_aside(path, dict, say)
    together = {**(earlier or {}), name: scores}
    write_file(path, json.dumps(together, indent=2).encode())
    return together


def _fitting(images: Images, settings: Evaluate, name: str, channels: int) -> tasks.Task:
    """The task, if the images allow it. Raises RecipeError or DataError before anything is
    computed.
    """
    where = "data" if settings.data is None else "evaluate.data"
    if images.shape[0] != channels:
        raise RecipeError(
            f"{name}: {where}: {images.shape[0]} channels, but the model takes {channels}: "
            "make them equal"
        )
    task = tasks.task_of(images, settings.task)
    tasks.refuse_unanswerable(images, task)
    if task == "verification":
        tasks.refuse_fars(images, settings.fars)
    if task != "reidentification" and (settings.rerank is not False or settings.multi_query):
        key = "multi_query" if settings.multi_query else "rerank"
        raise RecipeError(
            f"{name}: evaluate.{key}: for re-identification only, this is {task}: remove it"
        )
    if task != "verification" and settings.fars is not None:
        raise RecipeError(
            f"{name}: evaluate.fars: for verification only, this is {task}: remove it"
        )
    if settings.nmi and images.labels is None:
        raise RecipeError(
            f"{name}: evaluate.nmi: needs labels, which these images have not: remove it"
        )
    if settings.nmi and images.labels is not None and len(torch.unique(images.labels)) < 2:
        raise RecipeError(
            f"{name}: evaluate.nmi: all {len(images)} images are of one class: remove it"
        )
    return task


def _gallery_file(gallery: str | Path | None, settings: Evaluate) -> Path | None:
    """Where images are asked for by name."""
    if gallery is None:
        return None
    page.refuse_other(Path(gallery), "images are")
    refuse_unwritable(Path(gallery).parent)
    if not settings.examples:
        raise RecipeError("evaluate.examples: 0, so there are no images to show: raise it")
    return Path(gallery)


def _features(
    model: Any, images: Images, settings: Evaluate, folder: Path | None, *, labelled: bool
) -> Features:
    function = embedder(model.to(comm.device()), model.architecture)
    return extracted(
        function,
        images,
        digest=weights_digest(model),
        folder=folder and folder / "features",
        how=settings.how,
        labelled=labelled,
        title="evaluate: features",
    )


def scene_of(images: Images, features: Features, distance: Distance) -> tasks.EmbeddedSet:
    """The embedded images with what is known of them."""
    return tasks.EmbeddedSet(features.x_ND, images.annotations.of(features.ids_N), distance)


def _results(
    task: tasks.Task, scene: tasks.EmbeddedSet, settings: Evaluate, named: examples.Named, seed: int
) -> tuple[tasks.Results, list[galleries.Section]]:
    """The answers of the task, and the images that show them."""
    wanted = measures(settings, seed)
    if task == "verification":
        answers, near_P, threshold_P = tasks.compared(scene, wanted)
        assert scene.known.pairs is not None
        return answers, examples.of_pairs(
            named, scene.known.pairs, near_P, threshold_P, settings.examples
        )
    sets, query_Q, gallery_G = tasks.gallery_of(scene, task)
    answers, found = tasks.ranked(sets, task, wanted)
    return answers, examples.of_lists(
        named, sets, query_Q, gallery_G, found, settings.examples, seed
    )


def _record(
    task: tasks.Task, answers: tasks.Results, settings: Evaluate, images: Images, features: Features
) -> dict[str, Any]:
    """What evaluate.json holds of one model."""
    groups = {
        kind: {_named(images, kind, one): means for one, means in each.items()}
        for kind, each in answers["groups"].items()
    }
    return {
        **answers["scores"],
        **answers["counts"],
        "unreadable": features.dropped,
        "task": task,
        "protocol": answers["protocol"],
        "level": settings.intervals,
        "intervals": {name: list(ends) for name, ends in answers["intervals"].items()},
        "breakdown": groups,
        "data": images.fingerprint,
    }


def _named(images: Images, kind: str, group: int) -> str:
    return examples.class_name(images, group) if kind == "class" else str(group)


def _drawn(
    file: Path,
    title: str,
    summary: tables.Summary,
    sections: list[galleries.Section],
    images: Images,
) -> bytes:
    """The examples as the file's ending says."""

    def read(i: int) -> Tensor | None:
        try:
            return tiles.visible(images.read(i), images.form)
        except BadImage:
            return None

    if file.suffix.lower() == ".png":
        return galleries.sheet(sections, read)
    return galleries.document(title, summary, sections, read)
