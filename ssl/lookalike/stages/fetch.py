"""Published weights: the backbone that a recipe names, as timm's authors trained it -> the run's
backbone folder. Or a folder, which is taken as it is.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lookalike import comm
from lookalike.checkpoint import written
from lookalike.errors import RecipeError
from lookalike.log import say
from lookalike.models import card, folder_files, make_backbone
from lookalike.recipe import digests
from lookalike.runs import Run


@dataclass(frozen=True)
class Job:
    """Which backbone a recipe without pretraining works on: that of `folder`, or published weights
    where it is None.
    """

    run: Run
    folder: str | None


def job(run: Run) -> Job:
    """Decides where the backbone comes from. Raises RecipeError where the recipe names none."""
    named = run.experiment.backbone
    if named.folder is None and not named.pretrained:
        raise RecipeError(
            f"{run.name}: neither pretrain: nor backbone.folder nor backbone.pretrained: there is "
            "no backbone to work on: add one"
        )
    return Job(run, named.folder)


def do(job: Job) -> Path:
    """Loads the weights, from timm's cache or the network, into the run's backbone folder; returns
    that.

    Raises BackboneError where they cannot be had.
    """
    if job.folder is not None:
        return Path(job.folder)
    target, recipe = job.run.out / "backbone", job.run.experiment
    about: dict[str, Any] = {"recipe": digests(recipe, "backbone"), "method": "published weights"}
    if not card.is_done(target, about):
        if comm.rank() == 0:
            backbone = make_backbone(job.run.asked)
            facts = card.facts(backbone.architecture, backbone.dim, written(about))
            card.write_model(target, folder_files(backbone), facts)
            say(f"fetch: backbone in {target}")
        comm.barrier()
    return target
