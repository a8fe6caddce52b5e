"""The attentive probe: a query a head attends to the patches of the frozen backbone, then a linear
layer (AIM, arXiv 2401.08541; CAE, arXiv 2202.03026).

Patches come from the backbone batch by batch, and are never kept: N × P × D would not fit. Their
gradients are summed over ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lookalike import comm, rng
from lookalike.data.images import Images
from lookalike.errors import BackboneError
from lookalike.evaluation.protocols.contract import Found, Subject
from lookalike.evaluation.protocols.training import OnViews, Rates, learn, shares
from lookalike.models import Architecture
from lookalike.models.taps import Tap, patch_shape, patches, refuse_patches, untapped
from lookalike.recipe import Count, NonNegative
from lookalike.scoring.attention import Adam, Attention
from lookalike.scoring.blocks import hit
from lookalike.scoring.heads import Standard


@dataclass(frozen=True, kw_only=True)
class Attentive(OnViews):
    """Cross-attention of one learned query a head to the patches, then a linear layer, by AdamW on
    random crops and flips; all learning rates at once.

    Patches are those of the probe's `layer`, of several `blocks` their mean, standardised by
    BatchNorm without scale and shift; of convolutional networks the places of the feature map.
    `lr`: one learning rate or several, of which the best on the held-out part of train counts;
    `heads`: by default one for each 64 dimensions, as far as they divide the width; `clip`: the
    largest norm of a classifier's gradient, 0 for no clipping.
    """

    needs_model = True
    title = "attentive"

    epochs: Count = 20
    warmup_epochs: NonNegative = 1.0
    lr: Rates = (1e-4, 3e-4, 1e-3, 3e-3)
    weight_decay: NonNegative = 0.1
    clip: NonNegative = 3.0
    heads: Count | None = None

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates."""
        return tuple(self.lr) if isinstance(self.lr, Sequence) else (self.lr,)

    def refuse(self, images: tuple[Images, Images], architecture: Architecture, tap: Tap) -> None:
        """Raises DataError or BackboneError for what cannot be trained so."""
        self.refuse_batch(self.title, images[0])
        refuse_patches(architecture, tap)

    def score(self, subject: Subject) -> Found:
        """`attentive/top1`, …"""
        assert subject.model is not None
        backbone, tap = untapped(subject.model)
        seed = rng.seed(subject.numbers.seed, "attentive heads")

        def make(classes: int) -> Attentives:
            return Attentives(backbone, tap, self, classes, seed)

        outcome = learn(subject, self, self.title, make)
        learner: Attentives = outcome.learner
        rate = self.rates[outcome.best % len(self.rates)]
        scores = {**outcome.scores, "lr": rate}
        if outcome.held_out is not None:
            scores["held_out_top1"] = outcome.held_out
            scores["lr_edge"] = rate in (min(self.rates), max(self.rates))
        told = self.told(subject.numbers, self.rates, learner.several) | {
            "optimizer": f"AdamW, weight decay {self.weight_decay:g}, clip {self.clip:g}",
            "heads": learner.attention.heads,
            "features": dict(zip(Tap._fields, tap, strict=True)) | {"tokens": "patches"},
            "as in": "arXiv 2401.08541, section 5; epochs and rates are ours",
        }
        outcome.kept.remove()
        return Found({f"attentive/{name}": v for name, v in scores.items()}, {"attentive": told})


def heads_for(width: int, asked: int | None) -> int:
    """The number of heads. Raises BackboneError where they do not divide the width."""
    if asked is None:
        return next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)
    if width % asked:
        raise BackboneError(
            f"probe.protocols: attentive: {asked} heads do not divide {width} dimensions: choose "
            "another number, or leave heads out"
        )
    return asked


class Attentives:
    """The attentive classifiers of every rate, all of them on each rank."""

    def __init__(
        self, backbone: nn.Module, tap: Tap, keys: Attentive, classes: int, seed: int
    ) -> None:
        self.backbone, self.tap, self.rates = backbone, tap, keys.rates
        self.several = len(self.rates) > 1
        self.places, self.width = patch_shape(backbone, tap)
        self.norm = Standard(self.width, comm.device())
        self.attention = Attention(
            self.width,
            classes,
            heads_for(self.width, keys.heads),
            self.rates * (2 if self.several else 1),
            Adam(keys.weight_decay, keys.clip),
            seed=seed,
            device=comm.device(),
        )

    def look(self, x_BCHW: Tensor) -> Tensor:
        """(B, P, D)."""
        if not len(x_BCHW):
            return torch.zeros(0, self.places, self.width, device=x_BCHW.device)
        return patches(self.backbone, x_BCHW, self.tap).float()

    def step(self, looked: Tensor, labels_B: Tensor, fits_B: Tensor, factor: float) -> None:
        """One step of every classifier on the rows of all ranks."""
        x_BPD = self.norm.learn(looked.flatten(0, 1)).view_as(looked)
        counts = comm.all_sum(torch.stack([fits_B.sum(), fits_B.new_ones(fits_B.shape).sum()]))
        fitting, rows = counts.tolist()
        share_KB = shares(fits_B, self.several, len(self.rates), fitting, rows)
        self.attention.step(x_BPD, labels_B, share_KB, factor)

    def hits(self, looked: Tensor, labels_B: Tensor, only: int | None) -> Tensor:
        """As Learner."""
        x_BPD = self.norm.apply(looked.flatten(0, 1)).view_as(looked)
        every = self.attention.logits(x_BPD) if only is None else self.attention.one(x_BPD, only)
        return comm.all_sum(torch.stack([hit(logits_BC, labels_B) for logits_BC in every]))

    def state(self) -> dict[str, Tensor]:
        """All classifiers, and the running statistics."""
        return {**self.attention.state(), **self.norm.state()}

    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """All of it."""
        self.attention.steps = steps
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
