"""Published weights: the backbone that a recipe names, as timm's authors trained it -> the run's
backbone folder.
"""

from pathlib import Path

from lookalike import comm
from lookalike.checkpoint import open_run
from lookalike.log import say
from lookalike.models import card, folder_files, make_backbone
from lookalike.recipe import Recipe


def fetch(recipe: Recipe, out: str | Path) -> Path:
    """Loads the weights, from timm's cache or the network, into `out`'s backbone folder; returns
    that.

    Raises BackboneError where they cannot be had.
    """
    target = open_run(Path(out), recipe) / "backbone"
    about = {"recipe": recipe.digest("backbone"), "method": "published weights"}
    if not card.is_done(target, about):
        if comm.rank() == 0:
            backbone = make_backbone(recipe.values["backbone"])
            card.write_model(
                target,
                folder_files(backbone),
                card.facts(backbone.architecture, backbone.dim, about),
            )
            say(f"fetch: backbone in {target}")
        comm.barrier()
    return target
