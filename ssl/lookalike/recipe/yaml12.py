"""YAML text to values that know their line and column, and back: one document, no tags, anchors or
aliases.

YAML 1.2.2, section 10.3 (the core schema): `1e-3` is a number, `yes` and `1:30` are text.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from lookalike.recipe.nodes import Node, Position, Refusal

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_EVENTS = 2000
MAX_DIGITS = 100

_CORE = {
    "null": re.compile(r"(?:null|Null|NULL|~|)\Z"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"),
    "int": re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z"),
    "float": re.compile(
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
    ),
    "merge": re.compile(r"<<\Z"),
}
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
_NOT_TEXT = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def decode(data: bytes, name: str) -> str:
    """UTF-8 text of a file, a byte order mark left out. Raises RecipeError at the first bad
    byte.
    """
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = _position(data[: error.start].decode(), name)
        raise Refusal(
            at, f"byte 0x{data[error.start]:02x} is not UTF-8, save the file as UTF-8"
        ) from None


def read(text: str, name: str) -> Node:
    """The one document in `text`. Raises RecipeError, `name:line:column: …`, at the first thing
    refused.
    """
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise Refusal(Position(name, 1, 1), f"over {MAX_BYTES // 1024} KiB, shorten it")
    if bad := _NOT_TEXT.search(text):
        at = _position(text[: bad.start()], name)
        raise Refusal(at, f"control character U+{ord(bad[0]):04X}, delete it")
    return _Reader(text, name).document()


def dump(value: Any) -> str:
    """YAML of plain data, block style, that `read` gives back exactly."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes what the core schema, and not YAML 1.1, would read as something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the name and the form are PyYAML's)
        None: [(f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in _CORE.items()]
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner, stopped at deep brackets: its look-ahead would take quadratic time over
    them.
    """

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level >= MAX_DEPTH:
            raise _too_deep(_at(self.get_mark(), self.name))
        super().fetch_flow_collection_start(TokenClass)


class _Reader:
    """Builds nodes from parser events, each looked at before anything is built from it."""

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.events = self._allowed(self._parsed(text))

    def document(self) -> Node:
        for event in self.events:
            if isinstance(event, yaml.NodeEvent):
                node = self._node(event, 1)
                list(self.events)
                return node
        return Node(None, Position(self.name, 1, 1))

    def _parsed(self, text: str) -> Iterator[yaml.Event]:
        loader = _Loader(text)
        loader.name = self.name
        try:
            while loader.check_event():
                yield loader.get_event()  # type: ignore[no-untyped-call]
        except yaml.MarkedYAMLError as error:
            raise self._syntax(error) from None
        except (ValueError, OverflowError):
            raise Refusal(
                _at(loader.get_mark(), self.name), "an escape that names no character"
            ) from None
        finally:
            loader.dispose()

    def _syntax(self, error: yaml.MarkedYAMLError) -> Refusal:
        mark = error.problem_mark or error.context_mark
        at = _at(mark, self.name) if mark else Position(self.name, 1, 1)
        what = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        return Refusal(
            at, f"not YAML ({what}), check indentation, colons, quotes and brackets up to here"
        )

    def _allowed(self, events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
        documents = 0
        for count, event in enumerate(events):
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise Refusal(
                    _at(event.start_mark, self.name), "a second document, keep one in a file"
                )
            if count > MAX_EVENTS:
                raise Refusal(
                    _at(event.start_mark, self.name), "too many values, shorten the recipe"
                )
            if text := _forbidden(event):
                raise Refusal(_at(event.start_mark, self.name), text)
            yield event

    def _node(self, event: yaml.NodeEvent, depth: int) -> Node:
        at = _at(event.start_mark, self.name)
        if isinstance(event, yaml.ScalarEvent):
            return Node(_scalar(event, at), at)
        if depth > MAX_DEPTH:
            raise _too_deep(at)
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(depth), at)
        return Node([self._node(item, depth + 1) for item in self._members()], at)

    def _members(self) -> Iterator[yaml.NodeEvent]:
        for event in self.events:
            if not isinstance(event, yaml.NodeEvent):
                return
            yield event

    def _mapping(self, depth: int) -> dict[str, tuple[Position, Node]]:
        found: dict[str, tuple[Position, Node]] = {}
        for event in self._members():
            at = _at(event.start_mark, self.name)
            key = _key(event, at)
            if key in found:
                first = found[key][0]
                place = f"line {first.line}, column {first.column}"
                text = f"{key!r} a second time (first at {place}), keep one"
                raise Refusal(at, text)
            found[key] = (at, self._node(next(self._members()), depth + 1))
        return found


def _at(mark: Any, name: str) -> Position:
    return Position(name, mark.line + 1, mark.column + 1)


def _too_deep(at: Position) -> Refusal:
    return Refusal(at, f"nested deeper than {MAX_DEPTH} levels, flatten it")


def _position(before: str, name: str) -> Position:
    lines = _LINE_BREAK.split(before)
    return Position(name, len(lines), len(lines[-1]) + 1)


def _forbidden(event: yaml.Event) -> str | None:
    if isinstance(event, yaml.DocumentStartEvent) and (event.version or event.tags):
        return "a % directive, delete the line"
    if isinstance(event, yaml.AliasEvent):
        return f"alias *{event.anchor}, write the value out"
    if isinstance(event, yaml.NodeEvent) and event.anchor:
        return f"anchor &{event.anchor}, delete it"
    if tag := getattr(event, "tag", None):
        return f"tag {tag!r}, delete it (a recipe names no types and runs no code)"
    return None


def _kind(event: yaml.ScalarEvent) -> str:
    if not event.implicit[0]:
        return "str"
    return next((kind for kind, pattern in _CORE.items() if pattern.match(event.value)), "str")


def _key(event: yaml.NodeEvent, at: Position) -> str:
    if not isinstance(event, yaml.ScalarEvent):
        raise Refusal(at, "a list or mapping as a key, a key is text")
    kind = _kind(event)
    if kind == "merge":
        raise Refusal(at, "merge key <<, write the keys out")
    if kind != "str":
        raise Refusal(at, f"key {event.value or 'null'} is not text, put it in quotes")
    return _text(event.value, at)


def _scalar(event: yaml.ScalarEvent, at: Position) -> str | int | float | bool | None:
    kind, text = _kind(event), event.value
    if kind == "null":
        return None
    if kind == "bool":
        return text[0] in "tT"
    if kind in ("int", "float") and len(text) > MAX_DIGITS:
        raise Refusal(at, f"a number of more than {MAX_DIGITS} characters, round it")
    if kind == "int":
        return _whole(text, at)
    if kind == "float":
        return float(re.sub(r"\.(?=[iInN])", "", text))
    return _text(text, at)


def _whole(text: str, at: Position) -> int:
    value = int(text[2:], {"0o": 8, "0x": 16}[text[:2]]) if text[:2] in ("0o", "0x") else int(text)
    if not -(2**63) <= value < 2**63:
        raise Refusal(at, f"{text} does not fit 64 bits, write a smaller number")
    return value


def _text(text: str, at: Position) -> str:
    """`text` with escaped surrogate pairs joined, as JSON writes them."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise Refusal(at, "half a surrogate pair, write the character itself") from None
