"""The papers' linear evaluations: a linear layer trained by SGD on random crops and flips, with
every learning rate of a grid, and every choice of features, at once on one pass of the backbone
(DINOv2, arXiv 2304.07193, section 7.1; dinov2/eval/linear.py).

Of each batch all ranks get the features, and share the classifiers among themselves: no gradient
crosses ranks, and none holds more than its part of the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.data.images import Images
from lookalike.evaluation.protocols.contract import Found, Subject
from lookalike.evaluation.protocols.training import (
    OnViews,
    Outcome,
    Rates,
    learn,
    shares,
)
from lookalike.models import Architecture
from lookalike.models.taps import Tap, Tokens, features, refuse_tap, untapped, widths
from lookalike.recipe import Count, Fraction, NonNegative
from lookalike.scoring.blocks import hit
from lookalike.scoring.heads import Descent, Heads, Standard
from lookalike.scoring.linear import Linear


@dataclass(frozen=True, kw_only=True)
class Sgd(OnViews):
    """A linear layer trained by SGD on random crops and flips of the images.

    `lr`: one learning rate, or several that are trained beside one another, of which the best on
    the held-out part of train counts; they are final, the batch does not scale them.
    `weight_decay`: of weights and biases; `lars`: each weight's step follows its norm, as in
    pretraining (its momentum is SGD's); `batchnorm`: features are standardised by BatchNorm without
    scale and shift before the layer. `blocks` and `tokens`: features to choose from, each of one
    with each of the other, as `probe.blocks` and `probe.tokens` say; by default those of the probe.
    """

    needs_model = True
    title = "sgd"
    source = "no paper's: a grid of ours"

    lr: Rates = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    weight_decay: NonNegative = 0.0
    momentum: Fraction = 0.9
    nesterov: bool = False
    lars: bool = False
    batchnorm: bool = False
    blocks: tuple[Count, ...] = ()
    tokens: tuple[Tokens, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates."""
        return tuple(self.lr) if isinstance(self.lr, Sequence) else (self.lr,)

    def taps(self, own: Tap) -> list[Tap]:
        """The features to choose from, by default the probe's `own`."""
        blocks, tokens = self.blocks or (own.blocks,), self.tokens or (own.tokens,)
        return [Tap(own.layer, n, kind) for n in blocks for kind in tokens]

    def refuse(self, images: tuple[Images, Images], architecture: Architecture, tap: Tap) -> None:
        """Raises DataError or BackboneError for what cannot be trained so."""
        self.refuse_batch(self.title, images[0])
        for each in self.taps(tap):
            refuse_tap(architecture, each)

    def score(self, subject: Subject) -> Found:
        """`sgd/top1`, …, under the protocol's own name."""
        assert subject.model is not None
        backbone, own = untapped(subject.model)
        taps = self.taps(own)
        seed = rng.seed(subject.numbers.seed, "linear heads")

        def make(classes: int) -> Linears:
            return Linears(backbone, taps, self, classes, seed)

        outcome = learn(subject, self, self.title, make)
        found = self._found(subject, outcome, taps, own)
        outcome.kept.remove()
        return found

    def _found(self, subject: Subject, outcome: Outcome, taps: list[Tap], own: Tap) -> Found:
        learner: Linears = outcome.learner
        tap, rate = learner.choices[outcome.best % len(learner.choices)]
        scores: dict[str, Any] = {**outcome.scores, "lr": rate}
        if outcome.held_out is not None:
            scores["held_out_top1"] = outcome.held_out
        if len(self.rates) > 1:
            scores["lr_edge"] = rate in (min(self.rates), max(self.rates))
        if len(taps) > 1:
            scores |= {"blocks": taps[tap].blocks, "tokens": taps[tap].tokens}
        told = self.told(subject.numbers, self.rates, learner.several) | {
            "optimizer": f"{'LARS' if self.lars else 'SGD'}, momentum {self.momentum:g}"
            f"{', Nesterov' if self.nesterov else ''}, weight decay {self.weight_decay:g}",
            "before the layer": "BatchNorm" if self.batchnorm else "nothing",
            "features": [dict(zip(Tap._fields, one, strict=True)) for one in taps],
            "as in": self.source,
        }
        head = learner.head(outcome.best) if taps[tap] == own else None
        named = {f"{self.title}/{name}": value for name, value in scores.items()}
        return Found(named, {self.title: told}, head)


@dataclass(frozen=True, kw_only=True)
class DinoV2(Sgd):
    """DINOv2's: 13 learning rates, the class token of the last or the last four blocks, with or
    without the mean of the last one's patches; 10 epochs of ImageNet are its 12,500 steps of 1,024.

    `lr`: the published 1e-5 to 0.1, times batch / 256.
    """

    title = "dinov2"
    source = "arXiv 2304.07193, dinov2/eval/linear.py (chosen there on test)"

    epochs: Count = 10
    batch: Count = 1024
    lr: Rates = tuple(
        round(4 * rate, 8)
        for rate in (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    )
    blocks: tuple[Count, ...] = (1, 4)
    tokens: tuple[Tokens, ...] = ("token", "cls_mean")


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(Sgd):
    """Barlow Twins': 100 epochs at .3, batch 256, weight decay 1e-6; the cosine there goes down
    epoch by epoch.
    """

    title = "barlow_twins"
    source = "arXiv 2103.03230, barlowtwins/evaluate.py (best epoch on test there)"

    lr: Rates = 0.3
    weight_decay: NonNegative = 1e-6
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class VicReg(BarlowTwins):
    """VICReg's: Barlow Twins' at .02."""

    title = "vicreg"
    source = "arXiv 2105.04906, vicreg/README.md (best epoch on test there)"

    lr: Rates = 0.02


@dataclass(frozen=True, kw_only=True)
class MoCo(Sgd):
    """MoCo's: 100 epochs at 30, a tenth of it after 60 and 80, batch 256."""

    title = "moco"
    source = "arXiv 1911.05722, moco/main_lincls.py (best epoch on test there)"

    lr: Rates = 30.0
    drops: tuple[Count, ...] = (60, 80)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True, kw_only=True)
class SimClr(Sgd):
    """SimCLR's: 90 epochs at 1.6 with Nesterov's momentum, batch 4096."""

    title = "simclr"
    source = "arXiv 2002.05709, appendices B.5 and B.6"

    epochs: Count = 90
    batch: Count = 4096
    lr: Rates = 1.6
    nesterov: bool = True


@dataclass(frozen=True, kw_only=True)
class Mae(Sgd):
    """MAE's: 90 epochs by LARS behind a BatchNorm without scale and shift, at .1 · 16384 / 256."""

    title = "mae"
    source = "arXiv 2111.06377, appendix A.1, mae/FINETUNE.md"

    epochs: Count = 90
    batch: Count = 16384
    lr: Rates = 6.4
    warmup_epochs: NonNegative = 10.0
    lars: bool = True
    batchnorm: bool = True
    tokens: tuple[Tokens, ...] = ("token",)


class Linears:
    """The linear classifiers of a protocol: for each tap those of every rate, this rank's part of
    them.
    """

    def __init__(
        self, backbone: nn.Module, taps: list[Tap], keys: Sgd, classes: int, seed: int
    ) -> None:
        self.backbone, self.taps, self.rates = backbone, taps, keys.rates
        self.choices = [(t, rate) for t in range(len(taps)) for rate in keys.rates]
        self.several = len(self.choices) > 1
        self.widths = widths(backbone, taps)
        device = comm.device()
        self.norms = [Standard(width, device) for width in self.widths] if keys.batchnorm else []
        every = range(len(keys.rates) * (2 if self.several else 1))
        self.mine = list(comm.consecutive(every))
        own = [keys.rates[k % len(keys.rates)] for k in self.mine]
        how = Descent(keys.momentum, keys.weight_decay, keys.nesterov, keys.lars)
        self.heads = [
            Heads(width, classes, own, how, seed=seed, device=device) for width in self.widths
        ]

    def look(self, x_BCHW: Tensor) -> list[Tensor]:
        """(B, D) of each tap."""
        if not len(x_BCHW):
            return [torch.zeros(0, width, device=x_BCHW.device) for width in self.widths]
        return [x_BD.float() for x_BD in features(self.backbone, x_BCHW, self.taps)]

    def step(self, looked: list[Tensor], labels_B: Tensor, fits_B: Tensor, factor: float) -> None:
        """One step of every classifier on the rows of all ranks."""
        if self.norms:
            looked = [norm.learn(x_BD) for norm, x_BD in zip(self.norms, looked, strict=True)]
        labels_N, fits_N = comm.cat(labels_B), comm.cat(fits_B.long()).bool()
        share_KN = shares(fits_N, self.several, len(self.rates), int(fits_N.sum()), len(fits_N))
        for heads, x_ND in zip(self.heads, self._of_all(looked), strict=True):
            heads.step(x_ND, labels_N, share_KN[self.mine], factor)

    def _of_all(self, looked: list[Tensor]) -> Sequence[Tensor]:
        """(N, D) of each tap, in one exchange."""
        return torch.split(comm.cat(torch.cat(looked, dim=1)), self.widths, dim=1)

    def hits(self, looked: list[Tensor], labels_B: Tensor, only: int | None) -> Tensor:
        """As Learner; the taps one after the other, in each half."""
        if self.norms:
            looked = [norm.apply(x_BD) for norm, x_BD in zip(self.norms, looked, strict=True)]
        labels_N, x_TND = comm.cat(labels_B), self._of_all(looked)
        if only is not None:
            return comm.all_sum(self._hits_of(only, x_TND, labels_N))
        found = []
        for heads, x_ND in zip(self.heads, x_TND, strict=True):
            own = [hit(logits_NC, labels_N) for logits_NC in heads.logits(x_ND)]
            own_k2 = torch.stack(own) if own else labels_N.new_zeros(0, 2)
            found.append(comm.cat(own_k2))
        hits_THR2 = torch.stack(found).view(len(found), -1, len(self.rates), 2)
        return hits_THR2.transpose(0, 1).flatten(0, 2)

    def _place(self, number: int) -> tuple[int, int]:
        """The tap of classifier `number`, and its row among those of the tap."""
        half, within = divmod(number, len(self.choices))
        tap, rate = divmod(within, len(self.rates))
        return tap, half * len(self.rates) + rate

    def _hits_of(self, number: int, x_TND: Sequence[Tensor], labels_N: Tensor) -> Tensor:
        """(1, 2) on the rank that has it, nothing right on the others."""
        tap, row = self._place(number)
        if row not in self.mine:
            return labels_N.new_zeros(1, 2)
        weight_CD, bias_C = self._own(tap, row)
        return hit(torch.addmm(bias_C, x_TND[tap], weight_CD.T), labels_N)[None]

    def _own(self, tap: int, row: int) -> tuple[Tensor, Tensor]:
        heads, k = self.heads[tap], self.mine.index(row)
        return heads.weight_KCD[k], heads.bias_KC[k]

    def head(self, number: int) -> Linear:
        """The classifier, on every rank, on the CPU."""
        tap, row = self._place(number)
        heads, width = self.heads[tap], self.widths[tap]
        weight_CD = heads.weight_KCD.new_zeros(heads.weight_KCD.shape[1:])
        bias_C = heads.bias_KC.new_zeros(heads.bias_KC.shape[1:])
        if row in self.mine:
            weight_CD, bias_C = self._own(tap, row)
        mean_D, std_D = torch.zeros(width), torch.ones(width)
        if self.norms:
            mean_D, std_D = self.norms[tap].mean_D.cpu(), self.norms[tap].std_D.cpu()
        return Linear(
            comm.all_sum(weight_CD).cpu(),
            comm.all_sum(bias_C).cpu(),
            mean_D,
            std_D,
            converged=True,
        )

    def state(self) -> dict[str, Tensor]:
        """All classifiers, and the running statistics."""
        heads = {
            f"{t}.{name}": comm.cat(tensor)
            for t, one in enumerate(self.heads)
            for name, tensor in one.state().items()
        }
        return heads | {
            f"{t}.{name}": tensor
            for t, norm in enumerate(self.norms)
            for name, tensor in norm.state().items()
        }

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """This rank's part of them."""
        del steps
        for t, one in enumerate(self.heads):
            for name, tensor in one.state().items():
                tensor.copy_(state[f"{t}.{name}"][self.mine])
        for t, norm in enumerate(self.norms):
            for name, tensor in norm.state().items():
                tensor.copy_(state[f"{t}.{name}"])
