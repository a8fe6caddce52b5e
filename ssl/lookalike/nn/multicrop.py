"""Views of several sizes through one module, those of one size in one pass."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lookalike.models import Backbone


def each_size(module: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """`module` of every view, views of one size in one pass: (B, C, H, W) each -> (B, D) each, in
    order.
    """
    found: list[Tensor] = []
    apart = isinstance(module, Backbone) and module.pieces > 1
    for _, group in itertools.groupby(
        enumerate(views), key=lambda item: item[0] if apart else item[1].shape[-1]
    ):
        same = [view for _, view in group]
        found += module(torch.cat(same)).chunk(len(same)) if len(same) > 1 else [module(same[0])]
    return found
