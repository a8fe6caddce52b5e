"""An exponential moving average (EMA) of a student, never trained itself."""

import copy

import torch
from torch import Tensor, nn

from lookalike.nn.hooks import Follower, Scheduled
from lookalike.optim import Progress, cosine


class Teacher(Scheduled, Follower):
    """An exponential moving average of its students, called like them one after another; never
    trained.

    After each good step it moves with momentum that goes from `momentum` to `final` by a half
    cosine (BYOL, arXiv 2006.07733, section 3.3). Its BatchNorms keep running statistics of their
    own; its dropout is off.
    """

    elementwise = True

    def __init__(self, *students: nn.Module, momentum: float, final: float = 1.0) -> None:
        super().__init__()
        self.momentum, self.final, self.now = momentum, final, momentum
        self.copies = nn.ModuleList(copy.deepcopy(student) for student in students).requires_grad_(
            False
        )
        self._students = students  # in a tuple, so that they are not registered a second time
        for module in self.copies.modules():
            for name in ("p", "drop_prob"):
                if "Drop" in type(module).__name__ and hasattr(module, name):
                    setattr(module, name, 0.0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the students would give, from the averaged weights; without gradient."""
        for module in self.copies:
            x = module(x)
        return x

    def on_step(self, progress: Progress) -> None:
        """Sets the momentum of this step."""
        self.now = cosine(self.momentum, self.final, progress.progress)

    @torch.no_grad()
    def update(self) -> None:
        """Moves each weight towards its student's by 1 - momentum."""
        own: list[Tensor] = [p for module in self.copies for p in module.parameters()]
        theirs = [
            p.detach().to(p.dtype) for student in self._students for p in student.parameters()
        ]
        torch._foreach_lerp_(own, theirs, 1.0 - self.now)
