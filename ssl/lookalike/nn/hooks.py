"""What a module may do around a step of training; who does what is found by type, never by a name.

on_step (Scheduled) -> forward, which may stage (Deferred) -> backward, optimizer
    -> good step: commit (Deferred), update (Follower)      skipped step: discard (Deferred)

On an accelerator only the device knows whether a step was good: commit and update are done after
every step, and put back there where it was not.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn

from lookalike.optim import Progress, undone

# True, or a boolean on the device, of no dimension: whether a step was good.
Good = bool | Tensor


class Scheduled:
    """A base, beside nn.Module or one of its kind, of modules that depend on where the training
    stands.
    """

    def on_step(self, progress: Progress) -> None:
        """Called before each step, once for all its micro-batches."""
        raise NotImplementedError


class Deferred(nn.Module):
    """A module whose buffers move after good steps only: forward stages, `commit` writes, `discard`
    drops.

    A subclass has `write`, which takes what one `stage` was given; the micro-batches of a step are
    written one after another, as that many steps would be. `write` sees and changes buffers, no
    parameters: at ZeRO stage 3 these are not gathered for it.
    """

    write: Callable[..., None]

    def __init__(self) -> None:
        super().__init__()
        self._staged: list[tuple[Tensor, ...]] = []

    def stage(self, *tensors: Tensor) -> None:
        """Keeps tensors, the same on all ranks, without their graph, until the step ends; in
        training only.
        """
        if self.training:
            self._staged = [*self._staged, tuple(tensor.detach() for tensor in tensors)]

    @torch.no_grad()
    def commit(self, good: Good = True) -> None:
        """After a step that was good: writes what was staged, in order; after another drops it."""
        if self._staged:
            with kept_if(good, [t for t in self._buffers.values() if t is not None]):
                for tensors in self._staged:
                    self.write(*tensors)
        self._staged = []

    def discard(self) -> None:
        """After a skipped step: drops what was staged."""
        self._staged = []


class Follower(nn.Module):
    """A module whose parameters follow those of others after each good step, as a teacher does."""

    # Whether `update` works number by number: shards of the weights (ZeRO stage 3) then suffice it.
    elementwise: ClassVar[bool] = False

    def update(self) -> None:
        """Called after each good step, without gradient; changes parameters of its own."""
        raise NotImplementedError


def kept_if(good: Good, tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    """What is done to the tensors while entered stays only where `good`: a boolean on the device is
    not waited for.
    """
    return nullcontext() if good is True else undone(tensors, ~torch.as_tensor(good))


def scheduled(module: nn.Module) -> list[Scheduled]:
    """Every module below that depends on where the training stands, in the order of `modules()`."""
    return [part for part in module.modules() if isinstance(part, Scheduled)]


def start_step(module: nn.Module, progress: Progress) -> None:
    """Tells every Scheduled module below where the training stands."""
    for part in scheduled(module):
        part.on_step(progress)


def followers(module: nn.Module) -> list[Deferred | Follower]:
    """Every module below that moves after a good step, in the order of `modules()`."""
    return [part for part in module.modules() if isinstance(part, Deferred | Follower)]


def follow(module: nn.Module, good: Good = True) -> None:
    """After a step: everything below commits or is updated, where it was good."""
    for part in followers(module):
        follow_one(part, good)


def follow_one(part: Deferred | Follower, good: Good = True) -> None:
    """Commits and updates, whichever it has."""
    if isinstance(part, Deferred):
        part.commit(good)
    if isinstance(part, Follower):
        update(part, good)


@torch.no_grad()
def update(part: Follower, good: Good = True) -> None:
    """Updates it, where the step was good."""
    with kept_if(good, part.parameters()):
        part.update()


def discard(module: nn.Module) -> None:
    """After a skipped step: nothing of it stays staged below."""
    for part in module.modules():
        if isinstance(part, Deferred):
            part.discard()
