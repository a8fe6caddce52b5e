"""Backbone folders: timm's own layout, with a `lookalike` key in `config.json` for what timm has no
word for.

Loading reads JSON and safetensors and checks every file's sha256: never a pickle.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import timm
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.folder import read_manifest, read_regular, verify
from lookalike.models import hub
from lookalike.models.backbone import Architecture, Backbone, Own, Pool
from lookalike.models.fitting import mark, take
from lookalike.models.limits import LARGEST_CONFIG, reason, refuse_excess
from lookalike.models.published import described, of_timm, stored_pooling
from lookalike.models.sketch import refuse_large, sketch
from lookalike.models.stored import mapped, misfit
from lookalike.models.torchfile import tensors_of

_ARCHITECTURE, _OWN = TypeAdapter(Architecture), TypeAdapter(Own)
_TAKES = ("size", "channels", "mean", "std", "crop")
_RAW = ("depth", "range", "alpha")
_MOST_FILES = 100
CLASSIFIER = "classifier"
"""Under this key config.json says what is above a classifier's backbone."""


@dataclass(frozen=True)
class Described:
    """What config.json says of a classifier; `layer`: timm's name of it in `model.safetensors`,
    None where it lies in a file of its own.
    """

    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    multi_label: bool
    temperature: Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
    layer: Annotated[str, Field(min_length=1, max_length=100)] | None


class Opened(NamedTuple):
    """What lies in a folder: the backbone, and of a classifier what it says and weight and bias of
    its layer.
    """

    backbone: Backbone
    described: Described | None = None
    layer: dict[str, Tensor] | None = None


_DESCRIBED = TypeAdapter(Described)


def folder_files(backbone: Backbone) -> dict[str, bytes]:
    """`backbone.files()`."""
    return backbone.files()


def load_backbone(folder: str | Path, module: nn.Module | None = None) -> Backbone:
    """The backbone of a folder, in eval mode, bit for bit as it was saved; of a classifier's the
    backbone below it.

    `module`: where it is not timm's, a module made as the saved one was, which gets its weights:
    nothing that the folder names is imported. What the files ask for is held against what they hold
    before any memory is taken. Raises BackboneError when a file is missing, was changed since it
    was written, or does not fit the others or the module.
    """
    return open_folder(folder, module).backbone


def open_folder(folder: str | Path, module: nn.Module | None = None) -> Opened:
    """The backbone of a folder as load_backbone gives it, and what is above it in a classifier's.

    Raises BackboneError as that does, and where names, layer and backbone do not fit each other.
    """
    folder = Path(folder)
    checked = _checked(folder)
    config = _among(checked, folder / "config.json")
    architecture, described = _read_architecture(config), _read_classifier(config)
    _refuse_other(architecture, module, config)
    weights = _among(checked, folder / "model.safetensors")
    stored, layer = mapped(weights), None
    if described is not None:
        layer = _layer(described, stored, folder, checked)
    if module is not None:
        backbone = _filled(module, architecture, stored, weights)
    else:
        backbone = _drawn(architecture, stored, weights, checked)
    if described is not None and layer is not None:
        _refuse_layer(described, layer, backbone.dim, config)
    return Opened(backbone, described, layer)


def _drawn(
    architecture: Architecture, stored: Mapping[str, Tensor], weights: Path, checked: Any
) -> Backbone:
    """A backbone of timm's with the stored weights, which fit it."""
    drawn = sketch(architecture, stored, weights)
    _refuse_misfit(stored, drawn.model, weights)
    pooling = weights.parent / "pool.safetensors"
    power = _power(_among(checked, pooling), drawn.gem) if drawn.gem else {}
    backbone = Backbone(architecture, drawn.dim)
    backbone.model.load_state_dict(stored)
    if backbone.gem is not None:
        backbone.gem.load_state_dict(power)
    return backbone.eval()


