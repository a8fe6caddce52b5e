"""Tensors in a safetensors file: mapped, not read, and held against those of a model before any of
them is copied.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lookalike.errors import BackboneError, printable

# The largest models of timm have 3,000 tensors and a header of 400 kB.
_LARGEST_HEADER = 4 * 2**20
_MOST_TENSORS = 5_000


def mapped(path: Path, remedy: str = "export it again") -> dict[str, Tensor]:
    """The tensors of a file by name, of which only what is looked at is read.

    `remedy` ends a message. Raises BackboneError where it is no safetensors file, or one of more
    tensors than any model has.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, more than the {_LARGEST_HEADER} allowed")
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        reason = printable(" ".join(str(error).split())[:200])
        raise BackboneError(
            f"{printable(path)}: not a safetensors file ({reason}): {remedy}"
        ) from error
    if len(tensors) > _MOST_TENSORS:
        raise BackboneError(
            f"{printable(path)}: {len(tensors)} tensors, more than the {_MOST_TENSORS} allowed: "
            f"{remedy}"
        )
    return tensors


def misfit(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The first thing that keeps the stored tensors from being those of a model, by name; empty
    where nothing does.

    Names, dtypes and shapes must be equal: torch would cast what is of another dtype without a
    word. Numbers must be finite, variances not negative.
    """
    return next(_misfits(stored, wanted), "")


def _misfits(stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(wanted.keys() - stored.keys()):
        yield f"{_named(name)} is missing"
    for name in sorted(stored.keys() - wanted.keys()):
        yield f"{_named(name)} is not the model's"
    for name, tensor in wanted.items():
        yield from (f"{_named(name)}: {text}" for text in _differences(stored[name], tensor))
    for name in wanted:
        yield from (f"{_named(name)}: {text}" for text in _bad_numbers(name, stored[name]))


def bad_numbers(stored: Mapping[str, Tensor]) -> str:
    """The first of these tensors that holds what no weight may be, and what; empty where none
    does.
    """
    found = (f"{_named(n)} {text}" for n, t in stored.items() for text in _bad_numbers(n, t))
    return next(found, "")


def _differences(stored: Tensor, wanted: Tensor) -> Iterator[str]:
    if stored.dtype != wanted.dtype:
        yield f"{_kind(stored)} instead of {_kind(wanted)}"
    if stored.shape != wanted.shape:
        yield f"shape {str(tuple(stored.shape))[:100]} instead of {tuple(wanted.shape)}"


def _bad_numbers(name: str, stored: Tensor) -> Iterator[str]:
    if not stored.is_floating_point() or not stored.numel():
        return
    least, most = stored.aminmax()  # a NaN is both
    if not bool(least.isfinite() & most.isfinite()):
        yield "holds NaN or infinity"
    elif name.endswith("running_var") and least < 0:
        yield "holds a negative variance"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _named(name: str) -> str:
    return printable(name[:100])
