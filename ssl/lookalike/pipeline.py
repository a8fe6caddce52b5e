"""A recipe from end to end: its sections, the stages they name in order, and what it will do before
it is done.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from lookalike import comm
from lookalike.checkpoint import refuse_other
from lookalike.data import SOURCES
from lookalike.data.images import Images
from lookalike.data.loader import cores
from lookalike.data.order import EpochOrder
from lookalike.data.pack import Packing
from lookalike.data.pack import pack as write_shards
from lookalike.data.sources import Folder
from lookalike.doctor import agree
from lookalike.errors import DataError, RecipeError
from lookalike.folder import refuse_unwritable
from lookalike.log import say
from lookalike.metric.classes import split_classes
from lookalike.metric.fit_head import check as check_estimator
from lookalike.models import Architecture, Backbone, make_backbone, repooled
from lookalike.optim import parameter_groups
from lookalike.process import fault
from lookalike.recipe import Choice, Index, Recipe, Spec, load, schema
from lookalike.search.index import SearchIndex
from lookalike.stages.evaluate import Evaluate, evaluate, table
from lookalike.stages.evaluate import check as check_evaluate
from lookalike.stages.export import Export, export, onnx_at_hand
from lookalike.stages.fetch import fetch
from lookalike.stages.finetune import Finetune, build_system, finetune, make_order
from lookalike.stages.pretrain import Pretrain, pretrain, refuse_more_ranks
from lookalike.stages.pretrain import check as check_pretrain
from lookalike.stages.probe import Probe, probe
from lookalike.stages.search import in_folder, in_source, search_index

SECTIONS: dict[str, Any] = {
    "seed": (Index, 0),
    "data": Annotated[Spec, Choice(SOURCES)],
    "backbone": Architecture,
    "pretrain": Pretrain | None,
    "probe": Probe | None,
    "finetune": Finetune | None,
    "evaluate": Evaluate | None,
    "export": Export | None,
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe. `overrides` are `key.path=value`. Raises RecipeError with a line for every
    problem.
    """
    recipe = load(path, overrides, SECTIONS)
    architecture: Architecture = recipe.values["backbone"]
    source = recipe.values["data"]
    channels = getattr(source.make, "channels", None) or source.args.get("channels")
    if architecture.name and isinstance(channels, int) and channels != architecture.channels:
        raise RecipeError(
            f"{recipe.name}: backbone.channels: {architecture.channels}, but data {source.name} "
            "gives "
            f"{channels}: make them equal"
        )
    return recipe


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors."""
    return schema(SECTIONS)


def run(recipe: Recipe, out: str | Path, *, accept_changes: bool = False) -> Path:
    """Every stage the recipe names, in order, in the run folder `out`; goes on where an earlier run
    stopped.

    Training stages run on all ranks, scores and export on the first.
    """
    wanted = recipe.values
    training = [wanted[name].timeout for name in ("pretrain", "finetune") if wanted[name]]
    fault.refuse_unknown()
    comm.start(seconds=max(training, default=1800.0))
    method = {"method": wanted["pretrain"].method.name} if wanted["pretrain"] else {}
    agree(recipe, **method, accept_changes=accept_changes)
    preflight(recipe, comm.world_size())
    folder = Path(out)
    if not folder.is_file():
        refuse_unwritable(folder)
    backbone: Path | str = folder / "backbone"
    if wanted["pretrain"]:
        backbone = pretrain(recipe, folder, accept_changes=accept_changes)
    else:
        backbone = _given(recipe) or fetch(recipe, folder)
    scores: dict[str, Any] = {}
    if wanted["probe"] and comm.rank() == 0:
        scores |= probe(backbone, recipe, folder)
    comm.patient_barrier()
    embedding = None
    if wanted["finetune"]:
        embedding = finetune(backbone, recipe, folder, accept_changes=accept_changes)
    if comm.rank() == 0:
        found = _evaluate(recipe, folder, backbone, embedding) if wanted["evaluate"] else {}
        if wanted["export"]:
            export(backbone, recipe, folder / "export" / "backbone", scores)
            if embedding:
                export(embedding, recipe, folder / "export" / "embedding", found)
        say(_results(folder))
    comm.patient_barrier()
    return folder


def check(recipe: Recipe, out: Path, *, accept_changes: bool = False, ranks: int = 0) -> None:
    """Raises what `run` would raise before its first step, and leaves nothing behind.

    `ranks`: how many a launcher will start, at least; 0: the environment is that of a rank, and
    judged too. Only whether another run holds `out` is not asked: a machine may join one that is
    under way.
    """
    fault.refuse_unknown()
    if ranks:
        comm.timeout(1.0)
    else:
        comm.environment()
    with warnings.catch_warnings(action="ignore"):  # the run itself says what it goes on with
        refuse_other(out, recipe, accept_changes)
    refuse_unwritable(out)
    preflight(recipe, ranks or comm.world_size())
    if recipe.values["pretrain"]:
        with warnings.catch_warnings(action="ignore"):
            check_pretrain(recipe, out, accept_changes)
    else:
        _given(recipe)


def _given(recipe: Recipe) -> str | None:
    """The backbone folder that a recipe without pretraining works on, None for published
    weights.
    """
    architecture: Architecture = recipe.values["backbone"]
    if architecture.folder is None and not architecture.pretrained:
        raise RecipeError(
            f"{recipe.name}: neither pretrain: nor backbone.folder nor backbone.pretrained: there "
            "is no backbone to "
            "work on: add one"
        )
    return architecture.folder


def preflight(recipe: Recipe, ranks: int = 1) -> None:
    """Raises the error that a stage would end with, before any work: shares of `ranks`, labels,
    objective, ONNX.
    """
    wanted = recipe.values
    _preflight_ranks(recipe, ranks)
    source = wanted["data"].build()
    train = source.split("train")
    if wanted["backbone"].folder:
        channels = make_backbone(wanted["backbone"]).architecture.channels
        if channels != train.shape[0]:
            raise RecipeError(
                f"{recipe.name}: backbone.folder: takes {channels} channels, the data has "
                f"{train.shape[0]}"
            )
    if wanted["pretrain"]:
        EpochOrder(len(train), wanted["pretrain"].batch, wanted["pretrain"].accumulate, 0)
    if wanted["probe"] or wanted["finetune"]:
        test = source.split("test")
        if train.labels is None or test.labels is None:
            raise DataError(
                "data: no labels, which probe, finetune and evaluate need: use class folders, or "
                "remove them"
            )
    if wanted["finetune"]:
        _preflight_finetune(wanted["finetune"], train, test, recipe)
    if wanted["evaluate"]:
        check_evaluate(recipe, train.shape[0])
    if wanted["export"] and wanted["export"].onnx:
        onnx_at_hand()


def _preflight_ranks(recipe: Recipe, ranks: int) -> None:
    pretraining, tuning = recipe.values["pretrain"], recipe.values["finetune"]
    if pretraining:
        refuse_more_ranks(recipe, ranks)
    if tuning and tuning.classes_per_batch * tuning.per_class < ranks:
        raise RecipeError(
            f"{recipe.name}: finetune.per_class: {tuning.classes_per_batch * tuning.per_class} "
            "images a batch for "
            f"{ranks} ranks: raise it, every rank needs one"
        )
    for name in ("pretrain", "finetune"):
        engine = recipe.values[name] and recipe.values[name].engine
        if engine and engine.name == "plain" and ranks > 1:
            raise RecipeError(
                f"{recipe.name}: {name}.engine: plain trains in one process, not on {ranks} ranks: "
                "remove it, or "
                "name: zero"
            )


def _preflight_finetune(settings: Finetune, train: Images, test: Images, recipe: Recipe) -> None:
    divided = split_classes(train, test, settings.held_out)
    if settings.estimator:
        check_estimator(settings.estimator, tuned(recipe).dim, divided.classes)
        return
    make_order(settings, divided.seen, divided.labels_N, recipe.values["seed"])
    parameter_groups(build_system(tuned(recipe), settings, divided.classes, recipe.values["seed"]))


def bare(recipe: Recipe) -> Backbone:
    """The recipe's backbone, published weights not fetched."""
    return make_backbone(replace(recipe.values["backbone"], pretrained=False))


