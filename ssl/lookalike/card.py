"""A trained model's folder: its files with facts for machines (card.json) and a model card for people (README.md)."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lookalike.backbones import Architecture
from lookalike.folder import recover, verify, write_folder
from lookalike.recipe import sides

_PACKAGES = ("lookalike", "torch", "timm")


def write_model(folder: Path, files: Mapping[str, bytes], card: Mapping[str, Any]) -> None:
    """The model's folder: `files`, `card.json`, `README.md` and a manifest, whole or not at all."""
    texts = {"card.json": json.dumps(card, indent=2).encode(), "README.md": text(card).encode()}
    write_folder(folder, {**files, **texts})


def is_done(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether `folder` holds, whole, the model that `about` describes. Raises RunError when it is broken."""
    recover(folder)
    if not folder.exists():
        return False
    verify(folder)
    card = read(folder)
    return all(card.get(key) == value for key, value in about.items())


def read(folder: Path) -> dict[str, Any]:
    """The facts of a model's folder, {} where there is no card."""
    try:
        card = json.loads((folder / "card.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return card if isinstance(card, dict) else {}


def weights_digest(model: nn.Module) -> str:
    """A word that stands for what a model computes: its architecture and weights, and whether vectors have length 1."""
    digest = hashlib.sha256(repr(getattr(model, "architecture", "")).encode())
    if not getattr(model, "unit", True):
        digest.update(b"not unit")
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def facts(architecture: Architecture, dim: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is, how it came to be (`about`, which has no say in what it is), and what made it."""
    mean, std = architecture.normalisation()
    model = {
        "architecture": architecture.timm_name,
        "features": dim,
        "pool": architecture.pool or "timm's own",
        "input": {
            "channels": architecture.channels,
            "size": architecture.size,
            "crop": architecture.crop,
            "mean": mean,
            "std": std,
        },
    }
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    return {**model, "versions": versions, "licence": "Apache-2.0", **about, **model}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def text(card: Mapping[str, Any]) -> str:
    """The model card as Markdown; the front matter is the Hugging Face hub's."""
    picture = card["input"]
    head = (
        "---\nlicense: apache-2.0\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n---\n\n"
        f"# {card['architecture']}, {card.get('method', 'trained')} with lookalike\n\n"
        f"Takes {picture['channels']}-channel pictures of {' × '.join(map(str, sides(picture['size'])))} pixels "
        f"in 0 … 1, normalised by mean {list(picture['mean'])} and std {list(picture['std'])}; "
        f"gives {card['features']} features.\n\n"
    )
    return head + _loading(card) + _scores(card.get("scores", {})) + _origin(card)


def _loading(card: Mapping[str, Any]) -> str:
    cifar = card["architecture"].endswith("_cifar")
    register = "from lookalike.backbones import register_cifar_stems\n\nregister_cifar_stems()\n" if cifar else ""
    return (
        "```python\nimport timm\n\n"
        f"{register}"
        'model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", pretrained=True).eval()\n```\n\n'
        'Or, with every file\'s sha256 checked: `lookalike.load_backbone("PATH/TO/THIS/FOLDER")`.\n\n'
    )


def _scores(scores: Mapping[str, Any]) -> str:
    if not scores:
        return ""
    rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in scores.items() if isinstance(value, float))
    return f"| score | value |\n|---|---|\n{rows}\n"


def _origin(card: Mapping[str, Any]) -> str:
    rows = "".join(
        f"- {key}: {card[key]}\n" for key in ("method", "epochs", "recipe", "data", "versions") if key in card
    )
    return f"Made of\n\n{rows}\nLicence: Apache-2.0, the weights too.\n"
