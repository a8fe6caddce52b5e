"""A run folder and its checkpoints: complete or absent, checked before use, and the truth about where a run stands.

`checkpoints/step_00000120/` means that 120 steps are done. It appears only by rename, with the sha256 of every
file in its manifest; `latest.json` is a hint for people, the truth is the newest folder that verifies.
"""

import contextlib
import json
import os
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lookalike import comm
from lookalike.errors import NewerError, RecipeError, RunError
from lookalike.folder import (
    held,
    lock,
    read_regular,
    refuse_unwritable,
    sweep,
    unlock,
    verify,
    write_file,
    write_folder,
)
from lookalike.recipe import Recipe, read

RECIPE = "recipe.yaml"
FILES = {"model.safetensors", "optim.safetensors"}
# Another value of these makes another backbone; the later stages may change and are simply done again.
_FIXED = ("seed", "data", "backbone", "pretrain")
# Changes nothing of what is trained, and a run from before it existed goes on.
_FREE = {
    "health_every",
    "keep",
    "knn_every_epochs",
    "log_every",
    "max_bad",
    "on_collapse",
    "save_every_epochs",
    "timeout",
    "workers",
}


# Of an engine only these change what is trained.
_ENGINE = {"clip": 0.0, "precision": "fp32"}
_CHANGED = "choose another --out, or go on all the same with --accept-changes"
# The mark of a passport (data/passport.py) that a mere copy of the images changes too.
TIMES = "times"
TOUCHED = (
    "the images' files have other mtimes than then: they are a copy, or some were written to; their bytes, of many "
    "files of a sample, are the same"
)
_LARGEST = 16 * 2**20
_LONGEST = 160


def open_run(out: Path, recipe: Recipe, accept_changes: bool = False) -> Path:
    """The run folder `out` for this recipe, made or resumed; `recipe.yaml` in it holds every default.

    Raises RunError as `refuse_other` does, where nothing can be written, or while another process writes there.
    """
    if comm.rank() == 0:
        refuse_other(out, recipe, accept_changes)
        refuse_unwritable(out)
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        tidy(out)
        if not (accept_changes and (out / RECIPE).exists()):
            write_recipe(out, recipe)
    comm.barrier()
    return out


def visit_run(out: Path) -> None:
    """For a verb that adds scores or an export to `out` without training there.

    Raises RunError where nothing can be written, before any work; removes what a kill left, unless another process
    holds the folder, which has done so.
    """
    refuse_unwritable(out)
    if out.is_dir() and not held(out):
        with contextlib.suppress(RunError):
            lock(out)
            tidy(out)
            unlock(out)


def tidy(out: Path) -> None:
    """Removes what processes that were killed left half-done in a run folder whose lock is held."""
    for pattern in (".", "checkpoints", "export", "features", "finetune*", "finetune*/checkpoints"):
        for folder in out.glob(pattern) if pattern != "." else (out,):
            sweep(folder)


def refuse_other(out: Path, recipe: Recipe, accept_changes: bool = False) -> None:
    """Raises RunError when `out` holds something else, or a run whose backbone came from another recipe.

    `accept_changes` makes a warning of the last, also where the run's recipe.yaml is damaged or gone.
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
    elif out.is_dir() and any(not p.name.startswith((".tmp-", ".lock")) for p in out.iterdir()):
        raise RunError(f"{out}: holds files but no run of lookalike: choose another --out")


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml`, unless it is there; of a changed recipe only once the earlier state was found to fit it."""
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
        earlier = _earlier(path)
    except (OSError, ValueError, RecipeError) as error:  # a UnicodeDecodeError is a ValueError
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
        _without_recipe(path, f"cannot be read ({reason})", accept)
        return
    changed = _changes(earlier, recipe)
    if changed and accept:
        warnings.warn(f"{path.parent}: goes on with another recipe ({'; '.join(changed)})", stacklevel=4)
    elif changed:
        raise RunError(f"{path.parent}: made by another recipe ({'; '.join(changed[:4])}): {_CHANGED}")


def changes(out: Path, recipe: Recipe) -> list[str]:
    """In what this recipe would train another backbone than the one that `out` was begun with; one line each.

    Nothing where there is none, or none that can be read.
    """
    try:
        return _changes(_earlier(out / RECIPE), recipe)
    except (OSError, ValueError, RecipeError):
        return []


def _earlier(path: Path) -> dict[str, Any]:
    earlier = read(read_regular(path, _LARGEST).decode(), str(path)).plain()
    if not isinstance(earlier, dict):
        raise ValueError("it is no recipe")
    if missing := [key for key in _FIXED if key not in earlier]:
        raise ValueError(f"cut short, without {missing[0]}:")
    return earlier


def _changes(earlier: Mapping[str, Any], recipe: Recipe) -> list[str]:
    now = recipe.plain()
    return [line for key in _FIXED for line in _differences(key, earlier.get(key), now.get(key))]


def _without_recipe(path: Path, what: str, accept: bool) -> None:
    """What was trained is there, and what it was trained by is not to be known."""
    if not accept:
        raise RunError(
            f"{path}: {what}: restore it, go on by the recipe given with --accept-changes, or choose another --out"
        )
    warnings.warn(f"{path}: {what}: goes on by the recipe given, and writes it anew", stacklevel=4)


