"""The values of a recipe: annotated numbers, a Spec for what is chosen by name, and all of them as
JSON data.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**40)]
Index = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Widths = Annotated[Sequence[Width], Field(min_length=1)]
Size = Count | tuple[Count, Count]
"""Of an image: the side of a square, or height and width."""


@dataclass(frozen=True)
class Resume:
    """Marks a key, `Annotated[Count, FREE]`: whether a run may be resumed with another value of it.

    A mark on a section or a choice holds for all within, its name too, but for what is marked
    there.
    """

    free: bool


FREE, FIXED = Resume(free=True), Resume(free=False)


@dataclass(frozen=True)
class Since:
    """Marks a key, `Annotated[Count, SINCE_0_2]`, by the release that has brought it; `moved`: from
    the choice that names it among its `moved`.

    What 0.1.0 finished is known by a digest of all its keys: one without a mark would hide it.
    """

    release: str
    moved: bool = False


SINCE_0_2, MOVED_0_2 = Since("0.2.0"), Since("0.2.0", moved=True)

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_RECORDED = "recorded"


def recorded(default: Any) -> Any:
    """A field of a dataclass that no recipe gives: found out, and kept with what was made. Not part
    of the repr, which digests of earlier releases are of.
    """
    return field(default=default, repr=False, metadata={_RECORDED: True})


def not_given(make: Any) -> frozenset[str]:
    """The names of a dataclass's fields that are `recorded`."""
    if not is_dataclass(make):
        return frozenset()
    return frozenset(known.name for known in fields(make) if known.metadata.get(_RECORDED))


@dataclass(frozen=True)
class Spec:
    """A constructor by its name in a table, with checked keyword arguments, not yet called."""

    name: str
    args: Mapping[str, Any]
    make: Callable[..., Any] = field(repr=False, compare=False)

    def build(self, *positional: Any, **given: Any) -> Any:
        """Calls the constructor with `positional`, the arguments (nested Specs built first) and
        `given`.
        """
        return self.make(
            *positional, **{key: _built(value) for key, value in self.args.items()}, **given
        )


def _built(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.build()
    if type(value) is dict:
        return {key: _built(part) for key, part in value.items()}
    return type(value)(map(_built, value)) if type(value) in (list, tuple) else value


def plain_of(value: Any) -> Any:
    """JSON data of a value, with the arguments of Specs and the fields of dataclasses."""
    if isinstance(value, Spec):
        return {"name": value.name, **plain_of(value.args)}
    if is_dataclass(value) and not isinstance(value, type):
        return {
            key: plain_of(getattr(value, key))
            for key in inspect.signature(type(value)).parameters
            if key not in not_given(type(value))
        }
    if isinstance(value, Mapping):
        return {key: plain_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_of(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(plain_of(part) for part in value)
    return _ANY.dump_python(value, mode="json")


def is_json(value: Any) -> bool:
    """Whether `plain_of` can say the value."""
    try:
        json.dumps(plain_of(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
