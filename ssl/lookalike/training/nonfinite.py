"""The policy for non-finite steps (NaN or Inf) and failed saves: skip, go back, stop,
and say why.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from lookalike import comm
from lookalike.checkpoint import Saver
from lookalike.data.order import BatchOrder
from lookalike.engine import Engine
from lookalike.errors import RunError
from lookalike.folder import write_folder

_PATIENCE = 3


class NonFinitePolicy:
    """Counts what went wrong; alike on all ranks, because all hear of the same. `skipped`: steps
    without an update.

    `earlier`: the `state` of a training that is resumed.
    """

    def __init__(self, folder: Path, title: str, earlier: Sequence[int] = ()) -> None:
        self.folder, self.title = folder, title
        self.skipped, self._row, self._reached = earlier or (0, 0, -1)

    def state(self) -> tuple[int, int, int]:
        """The counts, as JSON data."""
        return self.skipped, self._row, self._reached

    @property
    def in_trouble(self) -> bool:
        """The last step was non-finite."""
        return self._row > 0

    def on_overflow(self) -> None:
        """A step was skipped on every rank because fp16's scaled gradient overflowed: the scale is
        halved, and nothing is wrong.
        """
        self.skipped += 1

    def reset(self) -> None:
        """A good step ends what was before."""
        self._row = 0

    def on_bad_step(self, engine: Engine, order: BatchOrder, done: int) -> bool:
        """Step `done` was skipped on every rank: whether that is the third in a row, which leaves a
        bundle.
        """
        self.skipped, self._row = self.skipped + 1, self._row + 1
        if comm.rank() == 0:
            warnings.warn(
                f"step {done}: loss or gradient is NaN or Inf: skipped on all ranks", stacklevel=2
            )
        if self._row < _PATIENCE:
            return False
        self._row = 0
        self._bundle(engine, order, done)
        return True

    def rollback(self, done: int, step: int) -> int:
        """From `done` back to the checkpoint of `step`. Raises RunError at the second time, or
        without any.
        """
        bundle = self.folder / "nonfinite"
        if step == 0 or self._reached >= step:
            when = (
                f"again, after going back to step {step}" if step else "before anything was saved"
            )
            raise RunError(
                f"{self.folder}: the loss or its gradient is NaN or Inf at step {done}, the third "
                f"in a row, {when}: "
                f"lower {self.title}.optimizer.lr, lengthen the warm-up, or take precision: fp32; "
                f"see {bundle}"
            )
        self._reached = done
        if comm.rank() == 0:
            warnings.warn(
                f"step {done}: goes back to the checkpoint of step {step}; see {bundle}",
                stacklevel=2,
            )
        return step

    def _bundle(self, engine: Engine, order: BatchOrder, done: int) -> None:
        """State and samples of the three steps, which reproduce them: everything else follows from
        the recipe.
        """
        state = engine.save()
        steps = [
            {"step": step, "epoch": epoch, "samples": ids.tolist()}
            for step in range(done - _PATIENCE, done)
            for epoch, ids in order.micro_batches(step, step + 1)
        ]
        if comm.rank() == 0:
            groups: dict[str, dict[str, Tensor]] = state._asdict()
            files = {f"{name}.safetensors": save(group) for name, group in groups.items()}
            about = {
                "step": done,
                "world": comm.world_size(),
                "torch": torch.__version__,
                "steps": steps,
            }
            try:
                write_folder(self.folder / "nonfinite", files, about)
            except RunError as error:  # it is there to look at, and no reason to stop
                warnings.warn(f"{error}; training goes on", stacklevel=4)

    def on_failed_save(self, saver: Saver, failures: int) -> None:
        """Warns of each save that failed. Raises RunError on every rank at the third in a row."""
        for reason in saver.news():
            warnings.warn(f"{reason}; training goes on", stacklevel=2)
        if failures >= _PATIENCE:
            reason = comm.broadcast_object(saver.reason)
            raise RunError(f"{reason}; {_PATIENCE} saves in a row have failed")
