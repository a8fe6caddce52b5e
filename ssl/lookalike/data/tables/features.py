"""What Hugging Face's `datasets` writes beside a table of the meaning of its columns: the names of
classes.

JSON that somebody else wrote: bounded, and no more believed than the columns themselves.
"""

import json
from collections.abc import Mapping
from typing import Any

MOST_CLASSES = 1_000_000
_LARGEST = 16 << 20


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """The classes of a column of numbers, as a schema's metadata says; empty where it does not."""
    found = parsed((metadata or {}).get(b"huggingface", b"{}"))
    info = found.get("info")
    return names_of(info.get("features") if isinstance(info, dict) else None, column)


def names_of(features: Any, column: str) -> tuple[str, ...]:
    """The names of the column's `ClassLabel`; empty where it is none."""
    feature = features.get(column) if isinstance(features, dict) else None
    if not isinstance(feature, dict) or feature.get("_type") != "ClassLabel":
        return ()
    names = feature.get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) <= MOST_CLASSES else ()


def parsed(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for anything else, or what is nested or long beyond reason."""
    # A list or an object takes far more memory than the two bytes that it may be written in.
    if len(data) > _LARGEST or data.count(b"[") + data.count(b"{") > 1000 + len(data) // 16:
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
