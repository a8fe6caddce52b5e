"""What an untrusted config.json may hold: few values, no large numbers, text that can be shown."""

import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from lookalike.errors import printable

LARGEST_CONFIG = 2**20
# Far beyond any model's: size, widths, depths and rates add up to some thousands.
_LARGEST_SUM, _MOST_VALUES = 50_000, 2_000


def reason(error: Exception) -> str:
    """What is wrong in one line, without what was given."""
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {printable(' '.join(str(error).split())[:160])}"
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = "".join(f"{printable(str(part)[:60])}: " for part in first["loc"])
    return place + printable(first["msg"].removeprefix("Value error, ")[:300])


def refuse_excess(ours: Any) -> None:
    """Raises ValueError where timm would loop, or allocate, for what a model's configuration cannot
    mean.
    """
    leaves = list(itertools.islice(_leaves(ours, 5), _MOST_VALUES + 1))
    if len(leaves) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    numbers = [abs(leaf) for leaf in leaves if isinstance(leaf, int | float)]
    if not all(number <= _LARGEST_SUM for number in numbers) or sum(numbers) > _LARGEST_SUM:
        raise ValueError(f"its numbers are not finite, or add up to more than {_LARGEST_SUM}")
    if any(len(leaf) > 200 or not leaf.isprintable() for leaf in leaves if isinstance(leaf, str)):
        raise ValueError(
            "a text of more than 200 characters, or of characters that cannot be shown"
        )


def _leaves(value: Any, depth: int) -> Iterator[Any]:
    """Each value and key in a JSON value. Raises ValueError where it is nested deeper than
    `depth`.
    """
    if not isinstance(value, dict | list):
        yield value
        return
    if depth == 0:
        raise ValueError("nested too deep")
    for part in itertools.chain(value, value.values()) if isinstance(value, dict) else value:
        yield from _leaves(part, depth - 1)
