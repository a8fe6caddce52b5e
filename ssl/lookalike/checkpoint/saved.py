"""Checkpoints: complete or absent, checked before use, written behind the training's back."""

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
from lookalike.checkpoint.compare import CHANGED, TOUCHED, differences, touched
from lookalike.checkpoint.run import set_aside
from lookalike.errors import NewerError, RunError
from lookalike.folder import (
    MANIFEST,
    await_visible,
    patiently,
    read_manifest,
    verify,
    write_file,
    write_folder,
)

FILES = {"model.safetensors", "optim.safetensors"}


class Checkpoint(NamedTuple):
    """`step` steps are done; `tensors` by file (`model`, `optim`) and name; `about` what the
    manifest says.
    """

    step: int
    tensors: dict[str, dict[str, Tensor]]
    about: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training below `folder`; the `keep` newest whole ones stay.

    One that is passed over because it is broken is renamed to `damaged.…`, so that it takes no
    whole one's place.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> Path:
        """Writes a checkpoint; on return it is on disk, whole. Raises RunError when it cannot be
        written.
        """
        target = self.folder / f"step_{step:08d}"
        files = {f"{name}.safetensors": save(dict(group)) for name, group in tensors.items()}
        write_folder(target, files, {"step": step, **about})
        write_file(
            self.folder / "latest.json", json.dumps({"step": step, "folder": target.name}).encode()
        )
        self._forget()
        return target

    def _forget(self) -> None:
        for old in self.folders()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def folders(self) -> list[Path]:
        """Newest first."""
        return sorted(
            (f for f in self.folder.glob("step_*") if _step(f) >= 0), key=_step, reverse=True
        )

    def newest(
        self, must_match: Mapping[str, Any], accept_changes: bool = False
    ) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None in a folder without any; every rank gets the
        same.

        Warns of each broken one that it passes over and sets aside. Raises RunError when all are
        broken (training never silently starts anew), when one is of a newer format, or when `fixed`
        (data, batch) is not what the checkpoint was made with, unless `accept_changes`.
        """
        found = comm.broadcast_object(
            self._decide(must_match, accept_changes) if comm.rank() == 0 else None
        )
        if isinstance(found, str):
            raise RunError(found)
        return None if found is None else _read(self.folder / found["folder"], found["about"])

    def _decide(self, must_match: Mapping[str, Any], accept: bool) -> dict[str, Any] | str | None:
        """The folder and its manifest, None for a fresh start, or the text of what forbids both."""
        problems: list[tuple[Path, str]] = []
        for folder in self.folders():
            try:
                about = _checked(folder)
            except NewerError as error:
                return str(error)
            except RunError as error:
                problems.append((folder, str(error)))
                continue
            for damaged, problem in problems:
                aside = set_aside(damaged)
                warnings.warn(
                    f"{problem}; going on from {folder.name}, the broken one is now {aside}",
                    stacklevel=2,
                )
            changed = differences(about, must_match)
            if changed and accept:
                warnings.warn(
                    f"{folder}: goes on with something else ({'; '.join(changed)})", stacklevel=3
                )
            elif changed:
                return (
                    f"{folder}: was trained on something else ({'; '.join(changed[:4])}): {CHANGED}"
                )
            elif touched(about, must_match):
                warnings.warn(f"{folder}: {TOUCHED}", stacklevel=3)
            return {"folder": folder.name, "about": about}
        return (
            f"{problems[0][1]}; no whole checkpoint is left: remove {self.folder} to start anew"
            if problems
            else None
        )


def newest_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of the newest checkpoint below `folder` whose manifest can be read; its files
    are not verified.
    """
    for each in Checkpoints(folder, 1).folders():
        with contextlib.suppress(RunError):
            about = read_manifest(each)
            if about.get("step") == _step(each):
                return about
    return None


class Saver:
    """Writes checkpoints behind the training's back, one at a time: a training waits for the copy
    of its state only.

    A save that fails leaves the checkpoints before it whole; `failures` counts those in a row. On
    leaving, the last save is waited for.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints, self.failures, self.reason = checkpoints, 0, ""
        self._thread: threading.Thread | None = None
        self._news: list[str] = []

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        """Begins to write a checkpoint, after the one before is done; `tensors` must not change any
        more.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(step, tensors, about), name="saver"
        )
        self._thread.start()

    def _write(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any]
    ) -> None:
        try:
            _refuse_nonfinite(self.checkpoints.folder, step, tensors["model"])
            self.checkpoints.save(step, tensors, about)
            self.failures = 0
        except Exception as error:  # whatever it is, the training must hear of it and not die of it
            self.failures += 1
            self.reason = (
                str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            )
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
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wait()


def _refuse_nonfinite(folder: Path, step: int, model: Mapping[str, Tensor]) -> None:
    for name, tensor in model.items():
        if not torch.isfinite(tensor).all():
            raise RunError(
                f"{folder.parent}: {name} is NaN or Inf after step {step}: lower the "
                "learning rate, lengthen "
                "the warm-up, or take precision: fp32; what was saved before is whole"
            )


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that is whole and is what its folder's name says."""
    about = verify(folder)
    if about.get("step") != _step(folder) or set(about["files"]) != FILES:
        raise RunError(f"{folder / 'manifest.json'}: does not belong to {folder.name}")
    return about


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def _read(folder: Path, about: dict[str, Any]) -> Checkpoint:
    if comm.rank() != 0:  # which has seen it
        await_visible(folder / MANIFEST)
    try:
        tensors = {
            name.removesuffix(".safetensors"): load(patiently((folder / name).read_bytes))
            for name in FILES
        }
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{folder}: cannot be read ({error}): remove it to go on from the one before"
        ) from error
    return Checkpoint(about["step"], tensors, about)
