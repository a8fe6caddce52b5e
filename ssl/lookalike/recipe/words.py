"""A JSON schema's type and bounds in words, and values as code, for a page in Markdown."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lookalike.recipe.yaml12 import read

_NOUNS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "mapping",
}
_LARGE = 2**16


def words(part: Mapping[str, Any]) -> str:
    """What a schema without references allows, as `number in (0, 1]` or `list of text`."""
    if "anyOf" in part:
        return _any_of([words(branch) for branch in part["anyOf"]])
    if "enum" in part or "const" in part:
        return _either(map(code, part.get("enum", [part.get("const")])))
    if part.get("type") == "array":
        return _list(part)
    if "properties" in part:
        keys = (f"{code(key)} ({words(kind)})" for key, kind in part["properties"].items())
        return f"mapping of {', '.join(keys)}"
    return " ".join([_NOUNS.get(part.get("type", ""), "anything"), *_bounds(part)])


def _any_of(branches: list[str]) -> str:
    if "anything" in branches:
        return "anything"
    if "number" in branches:
        branches = [branch for branch in branches if branch != "whole number"]
    return _either(dict.fromkeys(branches))


def _either(parts: Iterable[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} or {last}" if most else last


def _list(part: Mapping[str, Any]) -> str:
    least, most = part.get("minItems", 0), part.get("maxItems")
    kinds = list(dict.fromkeys(map(words, part.get("prefixItems", [part.get("items", {})]))))
    size = f"{least} " if least == most else f"{least} or more " if least else ""
    if len(kinds) > 1 or " or " in kinds[0]:
        return f"list of {size}({'), ('.join(kinds)})"
    return f"list of {size}" + re.sub("^(whole )?number", r"\g<0>s", kinds[0])


def _bounds(part: Mapping[str, Any]) -> list[str]:
    """`in [0, 1)`; or `≥ 0` where one end is open."""
    low, high = (
        part.get(name, part.get(f"exclusive{name.title()}")) for name in ("minimum", "maximum")
    )
    if low is not None and high is not None:
        first, last = "[" if "minimum" in part else "(", "]" if "maximum" in part else ")"
        return [f"in {first}{_number(low)}, {_number(high)}{last}"]
    ends = [
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    ]
    return [f"{sign} {_number(part[name])}" for name, sign in ends if name in part]


def _number(value: float) -> str:
    power = math.log2(value) if value >= _LARGE else 0.5
    if power.is_integer():
        return f"2^{power:g}"
    short = f"{value:g}"
    return short.replace("e+0", "e") if float(short) == value else str(value)


def code(value: Any) -> str:
    """The value as a recipe may give it, as code: YAML in one line."""
    text = json.dumps(value, ensure_ascii=False)
    bare = isinstance(value, str) and re.fullmatch(r"\w[\w./-]*", value)
    return f"`{cell(value if bare and read(value, '').plain() == value else text)}`"


def cell(text: str) -> str:
    """Text that ends no cell of a table."""
    return text.replace("|", "\\|")
