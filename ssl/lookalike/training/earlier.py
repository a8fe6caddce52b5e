"""What an earlier call of a stage has left in its folder: a finished model, or one of another
recipe, backbone or data.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lookalike.checkpoint import differences
from lookalike.errors import RunError
from lookalike.log import say
from lookalike.models import card
from lookalike.recipe import is_one_of


def finished(target: Path, about: Mapping[str, Any], made_of: Mapping[str, Any]) -> bool:
    """Whether the model that the recipe asks for is there, of these images and labels. Raises
    RunError if damaged.

    What an earlier release wrote says less of them, and is believed in the rest.
    """
    try:
        done = card.is_done(target, about)
    except RunError as error:
        raise RunError(f"{error}; or remove {target}: the same command makes it again") from error
    return done and not differences(card.read(target), made_of)


def set_aside(model: Path, about: Mapping[str, Any], made_of: Mapping[str, Any]) -> None:
    """Renames the folder around a `model` of an earlier training, by another recipe or of another
    backbone, or a finished one of other images: this one begins anew. One that was stopped is
    resumed, or refused by its checkpoint.
    """
    folder = model.parent
    earlier: dict[str, Any] = card.read(model)
    made_of = made_of if earlier else {}
    for manifest in [] if earlier else sorted(folder.glob("checkpoints/step_*/manifest.json"))[-1:]:
        with contextlib.suppress(OSError, ValueError):
            earlier = json.loads(manifest.read_bytes())
    if not isinstance(earlier, dict) or not earlier:
        return
    other = not all(is_one_of(earlier.get(key), value) for key, value in about.items())
    if other or differences(earlier, made_of):
        free = next(
            n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists()
        )
        folder.rename(folder.with_name(f"{folder.name}.{free}"))
        say(
            f"{folder.name}: the earlier one, of another recipe, backbone or data, is now "
            f"{folder.name}.{free}"
        )
