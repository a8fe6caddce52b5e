"""Evaluation: retrieval scores on classes that fine-tuning has never seen, before it and after."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from lookalike import comm
from lookalike.backbones import Backbone, open_backbone
from lookalike.card import weights_digest
from lookalike.data.loader import workers_for
from lookalike.data.pictures import Pictures
from lookalike.errors import DataError
from lookalike.features import cached, embed, extract
from lookalike.folder import write_file
from lookalike.log import say
from lookalike.metric.classes import split_classes
from lookalike.metric.embedding import Embedding, load_model
from lookalike.recipe import Count, Index, Recipe
from lookalike.scoring import retrieval


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Retrieval on the test split: of the classes held out of fine-tuning where the recipe has one, else of all."""

    ks: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5)
    batch: Count = 256
    workers: Index | None = None


def evaluate(
    model: Backbone | Embedding | str | Path,
    recipe: Recipe,
    out: str | Path | None = None,
    *,
    name: str = "model",
) -> dict[str, Any]:
    """Recall@k, MAP@R and R-precision of a model, a folder or a timm name; queries and gallery are the same pictures.

    Nearness is the cosine, or the Euclidean distance of an embedding that is not on the unit sphere. With `out` the
    scores go to `out/evaluate.json` under `name`, beside those of other names.
    """
    settings = recipe.section(Evaluate)
    opened = open_model(model, recipe)
    pictures = shown(recipe, opened.architecture.size)
    workers = workers_for(pictures, settings.workers)
    function = embed(opened.to(comm.device()), opened.architecture)
    folder = Path(out) if out else None
    key = (weights_digest(opened), pictures.fingerprint, str(pictures.shape))
    features = cached(
        folder and folder / "features",
        key,
        lambda: extract(function, pictures, batch=settings.batch, workers=workers),
    )
    scores = {
        **retrieval.scores(features.x_ND, features.labels_N, ks=settings.ks, normalize=getattr(opened, "unit", True)),
        "classes": len(set(features.labels_N.tolist())),
    }
    if folder:
        keep(folder / "evaluate.json", name, scores)
    return scores


def shown(recipe: Recipe, size: int | None = None) -> Pictures:
    """The test pictures to score on, for views of `size` pixels."""
    source = recipe.values["data"].build()
    pictures: Pictures = source.split("test", size)
    if pictures.labels is None:
        raise DataError("data: evaluation needs labels: use class folders, or leave evaluate out")
    if recipe.values.get("finetune") is None:
        return pictures
    return split_classes(source.split("train", size), pictures, recipe.values["finetune"].held_out).unseen


def open_model(model: Backbone | Embedding | str | Path, recipe: Recipe) -> Any:
    """A model in memory, an embedding or backbone folder, or a timm name."""
    if isinstance(model, nn.Module):
        return model
    if (Path(model) / "manifest.json").exists():
        return load_model(model)
    return open_backbone(model, recipe.values["backbone"])


def keep(path: Path, name: str, scores: dict[str, Any]) -> None:
    """Adds these scores to the file's."""
    earlier: dict[str, Any] = {}
    if path.exists():
        try:
            earlier = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError):
            say(f"{path}: could not be read and is written anew")
    write_file(path, json.dumps({**earlier, name: scores}, indent=2).encode())


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Several models' scores as lines for a person."""
    measures = [m for m in next(iter(scores.values())) if m not in ("queries", "dropped", "classes")]
    lines = [f"{'retrieval':<20}" + "".join(f"{m:>13}" for m in measures)]
    lines += [f"{name:<20}" + "".join(f"{100 * s[m]:>11.2f} %" for m in measures) for name, s in scores.items()]
    first = next(iter(scores.values()))
    lines.append(f"({first['queries']:.0f} queries of {first['classes']} classes)")
    return "\n".join(lines)
