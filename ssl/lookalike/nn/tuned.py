"""A model whose backbone is trained in part: which blocks, from when on, and at which rates."""

from typing import Any, Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import RunError
from lookalike.models import Backbone, layers
from lookalike.nn.ema import Averaged
from lookalike.nn.hooks import Scheduled
from lookalike.optim import LrScale, ParameterHints, Progress


class Tuned(Scheduled, ParameterHints, nn.Module):
    """What trains a `model`, which has a `backbone`, in part.

    `train_blocks`: how many of the backbone's last blocks are trained, with what follows them;
    None: all of it, 0: none of it; `freeze_batchnorm`: none of its BatchNorms. A part of which
    nothing is trained is in eval mode, so its BatchNorm statistics stand still. A layer's rate is
    the recipe's times `layer_decay` to the power of its depth, counted from what follows the last
    block (BEiT, arXiv 2106.08254; MAE, arXiv 2111.06377). Before epoch `head_epochs` the whole
    backbone stands still. `average`: perhaps one of all that is trained, which `finish` puts in its
    place.
    """

    def __init__(
        self,
        model: Any,
        *,
        section: str,
        train_blocks: int | None = None,
        freeze_batchnorm: bool = False,
        layer_decay: float = 1.0,
        head_epochs: float = 0.0,
    ) -> None:
        """Raises RunError for more blocks than there are, by the key of the recipe's `section`, and
        BackboneError where timm does not say which there are.
        """
        super().__init__()
        self.model = model
        self.layer_decay, self.head_epochs, self.resting = layer_decay, head_epochs, False
        self.average: Averaged | None = None
        freeze(model.backbone, train_blocks, section)
        for norm in model.backbone.modules():
            if freeze_batchnorm and isinstance(norm, _BatchNorm):
                norm.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As ever, but what is frozen stays in eval mode."""
        super().train(mode)
        for part in self.model.backbone.modules():
            own = list(part.parameters())
            if own and (self.resting or not any(p.requires_grad for p in own)):
                part.eval()
        return self

    def finish(self) -> None:
        """After the last step: takes the averaged parameters, where there are any."""
        if self.average is not None:
            self.average.put()

    def on_step(self, progress: Progress) -> None:
        """Lets the backbone rest, or ends that."""
        resting = progress.epoch < self.head_epochs
        if resting != self.resting:
            self.resting = resting
            self.train(self.training)

    def lr_scales(self) -> dict[str, LrScale]:
        """The rates of the backbone's layers."""
        backbone = self.model.backbone
        depth, blocks = ({}, 0) if self.layer_decay == 1 else layers(backbone)
        powers = {
            name: blocks + 1 - depth.get(name, blocks + 1)
            for name, _ in backbone.named_parameters()
        }
        return {
            f"model.backbone.{name}": LrScale(self.layer_decay**power, self.head_epochs)
            for name, power in powers.items()
        }


def freeze(backbone: Backbone, train_blocks: int | None, section: str = "finetune") -> None:
    """Marks what of the backbone is trained: all of it (None), nothing (0), or its last blocks and
    what follows them.

    Raises RunError for more blocks than there are, BackboneError where timm does not say which
    there are.
    """
    backbone.requires_grad_(train_blocks is None)
    if train_blocks:
        depth, blocks = layers(backbone)
        if train_blocks > blocks:
            name = backbone.architecture.name
            raise RunError(
                f"{section}.train_blocks: {train_blocks}, but {name} has {blocks}: lower it, or "
                "leave it out"
            )
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(depth[name] > blocks - train_blocks)
