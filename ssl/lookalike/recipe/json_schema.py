"""The JSON schema (draft 2020-12) of the recipes that `load` accepts, without references."""

from collections.abc import Mapping
from typing import Any

from lookalike.recipe.check import SET_NAME, Choice, ListOf, MapOf, kind_of
from lookalike.recipe.docstrings import summary
from lookalike.recipe.signatures import Parameter, keys_of
from lookalike.recipe.values import is_json, plain_of


def schema(kind: type) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the recipes that `load` accepts as this dataclass."""
    found = _object_schema(keys_of(kind, set(), {}))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


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
    said = summary(make)
    return {"description": said} if said else {}


def _value_schema(wanted: Parameter) -> dict[str, Any]:
    kind, optional = kind_of(wanted.annotation)
    if kind is None:
        found = inlined(wanted.adapter().json_schema())
    elif isinstance(kind, Choice):
        found = _choice_schema(kind)
    elif isinstance(kind, ListOf):
        found = {"type": "array", "items": _value_schema(Parameter(kind.item))}
    elif isinstance(kind, MapOf):
        found = {
            "type": "object",
            "propertyNames": {"pattern": f"^{SET_NAME.pattern}$", "not": {"const": "name"}},
            "additionalProperties": _value_schema(Parameter(kind.item)),
        }
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


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with its definitions in place of the references to them."""

    def filled(part: Any) -> Any:
        if isinstance(part, list):
            return [filled(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return filled(schema["$defs"][part["$ref"].rsplit("/", 1)[1]])
        return {key: filled(item) for key, item in part.items() if key != "$defs"}

    return filled(schema)  # type: ignore[no-any-return]
