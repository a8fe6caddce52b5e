"""Evaluation: what a model is worth on images that fine-tuning has never seen, in numbers and to be
looked at.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from torch import Tensor, nn
from typing_extensions import TypedDict

from lookalike import comm
from lookalike.checkpoint import differences, read_or_set_aside, visit_run
from lookalike.data import SOURCES
from lookalike.data.decode import BadImage
from lookalike.data.images import Images
from lookalike.data.loader import workers_for
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.evaluation import tasks
from lookalike.evaluation.features import Features, cache_key, cached, embedder, extract
from lookalike.folder import refuse_unwritable, write_file
from lookalike.log import say
from lookalike.metric.classes import split_classes
from lookalike.models import Backbone
from lookalike.models.card import read as read_card
from lookalike.models.card import weights_digest
from lookalike.models.embedding import Embedding, open_model
from lookalike.recipe import Choice, Count, Fraction, Index, Recipe, Spec
from lookalike.report import examples, page, tables
from lookalike.report import gallery as galleries
from lookalike.scoring.reidentification import AP

Far = Annotated[float, Field(gt=0, lt=1)]
Reranking = TypedDict("Reranking", {"k1": Count, "k2": Count, "lambda": Fraction}, total=False)
Reranking.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Retrieval, re-identification or verification, by what is known of the images, or by `task`.

    Of `data`'s test split; without it of the recipe's data, of the classes held out of fine-tuning
    if there is one. Of verification: `fars`, of those 0.1, 0.01 and 0.001 that there are pairs for.
    Of re-identification: `ap`, k-reciprocal `rerank`, `multi_query`. `intervals`: their level, 0
    for none. `examples`: queries in evaluate.html.
    """

    task: Literal["auto", "retrieval", "reidentification", "verification"] = "auto"
    data: Annotated[Spec, Choice(SOURCES)] | None = None
    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5, 10)
    ap: AP = "step"
    rerank: bool | Reranking = False
    multi_query: bool = False
    nmi: bool = False
    fars: tuple[Far, ...] | None = None
    intervals: Annotated[float, Field(ge=0, lt=1)] = 0.95
    breakdown: bool = True
    examples: Annotated[int, Field(ge=0, le=1000)] = 16
    batch: Count = 256
    workers: Index | None = None

    def questions(self, seed: int) -> tasks.Measures:
        """What to measure, in the words of `tasks`."""
        given: dict[str, Any] = {} if isinstance(self.rerank, bool) else dict(self.rerank)
        rerank = tasks.Reranking(given.get("k1", 20), given.get("k2", 6), given.get("lambda", 0.3))
        return tasks.Measures(
            ks=self.ks,
            ap=self.ap,
            rerank=None if self.rerank is False else rerank,
            multi_query=self.multi_query,
            fars=self.fars,
            level=self.intervals,
            breakdown=self.breakdown,
            seed=seed,
        )


def evaluate(
    model: Backbone | Embedding | str | Path,
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    name: str = "model",
    gallery: str | Path | None = None,
) -> dict[str, Any]:
    """Scores of a model, a folder or a timm name, with what they are scores of: task, protocol,
    counts, groups.

    Nearness is the cosine, or the Euclidean distance of an embedding that is not on the unit
    sphere. With `out` the scores go to `out/evaluate.json` under `name`, beside those of other
    names, and `out/evaluate.html` shows the worst queries and some others; `gallery`, .html or
    .png, shows them elsewhere.
    """
    settings, seed = recipe.section(Evaluate), recipe.values["seed"]
    target = _gallery_file(gallery, settings)
    folder = Path(out) if out else None
    if folder:
        visit_run(folder)
    opened = open_model(model, recipe.values["backbone"])
    scored = shown(recipe, opened.architecture.size, _own_embedding(model, folder))
    task = _fitting(scored, settings, recipe, opened.architecture.channels)
    features = _features(opened, scored, settings, folder, labelled=task != "verification")
    tasks.refuse_numberless(features.x_ND, name)
    scene = scene_of(scored, features, unit=getattr(opened, "unit", True))
    answers, sections = _asked(task, scene, settings, examples.Named(scored, features.ids_N), seed)
    if settings.nmi:
        answers["scores"]["nmi"] = tasks.clusters(scene, seed)
    found = _record(task, answers, settings, scored, features)
    standing = keep(folder / "evaluate.json", name, found) if folder else {name: found}
    files = [folder / "evaluate.html"] if folder and settings.examples else []
    for file in files + ([target] if target else []):
        title = f"{Path(recipe.name).stem}: {name}"
        write_file(file, _drawn(file, title, tables.page(standing, name), sections, scored))
    return found


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Several models' scores as lines for a person."""
    return tables.text(scores)


