"""What a run was made of, against what it is to go on with: a line for every difference."""

import json
from collections.abc import Mapping
from typing import Any

from lookalike.recipe import is_one_of

CHANGED = "choose another --out, or go on all the same with --accept-changes"
# The mark of a passport (data/passport.py) that a mere copy of the images changes too.
TIMES = "times"
TOUCHED = (
    "the images' files have other mtimes than then: they are a copy, or some were written to; "
    "their bytes, of many files of a sample, are the same"
)
_LONGEST = 160


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is no longer what an earlier state, here or in a model's card, was made of; one line
    each.

    What it says nothing of, as one that an earlier release wrote, is not compared, nor are the
    files' times. Of a tuple now, any was as good then.
    """
    return [
        line
        for key in now
        if key in earlier and key != TIMES and not is_one_of(earlier[key], now[key])
        for line in differing(key, earlier[key], written(now)[key])
    ]


def written(now: Mapping[str, Any]) -> dict[str, Any]:
    """The same as it is written down: of what is as good, the first."""
    return {key: value[0] if isinstance(value, tuple) else value for key, value in now.items()}


def touched(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the images' files were written to, or copied, since: by their mtimes, when nothing
    else differs.
    """
    return TIMES in earlier and TIMES in now and earlier[TIMES] != now[TIMES]


def differing(key: str, earlier: Any, now: Any) -> list[str]:
    """In what two values under a key differ, key by key."""
    if isinstance(earlier, dict) and isinstance(now, dict):
        keys = sorted({*earlier, *now})
        return [line for k in keys for line in differing(f"{key}.{k}", earlier.get(k), now.get(k))]
    return [] if earlier == now else [f"{key}: {_short(earlier)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
