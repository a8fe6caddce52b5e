"""What fine-tuning trains: an embedding model and its objective; which layers of it, and at which
rates.
"""

from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lookalike.errors import RunError
from lookalike.metric.objectives import Objective
from lookalike.models import Backbone, layers
from lookalike.models.embedding import Embedding
from lookalike.nn.hooks import Scheduled
from lookalike.nn.loss import Loss
from lookalike.optim import LrScale, ParameterHints, Progress


class FinetuneModule(Scheduled, ParameterHints, nn.Module):
    """The embedding model and its objective, which may own parameters (proxies, classifiers, A).

    `train_blocks`: how many of the backbone's last blocks are trained, with what follows them;
    None: all of it, 0: none of it; `freeze_batchnorm`: none of its BatchNorms. A part of which
    nothing is trained is in eval mode, so its BatchNorm statistics stand still. A layer's rate is
    the recipe's times `layer_decay` to the power of its depth, counted from what follows the last
    block (BEiT, arXiv 2106.08254; MAE, arXiv 2111.06377); the objective's own parameters have
    `proxy_lr_factor` times the recipe's. Before epoch `head_epochs` the whole backbone stands
    still.
    """

    def __init__(
        self,
        model: Embedding,
        objective: Objective,
        *,
        train_blocks: int | None = None,
        freeze_batchnorm: bool = False,
        layer_decay: float = 1.0,
        head_epochs: float = 0.0,
        proxy_lr_factor: float = 1.0,
    ) -> None:
        """Raises RunError for more blocks than there are, BackboneError where timm does not say
        which there are.
        """
        super().__init__()
        self.model, self.objective = model, objective
        self.layer_decay, self.head_epochs, self.proxy_lr_factor = (
            layer_decay,
            head_epochs,
            proxy_lr_factor,
        )
        self.resting = False
        freeze(model.backbone, train_blocks)
        for norm in model.backbone.modules():
            if freeze_batchnorm and isinstance(norm, _BatchNorm):
                norm.requires_grad_(False)

    def forward(self, view_BCHW: Tensor, labels_B: Tensor) -> Loss:
        """One view of each image and its class -> the loss over all ranks."""
        loss: Loss = self.objective(self.model.raw(view_BCHW), labels_B)
        return loss

    def train(self, mode: bool = True) -> Self:
        """As ever, but what is frozen stays in eval mode."""
        super().train(mode)
        for part in self.model.backbone.modules():
            own = list(part.parameters())
            if own and (self.resting or not any(p.requires_grad for p in own)):
                part.eval()
        return self

    def on_step(self, progress: Progress) -> None:
        """Lets the backbone rest, or ends that."""
        resting = progress.epoch < self.head_epochs
        if resting != self.resting:
            self.resting = resting
            self.train(self.training)

    def lr_scales(self) -> dict[str, LrScale]:
        """The rates of the backbone's layers and of what the objective owns."""
        backbone, owned = (
            self.model.backbone,
            [name for name, _ in self.objective.named_parameters()],
        )
        depth, blocks = ({}, 0) if self.layer_decay == 1 else layers(backbone)
        powers = {
            name: blocks + 1 - depth.get(name, blocks + 1)
            for name, _ in backbone.named_parameters()
        }
        return {
            **{
                f"model.backbone.{n}": LrScale(self.layer_decay**power, self.head_epochs)
                for n, power in powers.items()
            },
            **{f"objective.{name}": LrScale(self.proxy_lr_factor) for name in owned},
        }


def freeze(backbone: Backbone, train_blocks: int | None) -> None:
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
                f"finetune.train_blocks: {train_blocks}, but {name} has {blocks}: lower it, or "
                "leave it out"
            )
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(depth[name] > blocks - train_blocks)
