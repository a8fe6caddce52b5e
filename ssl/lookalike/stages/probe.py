"""The probe: what a frozen backbone knows, by a linear classifier and by its neighbours, beside two
baselines.
"""

import json
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lookalike import comm, rng
from lookalike.checkpoint import differences, read_or_set_aside, visit_run
from lookalike.data.images import Images
from lookalike.data.loader import workers_for
from lookalike.data.passport import passport
from lookalike.evaluation.features import (
    Embed,
    Features,
    cache_key,
    cached,
    embedder,
    extract,
    pixels,
)
from lookalike.evaluation.labels import refuse_probe
from lookalike.experiment import Experiment, Probe
from lookalike.folder import write_file
from lookalike.geometry import PixelFormat
from lookalike.log import note, say
from lookalike.models import Architecture, Backbone, card, open_backbone
from lookalike.models.card import weights_digest
from lookalike.runs import Run
from lookalike.scoring import knn, linear


@dataclass(frozen=True)
class Job:
    """What is probed: `sets` are train and test images, with labels."""

    run: Run
    settings: Probe
    sets: tuple[Images, Images]


def probe(
    backbone: Backbone | str | Path,
    recipe: Experiment,
    out: str | Path | None = None,
    *,
    name: str | None = None,
) -> dict[str, Any]:
    """Scores of a backbone, a backbone folder or a timm name on the recipe's data, in [0, 1].

    Keys: `linear/top1`, `knn20/top1`, …, with `pixels/` and `untrained/` before them for the
    baselines. With `out` the scores go to `out/probe.json`, those of another model than the run's
    own under its `name`, and the features are kept in `out/features/`.
    """
    recipe.section(Probe)
    run = Run(recipe, out)
    if run.folder:
        visit_run(run.folder)
    opened = open_backbone(backbone, run.like(backbone))
    planned = job(run, opened.architecture)
    for each in run.told():
        note(each)
    run.look(*planned.sets, alone=True)
    own = run.folder and run.folder / "backbone"
    if own and not isinstance(backbone, Backbone) and Path(backbone) == own:
        tell_other(own, planned.sets[0])
    return do(planned, opened, name)


def job(run: Run, architecture: Architecture) -> Job:
    """Decides what is probed, for views as this backbone takes them. Raises DataError without
    labels, and where a probe could say nothing of them.
    """
    run.read_as(architecture)
    settings, sets = run.experiment.section(Probe), run.labelled(architecture.size)
    train_N, test_M = (images.labels for images in sets)
    assert train_N is not None
    assert test_M is not None
    refuse_probe(train_N, test_M)
    if settings.k > len(train_N):
        there = f"there are {len(train_N)} train images: all of them vote"
        run.remark(f"probe.k: {settings.k}, but {there}")
    return Job(run, settings, sets)


def do(job: Job, backbone: Backbone, name: str | None = None) -> dict[str, Any]:
    """The scores of the backbone and of the baselines, said and kept as they come."""
    settings, folder = job.settings, job.run.folder
    keys = [cache_key(images) for images in job.sets]
    scores: dict[str, Any] = {}
    form = job.sets[0].form
    for prefix, (digest, function) in _models(backbone, settings, job.run.seed, form).items():
        keep = folder / "features" if folder and prefix != PIXELS else None
        features = []
        for images, key in zip(job.sets, keys, strict=True):
            workers = workers_for(images, settings.workers)
            make = partial(extract, function, images, batch=settings.batch, workers=workers)
            features.append(cached(keep, (digest, *key), make))
        found = score(features[0], features[1], settings, job.run.seed)
        scores |= {prefix + name: value for name, value in found.items()}
        if folder:  # as they come: what took hours is not lost to what comes after
            text = line(scores, settings.k, prefix, name or ROWS[""])
            say(text if prefix else f"{head(settings.k)}\n{text}")
            remember(folder / "probe.json", scores, name)
    return scores


def tell_other(backbone: Path, train: Images) -> None:
    """Warns where the run's backbone was pretrained on other images than those it is now judged
    on.
    """
    if changed := differences(card.read(backbone), passport(train)):
        warnings.warn(
            f"{backbone}: was pretrained on other images ({'; '.join(changed)})", stacklevel=3
        )


def remember(path: Path, scores: dict[str, Any], name: str | None) -> None:
    """Writes the scores of the run's own backbone, or of another one, `name`, under `others` beside
    them.

    A file in which the earlier ones cannot be read is set aside, and that is said.
    """
    held, others = read_or_set_aside(path, own_and_others, note) or ({}, {})
    if name is not None:
        scores, others = held, {**others, name: scores}
    write_file(
        path, json.dumps({**scores, **({"others": others} if others else {})}, indent=2).encode()
    )


def own_and_others(held: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores that probe.json holds, of the run's own backbone and of others by name."""
    own = dict(held)
    return own, dict(own.pop("others", {}))


def score(train: Features, test: Features, settings: Probe, seed: int) -> dict[str, Any]:
    """`linear/…` and `knn…/…` of one set of features."""
    sets = (train.x_ND, train.labels_N, test.x_ND, test.labels_N)
    line = linear.probe(
        *sets,
        grid=settings.grid,
        held_out=settings.held_out,
        seed=seed,
        max_iterations=settings.max_iterations,
    )
    near = knn.accuracy(*sets, k=settings.k, temperature=settings.temperature)
    scores = {f"linear/{name}": value for name, value in line.items() if name != "grid"}
    return {
        **scores,
        **{f"knn{settings.k}/{name}": value for name, value in near.items()},
        "dropped": train.dropped + test.dropped,
    }


def _models(
    backbone: Backbone, settings: Probe, seed: int, form: PixelFormat
) -> dict[str, tuple[str, Embed]]:
    """Prefix -> (a name that stands for weights and view, how to embed images of `form`)."""
    named = {"": backbone}
    if settings.baselines:
        torch.manual_seed(rng.seed(seed, "weights"))
        if fresh := backbone.fresh():
            named["untrained/"] = fresh
    found = {
        prefix: (weights_digest(b), embedder(b.to(comm.device()), b.architecture))
        for prefix, b in named.items()
    }
    raw = {PIXELS: ("pixels", partial(pixels, form=form))}
    return found | (raw if settings.baselines else {})


PIXELS = "pixels/"
ROWS = {"": "this backbone", "untrained/": "untrained backbone", PIXELS: "raw pixels"}


def table(scores: dict[str, Any], k: int, name: str = "this backbone") -> str:
    """The scores as lines for a person."""
    found = [line(scores, k, prefix, name) for prefix in ROWS if f"{prefix}linear/top1" in scores]
    return "\n".join([head(k), *found])


def head(k: int) -> str:
    """What stands above the lines."""
    return f"{'probe (top-1)':<20}{'linear':>10}{f'kNN-{k}':>10}"


def line(scores: dict[str, Any], k: int, prefix: str, name: str) -> str:
    """The scores of the backbone itself, `name`, or of a baseline."""
    linear, near = scores[f"{prefix}linear/top1"], scores[f"{prefix}knn{k}/top1"]
    return f"{ROWS[prefix] if prefix else name:<20}{100 * linear:>8.2f} %{100 * near:>8.2f} %"
