"""A run folder and its checkpoints: complete or absent, checked before use, and the truth about where a run stands.

`checkpoints/step_00000120/` means that 120 steps are done. It appears only by rename, with the sha256 of every
file in its manifest; `latest.json` is a hint for people, the truth is the newest folder that verifies.
"""

import contextlib
import json
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
from lookalike.folder import lock, sweep, verify, write_file, write_folder
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


def open_run(out: Path, recipe: Recipe, accept_changes: bool = False) -> Path:
    """The run folder `out` for this recipe, made or resumed; `recipe.yaml` in it holds every default.

    Raises RunError as `refuse_other` does, or while another process writes there.
    """
    if comm.rank() == 0:
        refuse_other(out, recipe, accept_changes)
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        if not (accept_changes and (out / RECIPE).exists()):
            write_recipe(out, recipe)
    comm.barrier()
    return out


def refuse_other(out: Path, recipe: Recipe, accept_changes: bool = False) -> None:
    """Raises RunError when `out` holds something else, or a run whose backbone came from another recipe.

    `accept_changes` makes a warning of the last.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file: choose another --out")
    if (out / RECIPE).exists():
        # Where nothing was trained yet any recipe may begin.
        if (out / "checkpoints").exists() or (out / "backbone").exists():
            _refuse_other_recipe(out / RECIPE, recipe, accept_changes)
    elif out.is_dir() and any(not p.name.startswith((".tmp-", ".lock")) for p in out.iterdir()):
        raise RunError(f"{out}: holds files but no run of lookalike: choose another --out")


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Writes `recipe.yaml`; of a changed recipe only once the earlier state was found to fit it."""
    if comm.rank() == 0:
        write_file(out / RECIPE, recipe.text().encode())


def _refuse_other_recipe(path: Path, recipe: Recipe, accept: bool) -> None:
    try:
        earlier = read(path.read_text(), str(path)).plain()
    except (OSError, UnicodeDecodeError, RecipeError) as error:
        raise RunError(f"{path}: cannot be read ({error}): choose another --out") from error
    now = recipe.plain()
    if not isinstance(earlier, dict):
        raise RunError(f"{path}: is no recipe: choose another --out")
    changed = [line for key in _FIXED for line in _differences(key, earlier.get(key), now.get(key))]
    if changed and accept:
        warnings.warn(f"{path.parent}: goes on with another recipe ({'; '.join(changed)})", stacklevel=4)
    elif changed:
        raise RunError(f"{path.parent}: made by another recipe ({'; '.join(changed[:4])}): {_CHANGED}")


def _differences(key: str, earlier: Any, now: Any) -> list[str]:
    if key.endswith(".engine"):
        earlier, now = (
            {name: (given or {}).get(name, usual) for name, usual in _ENGINE.items()} for given in (earlier, now)
        )
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now} - _FREE)
        return [line for k in keys for line in _differences(f"{key}.{k}", earlier.get(k), now.get(k))]
    return [] if earlier == now else [f"{key}: {json.dumps(earlier)} -> {json.dumps(now)}"]


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
                aside = _set_aside(damaged)
                warnings.warn(f"{problem}; going on from {folder.name}, the broken one is now {aside}", stacklevel=2)
            changed = [line for key in fixed for line in _differences(key, about.get(key), fixed[key])]
            if changed and accept:
                warnings.warn(f"{folder}: goes on with something else ({'; '.join(changed)})", stacklevel=3)
            elif changed:
                return f"{folder}: was trained on something else ({'; '.join(changed[:4])}): {_CHANGED}"
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


def _set_aside(folder: Path) -> str:
    """Renames a broken checkpoint, best effort; its new name."""
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
