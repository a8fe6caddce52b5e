"""Images mixed with one another, and their targets alike: mixup (Zhang, Cisse, Dauphin & Lopez-Paz,
ICLR 2018, arXiv 1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv 1905.04899).

Images are mixed in pairs, rows 2j and 2j + 1 of a batch, each with the other by one share λ ~
Beta(α, α): timm's `pair` mode. All is a pure function of (seed, epoch, the samples of the pair), so
that neither ranks nor micro-batches change it, as long as they do not part a pair.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike import rng
from lookalike.recipe import Fraction, NonNegative
from lookalike.views.fused import channels_last
from lookalike.views.send import send

# Of which each fails at most one time in twenty (Marsaglia & Tsang 2000, table 1).
_ATTEMPTS = 16


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixes a batch of views and their targets by pairs.

    `mixup`, `cutmix`: α of each one's Beta(α, α), 0 for never; `chance`: how often a pair is mixed
    at all; `switch`: how often by CutMix, where both are on.
    """

    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    chance: Fraction = 1.0
    switch: Fraction = 0.5

    def __call__(
        self, view_BCHW: Tensor, targets_BC: Tensor, ids_B: Tensor, *, seed: int, epoch: int
    ) -> tuple[Tensor, Tensor]:
        """Views (B, C, H, W) and float targets (B, C), both on the device, ids_B (int64) on the
        host -> the same, mixed; of an odd batch the last stays as it is.
        """
        pairs = len(ids_B) // 2
        if pairs == 0 or not (self.mixup or self.cutmix):
            return view_BCHW, targets_BC
        height, width = view_BCHW.shape[2:]
        share_P, box_P4 = self.draws(ids_B[: 2 * pairs].view(pairs, 2), seed, epoch, height, width)
        cut_P = 1 - (box_P4[:, 2] * box_P4[:, 3]).float() / (height * width)
        both = send(torch.stack([share_P, share_P * cut_P]), view_BCHW.device)
        inside = _inside(send(box_P4, view_BCHW.device), height, width)
        own, other = _pairs(view_BCHW, pairs)
        mixed = torch.where(inside[:, None, None], other, _blended(own, other, both[0]))
        targets = _blended(*_pairs(targets_BC, pairs), both[1])
        return _beside(view_BCHW, mixed), _beside(targets_BC, targets)

    def draws(
        self, ids_P2: Tensor, seed: int, epoch: int, height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """What is drawn for each pair: the share (P,) that each image keeps of itself in mixup, 1
        where there is none; the box (P, 4: top, left, height, width) that it takes from the other
        in CutMix, empty where there is none.
        """
        first, second = ids_P2[:, 0], ids_P2[:, 1]

        def u(purpose: str) -> Tensor:
            return rng.uniform(seed, epoch, "mixing", purpose, first, second)

        on_P = u("chance") < self.chance
        cuts_P = (u("switch") < self.switch) if self.mixup and self.cutmix else on_P
        cuts_P = on_P & cuts_P & bool(self.cutmix)
        mixes_P = on_P & ~cuts_P & bool(self.mixup)
        share_P, empty_P4 = torch.ones(len(first)), torch.zeros(len(first), 4, dtype=torch.long)
        if self.mixup:
            kept = _beta(self.mixup, seed, epoch, "mixup", first, second)
            share_P = torch.where(mixes_P, kept, share_P)
        if not self.cutmix:
            return share_P, empty_P4
        kept = _beta(self.cutmix, seed, epoch, "cutmix", first, second)
        box_P4 = boxes(kept, u("row"), u("column"), height, width)
        return share_P, torch.where(cuts_P[:, None], box_P4, empty_P4)


def boxes(kept_P: Tensor, row_P: Tensor, column_P: Tensor, height: int, width: int) -> Tensor:
    """(P, 4), top, left, height, width: of the image's shape and 1 - λ of its area, about a pixel
    anywhere, cut at the edges (CutMix, equation 2); row and column of that pixel in [0, 1).
    """
    found = []
    for place_P, side in ((row_P, height), (column_P, width)):
        half = (side * (1 - kept_P).clamp(min=0).sqrt()).long() // 2
        centre = (place_P * side).long().clamp(max=side - 1)
        low, high = (centre - half).clamp(min=0), (centre + half).clamp(max=side)
        found.append((low, high - low))
    (top, tall), (left, wide) = found
    return torch.stack([top, left, tall, wide], dim=1)


def _beta(alpha: float, seed: int, epoch: int, purpose: str, *ids: Tensor) -> Tensor:
    """(P,) float32 of Beta(α, α): X / (X + Y) of two Gamma variables, in logarithms, which no small
    α makes 0 / 0.
    """
    x, y = (_log_gamma(alpha, seed, epoch, "mixing", purpose, part, *ids) for part in ("x", "y"))
    return torch.sigmoid(x - y).float()


def _log_gamma(alpha: float, *coordinates: int | str | Tensor) -> Tensor:
    """(P,) float64, the logarithm of Gamma(α): Marsaglia & Tsang, "A simple method for generating
    gamma variables", TOMS 2000, for α + 1, times U^(1/α).
    """
    *before, first, second = coordinates

    def u(purpose: str) -> Tensor:
        drawn = rng.uniform(
            *before,
            purpose,
            torch.as_tensor(first)[:, None],
            torch.as_tensor(second)[:, None],
            torch.arange(_ATTEMPTS),
        )
        return 1 - drawn.double()  # in (0, 1]

    d = alpha + 2 / 3
    radius, angle = (-2 * u("radius").log()).sqrt(), 2 * math.pi * u("angle")
    normal = radius * angle.cos()
    v = (1 + normal / math.sqrt(9 * d)).pow(3)
    log_v = v.clamp(min=1e-300).log()
    taken = (v > 0) & (u("accept").log() < normal.square() / 2 + d * (1 - v + log_v))
    chosen = taken.int().argmax(dim=1, keepdim=True)
    found: Tensor = math.log(d) + log_v.gather(1, chosen)[:, 0] + u("power")[:, 0].log() / alpha
    return found


def _pairs(x_BX: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """(P, 2, …): the rows of each pair, and the same with the two in each other's place."""
    own = x_BX[: 2 * pairs].view(pairs, 2, *x_BX.shape[1:])
    return own, own.flip(1)


def _blended(own: Tensor, other: Tensor, share_P: Tensor) -> Tensor:
    """λ own + (1 - λ) other, computed in float32."""
    share = share_P.view(-1, *[1] * (own.dim() - 1))
    return (own.float() * share + other.float() * (1 - share)).to(own.dtype)


def _inside(box_P4: Tensor, height: int, width: int) -> Tensor:
    """(P, H, W): whether a pixel lies in the box."""
    top, left, tall, wide = box_P4[:, :, None].unbind(1)
    y_H, x_W = (torch.arange(side, device=box_P4.device) for side in (height, width))
    rows, columns = (y_H >= top) & (y_H < top + tall), (x_W >= left) & (x_W < left + wide)
    return rows[:, :, None] & columns[:, None, :]


def _beside(x_BX: Tensor, mixed: Tensor) -> Tensor:
    """The mixed pairs as rows again, in the memory format of x, with the odd row that is left."""
    made = torch.cat([mixed.flatten(0, 1), x_BX[2 * len(mixed) :]])
    if x_BX.dim() == 4 and x_BX.stride(1) == 1:
        return channels_last(made)
    return made
