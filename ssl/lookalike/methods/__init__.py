"""Pretraining without labels: one file a method; a method is its loss, its heads and, perhaps, a
teacher.

A method is a Method (nn/method.py) with `backbone`, `n_views` and `forward(views) -> Loss`. It, and
any module in it, may be Scheduled, Deferred or a Follower (nn/hooks.py). METHODS is the whole list.
"""

from collections.abc import Mapping

from lookalike.methods.barlow_twins import BarlowTwins
from lookalike.methods.byol import BYOL
from lookalike.methods.dcl import DCL
from lookalike.methods.dino import DINO
from lookalike.methods.moco_v2 import MoCoV2
from lookalike.methods.moco_v3 import MoCoV3
from lookalike.methods.nnclr import NNCLR
from lookalike.methods.simclr import SimCLR
from lookalike.methods.simsiam import SimSiam
from lookalike.methods.supcon import SupCon
from lookalike.methods.swav import SwAV
from lookalike.methods.tico import TiCo
from lookalike.methods.vicreg import VICReg
from lookalike.methods.w_mse import WMSE
from lookalike.nn.method import Method

__all__ = ["METHODS", "Method"]

METHODS: Mapping[str, type[Method]] = {
    "barlow_twins": BarlowTwins,
    "byol": BYOL,
    "dcl": DCL,
    "dino": DINO,
    "moco_v2": MoCoV2,
    "moco_v3": MoCoV3,
    "nnclr": NNCLR,
    "simclr": SimCLR,
    "simsiam": SimSiam,
    "supcon": SupCon,
    "swav": SwAV,
    "tico": TiCo,
    "vicreg": VICReg,
    "w_mse": WMSE,
}
