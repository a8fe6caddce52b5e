"""Backbone folders: timm's own layout, with a `lookalike` key in `config.json` for what timm has no word for.

Loading reads JSON and safetensors and checks every file's sha256: never a pickle.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import safetensors
import timm
from pydantic import TypeAdapter
from safetensors.torch import load_file, save
from torch import nn

from lookalike.backbones.module import Architecture, Backbone, Pool
from lookalike.errors import BackboneError
from lookalike.folder import verify
from lookalike.recipe import Size, sides

_ARCHITECTURE = TypeAdapter(Architecture)


def folder_files(backbone: Backbone) -> dict[str, bytes]:
    """The files of the backbone's folder: `config.json`, `model.safetensors`, GeM's power in `pool.safetensors`."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in backbone.model.state_dict().items()}
    files = {
        "config.json": json.dumps(_config(backbone), indent=2).encode(),
        "model.safetensors": save(tensors, {"format": "pt"}),
    }
    if backbone.gem is not None:
        files["pool.safetensors"] = save({"p": backbone.gem.p.detach().cpu().clone()})
    return files


def _config(backbone: Backbone) -> dict[str, Any]:
    a = backbone.architecture
    args = {k: v for k, v in a.timm_args().items() if k != "num_classes"}
    mean, std = a.normalisation()
    data = {
        "input_size": [a.channels, *sides(a.size)],
        "interpolation": "bicubic",
        "crop_pct": a.crop,
        "crop_mode": "center",
    }
    published = timm.get_pretrained_cfg(a.name)
    weights = {
        "num_classes": 0,
        "first_conv": None,
        "classifier": published.classifier,  # so that timm may add a fresh one: num_classes=N
        "custom_load": False,
        "fixed_input_size": bool(published.fixed_input_size),
    }
    ours = {k: v for k, v in asdict(a).items() if k not in ("folder", "pretrained")}
    return {
        "architecture": a.timm_name,
        "num_classes": 0,
        "num_features": backbone.dim,
        "model_args": args,
        "pretrained_cfg": {**data, "mean": list(mean), "std": list(std), **weights},
        "lookalike": {**ours, "mean": list(mean), "std": list(std)},
    }


def load_backbone(folder: str | Path) -> Backbone:
    """The backbone of a folder, in eval mode, bit for bit as it was saved.

    Raises BackboneError when a file is missing, was changed since it was written, or does not fit the others.
    """
    folder = Path(folder)
    checked = verify(folder, BackboneError)["files"]
    backbone = Backbone(_read_architecture(_among(checked, folder / "config.json")))
    _load_weights(backbone.model, _among(checked, folder / "model.safetensors"))
    if backbone.gem is not None:
        _load_weights(backbone.gem, _among(checked, folder / "pool.safetensors"))
    return backbone.eval()


def _among(checked: Mapping[str, Any], path: Path) -> Path:
    """A file that no sha256 vouches for is not read."""
    if path.name not in checked:
        raise BackboneError(f"{path}: the manifest does not name it: export it again")
    return path


def make_backbone(architecture: Architecture) -> Backbone:
    """What a recipe's `backbone` section asks for: fresh weights, or those of its folder."""
    return load_backbone(architecture.folder) if architecture.folder else architecture.build()


def open_backbone(what: "Backbone | str | Path", like: Architecture | None) -> Backbone:
    """A backbone as every stage takes it: one in memory, a folder, or a timm name with published weights.

    A timm name gets size, channels and normalisation of `like`, the recipe's architecture; without, its publisher's.
    """
    if isinstance(what, Backbone):
        return what
    if not Path(what).exists() and timm.is_model(str(what)):
        like = like or _published(str(what))
        return Backbone(replace(like, name=str(what), folder=None, stem="timm", args={}, pretrained=True)).eval()
    return load_backbone(what)


def repooled(backbone: Backbone, pool: Pool | None) -> Backbone:
    """The same weights with another pooling of timm's or ours; the backbone itself where it has that, or for None.

    A last norm that timm has after one pooling and before another moves with its weights; what only the old pooling
    had goes. Raises BackboneError when the model cannot be pooled so.
    """
    if pool is None or pool == backbone.architecture.pool:
        return backbone
    made = Backbone(replace(backbone.architecture, pool=pool, pretrained=False))
    wanted, given = made.model.state_dict(), dict(backbone.model.state_dict())
    for here, there in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        for name in [name for name in given if name.startswith(here) and name not in wanted]:
            given[name.replace(here, there, 1)] = given.pop(name)
    if missing := sorted(wanted.keys() - given.keys()):
        raise BackboneError(f"pool: {pool}: {backbone.architecture.name} has no weights for it ({missing[0]})")
    made.model.load_state_dict({name: given[name] for name in wanted})
    if made.gem and backbone.gem:
        made.gem.load_state_dict(backbone.gem.state_dict())
    return made.train(backbone.training)


def _published(name: str) -> Architecture:
    """Size, crop and normalisation with which timm's weights of this name were trained."""
    config = timm.get_pretrained_cfg(name)
    return Architecture(name, size=_size(config.input_size[1:]), crop=config.crop_pct, mean=config.mean, std=config.std)


def _size(shape: Sequence[int]) -> Size:
    height, width = shape
    return height if height == width else (height, width)


def _read_architecture(path: Path) -> Architecture:
    try:
        ours = json.loads(path.read_bytes())["lookalike"]
        unknown = set(ours) - {f.name for f in fields(Architecture)}
        if unknown:
            raise ValueError(f"unknown {sorted(unknown)[0]!r}")
        untrusted = json.dumps({**ours, "pretrained": False, "folder": None})
        return _ARCHITECTURE.validate_json(untrusted, strict=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BackboneError(
            f"{path}: not a backbone of lookalike ({type(error).__name__}: {reason}): export it again"
        ) from error


def _load_weights(module: nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{path}: the weights do not fit config.json: {reason}") from error
