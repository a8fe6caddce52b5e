"""The contract of a pretraining method: what the training asks of it, with a type."""

from collections.abc import Callable
from typing import ClassVar

from torch import nn

from lookalike.models import Backbone
from lookalike.nn.loss import Loss


class Method(nn.Module):
    """A backbone with its heads and, in `forward`, the loss of views of the same images.

    `forward(views)` takes V views (B, C, H, W), this rank's rows, and gives the loss over the batch
    of all ranks; with `needs_labels` it is `forward(views, labels_B)`, int64. A base rather than a
    Protocol, because a method is handed on as an nn.Module too, and the flags need their defaults.
    """

    backbone: Backbone
    # How many views it compares; with `more_views` at least so many, the first of them large.
    n_views: ClassVar[int] = 2
    more_views: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False

    forward: Callable[..., Loss]
    __call__: Callable[..., Loss]
