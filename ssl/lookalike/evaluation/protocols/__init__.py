"""PROTOCOLS, by which frozen features are judged with labels: a file each, and the papers' own
numbers beside `sgd`.
"""

from collections.abc import Callable, Iterable, Mapping

from lookalike.data.images import Images
from lookalike.evaluation.protocols.attentive import Attentive
from lookalike.evaluation.protocols.contract import Found, Numbers, Protocol, Subject
from lookalike.evaluation.protocols.lbfgs import Lbfgs
from lookalike.evaluation.protocols.prototype import Prototype
from lookalike.evaluation.protocols.sgd import (
    BarlowTwins,
    DinoV2,
    Mae,
    MoCo,
    Sgd,
    SimClr,
    VicReg,
)
from lookalike.models import Architecture
from lookalike.models.taps import Tap

__all__ = ["PROTOCOLS", "Found", "Numbers", "Protocol", "Subject", "refuse_protocols"]

PROTOCOLS: Mapping[str, Callable[..., Protocol]] = {
    "attentive": Attentive,
    "barlow_twins": BarlowTwins,
    "dinov2": DinoV2,
    "lbfgs": Lbfgs,
    "mae": Mae,
    "moco": MoCo,
    "prototype": Prototype,
    "sgd": Sgd,
    "simclr": SimClr,
    "vicreg": VicReg,
}


def refuse_protocols(
    protocols: Iterable[Protocol],
    images: tuple[Images, Images],
    architecture: Architecture,
    tap: Tap,
) -> None:
    """Raises what those raise that have a `refuse`, for train and test images and such a backbone
    with the probe's tap.
    """
    for protocol in protocols:
        if (refuse := getattr(protocol, "refuse", None)) is not None:
            refuse(images, architecture, tap)
