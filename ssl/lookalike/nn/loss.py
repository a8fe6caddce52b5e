"""What a method returns."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """What a method returns: the scalar to descend, equal on all ranks, its parts for the log, and
    embeddings.

    `embeddings`: what the loss compares, (B, D) of each view, this rank's rows, detached: the log
    measures their health.
    """

    value: Tensor
    terms: Mapping[str, Tensor]
    embeddings: tuple[Tensor, ...] = ()


def both_ways(ab: Loss, ba: Loss, embeddings: tuple[Tensor, ...]) -> Loss:
    """The sum of a loss in both roles of the views; its terms are the means of both."""
    terms = {name: (ab.terms[name] + ba.terms[name]) / 2 for name in ab.terms}
    return Loss(ab.value + ba.value, terms, embeddings)
