"""The CIFAR stem: timm's ResNets for small images, registered under names of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import load_file
from torch import nn

from lookalike.errors import BackboneError

CIFAR_STEMS = (
    "resnet18",
    "resnet26",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
)


def register_cifar_stems() -> None:
    """Adds `resnet18_cifar` and its sisters to timm's registry: 3 × 3 first convolution of stride
    1, no max-pool.

    The stem of SimCLR's CIFAR experiments (arXiv 2002.05709, B.9). timm has no word for it, so a
    folder of such a backbone loads through timm only after this call.
    """
    for name in CIFAR_STEMS:
        if not timm.is_model(f"{name}_cifar"):
            timm.models.register_model(_cifar_entry(name))


def _cifar_entry(name: str) -> Any:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        cfg = kwargs.pop("pretrained_cfg", None)
        if pretrained:
            kwargs.setdefault("num_classes", _classes(cfg))  # as the folder was saved
        model: nn.Module = timm.create_model(
            name,
            pretrained=False,
            **{k: v for k, v in kwargs.items() if k not in ("pretrained_cfg_overlay", "cache_dir")},
        )
        stem: Any = model.conv1
        model.conv1 = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, stride=1, padding=1, bias=False
        )
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        if pretrained:
            stored = load_file(Path(_local(cfg)) / "model.safetensors")
            if kwargs["num_classes"] != _classes(cfg):  # another number asked for: a fresh layer
                head = {k: v for k, v in model.state_dict().items() if k.startswith("fc.")}
                stored = {k: v for k, v in stored.items() if not k.startswith("fc.")} | head
            model.load_state_dict(stored)
            model.pretrained_cfg = cfg
        return model

    entry.__name__ = entry.__qualname__ = f"{name}_cifar"
    return entry


def _classes(cfg: Any) -> int:
    """How many classes the folder has, 0 of a backbone."""
    found = cfg.get("num_classes") if isinstance(cfg, Mapping) else getattr(cfg, "num_classes", 0)
    return int(found or 0)


def _local(cfg: Any) -> str:
    where = cfg.get("file") if isinstance(cfg, Mapping) else getattr(cfg, "file", None)
    if not where:
        raise BackboneError(
            "backbone: no published weights exist for a CIFAR stem: set pretrained: false"
        )
    return str(where)
