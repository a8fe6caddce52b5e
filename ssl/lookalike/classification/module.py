"""What a classification trains: a classifier by cross-entropy, or several labels an image by
sigmoids.

Label smoothing: Szegedy et al., CVPR 2016, arXiv 1512.00567, section 7. Targets may be soft, as
mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv
1905.04899) make them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.models.classifier import Classifier
from lookalike.nn.ema import Averaged
from lookalike.nn.loss import Loss
from lookalike.nn.numerics import exact
from lookalike.nn.tuned import Tuned
from lookalike.optim import LrScale


@exact
def losses(
    logits_BC: Tensor,
    targets: Tensor,
    *,
    multi_label: bool = False,
    label_smoothing: float = 0.0,
    weight_C: Tensor | None = None,
) -> Tensor:
    """The loss of each image, (B,), from logits (B, C) and classes int64 (B,), or a share of each
    class (B, C).

    Cross-entropy against 1 - s + s / C for the class and s / C for others, each class times its
    weight. With `multi_label` the mean over classes of binary cross-entropy against 1 - s / 2 and
    s / 2, the positives of a class times its weight.
    """
    logits_BC = logits_BC.float()
    if not multi_label:
        smoothed = {"label_smoothing": label_smoothing, "reduction": "none"}
        return F.cross_entropy(logits_BC, targets, weight_C, **smoothed)  # type: ignore[arg-type]
    soft_BC = targets.to(logits_BC) * (1 - label_smoothing) + label_smoothing / 2
    each_BC = F.binary_cross_entropy_with_logits(
        logits_BC, soft_BC, reduction="none", pos_weight=weight_C
    )
    return each_BC.mean(dim=1)


class ClassifyModule(Tuned):
    """The classifier and its loss over the batch of all ranks: the mean of `losses`, weights of
    classes not divided out, so that the gradient is the same on any number of ranks and
    micro-batches.

    Which part of the backbone is trained, when and at which rates: see `Tuned`. The linear layer
    has `head_lr_factor` times the recipe's rate. `ema`: the decay of an average of all that is
    trained. It gives no embeddings whose health could be
    measured: features of one class are meant to fall together.
    """

    weight_C: Tensor | None

    def __init__(
        self,
        model: Classifier,
        *,
        train_blocks: int | None = None,
        freeze_batchnorm: bool = False,
        layer_decay: float = 1.0,
        head_epochs: float = 0.0,
        head_lr_factor: float = 1.0,
        label_smoothing: float = 0.0,
        weight_C: Tensor | None = None,
        ema: float | None = None,
    ) -> None:
        """Raises RunError for more blocks than there are, BackboneError where timm does not say
        which there are.
        """
        super().__init__(
            model,
            section="classify",
            train_blocks=train_blocks,
            freeze_batchnorm=freeze_batchnorm,
            layer_decay=layer_decay,
            head_epochs=head_epochs,
        )
        self.head_lr_factor, self.label_smoothing = head_lr_factor, label_smoothing
        self.register_buffer("weight_C", weight_C, persistent=False)
        if ema is not None:
            self.average = Averaged(model, ema)

    def forward(self, view_BCHW: Tensor, targets: Tensor) -> Loss:
        """One view of each image and its class (B,), or shares of classes (B, C) -> the loss over
        all ranks, and how many of them are right: of soft targets the largest counts.
        """
        logits_BC: Tensor = self.model(view_BCHW)
        loss_B = losses(
            logits_BC,
            targets,
            multi_label=self.model.multi_label,
            label_smoothing=self.label_smoothing,
            weight_C=self.weight_C,
        )
        right_B = _right(logits_BC.detach(), targets, self.model.multi_label)
        loss, accuracy = comm.mean(torch.stack([loss_B, right_B], dim=1)).unbind()
        return Loss(loss, {"accuracy": accuracy.detach()})

    def lr_scales(self) -> dict[str, LrScale]:
        """The rates of the backbone's layers and of the linear layer."""
        head = {f"model.head.{n}": LrScale(self.head_lr_factor) for n in ("weight", "bias")}
        return {**super().lr_scales(), **head}


def _right(logits_BC: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """Which images are right, (B,) of 0 and 1; of several labels the share of classes that are."""
    if multi_label:
        return ((logits_BC > 0) == (targets > 0.5)).float().mean(dim=1)
    wanted_B = targets if targets.dim() == 1 else targets.argmax(dim=1)
    return (logits_BC.argmax(dim=1) == wanted_B).float()
