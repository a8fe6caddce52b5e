"""Activation checkpoints: a backbone's activations are computed again in backward instead of being
kept.

Chen, Xu, Zhang & Guestrin, arXiv 1604.06174. timm cuts its models between blocks, and draws again
what was drawn.
"""

from torch import nn

from lookalike.errors import RunError
from lookalike.models import Backbone


def checkpoint_activations(module: nn.Module) -> None:
    """Switches them on in every backbone below that is trained.

    Raises RunError where timm's model knows none, or where there is no backbone in training.
    """
    trained = [
        part
        for part in module.modules()
        if isinstance(part, Backbone) and any(p.requires_grad for p in part.model.parameters())
    ]
    if not trained:
        raise RunError("engine.checkpoint_activations: no backbone is in training: remove it")
    for backbone in trained:
        switch = getattr(backbone.model, "set_grad_checkpointing", None)
        try:
            if not callable(switch):
                raise NotImplementedError
            switch(enable=True)
        except (AssertionError, NotImplementedError) as error:
            raise RunError(
                f"engine.checkpoint_activations: timm has none for {backbone.architecture.name}: "
                "remove it, or take "
                "micro_batch"
            ) from error
