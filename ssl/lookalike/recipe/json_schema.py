"""The JSON schema (draft 2020-12) of the recipes that `load` accepts, without references."""

import inspect
from collections.abc import Mapping
from typing import Any

from lookalike.recipe.check import Choice, ListOf, kind_of, root_keys
from lookalike.recipe.signatures import Parameter, keys_of
from lookalike.recipe.values import is_json, plain_of


def schema(sections: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the recipes that `load` accepts."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_object_schema(root_keys(sections)),
    }


def _object_schema(
    keys: Mapping[str, Parameter], make: Any = None, name: str | None = None
) -> dict[str, Any]:
    first = {} if name is None else {"name": {"const": name}}
    return {
        "type": "object",
        **_description(make),
        "properties": {**first, **{key: _value_schema(wanted) for key, wanted in keys.items()}},
        "required": [*first, *(key for key, wanted in keys.items() if wanted.required)],
        "additionalProperties": False,
    }


def _description(make: Any) -> dict[str, str]:
    """The first line of the docstring; not the signature that dataclass writes where there is
    none.
    """
    doc = inspect.cleandoc(getattr(make, "__doc__", None) or "")
    written = doc and not doc.startswith(f"{make.__name__}(")
    return {"description": doc.splitlines()[0]} if written else {}


def _value_schema(wanted: Parameter) -> dict[str, Any]:
    kind, optional = kind_of(wanted.annotation)
    if kind is None:
        found = wanted.adapter().json_schema()
        found = _inlined(found, found.pop("$defs", {}))
    elif isinstance(kind, Choice):
        found = _choice_schema(kind)
    elif isinstance(kind, ListOf):
        found = {"type": "array", "items": _value_schema(Parameter(kind.item))}
    else:
        found = _object_schema(keys_of(kind, set(), {}), kind)
    if optional and kind is not None:
        found = {"anyOf": [found, {"type": "null"}]}
    return {**found, "default": plain_of(wanted.default)} if is_json(wanted.default) else found


def _choice_schema(choice: Choice) -> dict[str, Any]:
    keys = {name: choice.keys(name) for name in choice.makers()}
    short = [name for name in keys if not any(wanted.required for wanted in keys[name].values())]
    whole = [_object_schema(keys[name], make, name) for name, make in choice.makers().items()]
    return {"anyOf": [*whole, *([{"enum": short}] if short else [])]}


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _inlined(item, definitions) for key, item in part.items()}
