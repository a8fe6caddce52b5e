"""What the ranks met in a step, agreed by all: known at once where the host waits for no device,
else one step later.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.comm.later import Read, read_later, sum_later


class Decision(NamedTuple):
    """How a step ends, alike on all ranks; booleans of the host, or of the device.

    `skip`: without an update; `trouble`: for another reason than fp16's scale.
    """

    skip: bool | Tensor
    trouble: bool | Tensor

    @property
    def good(self) -> bool | Tensor:
        """The step was not skipped."""
        return ~self.skip if torch.is_tensor(self.skip) else not self.skip


class Met(NamedTuple):
    """What any rank met in one step, which all do something about: `stop`, a signal; `bad` images
    found; `failures`, saves in a row that failed.
    """

    step: int
    stop: bool
    bad: int
    failures: int
    skip: bool
    trouble: bool


class Verdicts:
    """One for each training. `late`: the host looks at a step's when it has launched the next one.

    While steps are in trouble (`wary`), it looks at once, and goes back from where it would have
    otherwise.
    """

    def __init__(self, late: bool, *, wary: bool = False) -> None:
        self._late, self._wary = late, wary
        self._known: list[Met] = []
        self._pending: list[tuple[int, Read, Read]] = []

    def decide(self, step: int, broken: Tensor, stop: bool, bad: int, failures: int) -> Decision:
        """What this rank met in step `step`, from 1, and what an engine's `broken` found: agreed
        over ranks.
        """
        met = (stop, bad, failures)
        if self._late:
            flags = comm.all_max(broken)
            self._pending.append((step, read_later(flags), sum_later(met)))
            return Decision(flags[0].bool(), flags[1].bool())
        counts = comm.all_sum(torch.tensor([*met, *broken.tolist()], dtype=torch.int64)).tolist()
        self._known.append(_met(step, counts[:3], counts[3:]))
        return Decision(self._known[-1].skip, self._known[-1].trouble)

    def known(self, *, settle: bool) -> Iterator[Met]:
        """What is known by now, step by step; with `settle` all of it, for which the host waits."""
        while self._known:
            yield self._known.pop(0)
        while len(self._pending) > (0 if settle or self._wary else 1):
            step, flags, counts = self._pending.pop(0)
            met = _met(step, counts(), flags())
            self._wary = met.trouble or met.stop
            yield met


def _met(step: int, counts: list[int], flags: list[int]) -> Met:
    stop, bad, failures = counts
    skip, trouble = (n > 0 for n in flags)
    return Met(step, stop > 0, bad, failures, skip, trouble)
