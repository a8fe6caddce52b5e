"""A run folder: made or resumed by one recipe, one process at a time, cleared of what a kill
left.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, TypeVar

from lookalike import comm
from lookalike.checkpoint.compare import CHANGED, differing
from lookalike.errors import RecipeError, RunError
from lookalike.folder import (
    MANIFEST,
    await_visible,
    held,
    lock,
    look_again,
    read_regular,
    refuse_unwritable,
    sweep,
    unlock,
    write_file,
)
from lookalike.recipe import Recipe, from_text, meaning, read

RECIPE = "recipe.yaml"
_LARGEST = 16 * 2**20
# Where stages look for what is done; each rank looks for itself.
_DECISIVE = ("", "backbone", "checkpoints", "finetune", "finetune/embedding")
# What verbs leave in a folder without a run.
_LEFT = {
    *(RECIPE, "probe.json", "evaluate.json", "classify.json", "segment.json", "features"),
    *("backbone", "checkpoints", "classify", "export", "finetune", "probe", "segment"),
}

T = TypeVar("T")
R = TypeVar("R", bound=Recipe)


def open_run(out: Path, recipe: Recipe, accept_changes: bool = False) -> Path:
    """The run folder `out` for this recipe, made or resumed; `recipe.yaml` in it holds every
    default.

    Raises RunError as `refuse_other` does, where nothing can be written, or while another process
    writes there.
    """
    if comm.rank() == 0:
        if not held(out):
            refuse_other(out, recipe, accept_changes)
        refuse_unwritable(out)
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        tidy(out)
        if not (accept_changes and (out / RECIPE).exists()):
            write_recipe(out, recipe)
    comm.barrier()
    return out


def hold_run(out: Path, recipe: Recipe, accept_changes: bool = False) -> None:
    """Takes the lock of a run folder that is there, before anything is decided by what is in it,
    and clears it of what a kill left. Raises RunError as `open_run` does.
    """
    if comm.rank() == 0 and out.exists():
        refuse_other(out, recipe, accept_changes)
        refuse_unwritable(out)
        lock(out)
        tidy(out)
    comm.barrier()
    for place in _DECISIVE:
        look_again(out / place)


def meet(made: Path) -> None:
    """All ranks meet once the first has made this folder, and see it: on another machine what is
    new may show a little later. Raises RunError where it never does.
    """
    comm.barrier()
    if comm.rank() != 0:
        await_visible(made / MANIFEST)


def visit_run(out: Path) -> None:
    """For a verb that adds scores or an export to `out` without training there; all ranks call it.

    Raises RunError where nothing can be written, or where only files of others are, before any
    work; the first removes what a kill left, unless another process holds the folder, which has
    done so.
    """
    refuse_foreign(out, _LEFT)
    refuse_unwritable(out)
    if comm.rank() == 0 and out.is_dir() and not held(out):
        with contextlib.suppress(RunError):
            lock(out)
            tidy(out)
            unlock(out)
    comm.barrier()


def tidy(out: Path) -> None:
    """Removes what processes that were killed left half-done in a run folder whose lock is held."""
    sweep(out)
    for pattern in (
        "checkpoints",
        "export",
        "features",
        "probe",
        "finetune*",
        "finetune*/checkpoints",
    ):
        for folder in out.glob(pattern):
            sweep(folder)


def refuse_other(out: Path, recipe: Recipe, accept_changes: bool = False) -> None:
    """Raises RunError when `out` holds something else, or a run whose backbone came from another
    recipe.

    `accept_changes` makes a warning of the last, also where the run's recipe.yaml is damaged or
    gone.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file: choose another --out")
    # Where nothing was trained yet any recipe may begin.
    trained = any(out.glob("checkpoints/step_*")) or (out / "backbone").exists()
    if os.path.lexists(out / RECIPE):
        if trained:
            _refuse_other_recipe(out / RECIPE, recipe, accept_changes)
    elif trained:
        _without_recipe(out / RECIPE, "is gone", accept_changes)
    else:
        refuse_foreign(out)


