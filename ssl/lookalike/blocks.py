"""Parts that several methods share: Loss, mlp, Teacher, Queue, Prototypes."""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike import comm
from lookalike.optim import Moment, cosine
from lookalike.statistics import precise

LastNorm = Literal["none", "plain", "affine"]


class Loss(NamedTuple):
    """What a method returns: the scalar to descend, equal on all ranks, its parts for the log, and embeddings.

    `embeddings`: what the loss compares, (B, D) of each view, this rank's rows, detached: the log measures their
    health.
    """

    value: Tensor
    terms: Mapping[str, Tensor]
    embeddings: tuple[Tensor, ...] = ()


def both_ways(ab: Loss, ba: Loss, embeddings: tuple[Tensor, ...]) -> Loss:
    """The sum of a loss in both roles of the views; its terms are the means of both."""
    terms = {name: (ab.terms[name] + ba.terms[name]) / 2 for name in ab.terms}
    return Loss(ab.value + ba.value, terms, embeddings)


def mlp(widths: Sequence[int], *, last_norm: LastNorm = "none", bias: bool = False) -> nn.Sequential:
    """Linear, BatchNorm, ReLU for each step of `widths`; the last step is Linear and, if asked, a BatchNorm.

    `last_norm`: "affine" is BatchNorm with scale and shift, "plain" without; `bias`: of the last Linear.
    """
    layers: list[nn.Module] = []
    for wide, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False), start=2):
        last = wide == len(widths)
        layers.append(nn.Linear(d_in, d_out, bias=bias and last))
        if not last:
            layers += [nn.BatchNorm1d(d_out), nn.ReLU(inplace=True)]
        elif last_norm != "none":
            layers.append(nn.BatchNorm1d(d_out, affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def mlp_back(projector: Sequence[int], predictor: Sequence[int], **how: Any) -> nn.Sequential:
    """The predictor, an mlp from the projector's embeddings to what is compared with them.

    Raises ValueError when its width is not theirs.
    """
    if predictor[-1] != projector[-1]:
        raise ValueError(f"predictor ends {predictor[-1]} wide and projector {projector[-1]}: make them equal")
    return mlp([projector[-1], *predictor], **how)


def unit(x_BD: Tensor) -> Tensor:
    """Rows of length one, in fp32 or better; a row of zeros stays zero, and has a gradient of zeros."""
    x_BD = precise(x_BD)
    # Scaled by the largest entry first: the squares of huge or tiny rows would leave the range of fp32.
    largest_B1 = x_BD.detach().abs().amax(dim=1, keepdim=True)
    nonzero_B1 = largest_B1 > 0
    return F.normalize(x_BD / torch.where(nonzero_B1, largest_B1, 1.0), dim=1) * nonzero_B1


def each_size(module: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """`module` of every view, views of one size in one pass: (B, C, H, W) each -> (B, D) each, in order."""
    found: list[Tensor] = []
    apart = getattr(module, "pieces", 1) > 1
    for _, group in itertools.groupby(enumerate(views), key=lambda item: item[0] if apart else item[1].shape[-1]):
        same = [view for _, view in group]
        found += module(torch.cat(same)).chunk(len(same)) if len(same) > 1 else [module(same[0])]
    return found


class Teacher(nn.Module):
    """An exponential moving average of its students, called like them one after another; never trained.

    The loop says where the training stands (`begin`) and, after each good step, lets it `follow` with momentum
    that goes from `momentum` to `final` by a half cosine (BYOL, arXiv 2006.07733, section 3.3). Its BatchNorms
    keep running statistics of their own; its dropout is off.
    """

    elementwise = True  # `follow` works number by number: at ZeRO stage 3 shards of the weights are enough for it

    def __init__(self, *students: nn.Module, momentum: float, final: float = 1.0) -> None:
        super().__init__()
        self.momentum, self.final, self.now = momentum, final, momentum
        self.copies = nn.ModuleList(copy.deepcopy(student) for student in students).requires_grad_(False)
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

    def begin(self, moment: Moment) -> None:
        """Sets the momentum of this step."""
        self.now = cosine(self.momentum, self.final, moment.progress)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves each weight towards its student's by 1 - momentum."""
        own: list[Tensor] = [p for module in self.copies for p in module.parameters()]
        theirs = [p.detach().to(p.dtype) for student in self._students for p in student.parameters()]
        torch._foreach_lerp_(own, theirs, 1.0 - self.now)


class Queue(nn.Module):
    """The last `size` rows of all ranks, alike on all of them; starts with random unit rows (MoCo, arXiv 1911.05722).

    `put` only remembers; `follow`, called by the loop after a good step, writes: a step that is skipped leaves
    no trace.
    """

    rows_QD: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows_QD", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def put(self, z_BD: Tensor) -> None:
        """This rank's rows of a batch, to be written by the next `follow`."""
        if self.training:
            self._waiting = [*self._waiting, comm.cat(z_BD.detach())]

    def forget(self) -> None:
        """Drops what was put since the last `follow`."""
        self._waiting = []

    @torch.no_grad()
    def follow(self) -> None:
        """Writes what was put over the oldest rows; the order is that of the batch, the same on all ranks."""
        for rows_ND in self._waiting:
            size, n = len(self.rows_QD), len(rows_ND)
            places = (self.written + torch.arange(n, device=rows_ND.device)) % size
            self.rows_QD.index_copy_(0, places[-size:], rows_ND[-size:].to(self.rows_QD.dtype))
            self.written += n
        self._waiting = []


class Prototypes(nn.Module):
    """Cosines with K learned directions: unit rows (B, D) -> (B, K). While `frozen` they have a gradient of zeros."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))
        self.frozen = False

    def forward(self, z_BD: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        weight_KD: Tensor = self.weight
        if self.frozen:  # zeros rather than None: every engine and optimizer then does the same
            weight_KD = weight_KD.detach() + 0 * (weight_KD - weight_KD.detach())
        return z_BD @ unit(weight_KD).to(z_BD.dtype).T
