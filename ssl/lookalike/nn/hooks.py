"""What a module may do around a step of training; who does what is found by type, never by a name.

on_step (Scheduled) -> forward, which may stage (Deferred) -> backward, optimizer
    -> good step: commit (Deferred), update (Follower)      skipped step: discard (Deferred)
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from lookalike.optim import Progress


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
    def commit(self) -> None:
        """After a good step: writes what was staged, in order."""
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
        """Called after each good step, without gradient."""
        raise NotImplementedError


def start_step(module: nn.Module, progress: Progress) -> None:
    """Tells every Scheduled module below where the training stands."""
    for part in module.modules():
        if isinstance(part, Scheduled):
            part.on_step(progress)


def followers(module: nn.Module) -> list[Deferred | Follower]:
    """Every module below that moves after a good step, in the order of `modules()`."""
    return [part for part in module.modules() if isinstance(part, Deferred | Follower)]


def follow(module: nn.Module) -> None:
    """After a good step: everything below commits or is updated."""
    for part in followers(module):
        follow_one(part)


def follow_one(part: Deferred | Follower) -> None:
    """Commits and updates, whichever it has."""
    if isinstance(part, Deferred):
        part.commit()
    if isinstance(part, Follower):
        with torch.no_grad():
            part.update()


def discard(module: nn.Module) -> None:
    """After a skipped step: nothing of it stays staged below."""
    for part in module.modules():
        if isinstance(part, Deferred):
            part.discard()
