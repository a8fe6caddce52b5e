"""A whole recipe: read from a file or from text, changed by overrides, checked; and written out
again.
"""

import hashlib
import json
import os
import select
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lookalike.errors import RecipeError
from lookalike.recipe.check import Check, kind_of, root_keys
from lookalike.recipe.nodes import Position, Refusal
from lookalike.recipe.overrides import overridden, override_name
from lookalike.recipe.values import plain_of
from lookalike.recipe.yaml12 import MAX_BYTES, decode, dump, read

T = TypeVar("T")

_PATIENCE = 20


@dataclass(frozen=True)
class Recipe:
    """Checked values by root key."""

    name: str = field(compare=False)
    values: Mapping[str, Any]
    sections: Mapping[str, Any] = field(repr=False, compare=False)

    def section(self, kind: type[T]) -> T:
        """The section of this dataclass. Raises RecipeError when the recipe has none."""
        for value in self.values.values():
            if type(value) is kind:
                return value
        kinds = {
            kind_of(wanted.annotation)[0]: key for key, wanted in root_keys(self.sections).items()
        }
        raise RecipeError(
            f"{self.name} has no `{kinds.get(kind, kind.__name__.lower())}:` section, add one"
        )

    def plain(self) -> dict[str, Any]:
        """JSON data of the whole recipe, defaults filled in."""
        return {key: plain_of(value) for key, value in self.values.items()}

    def text(self) -> str:
        """YAML of `plain()`, which reads back as an equal recipe."""
        return dump(self.plain())

    def digest(self, *keys: str) -> str:
        """Hex sha256 of the canonical JSON of these root keys, of all when none is named."""
        plain = self.plain()
        chosen = {key: plain[key] for key in keys} if keys else plain
        canonical = json.dumps(chosen, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load(
    path: str | os.PathLike[str], overrides: Sequence[str], sections: Mapping[str, Any]
) -> Recipe:
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
    return from_text(decode(data, name), name, overrides, sections)


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
    text: str, name: str, overrides: Sequence[str], sections: Mapping[str, Any]
) -> Recipe:
    """The same from text named `name`; each section is an annotation or (annotation, default).

    Raises RecipeError, one line a problem, in the order of the file and then of the overrides.
    """
    check = Check()
    root = read(text, name)
    for override in overrides:
        try:
            root = overridden(root, override)
        except Refusal as refusal:
            check.problems.append((refusal.at, refusal.text))
    values = check.keywords(root, root_keys(sections), "", Position(name, 1, 1))
    check.finish([name, *map(override_name, overrides)])
    return Recipe(name, values, sections)