def refuse_foreign(out: Path, ours: Set[str] = frozenset()) -> None:
    """Raises RunError for a folder that holds something, but nothing of `ours`."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    names = {name for name in names if not name.startswith((".tmp-", ".lock"))}
    if names and not names & ours:
        raise RunError(f"{out}: holds files but no run of lookalike: choose another --out")


def leave_recipe(out: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml` beside scores in a folder that has none and where nothing was
    trained.
    """
    trained = any(out.glob("checkpoints/step_*")) or (out / "backbone").exists()
    if not trained and not os.path.lexists(out / RECIPE):
        write_recipe(out, recipe)


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml`, unless it is there; of a changed recipe only once the earlier state was
    found to fit it.
    """
    if comm.rank() != 0:
        return
    path, text = out / RECIPE, recipe.text().encode()
    if path.is_dir():
        set_aside(path)
    with contextlib.suppress(OSError):
        if path.read_bytes() == text:
            return
    write_file(path, text)


def keep_run(out: Path, recipe: Recipe) -> None:
    """Makes of `out` again what a resume needs, where somebody deleted it under a training."""
    if comm.rank() == 0 and not (out / RECIPE).exists():
        warnings.warn(f"{out}: was deleted while the training ran: written anew", stacklevel=2)
        write_recipe(out, recipe)
        lock(out)


def _refuse_other_recipe(path: Path, recipe: Recipe, accept: bool) -> None:
    try:
        earlier = _earlier(path, recipe)
    except (OSError, ValueError, RecipeError) as error:  # a UnicodeDecodeError is a ValueError
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
        _without_recipe(path, f"cannot be read ({reason})", accept)
        return
    changed = _changes(earlier, recipe)
    if changed and accept:
        warnings.warn(
            f"{path.parent}: goes on with another recipe ({'; '.join(changed)})", stacklevel=4
        )
    elif changed:
        raise RunError(
            f"{path.parent}: made by another recipe ({'; '.join(changed[:4])}): {CHANGED}"
        )


def changes(out: Path, recipe: Recipe) -> list[str]:
    """In what this recipe would train another backbone than the one that `out` was begun with; one
    line each.

    Nothing where there is none, or none that can be read.
    """
    try:
        return _changes(_earlier(out / RECIPE, recipe), recipe)
    except (OSError, ValueError, RecipeError):
        return []


def earlier_recipe(out: Path, like: R) -> R | None:
    """The recipe of the run in `out`; None where there is none, or none that can be read."""
    try:
        return _earlier(out / RECIPE, like)
    except (OSError, ValueError, RecipeError):
        return None


def _earlier(path: Path, like: R) -> R:
    """The recipe that a run was begun with, by this or an earlier release, with defaults for what
    has been added since.
    """
    text = read_regular(path, _LARGEST).decode()
    said = read(text, str(path)).plain()
    if not isinstance(said, dict):
        raise ValueError("it is no recipe")
    if missing := [key for key in like.fixed if key not in said]:
        raise ValueError(f"cut short, without {missing[0]}:")
    return from_text(text, str(path), (), type(like), earlier=True)


def _changes(earlier: Recipe, recipe: Recipe) -> list[str]:
    then, now = (meaning(each, *each.fixed) for each in (earlier, recipe))
    return [line for key in now for line in differing(key, then[key], now[key])]


def _without_recipe(path: Path, what: str, accept: bool) -> None:
    """What was trained is there, and what it was trained by is not to be known."""
    if not accept:
        raise RunError(
            f"{path}: {what}: restore it, go on by the recipe given with --accept-changes, or "
            "choose another --out"
        )
    warnings.warn(f"{path}: {what}: goes on by the recipe given, and writes it anew", stacklevel=4)


def read_or_set_aside(
    path: Path, parse: Callable[[Any], T], tell: Callable[[str], None]
) -> T | None:
    """What `parse` makes of the JSON data in a file that verbs add to; None where there is no such
    file.

    One that cannot be read, or not be parsed (by ValueError or TypeError), is set aside, and that
    is told; None then.
    """
    if not path.exists():
        return None
    try:
        return parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        tell(f"{path}: could not be read, is now {set_aside(path)}, and is written anew")
        return None


def set_aside(folder: Path) -> str:
    """Renames what is broken, a checkpoint or a file, best effort; its new name."""
    names = (f"damaged.{folder.name}{tail}" for tail in ("", *(f".{n}" for n in range(1, 10**6))))
    free = next(name for name in names if not folder.with_name(name).exists())
    with contextlib.suppress(OSError):
        folder.rename(folder.with_name(free))
    return free