def _layer(
    described: Described, stored: dict[str, Tensor], folder: Path, checked: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Weight and bias of a classifier's layer, taken out of the stored weights where they lie
    there.
    """
    if described.layer is None:
        return mapped(_among(checked, folder / f"{CLASSIFIER}.safetensors"))
    found = {name: stored.pop(f"{described.layer}.{name}", None) for name in ("weight", "bias")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _refuse_layer(
    described: Described, layer: Mapping[str, Tensor], features: int, path: Path
) -> None:
    """Raises BackboneError unless the layer is one from so many features to its classes."""
    count = len(described.classes)
    wanted = {
        "weight": torch.empty(count, features, device="meta"),
        "bias": torch.empty(count, device="meta"),
    }
    if problem := misfit(layer, wanted):
        raise BackboneError(
            f"{printable(path)}: the classifier does not fit its {count} classes and {features} "
            f"features: {problem}: export it again"
        )


def _refuse_other(architecture: Architecture, module: nn.Module | None, path: Path) -> None:
    """Raises BackboneError for a module of one's own where none belongs, and where one is
    missing.
    """
    name = printable(architecture.name)
    if isinstance(architecture, Own) and module is None:
        raise BackboneError(
            f"{printable(path)}: the weights of {name}, which is not timm's: pass the module, "
            f"load_backbone(folder, module={name.rpartition('.')[2]}(…))"
        )
    if module is not None and not isinstance(architecture, Own):
        raise BackboneError(f"{printable(path)}: timm's {name}: load it without a module")


def _filled(
    module: nn.Module, architecture: Architecture, stored: Mapping[str, Tensor], path: Path
) -> Backbone:
    """The caller's module with the stored weights; untouched where they do not fit."""
    if problem := misfit(stored, module.state_dict()):
        raise BackboneError(
            f"{printable(path)}: does not fit the module {type(module).__qualname__}: {problem}: "
            "pass one made as the saved one was"
        )
    backbone = Backbone(architecture, module=module)
    module.load_state_dict(stored)
    return backbone.eval()


def _checked(folder: Path) -> dict[str, Any]:
    """The files of the folder, each found whole."""
    count = len(read_manifest(folder, BackboneError)["files"])
    if count > _MOST_FILES:
        raise BackboneError(
            f"{printable(folder)}: {count} files, more than a model's {_MOST_FILES}: export it "
            "again"
        )
    files: dict[str, Any] = verify(folder, BackboneError)["files"]
    return files


def _among(checked: Mapping[str, Any], path: Path) -> Path:
    """A file that no sha256 vouches for is not read."""
    if path.name not in checked:
        raise BackboneError(f"{printable(path)}: the manifest does not name it: export it again")
    return path


def _power(path: Path, gem: nn.Module) -> dict[str, Tensor]:
    stored = mapped(path)
    _refuse_misfit(stored, gem, path)
    return stored


def _refuse_misfit(stored: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    if problem := misfit(stored, module.state_dict()):
        raise BackboneError(
            f"{printable(path)}: the weights do not fit config.json: {problem}: export it again"
        )


def make_backbone(architecture: Architecture, *, fetch: bool = True) -> Backbone:
    """What a recipe's `backbone` section asks for: fresh weights, or those of its folder, its file
    or its publisher; without `fetch` no network is asked, and a published model has fresh weights
    where its own are not on this machine.
    """
    if architecture.folder:
        return load_backbone(architecture.folder)
    if hub.is_hub(architecture.name):
        return _of_hub(architecture, fetch)
    return replace(architecture, pretrained=architecture.pretrained and fetch).build()


def make_architecture(architecture: Architecture, *, fetch: bool) -> Architecture:
    """What that backbone will be, of a folder what it says, of a repository of the Hub what that
    says. Errors and `fetch` are those of make_backbone.
    """
    if architecture.folder:
        return load_backbone(architecture.folder).architecture
    return described(architecture, fetch=fetch)


def weights_mark(architecture: Architecture, *, fetch: bool) -> dict[str, str]:
    """`weights`: what the file is known by from which a backbone's weights come; {} where they come
    from none that is on this machine, after it was fetched where that is asked for.
    """
    if not (architecture.weights or (architecture.pretrained and hub.is_hub(architecture.name))):
        return {}
    found = described(architecture, fetch=fetch).weights
    if found is None:
        return {}
    name = architecture.name if architecture.pretrained else Path(found).name
    return {"weights": mark(Path(found), name)}


def _of_hub(architecture: Architecture, fetch: bool) -> Backbone:
    """The backbone that a repository describes, held against what its weights explain, or what any
    model holds, before any memory is taken.
    """
    found = described(architecture, fetch=fetch)
    if found.weights is None:
        refuse_large(found, architecture.name)
        return found.build()
    tensors, name = tensors_of(Path(found.weights)), Path(architecture.name)
    drawn = sketch(replace(found, weights=None), tensors, name, "take another repository")
    take(drawn.model, name, tensors, found.channels)
    backbone = found.build()
    if backbone.gem is not None and architecture.pretrained:
        stored = stored_pooling(architecture, fetch=fetch)
        if stored is not None:
            backbone.gem.load_state_dict(_power(stored, backbone.gem))
    return backbone


def open_backbone(what: nn.Module | str | Path, like: Architecture | None) -> Backbone:
    """A backbone as every stage takes it: one in memory, a folder, a timm name or a repository of
    the Hub with published weights, or a file of weights of a backbone such as `like`.

    A name gets size, channels and normalisation of `like`, the recipe's architecture; without, its
    publisher's. So does a module of one's own, which as a file of weights cannot go without.
    """
    if isinstance(what, Backbone):
        return what
    if isinstance(what, nn.Module):
        return _wrapped(what, like)
    if Path(what).is_file():
        return _of_file(Path(what), like).eval()
    if not Path(what).exists() and (hub.is_hub(str(what)) or timm.is_model(str(what))):
        return _of_name(str(what), like).eval()
    return load_backbone(what)


def _of_name(name: str, like: Architecture | None) -> Backbone:
    """Published weights by a name."""
    bare: dict[str, Any] = {"folder": None, "stem": "timm", "args": {}, "weights": None}
    if hub.is_hub(name):
        given = {} if like is None else {key: getattr(like, key) for key in _TAKES}
        return make_backbone(Architecture(name, **given, pretrained=True))
    like = of_timm(name) if like is None else make_architecture(like, fetch=True)
    return Backbone(replace(like, name=name, **bare, pretrained=True))


def _of_file(path: Path, like: Architecture | None) -> Backbone:
    """A file of weights for the architecture that the recipe names."""
    if like is None or like.folder:
        raise BackboneError(
            f"{printable(path)}: weights without an architecture: write backbone: {{name: …, "
            "weights: …}} in a recipe, and give that"
        )
    return make_backbone(replace(like, pretrained=False, weights=str(path)))


def _wrapped(module: nn.Module, like: Architecture | None) -> Backbone:
    """A module of one's own, for images of `like`."""
    if like is None or like.folder:
        raise BackboneError(
            f"backbone: {type(module).__qualname__} is not timm's: say what it takes by "
            "Backbone.of(module, size=…, channels=…)"
        )
    seen = {name: getattr(like, name) for name in (*_TAKES, *_RAW)}
    return Backbone.of(module, **seen)


def tunable(backbone: Backbone, pool: Pool | None) -> Backbone:
    """The backbone that a training goes on from: `repooled`. Raises BackboneError as that does, and
    where a weight is no number.
    """
    opened = repooled(backbone, pool)
    if not all(bool(p.isfinite().all()) for p in opened.parameters()):
        raise BackboneError(
            f"{opened.architecture.timm_name}: some of its weights are NaN or Inf: take another "
            "backbone"
        )
    return opened


def repooled(backbone: Backbone, pool: Pool | None) -> Backbone:
    """The same weights with another pooling of timm's or ours; the backbone itself where it has
    that, or for None.

    A last norm that timm has after one pooling and before another moves with its weights; what only
    the old pooling had goes. Raises BackboneError when the model cannot be pooled so.
    """
    if pool is None or pool == backbone.architecture.pool:
        return backbone
    if isinstance(backbone.architecture, Own):
        raise BackboneError(
            f"pool: {pool}: {backbone.architecture.name} pools by itself: leave pool out"
        )
    made = Backbone(replace(backbone.architecture, pool=pool, pretrained=False, weights=None))
    wanted, given = made.model.state_dict(), dict(backbone.model.state_dict())
    for here, there in (("norm.", "fc_norm."), ("fc_norm.", "norm.")):
        for name in [name for name in given if name.startswith(here) and name not in wanted]:
            given[name.replace(here, there, 1)] = given.pop(name)
    if missing := sorted(wanted.keys() - given.keys()):
        raise BackboneError(
            f"pool: {pool}: {backbone.architecture.name} has no weights for it ({missing[0]})"
        )
    made.model.load_state_dict({name: given[name] for name in wanted})
    if made.gem and backbone.gem:
        made.gem.load_state_dict(backbone.gem.state_dict())
    return made.train(backbone.training)


def _read_architecture(path: Path) -> Architecture:
    try:
        config = json.loads(read_regular(path, LARGEST_CONFIG))
        ours = config["lookalike"]
        refuse_excess(_without_range(ours))
        if "class" in config:
            if set(ours) - set(_RAW) != set(_TAKES):
                raise ValueError(f"a module's keys are {', '.join(_TAKES)}")
            own = {**ours, "name": config["class"]}
            return _OWN.validate_json(json.dumps(own), strict=True)
        unknown = set(ours) - {f.name for f in fields(Architecture)}
        if unknown:
            raise ValueError(f"unknown {min(unknown)!r}")
        if hub.is_hub(str(ours.get("name"))):
            raise ValueError("name: not timm's")
        untrusted = json.dumps({**ours, "pretrained": False, "folder": None, "weights": None})
        return _ARCHITECTURE.validate_json(untrusted, strict=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BackboneError(
            f"{printable(path)}: not a backbone of lookalike ({reason(error)}): export it again"
        ) from error


def _read_classifier(path: Path) -> Described | None:
    """What config.json, which says an architecture, says of a classifier; None of a backbone."""
    try:
        config = json.loads(read_regular(path, LARGEST_CONFIG))
        if CLASSIFIER not in config:
            return None
        given = {**config[CLASSIFIER], "classes": config.get("label_names")}
        if unknown := set(given) - {f.name for f in fields(Described)}:
            raise ValueError(f"unknown {min(unknown)!r}")
        return _DESCRIBED.validate_python({**given, "classes": _names(given["classes"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BackboneError(
            f"{printable(path)}: not a classifier of lookalike ({reason(error)}): export it again"
        ) from error


def _names(given: Any) -> tuple[str, ...]:
    """A JSON list of texts. Raises ValueError for anything else."""
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise ValueError("label_names: a list of texts wanted")
    return tuple(given)


def _without_range(ours: Any) -> Any:
    """Values of pixels size nothing, and 65,535 is an ordinary one."""
    return {k: v for k, v in ours.items() if k != "range"} if isinstance(ours, dict) else ours
