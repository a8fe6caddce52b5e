"""What fine-tuning trains: an embedding model and its objective; which layers of it, and at which
rates.
"""

from torch import Tensor, nn

from lookalike.metric.objectives import Objective
from lookalike.models.embedding import Embedding
from lookalike.nn.ema import Averaged
from lookalike.nn.loss import Loss
from lookalike.nn.tuned import Tuned
from lookalike.optim import LrScale


class FinetuneModule(Tuned):
    """The embedding model and its objective, which may own parameters (proxies, classifiers, A).

    Which part of the backbone is trained, when and at which rates: see `Tuned`. The objective's own
    parameters have `proxy_lr_factor` times the recipe's rate. `ema`: the decay of an average of all
    that is trained.
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
        ema: float | None = None,
    ) -> None:
        """Raises RunError for more blocks than there are, BackboneError where timm does not say
        which there are.
        """
        super().__init__(
            model,
            section="finetune",
            train_blocks=train_blocks,
            freeze_batchnorm=freeze_batchnorm,
            layer_decay=layer_decay,
            head_epochs=head_epochs,
        )
        self.objective, self.proxy_lr_factor = objective, proxy_lr_factor
        if ema is not None:
            self.average = Averaged(nn.ModuleList([model, objective]), ema)

    def forward(self, view_BCHW: Tensor, labels_B: Tensor) -> Loss:
        """One view of each image and its class -> the loss over all ranks."""
        loss: Loss = self.objective(self.model.raw(view_BCHW), labels_B)
        return loss

    def lr_scales(self) -> dict[str, LrScale]:
        """The rates of the backbone's layers and of what the objective owns."""
        owned = [name for name, _ in self.objective.named_parameters()]
        rates = {f"objective.{name}": LrScale(self.proxy_lr_factor) for name in owned}
        return {**super().lr_scales(), **rates}
