"""From a batch of the loader to views on this rank's device."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from lookalike import comm, views
from lookalike.models import Architecture


def on_device(
    policy: Callable[..., list[Tensor]], architecture: Architecture, seed: int
) -> Callable[..., list[Tensor]]:
    """A function of (pixels, ids_B, epoch): the V views (B, C, H, W) as the architecture takes
    them, by an augmentation policy.
    """
    mean, std = architecture.normalisation()
    known: dict[str, Any] = {"size": architecture.size, "form": architecture.form}
    known |= {"mean": mean, "std": std, "seed": seed, "device": comm.device()}
    return partial(views.make, policy, **known)
