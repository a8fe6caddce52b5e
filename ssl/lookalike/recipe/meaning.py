"""What a recipe means: its values without the keys that change nothing, and a digest of the rest.

A run that an earlier release began goes on, and what it finished stays finished: a key with a
default that has been added since changes neither.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from lookalike.recipe.check import Choice, ListOf, MapOf, kind_of
from lookalike.recipe.recipes import Recipe
from lookalike.recipe.signatures import Parameter, keys_of
from lookalike.recipe.values import is_json, plain_of

Leave = Callable[[Parameter, Any], bool]


def meaning(recipe: Recipe, *keys: str) -> dict[str, Any]:
    """JSON data of these sections, of all when none is named, without the keys that may change in a
    resume.
    """
    return _walked(recipe, keys, lambda key, value: key.free)


def digest(recipe: Recipe, *keys: str) -> str:
    """Hex sha256 of what these sections say beyond the defaults, without what may change in a
    resume.
    """
    return _hash(_walked(recipe, keys, lambda key, value: key.free or _is_default(key, value)))


def digests(recipe: Recipe, *keys: str) -> tuple[str, ...]:
    """The digest, and those that earlier releases wrote of the same recipe.

    0.1.0 hashed every key that it knew, defaults too, and had the keys that have moved since where
    they then were.
    """
    plain = _walked(recipe, keys, _unknown_to_0_1)
    known = keys_of(type(recipe), set(), {})
    found = [plain]
    for key in keys:
        kind, section = kind_of(known[key].annotation)[0], getattr(recipe, key)
        if section is not None and is_dataclass(kind):
            found = [{**each, key: form} for each in found for form in _forms(section, each[key])]
    return digest(recipe, *keys), *map(_hash, found)


def is_one_of(earlier: Any, now: Any) -> bool:
    """Whether an earlier value is the value now, or one of those that are as good."""
    return earlier in now if isinstance(now, tuple) else bool(earlier == now)


def _hash(plain: Mapping[str, Any]) -> str:
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _is_default(key: Parameter, value: Any) -> bool:
    """Whether the value is what stands there when nothing is said."""
    return is_json(key.default) and plain_of(value) == plain_of(key.default)


def _unknown_to_0_1(key: Parameter, value: Any) -> bool:
    return key.since is not None and (key.since.moved or _is_default(key, value))


def _walked(recipe: Recipe, keys: tuple[str, ...], leave: Leave) -> dict[str, Any]:
    known = keys_of(type(recipe), set(), {})
    return {key: _plain(getattr(recipe, key), known[key], leave) for key in keys or known}


def _plain(value: Any, key: Parameter, leave: Leave) -> Any:
    """JSON data of a value; of sections and choices without the keys to `leave` out."""
    kind, _ = kind_of(key.annotation)
    if value is None or kind is None:
        return plain_of(value)
    if isinstance(kind, ListOf):
        return [_plain(item, Parameter(kind.item), leave) for item in value]
    if isinstance(kind, MapOf):
        return {name: _plain(item, Parameter(kind.item), leave) for name, item in value.items()}
    if isinstance(kind, Choice):
        known = kind.keys(value.name)
        return {"name": value.name, **_members(value.args, known, leave)}
    return _members(vars(value), keys_of(kind, set(), {}), leave)


def _members(
    values: Mapping[str, Any], known: Mapping[str, Parameter], leave: Leave
) -> dict[str, Any]:
    return {
        name: _plain(values[name], key, leave)
        for name, key in known.items()
        if name in values and not leave(key, values[name])
    }


def _forms(section: Any, plain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data of a section with moved keys back in the choices that once had them.

    A choice that is not named now may have been named then for nothing but these keys.
    """
    found = [dict(plain)]
    for name, key in keys_of(type(section), set(), {}).items():
        kind = kind_of(key.annotation)[0]
        if isinstance(kind, Choice) and kind.moved:
            moved = {each: plain_of(getattr(section, each)) for each in kind.moved}
            chosen = plain[name]
            forms = [{**chosen, **moved}] if chosen else [None, *_by_default(kind, moved)]
            found = [{**each, name: form} for each in found for form in forms]
    return found


def _by_default(kind: Choice, moved: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every choice that can be made by its name alone."""
    for name in kind.makers():
        if not any(key.required for key in kind.keys(name).values()):
            yield {**plain_of(kind.spec(name)), **moved}
