"""probe.json: scores by name, how each came to be, and what is done, so that a killed probe goes
on.

`done` holds, for each thing that was scored, a digest of all that its scores depend on, and their
names. Scores whose digest is no longer asked for are left out; a file of 0.1.0, which has none, is
measured anew.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lookalike import comm
from lookalike.checkpoint import read_or_set_aside
from lookalike.folder import write_file
from lookalike.log import note

_NAMED = ("scores", "protocols")
SECTIONS = ("intervals", "draws", "protocols")
"""What stands beside the scores, by the same names: a protocol by what they begin with."""


def key(*parts: Any) -> str:
    """A digest of JSON data."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """What scoring one thing gave: `scores`, and of these `intervals` and single `draws`; in words
    the `protocols`; `held_out`: how good a head is that was kept of it.
    """

    scores: Mapping[str, Any]
    protocols: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, Any] = field(default_factory=dict)
    draws: Mapping[str, Any] = field(default_factory=dict)
    held_out: float | None = None

    def under(self, prefix: str, told: str) -> "Result":
        """With `prefix` before the names of scores, and `told` before those of protocols."""

        def named(found: Mapping[str, Any], before: str = prefix) -> dict[str, Any]:
            return {before + name: value for name, value in found.items()}

        sections = (named(self.intervals), named(self.draws))
        return Result(named(self.scores), named(self.protocols, told), *sections, self.held_out)


class Record:
    """The scores of one model, its own or another `name`'s, in the file `path`, if there is one.
    All ranks hold the same; the first writes.
    """

    def __init__(self, path: Path | None, name: str | None) -> None:
        self._path, self._name = path, name
        self._own: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._parts: dict[str, _Part] = {}
        self._wanted: list[str] = []
        if path:
            read = read_or_set_aside(path, own_and_others, note) if comm.rank() == 0 else None
            self._own, self._others = comm.broadcast_object(read) or ({}, {})

    def keep(self, wanted: Sequence[str], is_good: Callable[[Mapping[str, Any]], bool]) -> None:
        """Goes on with what was scored under these keys and is `is_good`; all else is forgotten.
        The file will have them in this order, in whichever they are scored.
        """
        held: Any = self._own if self._name is None else self._others.get(self._name)
        done = held.get("done") if isinstance(held, dict) else None
        self._wanted = list(wanted)
        for each, about in done.items() if isinstance(done, dict) else ():
            if each in wanted and _is_whole(held, about) and is_good(about):
                self._parts[each] = _Part(about, *_taken(held, about))

    def __contains__(self, each: str) -> bool:
        return each in self._parts

    def add(self, each: str, result: Result) -> None:
        """Takes what was found under this key, and writes the file."""
        about = {"scores": list(result.scores), "protocols": list(result.protocols)}
        head = {} if result.held_out is None else {"held_out": result.held_out}
        sections = {name: getattr(result, name) for name in SECTIONS}
        self._parts[each] = _Part({**about, **head}, result.scores, sections)
        if self._path and comm.rank() == 0:
            write_file(self._path, json.dumps(self._whole(), indent=2).encode())

    @property
    def scores(self) -> dict[str, Any]:
        """Numbers by name, in the order of their keys."""
        there = (self._parts[each].scores for each in self._wanted if each in self._parts)
        return {name: value for scores in there for name, value in scores.items()}

    def plain(self) -> dict[str, Any]:
        """The scores with what stands beside them, as JSON data."""
        parts = {each: self._parts[each] for each in self._wanted if each in self._parts}
        sections = {
            section: {n: v for part in parts.values() for n, v in part.sections[section].items()}
            for section in SECTIONS
        }
        beside = {section: found for section, found in sections.items() if found}
        return {**self.scores, **beside, "done": {each: part.about for each, part in parts.items()}}

    def _whole(self) -> dict[str, Any]:
        own, others = self._own, self._others
        if self._name is None:
            own = self.plain()
        else:
            others = {**others, self._name: self.plain()}
        return {**own, **({"others": others} if others else {})}


class _Part(NamedTuple):
    """What `done` says of a key, its scores, and what stands beside them by section."""

    about: Mapping[str, Any]
    scores: Mapping[str, Any]
    sections: Mapping[str, Mapping[str, Any]]


def own_and_others(held: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores that probe.json holds, of the run's own backbone and of others by name."""
    own = dict(held)
    return own, dict(own.pop("others", {}))


def _is_whole(held: Mapping[str, Any], about: Any) -> bool:
    """Whether everything that `done` names is there."""
    if not isinstance(about, dict) or not all(isinstance(about.get(n), list) for n in _NAMED):
        return False
    sections = [held.get(section, {}) for section in SECTIONS]
    return (
        all(isinstance(section, dict) for section in sections)
        and all(name in held for name in about["scores"])
        and all(name in held.get("protocols", {}) for name in about["protocols"])
    )


def _taken(
    held: Mapping[str, Any], about: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What belongs to these names: scores, and what stands beside them."""
    sections = {}
    for section in SECTIONS:
        names = about["protocols" if section == "protocols" else "scores"]
        there = held.get(section, {})
        sections[section] = {name: there[name] for name in names if name in there}
    return {name: held[name] for name in about["scores"]}, sections
