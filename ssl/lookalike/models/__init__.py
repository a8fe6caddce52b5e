"""Backbones: any timm model, or a backbone folder, as a module from images to features; the one
room for timm.

backbone.py: Architecture and Backbone; cifar.py: the stem for small images; weights.py: backbone
folders, and where a backbone comes from; stored.py: tensors in their files; torchfile.py: those of
others; layouts.py and fitting.py: the backbone among them; hub.py and published.py: the Hugging
Face Hub; limits.py, sketch.py: what an untrusted config.json may ask for, and a backbone without
memory; sizes.py: one backbone for several sizes; layers.py: how deep each parameter lies.
"""

from lookalike.models._timm import timm  # noqa: F401 (before any other of this room)
from lookalike.models.backbone import Architecture, Backbone, GeM, Own, Pool
from lookalike.models.cifar import CIFAR_STEMS, register_cifar_stems
from lookalike.models.layers import layers
from lookalike.models.sizes import for_sizes
from lookalike.models.weights import (
    folder_files,
    load_backbone,
    make_architecture,
    make_backbone,
    open_backbone,
    repooled,
    tunable,
    weights_mark,
)

__all__ = [
    "CIFAR_STEMS",
    "Architecture",
    "Backbone",
    "GeM",
    "Own",
    "Pool",
    "folder_files",
    "for_sizes",
    "layers",
    "load_backbone",
    "make_architecture",
    "make_backbone",
    "open_backbone",
    "register_cifar_stems",
    "repooled",
    "tunable",
    "weights_mark",
]
