"""Backbones: any timm model, or a backbone folder, as a module from images to features; the one
room for timm.

module.py: Architecture and Backbone; cifar.py: the stem for small images; weights.py: backbone
folders; stored.py: tensors in their files; sketch.py: a backbone without memory; layers.py: how
deep each parameter lies.
"""

from lookalike.models.backbone import Architecture, Backbone, GeM, Own, Pool
from lookalike.models.cifar import CIFAR_STEMS, register_cifar_stems
from lookalike.models.layers import layers
from lookalike.models.weights import (
    folder_files,
    load_backbone,
    make_backbone,
    open_backbone,
    repooled,
)

__all__ = [
    "CIFAR_STEMS",
    "Architecture",
    "Backbone",
    "GeM",
    "Own",
    "Pool",
    "folder_files",
    "layers",
    "load_backbone",
    "make_backbone",
    "open_backbone",
    "register_cifar_stems",
    "repooled",
]
