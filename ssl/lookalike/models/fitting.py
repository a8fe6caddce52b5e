"""A file of weights, of whatever origin, into a model: what is taken, changed and left out, each
said; what does not fit refused before any of it is copied.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from timm.models import adapt_input_conv
from torch import Tensor, nn

from lookalike.errors import BackboneError, printable
from lookalike.models import layouts
from lookalike.models.stored import bad_numbers
from lookalike.models.torchfile import kind_of, tensors_of

_NAMED = 3


@dataclass(frozen=True)
class Taken:
    """What was taken from a file of weights: how many tensors, below which names, what of them was
    changed; `heads` and `other` tensors that the model has not, and how many lie elsewhere in the
    file, by the words with which they begin.
    """

    file: str
    count: int
    prefix: str
    changed: tuple[str, ...]
    heads: tuple[str, ...]
    other: tuple[str, ...]
    beside: tuple[tuple[str, int], ...]

    def line(self) -> str:
        """All of it in one line."""
        below = f", {printable(self.prefix)}*" if self.prefix else ""
        parts = [f"{self.count} tensors{below}", *self.changed]
        if self.heads:
            parts.append(f"left out: {_some(self.heads)} (a head)")
        if self.other:
            parts.append(f"left out: {_some(self.other)} (the model has no such)")
        if self.beside:
            told = ", ".join(f"{printable(name[:60])} ({n})" for name, n in self.beside[:6])
            parts.append(f"not looked at: {told}{', …' if len(self.beside) > 6 else ''}")
        return f"{printable(self.file)}: {'; '.join(parts)}"

    def plain(self) -> dict[str, Any]:
        """All of it as JSON data, every name."""
        return {**vars(self), "beside": dict(self.beside)}


def take(model: nn.Module, path: Path, tensors: Mapping[str, Tensor], channels: int) -> Taken:
    """Copies the backbone's weights among the `tensors` of `path` into a timm model for images of
    `channels`.

    On torch's meta device nothing is copied, and all is checked but the numbers. Raises
    BackboneError where a weight is missing, of another shape, NaN or infinite, or where the file
    has more of the model's blocks than it; the model is then as it was.
    """
    part = layouts.part_of(tensors, model)
    state, changed = dict(part.state), list(_resampled(tensors, part))
    _refuse_missing(model, state, path, tensors)
    wanted = model.state_dict()
    left = sorted(n for n in state.keys() - wanted.keys() if not layouts.is_computed(n))
    other = [name for name in left if not layouts.is_head(name)]
    _refuse_more(other, model, path)
    state = {name: tensor for name, tensor in state.items() if name in wanted}
    changed += _adapted(state, model, channels, path)
    _refuse_shapes(state, wanted, path)
    changed += _of_dtype(state, wanted, path)
    if not next(iter(wanted.values())).is_meta:
        if problem := bad_numbers(state):
            raise BackboneError(f"{printable(path)}: {problem}: take another file")
        model.load_state_dict(state, strict=False)
    heads = tuple(name for name in left if layouts.is_head(name))
    beside = tuple(sorted(part.beside.items()))
    return Taken(path.name, len(state), part.prefix, tuple(changed), heads, tuple(other), beside)


def take_file(model: nn.Module, path: Path, channels: int) -> Taken:
    """The same of a file. Raises BackboneError where it cannot be read, too."""
    return take(model, path, tensors_of(path), channels)


def mark(path: Path, name: str) -> str:
    """What a file of weights is known by: sha256 of its bytes, and its name. Raises BackboneError
    where it is none.
    """
    kind_of(path)
    status = path.stat()
    return f"sha256 {_sha256(path, status.st_size, status.st_mtime_ns)}, {printable(name)[-100:]}"


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, mtime: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_missing(
    model: nn.Module, state: Mapping[str, Tensor], path: Path, tensors: Mapping[str, Tensor]
) -> None:
    wanted = layouts.needed(model)
    missing = sorted(wanted - state.keys())
    if not missing:
        return
    if len(missing) == len(wanted):
        found = _some(sorted(tensors)) if tensors else "no tensors"
        raise BackboneError(
            f"{printable(path)}: none of the {len(wanted)} weights that {_kind(model)} has, as "
            f"{missing[0]}: the file has {found}: name the model that it was saved from"
        )
    raise BackboneError(
        f"{printable(path)}: {len(missing)} of the {len(wanted)} weights that {_kind(model)} has "
        f"are missing ({_some(missing)}): name the model that it was saved from, with its args"
    )


def _refuse_more(other: Sequence[str], model: nn.Module, path: Path) -> None:
    if more := layouts.foreign_blocks(other, model):
        raise BackboneError(
            f"{printable(path)}: {len(more)} weights more than {_kind(model)} has in its blocks "
            f"({_some(more)}): name the model that it was saved from, with its args"
        )


def _refuse_shapes(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    for name, tensor in state.items():
        if tensor.shape != wanted[name].shape:
            raise BackboneError(
                f"{printable(path)}: {printable(name[:100])} has shape "
                f"{str(tuple(tensor.shape))[:100]}, the model's has {tuple(wanted[name].shape)}: "
                "name the model that it was saved from, with its args"
            )


def _adapted(
    state: dict[str, Tensor], model: nn.Module, channels: int, path: Path
) -> Iterator[str]:
    """Brings first convolutions to the images' channels, as timm does; says so."""
    named = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    for name in (named,) if isinstance(named, str) else named:
        weight, module = state.get(f"{name}.weight"), dict(model.named_modules()).get(name)
        if weight is None or not isinstance(module, nn.Conv2d):
            continue
        times = module.in_channels // channels  # of stems that fold pixels into channels
        base, rest = divmod(weight.shape[1] if weight.dim() == 4 else 0, max(1, times))
        if weight.shape == module.weight.shape or rest or not base:
            continue
        try:
            state[f"{name}.weight"] = adapt_input_conv(channels, weight, base_chans=base)
        except NotImplementedError as error:
            raise BackboneError(
                f"{printable(path)}: {name} takes {base} channels and cannot be brought to "
                f"{channels}: take another model"
            ) from error
        yield f"{name} from {base} channels to {channels}, as timm does"


def _resampled(tensors: Mapping[str, Tensor], part: layouts.Part) -> Iterator[str]:
    """What timm's conversion brought to another grid."""
    for name, tensor in part.state.items():
        old = tensors.get(f"{part.prefix}{name}")
        if old is not None and old.shape != tensor.shape:
            yield f"{name} resampled from {tuple(old.shape)} to {tuple(tensor.shape)}, as timm does"


def _of_dtype(state: dict[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> Iterator[str]:
    """Floats of another width become the model's, which is said; anything else is refused."""
    kinds: dict[str, int] = {}
    for name, tensor in state.items():
        if tensor.dtype == wanted[name].dtype:
            continue
        text = f"{_dtype(tensor)} to {_dtype(wanted[name])}"
        if not (tensor.is_floating_point() and wanted[name].is_floating_point()):
            raise BackboneError(
                f"{printable(path)}: {printable(name[:100])} is of {text.replace(' to ', ', not ')}"
                ": take a file of floats"
            )
        state[name] = tensor.to(wanted[name].dtype)
        kinds[text] = kinds.get(text, 0) + 1
    yield from (f"{n} tensors from {text}" for text, n in kinds.items())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(model: nn.Module) -> str:
    config: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return printable(str(config.get("architecture") or type(model).__name__))


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name[:80]) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
