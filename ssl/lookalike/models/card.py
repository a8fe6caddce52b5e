"""A trained model's folder: its files with facts for machines (card.json) and a model card for
people (README.md).
"""

import hashlib
import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lookalike.errors import printable
from lookalike.folder import read_regular, recover, verify, write_folder
from lookalike.geometry import PixelFormat, sides
from lookalike.models import Architecture, Own
from lookalike.recipe import is_one_of

_PACKAGES = ("lookalike", "torch", "timm")
_VERSIONS = ("python", *_PACKAGES)
_LARGEST = 2**20
# How a model came to be, as the stages write it, and what of it a README tells.
_TOLD = ("method", "weights", "epochs", "recipe", "data")
_CARRIED = (
    *_TOLD,
    "backbone",
    "distance",
    "classes",
    "multi_label",
    "temperature",
    "classifier",
    "rows",
    "dropped",
    "images",
    "content",
    "times",
    "labels",
)


def write_model(
    folder: Path,
    files: Mapping[str, bytes],
    card: Mapping[str, Any],
    check: Callable[[Path], None] | None = None,
) -> None:
    """The model's folder: `files`, `card.json`, `README.md` and a manifest, whole or not at all.

    `check` may refuse the folder by an error before it takes its place.
    """
    texts = {"card.json": json.dumps(card, indent=2).encode(), "README.md": text(card).encode()}
    write_folder(folder, {**files, **texts}, check=check)


def is_done(folder: Path, about: Mapping[str, Any]) -> bool:
    """Whether `folder` holds, whole, the model that `about` describes; of a tuple any will do.

    Raises RunError when it is broken.
    """
    recover(folder)
    if not folder.exists():
        return False
    verify(folder)
    card = read(folder)
    return all(is_one_of(card.get(key), value) for key, value in about.items())


