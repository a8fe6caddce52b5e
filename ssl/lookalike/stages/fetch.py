"""Published weights: the backbone that a recipe names, as timm's authors trained it -> the run's
backbone folder. Or a folder, which is taken as it is.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike import comm
from lookalike.checkpoint import CHANGED, differences, meet, written
from lookalike.errors import RecipeError, RunError
from lookalike.log import say
from lookalike.models import card, folder_files, make_backbone, weights_mark
from lookalike.models.fitting import Taken
from lookalike.recipe import digests
from lookalike.runs import Run


@dataclass(frozen=True)
class Job:
    """Which backbone a recipe without pretraining works on: that of `folder`, or where it is None
    published weights or those of a file, `made_of`, of which `taken` was what fits.
    """

    run: Run
    folder: str | None
    made_of: dict[str, str]
    taken: Taken | None = None


def job(run: Run) -> Job:
    """Decides where the backbone comes from. Raises RecipeError where the recipe names none,
    RunError where the run has one from another file of weights.
    """
    named = run.experiment.backbone
    if named.folder is None and not named.pretrained and not named.weights:
        raise RecipeError(
            f"{run.name}: neither pretrain: nor backbone.folder, backbone.weights or "
            "backbone.pretrained: there is no backbone to work on: add one"
        )
    made_of = run.weights
    if run.folder:
        refuse_other(run.folder / "backbone", made_of, run.accept_changes)
    return Job(run, named.folder, made_of)


def refuse_other(target: Path, made_of: dict[str, str], accept_changes: bool) -> None:
    """Raises RunError where the run's backbone was made from other weights; `accept_changes` keeps
    it, with a warning.
    """
    if not (changed := "; ".join(differences(card.read(target), made_of))):
        return
    text = f"{target}: was made from other weights ({changed})"
    if not accept_changes:
        raise RunError(f"{text}: {CHANGED}")
    if comm.rank() == 0:
        warnings.warn(f"{text}, and stays as it is", stacklevel=2)


def do(job: Job) -> Path:
    """Loads the weights, from their file, the Hub's cache or the network, into the run's backbone
    folder; returns that.

    Raises BackboneError where they cannot be had.
    """
    if job.folder is not None:
        return Path(job.folder)
    target, recipe = job.run.out / "backbone", job.run.experiment
    method = "weights of a file" if recipe.backbone.weights else "published weights"
    about: dict[str, Any] = {"recipe": digests(recipe, "backbone"), "method": method}
    if not card.is_done(target, about):
        if comm.rank() == 0:
            backbone = make_backbone(job.run.asked)
            job.run.tell_weights(backbone)
            made_of = weights_mark(recipe.backbone, fetch=True)
            facts = card.facts(backbone.architecture, backbone.dim, {**written(about), **made_of})
            card.write_model(target, folder_files(backbone), facts)
            say(f"fetch: backbone in {target}")
        meet(target)
    return target
