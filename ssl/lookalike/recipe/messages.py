"""Problems in words: paths, values and names as a message shows them, and pydantic's errors as
sentences.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lookalike.errors import printable
from lookalike.recipe.nodes import Node


def join(path: str, name: str) -> str:
    """`path.name`, the name in quotes where it is odd."""
    step = name if re.fullmatch(r"[\w-]{1,60}", name) else quoted(name)
    return f"{path}.{step}" if path else step


def quoted(value: Any) -> str:
    """The value as JSON, fit for a terminal, cut after 60 characters."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 60 else f"{text[:59]}…"


def listed(names: Mapping[str, Any], form: str = '"{}"') -> str:
    """`one of 14: a, b, …`, at most twelve of the names."""
    some = [form.format(name) for name in names][:12]
    return f"one of {len(names)}: {', '.join(some)}{', …' if len(names) > 12 else ''}"


def suggestion(name: Any, names: Mapping[str, Any], form: str = '"{}"') -> str:
    """The nearest of the names, or else all of them."""
    close = difflib.get_close_matches(name, names, 1) if isinstance(name, str) else []
    return f'did you mean "{close[0]}"?' if close else listed(names, form)


def _children(node: Node, path: str) -> Iterator[tuple[int | str, Node, str]]:
    """Key or index, node and path of each part."""
    if isinstance(node.value, dict):
        yield from ((key, child, join(path, key)) for key, (_, child) in node.value.items())
    elif isinstance(node.value, list):
        yield from ((i, child, f"{path}[{i}]") for i, child in enumerate(node.value))


def not_finite(node: Node, path: str) -> Iterator[tuple[Node, str]]:
    """Node and path of each infinity and NaN."""
    if isinstance(node.value, float) and not abs(node.value) < float("inf"):
        yield node, path
    for _, child, inner in _children(node, path):
        yield from not_finite(child, inner)


_PHRASES = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is not true or false",
    "string_type": "is not text, put it in quotes",
    "path_type": "is not a path, put it in quotes",
    "none_required": "is not null",
    "list_type": "is not a list",
    "tuple_type": "is not a list",
    "set_type": "is not a list",
    "frozen_set_type": "is not a list",
    "dict_type": "is not a mapping of keys to values",
    "mapping_type": "is not a mapping of keys to values",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must hold at least {min_length} values",
    "too_long": "must hold at most {max_length} values",
    "missing": "must hold more values",
    "value_error": "is refused: {error}",
}


def sentences(
    error: ValidationError, node: Node, path: str, schema: Any
) -> Iterator[tuple[Node, str, str]]:
    """Node, path and words of each wrong part; where a union failed, of its deepest parts."""
    sizes = _sizes(schema)
    found: dict[str, tuple[Node, list[str]]] = {}
    for item in error.errors(include_url=False):
        place, inner = _followed(node, path, item["loc"])
        found.setdefault(inner, (place, []))[1].append(_phrase(item, sizes))
    for inner, (place, phrases) in found.items():
        if not any(other.startswith((f"{inner}.", f"{inner}[")) for other in found):
            nearest = [phrase for phrase in phrases if phrase.startswith("must")] or phrases
            yield place, inner, " and ".join(dict.fromkeys(nearest))


def _followed(node: Node, path: str, steps: Sequence[int | str]) -> tuple[Node, str]:
    """The part at pydantic's location, whose labels of union branches name no part."""
    for step in steps:
        parts = ((child, inner) for key, child, inner in _children(node, path) if key == step)
        node, path = next(parts, (node, path))
    return node, path


def _phrase(item: Mapping[str, Any], sizes: set[int]) -> str:
    context = {key: _number(value) for key, value in item.get("ctx", {}).items()}
    if item["type"] in ("literal_error", "enum"):
        expected = str(context["expected"]).replace("'", '"').replace(" or ", ", ")
        return f"is not {'one of ' if ', ' in expected else ''}{expected}"
    if item["type"] in ("too_short", "too_long", "missing"):
        only = min(sizes) if len(sizes) == 1 else None
        size = context.get("max_length", context.get("min_length", only))
        if size in sizes:
            return f"must hold {size} values"
    phrase = _PHRASES.get(item["type"])
    return printable(phrase.format(**context) if phrase else f"is refused: {item['msg']}")


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sizes(part: Any) -> set[int]:
    """The fixed lengths of lists in a JSON schema."""
    if isinstance(part, list):
        return {size for item in part for size in _sizes(item)}
    if not isinstance(part, dict):
        return set()
    own = (
        {part["minItems"]}
        if "minItems" in part and part["minItems"] == part.get("maxItems")
        else set()
    )
    return own | _sizes(list(part.values()))