def tuned(recipe: Recipe) -> Backbone:
    """The same as fine-tuning would begin with it."""
    return repooled(bare(recipe), recipe.section(Finetune).pool)


def _evaluate(
    recipe: Recipe, folder: Path, backbone: Path | str, embedding: Path | None
) -> dict[str, Any]:
    """Scores before fine-tuning and after; returns the last, without its groups."""
    scores = {"backbone": evaluate(backbone, recipe, folder, name="backbone")}
    if embedding:
        scores["fine-tuned"] = evaluate(embedding, recipe, folder, name="fine-tuned")
    say(table(scores))
    return {key: value for key, value in list(scores.values())[-1].items() if key != "breakdown"}


def _results(folder: Path) -> str:
    """Where everything lies, one line each, of what is there."""
    named = {
        "backbone": "pretrained, timm layout",
        "metrics.jsonl": "the training curve",
        "tensorboard": "the same for TensorBoard",
        "probe.json": "linear probe and kNN",
        "finetune/embedding": "the embedding model",
        "evaluate.json": "retrieval, re-identification or verification on unseen classes",
        "evaluate.html": "the same, with the worst queries to look at",
        "export": "folders that timm loads"
        + (", with model.onnx" if any(folder.glob("export/*/model.onnx")) else ""),
    }
    lines = [
        f"  {folder / name}  {what}" for name, what in named.items() if (folder / name).exists()
    ]
    return "\n".join(["results:", *lines])


def pack(
    source: str,
    target: Path,
    overrides: Sequence[str] = (),
    *,
    workers: int | None = None,
    **options: Any,
) -> None:
    """A folder of images, or what a recipe's `data:` names, as tar shards in `target`; `options` as
    for Packing.
    """
    if Path(source).is_dir():
        if overrides:
            raise RecipeError(f"{overrides[0]}: a folder has no keys: name a recipe to change one")
        if target.resolve().is_relative_to(Path(source).resolve()):
            raise DataError(
                f"{target}: lies in the folder that is packed: name another for the shards"
            )
        made = Folder(source)
    else:
        made = load_recipe(source, overrides).values["data"].build()
    write_shards(made, target, Packing(**options), cores() if workers is None else workers)


def open_search(
    index: Path, source: str, model: str | None, *, approximate: bool = False
) -> SearchIndex:
    """The index, brought up to date with a folder of images, or with what a recipe's `data:`
    names.
    """
    if not Path(source).exists():
        raise DataError(
            f"--from {source}: no such folder of images, and no such recipe: check the path"
        )
    if Path(source).is_file() and Path(source).suffix not in (".yaml", ".yml"):
        raise DataError(f"--from {source}: neither a folder of images nor a recipe (.yaml)")
    if Path(source).is_dir():
        return search_index(index, partial(in_folder, Path(source)), model, approximate=approximate)
    values = load_recipe(source).values
    find = partial(in_source, values["data"].build())
    return search_index(index, find, model, like=values["backbone"], approximate=approximate)
