"""Scores of several trainings: kept where they were finished, and put together over draws."""

import json
from pathlib import Path
from typing import Any

from lookalike.evaluation.few import interval

ALL = "all labels"
"""What the training with all labels is called."""


def kept_scores(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The scores of a training that was finished by this recipe on these images, if it was."""
    try:
        held = json.loads(path.read_bytes())
        same = {k: v for k, v in held["about"].items() if k != "times"} == {
            k: v for k, v in about.items() if k != "times"
        }
        return dict(held["scores"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def summed_up(found: dict[str, Any]) -> dict[str, Any]:
    """The scores with the other trainings by how many labels they had: mean, interval and draws of
    each score, from the backbone and untrained, and of their differences draw by draw.
    """
    others = found.pop("trainings", [])
    if not others:
        return found
    main = {"labels": ALL, "draw": 0, "untrained": False, "scores": found, "images": None}
    names = list(dict.fromkeys(each["labels"] for each in [main, *others]))
    groups = {}
    for name in names:
        own, untrained = (
            {e["draw"]: e for e in [main, *others] if e["labels"] == name and e["untrained"] is u}
            for u in (False, True)
        )
        groups[name] = {"images": next(iter(own.values()))["images"], **over_draws(own)}
        if untrained:
            groups[name]["untrained"] = over_draws(untrained)
            groups[name]["difference"] = over_draws(own, untrained)
    if groups[ALL].get("images", 0) is None:
        del groups[ALL]["images"]
    if len(groups[ALL]) == 1 and "untrained" not in groups[ALL]:
        del groups[ALL]
    return {**found, "few": groups}


def mean_of(draws: list[float]) -> dict[str, Any]:
    """`mean` and `draws` of a score, and the `interval` in which its expectation lies, of
    several.
    """
    mean = sum(draws) / len(draws)
    span = {"interval": interval(draws)} if len(draws) > 1 else {}
    return {"mean": mean, **span, "draws": draws}


def over_draws(own: dict[int, Any], less: dict[int, Any] | None = None) -> dict[str, Any]:
    """Each of the main scores over the draws, or by how much it is above that of others."""
    first = next(iter(own.values()))["scores"]
    names = [name for name in ("top1", "top5", "map", "f1_macro") if name in first]
    return {
        name: mean_of(
            [
                each["scores"][name] - (less[draw]["scores"][name] if less else 0.0)
                for draw, each in own.items()
            ]
        )
        for name in names
    }
