"""What docstrings say: of a constructor in a sentence, of each of its keys in a clause."""

import inspect
import re
from collections.abc import Collection, Iterator
from typing import Any

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?![a-z])")
_CLAUSE = re.compile(r";\s+(?![^()]*\))")
_HEAD = re.compile(r"((?:`\w+`(?:, | and |, and )?)+): ")


def summary(make: Any) -> str:
    """The first sentence of the docstring, empty where there is none that was written for it."""
    paragraph = re.split(r"\n\n|(?:^|\n)Args:", _text(make))[0]
    sentence = _SENTENCE.split(" ".join(paragraph.split()))[0]
    return "" if sentence.endswith(":") else sentence


def said_of(make: Any, key: str, keys: Collection[str]) -> str:
    """The clauses of the docstring that begin with `key`: …, or else those that name it.

    Of the first class on the way up that has one.
    """
    owners = make.__mro__ if isinstance(make, type) else (make,)
    naming = [[c for c in _clauses(_text(owner), keys) if f"`{key}`" in c] for owner in owners]
    own = [[c for clause in found if (c := _own(clause, key))] for found in naming]
    return "; ".join(next(filter(None, [*own, *naming]), []))


def _own(clause: str, key: str) -> str:
    """What stands after `key`: where the clause begins so, perhaps with more keys."""
    head = _HEAD.match(clause)
    return clause[head.end() :] if head and f"`{key}`" in head[1] else ""


def _text(make: Any) -> str:
    """The docstring; not the signature that dataclass writes where there is none."""
    doc = inspect.cleandoc(getattr(make, "__doc__", None) or "")
    return "" if doc.startswith(f"{getattr(make, '__name__', '')}(") else doc


def _clauses(text: str, keys: Collection[str]) -> Iterator[str]:
    """The parts of each sentence between semicolons; one that names no key belongs to that before
    it.
    """
    names = re.compile("|".join(f"`{re.escape(key)}`" for key in keys))
    for sentence in _SENTENCE.split(" ".join(text.split())):
        found: list[str] = []
        for clause in _CLAUSE.split(sentence.rstrip(".")):
            if found and not names.search(clause):
                found[-1] += f"; {clause}"
            else:
                found.append(clause)
        yield from found
