"""A whole recipe: read from a file or from text, changed by overrides, checked; and written out
again.
"""

import os
import select
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from lookalike.errors import RecipeError
from lookalike.recipe.check import Check, kind_of
from lookalike.recipe.nodes import Position, Refusal
from lookalike.recipe.overrides import overridden, override_name
from lookalike.recipe.signatures import keys_of
from lookalike.recipe.values import plain_of
from lookalike.recipe.yaml12 import MAX_BYTES, decode, dump, read

T = TypeVar("T")
R = TypeVar("R", bound="Recipe")

_PATIENCE = 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Checked values; the fields of a subclass are the sections of its recipes.

    `fixed`: the sections of which another value makes another backbone; `name`: the file it was
    read from, for messages.
    """

    fixed: ClassVar[tuple[str, ...]] = ()
    name: str = field(init=False, default="<python>", compare=False)

    def section(self, kind: type[T]) -> T:
        """The section of this dataclass. Raises RecipeError when the recipe has none."""
        for section in fields(self):
            value = getattr(self, section.name)
            if type(value) is kind:
                return value
        keys = keys_of(type(self), set(), {}).items()
        kinds = {kind_of(wanted.annotation)[0]: key for key, wanted in keys}
        missing = kinds.get(kind, kind.__name__.lower())
        raise RecipeError(f"{self.name} has no `{missing}:` section, add one")

    def plain(self) -> dict[str, Any]:
        """JSON data of the whole recipe, defaults filled in."""
        return dict(plain_of(self))

    def text(self) -> str:
        """YAML of `plain()`, which reads back as an equal recipe."""
        return dump(self.plain())


def load(path: str | os.PathLike[str], overrides: Sequence[str], kind: type[R]) -> R:
    """The recipe file, changed by `key.path=value`s and checked. Raises RecipeError with every
    problem.
    """
    name = os.fspath(path)
    try:
        data = _contents(path)
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such recipe, check the path") from None
    except IsADirectoryError:
        raise RecipeError(f"{name}: a folder, name the recipe file in it") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{name}: cannot be read ({error}), check the path") from None
    return from_text(decode(data, name), name, overrides, kind)


def _contents(path: str | os.PathLike[str]) -> bytes:
    """The first `MAX_BYTES` and one of a file, a device, or a pipe, such as a shell's <(…), whose
    writer may be late.

    Raises OSError where nothing comes out of a pipe for `_PATIENCE` seconds.
    """
    with open(path, "rb", buffering=0, opener=_without_waiting) as file:
        is_pipe, data = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode), bytearray()
        while len(data) <= MAX_BYTES:
            if is_pipe and not select.select([file], [], [], _PATIENCE)[0]:
                raise OSError(f"a pipe that nothing came out of for {_PATIENCE} seconds")
            if not (part := file.read(MAX_BYTES + 1 - len(data))):
                break
            data += part
    return bytes(data)


def _without_waiting(path: str, flags: int) -> int:
    """An opener that does not wait for the writer of a pipe."""
    wait = getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags | wait)
    if wait:
        os.set_blocking(handle, True)
    return handle


def from_text(
    text: str, name: str, overrides: Sequence[str], kind: type[R], *, earlier: bool = False
) -> R:
    """The same from text named `name`; with `earlier` as an earlier release may have written it.

    Raises RecipeError, one line a problem, in the order of the file and then of the overrides.
    """
    check = Check(earlier)
    root = read(text, name)
    for override in overrides:
        try:
            root = overridden(root, override)
        except Refusal as refusal:
            check.problems.append((refusal.at, refusal.text))
    made: R = check.section(root, kind, "", Position(name, 1, 1))
    check.finish([name, *map(override_name, overrides)])
    object.__setattr__(made, "name", name)
    return made