def _differences(key: str, earlier: Any, now: Any) -> list[str]:
    if key.endswith(".engine"):
        earlier, now = (
            {name: (given or {}).get(name, usual) for name, usual in _ENGINE.items()} for given in (earlier, now)
        )
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now} - _FREE)
        return [line for k in keys for line in _differences(f"{key}.{k}", earlier.get(k), now.get(k))]
    return [] if earlier == now else [f"{key}: {_short(earlier)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer what an earlier state, here or in a model's card, was made of; one line each.

    What it says nothing of, as one that an earlier release wrote, is not compared, nor are the files' times.
    """
    return [
        line for key in now if key in earlier and key != TIMES for line in _differences(key, earlier[key], now[key])
    ]


def touched(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the images' files were written to, or copied, since: by their mtimes, when nothing else differs."""
    return TIMES in earlier and TIMES in now and earlier[TIMES] != now[TIMES]


class Checkpoint(NamedTuple):
    """`step` steps are done; `tensors` by file (`model`, `optim`) and name; `about` what the manifest says."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training below `folder`; the `keep` newest whole ones stay.

    One that is passed over because it is broken is renamed to `damaged.…`, so that it takes no whole one's place.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; on return it is on disk, whole. Raises RunError when it cannot be written."""
        target = self.folder / f"step_{step:08d}"
        files = {f"{name}.safetensors": save(dict(group)) for name, group in tensors.items()}
        write_folder(target, files, {"step": step, **about})
        write_file(self.folder / "latest.json", json.dumps({"step": step, "folder": target.name}).encode())
        self._forget()
        return target

    def _forget(self) -> None:
        for old in self._folders()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted((f for f in self.folder.glob("step_*") if _step(f) >= 0), key=_step, reverse=True)

    def newest(self, fixed: Mapping[str, Any], accept_changes: bool = False) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None in a folder without any; every rank gets the same.

        Warns of each broken one that it passes over and sets aside. Raises RunError when all are broken (training
        never silently starts anew), when one is of a newer format, or when `fixed` (data, batch) is not what the
        checkpoint was made with, unless `accept_changes`.
        """
        found = comm.from_first(self._decide(fixed, accept_changes) if comm.rank() == 0 else None)
        if isinstance(found, str):
            raise RunError(found)
        return None if found is None else _read(self.folder / found["folder"], found["about"])

    def _decide(self, fixed: Mapping[str, Any], accept: bool) -> dict[str, Any] | str | None:
        """The folder and its manifest, None for a fresh start, or the text of what forbids both."""
        problems: list[tuple[Path, str]] = []
        for folder in self._folders():
            try:
                about = _checked(folder)
            except NewerError as error:
                return str(error)
            except RunError as error:
                problems.append((folder, str(error)))
                continue
            for damaged, problem in problems:
                aside = set_aside(damaged)
                warnings.warn(f"{problem}; going on from {folder.name}, the broken one is now {aside}", stacklevel=2)
            changed = differences(about, fixed)
            if changed and accept:
                warnings.warn(f"{folder}: goes on with something else ({'; '.join(changed)})", stacklevel=3)
            elif changed:
                return f"{folder}: was trained on something else ({'; '.join(changed[:4])}): {_CHANGED}"
            elif touched(about, fixed):
                warnings.warn(f"{folder}: {TOUCHED}", stacklevel=3)
            return {"folder": folder.name, "about": about}
        return (
            f"{problems[0][1]}; no whole checkpoint is left: remove {self.folder} to start anew" if problems else None
        )


class Saver:
    """Writes checkpoints behind the training's back, one at a time: a training waits for the copy of its state only.

    A save that fails leaves the checkpoints before it whole; `failures` counts those in a row. On leaving, the
    last save is waited for.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints, self.failures, self.reason = checkpoints, 0, ""
        self._thread: threading.Thread | None = None
        self._news: list[str] = []

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint, after the one before is done; `tensors` must not change any more."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, tensors, about), name="saver")
        self._thread.start()

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]) -> None:
        try:
            _refuse_nonfinite(self.checkpoints.folder, step, tensors["model"])
            self.checkpoints.save(step, tensors, about)
            self.failures = 0
        except Exception as error:  # whatever it is, the training must hear of it and not die of it
            self.failures += 1
            self.reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            self._news.append(self.reason)

    def wait(self) -> None:
        """Until the save in hand, if any, has ended, well or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def news(self) -> list[str]:
        """What failed since it was last asked."""
        found, self._news = self._news, []
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()


def _refuse_nonfinite(folder: Path, step: int, model: Mapping[str, Tensor]) -> None:
    for name, tensor in model.items():
        if not torch.isfinite(tensor).all():
            raise RunError(
                f"{folder.parent}: {name} is no longer a number after step {step}: lower the learning rate, lengthen "
                "the warm-up, or take precision: fp32; what was saved before is whole"
            )


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that is whole and is what its folder's name says."""
    about = verify(folder)
    if about.get("step") != _step(folder) or set(about["files"]) != FILES:
        raise RunError(f"{folder / 'manifest.json'}: does not belong to {folder.name}")
    return about


def set_aside(folder: Path) -> str:
    """Renames what is broken, a checkpoint or a file, best effort; its new name."""
    names = (f"damaged.{folder.name}{tail}" for tail in ("", *(f".{n}" for n in range(1, 10**6))))
    free = next(name for name in names if not folder.with_name(name).exists())
    with contextlib.suppress(OSError):
        folder.rename(folder.with_name(free))
    return free


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _read(folder: Path, about: dict[str, Any]) -> Checkpoint:
    try:
        tensors = {name.removesuffix(".safetensors"): load((folder / name).read_bytes()) for name in FILES}
    except (OSError, SafetensorError) as error:
        raise RunError(f"{folder}: cannot be read ({error}): remove it to go on from the one before") from error
    return Checkpoint(about["step"], tensors, about)