def check(recipe: Recipe, channels: int) -> None:
    """Raises what `evaluate` would raise for the recipe's images and a model of `channels`, without
    the model.
    """
    _fitting(shown(recipe), recipe.section(Evaluate), recipe, channels)


def shown(recipe: Recipe, size: int | None = None, embedding: Path | None = None) -> Images:
    """The test images to score on, for views of `size` pixels.

    Raises RunError where the run's own `embedding` was fine-tuned on others than those that are
    held out now.
    """
    settings = recipe.values.get("evaluate")
    source: Spec = (settings and settings.data) or recipe.values["data"]
    made = source.build()
    images: Images = made.split("test", size)
    if recipe.values.get("finetune") is None or source is not recipe.values["data"]:
        return images
    divided = split_classes(made.split("train", size), images, recipe.values["finetune"].held_out)
    if changed := differences(read_card(embedding), divided.passport) if embedding else []:
        raise RunError(
            f"{embedding}: was fine-tuned on other images or classes ({'; '.join(changed[:4])}), "
            "which are not those "
            "that the recipe trains on now: run its finetune stage again"
        )
    kept = divided.unseen
    if images.pairs is not None and kept.pairs is None:
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


def own(out: Path, recipe: Recipe) -> tuple[str, Path]:
    """The run's own model, the fine-tuned one where there is one, and its name in evaluate.json."""
    embedding = out / "finetune" / "embedding"
    backbone = Path(recipe.values["backbone"].folder or out / "backbone")
    return ("fine-tuned", embedding) if embedding.exists() else ("backbone", backbone)


def keep(path: Path, name: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Adds these scores to the file's; returns all. One that cannot be read is set aside, and that
    is said.
    """
    earlier: dict[str, Any] | None = read_or_set_aside(path, dict, say)
    together = {**(earlier or {}), name: scores}
    write_file(path, json.dumps(together, indent=2).encode())
    return together


def _fitting(images: Images, settings: Evaluate, recipe: Recipe, channels: int) -> tasks.Task:
    """The task, if the images allow it. Raises RecipeError or DataError before anything is
    computed.
    """
    where = "data" if settings.data is None else "evaluate.data"
    if images.shape[0] != channels:
        raise RecipeError(
            f"{recipe.name}: {where}: {images.shape[0]} channels, but the model takes {channels}: "
            "make them equal"
        )
    task = tasks.task_of(images, settings.task)
    if task == "verification":
        tasks.refuse_fars(images, settings.fars)
    else:
        tasks.refuse_unanswerable(images, task)
    if task != "reidentification" and (settings.rerank is not False or settings.multi_query):
        key = "multi_query" if settings.multi_query else "rerank"
        raise RecipeError(
            f"{recipe.name}: evaluate.{key}: for re-identification only, this is {task}: remove it"
        )
    if task != "verification" and settings.fars is not None:
        raise RecipeError(
            f"{recipe.name}: evaluate.fars: for verification only, this is {task}: remove it"
        )
    if settings.nmi and images.labels is None:
        raise RecipeError(
            f"{recipe.name}: evaluate.nmi: needs labels, which these images have not: remove it"
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
    workers = workers_for(images, settings.workers)
    return cached(
        folder and folder / "features",
        (weights_digest(model), *cache_key(images)),
        lambda: extract(function, images, batch=settings.batch, workers=workers, labelled=labelled),
    )


def scene_of(images: Images, features: Features, *, unit: bool) -> tasks.EmbeddedSet:
    """The embedded images with what is known of them."""
    ids_N = features.ids_N
    return tasks.EmbeddedSet(
        features.x_ND,
        None if images.labels is None else images.labels[ids_N],
        None if images.cameras is None else images.cameras[ids_N],
        None if images.roles is None else images.roles.of(ids_N),
        None if images.pairs is None else images.pairs.of(ids_N),
        unit,
    )


def _asked(
    task: tasks.Task, scene: tasks.EmbeddedSet, settings: Evaluate, named: examples.Named, seed: int
) -> tuple[tasks.Results, list[galleries.Section]]:
    """The answers of the task, and the images that show them."""
    questions = settings.questions(seed)
    if task == "verification":
        answers, near_P, threshold_P = tasks.compared(scene, questions)
        assert scene.pairs is not None
        return answers, examples.of_pairs(
            named, scene.pairs, near_P, threshold_P, settings.examples
        )
    sets, query_Q, gallery_G = tasks.gallery_of(scene, task)
    answers, found = tasks.ranked(sets, task, questions)
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
    file: Path, title: str, lead: str, sections: list[galleries.Section], images: Images
) -> bytes:
    """The examples as the file's ending says."""

    def read(i: int) -> Tensor | None:
        try:
            return images.read(i)
        except BadImage:
            return None

    if file.suffix.lower() == ".png":
        return galleries.sheet(sections, read)
    return galleries.document(title, lead, sections, read)
