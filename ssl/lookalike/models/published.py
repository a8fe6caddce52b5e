"""A backbone that a repository of the Hugging Face Hub describes: its `config.json`, an untrusted
file, as an architecture, and its weights as a file in the Hub's cache.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import timm
from pydantic import TypeAdapter

from lookalike.errors import BackboneError, printable
from lookalike.folder import read_regular
from lookalike.models import hub
from lookalike.models.backbone import Architecture, Pool
from lookalike.models.limits import LARGEST_CONFIG, reason, refuse_excess
from lookalike.recipe import Size

_ARCHITECTURE = TypeAdapter(Architecture)
_USUAL = Architecture("resnet18")
CONFIG = ("config.json",)


def described(architecture: Architecture, *, fetch: bool) -> Architecture:
    """The architecture by timm's name, with what a repository of the Hub says where `name` is one;
    any other as it is.

    Its weights, where it is `pretrained`, become `weights`, a file in the Hub's cache: without
    `fetch` only if it is there. Raises BackboneError where the repository cannot be had, or does
    not describe a model of timm's; without `fetch` no network is asked.
    """
    if not hub.is_hub(architecture.name):
        return architecture
    repo = hub.repository(architecture.name)
    path = hub.fetched(repo, CONFIG) if fetch else hub.cached(repo, CONFIG)
    said = _of_timm(repo) if path is None else read_config(path, str(repo))
    found = _merged(architecture, said)
    if not architecture.pretrained:
        return found
    weights = hub.fetched(repo, hub.WEIGHTS) if fetch else hub.cached(repo, hub.WEIGHTS)
    return replace(found, weights=None if weights is None else str(weights))


def stored_pooling(architecture: Architecture, *, fetch: bool) -> Path | None:
    """The file of a learned pooling that a repository written by lookalike has; None where it has
    none.
    """
    repo = hub.repository(architecture.name)
    path = hub.cached(repo, CONFIG)
    if path is None or read_config(path, str(repo)).pool not in ("gem", "cls_gem"):
        return None
    files = ("pool.safetensors",)
    return hub.fetched(repo, files) if fetch else hub.cached(repo, files)


def of_timm(name: str) -> Architecture:
    """Size, crop and normalisation with which timm's weights of this name were trained."""
    config = timm.get_pretrained_cfg(name)
    return Architecture(
        name,
        size=_size(config.input_size[1:]),
        crop=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )


def read_config(path: Path, name: str) -> Architecture:
    """What a repository's `config.json`, as timm writes it, describes.

    Raises BackboneError where it is no model of timm's, or asks for what no model has.
    """
    try:
        config = json.loads(read_regular(path, LARGEST_CONFIG))
        ours = _ours(config)
        refuse_excess(ours)
        if hub.is_hub(str(ours.get("name"))):
            raise ValueError("architecture: not a name of timm's")
        return _ARCHITECTURE.validate_json(json.dumps(ours), strict=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BackboneError(
            f"{printable(name)}: its config.json describes no model of timm's ({reason(error)}): "
            "take another repository"
        ) from error


def _ours(config: Any) -> dict[str, Any]:
    """The keys of Architecture that a config.json gives: lookalike's, or timm's in either form."""
    if "lookalike" in config:
        known = {f.name for f in fields(Architecture)} - {"folder", "pretrained", "weights"}
        return {key: value for key, value in config["lookalike"].items() if key in known}
    shown = config.get("pretrained_cfg", config)
    args = {k: v for k, v in dict(config.get("model_args") or {}).items() if v is not None}
    name, shape = config["architecture"], list(shown.get("input_size") or (3, 224, 224))
    if not isinstance(name, str) or not timm.is_model(name):
        raise ValueError("architecture: not a name of timm's")
    if len(shape) != 3:
        raise ValueError("input_size: not channels, height and width")
    args.pop("num_classes", None)
    found: dict[str, Any] = {
        "name": name,
        "channels": args.pop("in_chans", shape[0]),
        "size": _size(args.pop("img_size", shape[1:])),
        "mean": shown.get("mean"),
        "std": shown.get("std"),
        "crop": shown.get("crop_pct"),
        "pool": _pool(args.pop("global_pool", None)),
        "args": args,
    }
    return {key: value for key, value in found.items() if value is not None}


def _pool(said: Any) -> Any:
    if said in (None, *get_args(Pool)):
        return said
    raise ValueError(f"pooling other than {', '.join(get_args(Pool))}")


def _size(shape: int | Sequence[int]) -> Size:
    if isinstance(shape, int):
        return shape
    height, width = shape
    return height if height == width else (height, width)


def _of_timm(repo: hub.Repository) -> Architecture:
    """The same of one of timm's own repositories, which its program knows. Raises BackboneError for
    others.
    """
    name = repo.name.removeprefix("timm/")
    if repo.name.startswith("timm/") and not repo.revision and name in timm.list_pretrained():
        return of_timm(name)
    raise BackboneError(
        f"{repo}: its config.json is not in the cache, and show, check and preview ask no network: "
        f"run `hf download {repo.name} config.json` once, or `lookalike run`, which asks"
    )


def _merged(asked: Architecture, said: Architecture) -> Architecture:
    """What the repository says, but for what the recipe says otherwise."""
    usual: Mapping[str, Any] = vars(_USUAL)
    own = {
        key: getattr(asked if getattr(asked, key) != usual[key] else said, key)
        for key in usual
        if key not in ("name", "channels", "args", "pretrained", "folder", "weights")
    }
    for key in ("mean", "std"):
        if own[key] is not None and len(own[key]) != asked.channels:
            own[key] = None
    given = {**own, "name": said.name, "args": {**said.args, **asked.args}, "pretrained": False}
    return replace(asked, **given)