def read(folder: Path) -> dict[str, Any]:
    """The facts of a model's folder, {} where there is no card, or none that can be read."""
    try:
        card = json.loads(read_regular(folder / "card.json", _LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return card if isinstance(card, dict) else {}


def read_carried(folder: Path) -> dict[str, Any]:
    """Of the facts of a model's folder, perhaps another's, those that go with the model: known
    keys, plain values.
    """
    card = read(folder)
    found = {key: card[key] for key in _CARRIED if _is_plain(card.get(key))}
    named = card.get("versions")
    versions = (
        {name: named[name] for name in _VERSIONS if _is_plain(named.get(name))}
        if isinstance(named, dict)
        else {}
    )
    return {**found, "versions": versions} if versions else found


def _is_plain(value: Any) -> bool:
    """Whether it is a short text of one line, or a finite number that JSON's readers agree on."""
    if isinstance(value, str):
        return len(value) <= 200 and value.isprintable()
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= 2**53


def weights_digest(model: Any) -> str:
    """A word that stands for what a model computes: its architecture and weights, and whether
    vectors have length 1.
    """
    digest = hashlib.sha256(repr(model.architecture).encode())
    if model.distance == "euclidean":
        digest.update(b"not unit")
    if raw := model.architecture.recorded():
        digest.update(repr(raw).encode())
    for name, tensor in model.state_dict().items():
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(name.encode() + raw.numpy().tobytes())
    return digest.hexdigest()


def facts(architecture: Architecture, dim: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """What the model is, how it came to be (`about`, which has no say in what it is), and what made
    it.
    """
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
            **architecture.recorded(),
        },
    }
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    if isinstance(architecture, Own):
        model |= {"module": architecture.name, "pool": "its own"}
    return {**model, "versions": versions, "licence": "Apache-2.0", **about, **model}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def text(card: Mapping[str, Any]) -> str:
    """The model card as Markdown; the front matter is the Hugging Face hub's."""
    image, own = card["input"], "module" in card
    library, name = ("lookalike", _code(card["module"])) if own else ("timm", card["architecture"])
    classifier = "classifier" in card
    task = "image-classification" if classifier else "image-feature-extraction"
    head = (
        f"---\nlicense: apache-2.0\nlibrary_name: {library}\npipeline_tag: {task}\n---\n\n"
        f"# {name}, {_title(card.get('method'))} with lookalike\n\n"
        f"Takes {image['channels']}-channel images of {' × '.join(map(str, sides(image['size'])))} "
        "pixels "
        f"in 0 … 1, normalised by mean {list(image['mean'])} and std {list(image['std'])}; "
        f"gives {_gives(card)}. A file's {_raw(image)}.\n\n"
    )
    return head + _loading(card) + _scores(card.get("scores", {})) + _origin(card)


def _gives(card: Mapping[str, Any]) -> str:
    """What comes out."""
    if "classifier" not in card:
        return f"{card['features']} features"
    each = "a sigmoid of each" if card["multi_label"] else "softmax"
    return (
        f"logits of {card['classes']} classes, whose names are `label_names` of config.json; "
        f"probabilities are {each} after a division by {card['temperature']:.4g}"
    )


def _raw(image: Mapping[str, Any]) -> str:
    """What of a file becomes 0 and 1, and what becomes of transparency."""
    form = PixelFormat(**{k: image[k] for k in PixelFormat._fields if k in image})
    on = "stays a channel" if form.alpha == "keep" else f"lies on {form.alpha}"
    return form.words if form.alpha == "white" else f"{form.words}, transparency {on}"


def _title(method: Any) -> str:
    """A method's name as it stands in a heading, where it is a name."""
    return (
        method
        if isinstance(method, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. ]{0,59}", method)
        else "trained"
    )


def _code(value: Any) -> str:
    """A value as one line of Markdown code, in which neither Markdown nor HTML means anything."""
    line = printable(str(value)[:200]).replace("`", "'").replace("|", "\\|")
    return f"`{line}`"


def _loading(card: Mapping[str, Any]) -> str:
    if "classifier" in card:
        return _predicting(card) + _bare(card)
    return _bare(card)


def _predicting(card: Mapping[str, Any]) -> str:
    """How a classifier is asked for classes."""
    own = (
        ""
        if card["classifier"] == "timm"
        else (
            "timm, as below, gives the features under the classifier; the layer above them is "
            "`classifier.safetensors`.\n\n"
        )
    )
    return f"Classes of images: `lookalike predict PATH/TO/THIS/FOLDER IMAGES`.\n\n{own}"


def _bare(card: Mapping[str, Any]) -> str:
    if "module" in card:
        return (
            "```python\nimport lookalike\n\n"
            "# module: made as the trained one was\n"
            'lookalike.load_model("PATH/TO/THIS/FOLDER", module=module)\n```\n\n'
        )
    cifar = card["architecture"].endswith("_cifar")
    register = (
        "from lookalike.models import register_cifar_stems\n\nregister_cifar_stems()\n"
        if cifar
        else ""
    )
    return (
        "```python\nimport timm\n\n"
        f"{register}"
        'model = timm.create_model("local-dir:PATH/TO/THIS/FOLDER", '
        "pretrained=True).eval()\n```\n\n"
        "Or, with every file's sha256 checked: "
        '`lookalike.load_backbone("PATH/TO/THIS/FOLDER")`.\n\n'
    )


def _scores(scores: Any) -> str:
    found = (
        [(k, v) for k, v in scores.items() if isinstance(v, float)]
        if isinstance(scores, Mapping)
        else []
    )
    if not found:
        return ""
    rows = "".join(f"| {_score(name)} | {value:.4f} |\n" for name, value in found)
    return f"| score | value |\n|---|---|\n{rows}\n"


def _score(name: Any) -> str:
    """The name of a score, as `linear/top1`, `map@r`; as code where it has other characters."""
    return (
        name if isinstance(name, str) and re.fullmatch(r"[a-z0-9_@/.]{1,60}", name) else _code(name)
    )


def _origin(card: Mapping[str, Any]) -> str:
    rows = "".join(f"- {key}: {_code(card[key])}\n" for key in (*_TOLD, "versions") if key in card)
    return f"Made of\n\n{rows}\nLicence: Apache-2.0, the weights too.\n"
