"""Backbone folders: timm's own layout, with a `lookalike` key in `config.json` for what timm has no
word for.

Loading reads JSON and safetensors and checks every file's sha256: never a pickle.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import timm
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.folder import read_manifest, read_regular, verify
from lookalike.models.backbone import Architecture, Backbone, Own, Pool
from lookalike.models.sketch import sketch
from lookalike.models.stored import mapped, misfit
from lookalike.recipe import Size

_ARCHITECTURE, _OWN = TypeAdapter(Architecture), TypeAdapter(Own)
# Far beyond any model's: size, widths, depths and rates add up to some thousands.
_TAKES = ("size", "channels", "mean", "std", "crop")
_RAW = ("depth", "range", "alpha")
_LARGEST_CONFIG, _LARGEST_SUM = 2**20, 50_000
_MOST_VALUES, _MOST_FILES = 2_000, 100


def folder_files(backbone: Backbone) -> dict[str, bytes]:
    """`backbone.files()`."""
    return backbone.files()


def load_backbone(folder: str | Path, module: nn.Module | None = None) -> Backbone:
    """The backbone of a folder, in eval mode, bit for bit as it was saved.

    `module`: where it is not timm's, a module made as the saved one was, which gets its weights:
    nothing that the folder names is imported. What the files ask for is held against what they hold
    before any memory is taken. Raises BackboneError when a file is missing, was changed since it
    was written, or does not fit the others or the module.
    """
    folder = Path(folder)
    checked = _checked(folder)
    config = _among(checked, folder / "config.json")
    architecture = _read_architecture(config)
    _refuse_other(architecture, module, config)
    weights = _among(checked, folder / "model.safetensors")
    stored = mapped(weights)
    if module is not None:
        return _filled(module, architecture, stored, weights)
    drawn = sketch(architecture, stored, weights)
    _refuse_misfit(stored, drawn.model, weights)
    power = _power(_among(checked, folder / "pool.safetensors"), drawn.gem) if drawn.gem else {}
    backbone = Backbone(architecture, drawn.dim)
    backbone.model.load_state_dict(stored)
    if backbone.gem is not None:
        backbone.gem.load_state_dict(power)
    return backbone.eval()


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


def make_backbone(architecture: Architecture) -> Backbone:
    """What a recipe's `backbone` section asks for: fresh weights, or those of its folder."""
    return load_backbone(architecture.folder) if architecture.folder else architecture.build()


def open_backbone(what: nn.Module | str | Path, like: Architecture | None) -> Backbone:
    """A backbone as every stage takes it: one in memory, a folder, or a timm name with published
    weights.

    A timm name gets size, channels and normalisation of `like`, the recipe's architecture; without,
    its publisher's. So does a module of one's own, which cannot go without.
    """
    if isinstance(what, Backbone):
        return what
    if isinstance(what, nn.Module):
        return _wrapped(what, like)
    if not Path(what).exists() and timm.is_model(str(what)):
        like = like or _published(str(what))
        return Backbone(
            replace(like, name=str(what), folder=None, stem="timm", args={}, pretrained=True)
        ).eval()
    return load_backbone(what)


def _wrapped(module: nn.Module, like: Architecture | None) -> Backbone:
    """A module of one's own, for images of `like`."""
    if like is None or like.folder:
        raise BackboneError(
            f"backbone: {type(module).__qualname__} is not timm's: say what it takes by "
            "Backbone.of(module, size=…, channels=…)"
        )
    seen = {name: getattr(like, name) for name in (*_TAKES, *_RAW)}
    return Backbone.of(module, **seen)


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
    made = Backbone(replace(backbone.architecture, pool=pool, pretrained=False))
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


def _published(name: str) -> Architecture:
    """Size, crop and normalisation with which timm's weights of this name were trained."""
    config = timm.get_pretrained_cfg(name)
    return Architecture(
        name,
        size=_size(config.input_size[1:]),
        crop=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )


def _size(shape: Sequence[int]) -> Size:
    height, width = shape
    return height if height == width else (height, width)


def _read_architecture(path: Path) -> Architecture:
    try:
        config = json.loads(read_regular(path, _LARGEST_CONFIG))
        ours = config["lookalike"]
        _refuse_excess(_without_range(ours))
        if "class" in config:
            if set(ours) - set(_RAW) != set(_TAKES):
                raise ValueError(f"a module's keys are {', '.join(_TAKES)}")
            own = {**ours, "name": config["class"]}
            return _OWN.validate_json(json.dumps(own), strict=True)
        unknown = set(ours) - {f.name for f in fields(Architecture)}
        if unknown:
            raise ValueError(f"unknown {min(unknown)!r}")
        untrusted = json.dumps({**ours, "pretrained": False, "folder": None})
        return _ARCHITECTURE.validate_json(untrusted, strict=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BackboneError(
            f"{printable(path)}: not a backbone of lookalike ({_reason(error)}): export it again"
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong in one line, without what was given."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {printable(' '.join(str(error).split())[:160])}"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "".join(f"{printable(str(part)[:60])}: " for part in first["loc"])
    return place + printable(first["msg"].removeprefix("Value error, ")[:300])


def _without_range(ours: Any) -> Any:
    """Values of pixels size nothing, and 65,535 is an ordinary one."""
    return {k: v for k, v in ours.items() if k != "range"} if isinstance(ours, dict) else ours


def _refuse_excess(ours: Any) -> None:
    """Raises ValueError where timm would loop, or allocate, for what a model's configuration cannot
    mean.
    """
    leaves = list(itertools.islice(_leaves(ours, 5), _MOST_VALUES + 1))
    if len(leaves) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    numbers = [abs(leaf) for leaf in leaves if isinstance(leaf, int | float)]
    if not all(number <= _LARGEST_SUM for number in numbers) or sum(numbers) > _LARGEST_SUM:
        raise ValueError(f"its numbers are not finite, or add up to more than {_LARGEST_SUM}")
    if any(len(leaf) > 200 or not leaf.isprintable() for leaf in leaves if isinstance(leaf, str)):
        raise ValueError(
            "a text of more than 200 characters, or of characters that cannot be shown"
        )


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """Each value and key in a JSON value. Raises ValueError where it is nested deeper than
    `depth`.
    """
    if not isinstance(value, dict | list):
        yield value
        return
    if depth == 0:
        raise ValueError("nested too deep")
    for part in itertools.chain(value, value.values()) if isinstance(value, dict) else value:
        yield from _leaves(part, depth - 1)
