"""Nodes held against annotations: a Choice picks a constructor by name, Check walks both and
gathers problems.
"""

import json
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from lookalike.errors import RecipeError
from lookalike.recipe.messages import join, listed, not_finite, quoted, sentences, suggestion
from lookalike.recipe.nodes import Node, Position, node_of
from lookalike.recipe.signatures import Parameter, keys_of
from lookalike.recipe.values import Spec, is_json, plain_of


@dataclass(frozen=True, eq=False)
class Choice:
    """Marks `Annotated[Spec, Choice(TABLE)]`: `{name: a key of the table, **its constructor's
    arguments}`.

    `table` may be a function that returns the table, called only for a recipe that has the section.
    `supplied` are arguments the program supplies; `moved` are those among them that a recipe once
    gave here, and now gives to the section around; `nested` are arguments, of constructors without
    annotations, that are Choices themselves, or annotations for what a default alone does not tell.
    """

    table: Mapping[str, Callable[..., Any]] | Callable[[], Mapping[str, Callable[..., Any]]]
    supplied: frozenset[str] | set[str] = frozenset()
    moved: frozenset[str] | set[str] = frozenset()
    nested: Mapping[str, Any] = field(default_factory=dict)

    def makers(self) -> Mapping[str, Callable[..., Any]]:
        return self.table() if callable(self.table) else self.table

    def keys(self, name: str) -> dict[str, Parameter]:
        nested = {
            k: Annotated[Spec, kind] if isinstance(kind, Choice) else kind
            for k, kind in self.nested.items()
        }
        return keys_of(self.makers()[name], {*self.supplied, "name"}, nested)

    def refused(self, path: str) -> dict[str, str]:
        """What to say of each supplied key, for a choice at this path."""
        around = path.rpartition(".")[0]
        said = dict.fromkeys(self.supplied, "set by the program, delete it")
        return said | {name: f"has moved: write {join(around, name)}" for name in self.moved}

    def spec(self, name: str, **args: Any) -> Spec:
        """A Spec from Python, checked as one from a recipe. Raises RecipeError."""
        check = Check()
        at = Position("<python>", 1, 1)
        spec = check.spec(node_of({"name": name, **plain_of(args)}, at), self, name, at)
        check.finish(["<python>"])
        return spec  # type: ignore[no-any-return]


@dataclass(frozen=True)
class ListOf:
    """A list or tuple of sections or choices."""

    item: Any
    make: type


@dataclass(frozen=True)
class MapOf:
    """Sections or choices under names that the recipe gives them."""

    item: Any


SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


def kind_of(annotation: Any) -> tuple[Any, bool]:
    """Choice, dataclass, ListOf or MapOf these or None for a leaf; and whether the annotation
    allows null.
    """
    if get_origin(annotation) is Annotated:
        kind, optional = kind_of(get_args(annotation)[0])
        return next(
            (mark for mark in annotation.__metadata__ if isinstance(mark, Choice)), kind
        ), optional
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not types.NoneType]
        return kind_of(rest[0])[0] if len(rest) == 1 else None, len(rest) < len(
            get_args(annotation)
        )
    if (make := get_origin(annotation)) in (list, tuple) and get_args(annotation):
        item = get_args(annotation)[0]
        return (None if kind_of(item)[0] is None else ListOf(item, make)), False
    if get_origin(annotation) is dict:
        item = get_args(annotation)[1]
        return (None if kind_of(item)[0] is None else MapOf(item)), False
    wanted = isinstance(annotation, type) and is_dataclass(annotation) and annotation is not Spec
    return annotation if wanted else None, False


def lifted(node: Node, keys: Mapping[str, Parameter]) -> Node:
    """A section as an earlier release wrote it, keys that have moved now where they belong."""
    if not isinstance(node.value, dict):
        return node
    members = dict(node.value)
    for name, key in keys.items():
        kind = kind_of(key.annotation)[0]
        moved = kind.moved if isinstance(kind, Choice) else ()
        where, child = members.get(name, (node.at, node))
        if name in members and isinstance(child.value, dict):
            inner = dict(child.value)
            members = {each: inner.pop(each) for each in sorted(moved) if each in inner} | members
            members[name] = (where, Node(inner, child.at))
    return Node(members, node.at)


class Check:
    """Walks nodes and signatures together; gathers problems and goes on.

    `earlier`: what an earlier release wrote is taken too, with its spellings.
    """

    def __init__(self, earlier: bool = False) -> None:
        self.problems: list[tuple[Position, str]] = []
        self.earlier = earlier

    def say(self, at: Position, path: str, text: str) -> None:
        self.problems.append((at, f"{path}: {text}" if path else text))

    def finish(self, names: Sequence[str]) -> None:
        """Raises RecipeError when there are problems, sorted by place; `names` orders the
        sources.
        """
        if self.problems:
            ordered = sorted(
                self.problems, key=lambda found: (names.index(found[0].name), found[0][1:])
            )
            raise RecipeError("\n".join(dict.fromkeys(f"{at}: {text}" for at, text in ordered)))

    def keywords(
        self,
        node: Node,
        keys: Mapping[str, Parameter],
        path: str,
        at: Position,
        refused: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The value of each key, in the order of the signature; whole only if no problem was
        added.

        `refused`: what to say of keys that are not the recipe's to give.
        """
        if not isinstance(node.value, dict):
            text = f"{quoted(node.plain())} is not a section, give it keys, {listed(keys, '{}')}"
            self.say(node.at, path, text)
            return {}
        values = {}
        for name, (where, child) in node.value.items():
            if name in keys:
                values[name] = self.value(child, keys[name], join(path, name), where)
            elif name in refused:
                self.say(where, join(path, name), refused[name])
            else:
                self.say(where, join(path, name), f"unknown, {suggestion(name, keys, '{}')}")
        for name in keys:
            if name not in node.value:
                self.absent(values, name, keys[name], path, at)
        return {
            name: values[name]
            for name in keys
            if name in values and not keys[name].omit(values[name])
        }

    def absent(
        self, values: dict[str, Any], name: str, wanted: Parameter, path: str, at: Position
    ) -> None:
        if wanted.required:
            self.say(at, join(path, name), "missing, add it")
        elif kind_of(wanted.annotation)[0] is not None:
            values[name] = wanted.default
        elif is_json(wanted.default):
            values[name] = self.leaf(
                node_of(plain_of(wanted.default), at), wanted, join(path, name)
            )

    def value(self, node: Node, wanted: Parameter, path: str, at: Position) -> Any:
        kind, optional = kind_of(wanted.annotation)
        if kind is None:
            return self.leaf(node, wanted, path)
        if optional and node.value is None:
            return None
        if isinstance(kind, Choice):
            return self.spec(node, kind, path, at)
        if isinstance(kind, MapOf):
            return self.named(node, kind, path)
        return (
            self.many(node, kind, path)
            if isinstance(kind, ListOf)
            else self.section(node, kind, path, at)
        )

    def section(self, node: Node, kind: Any, path: str, at: Position) -> Any:
        before, keys = len(self.problems), keys_of(kind, set(), {})
        values = self.keywords(lifted(node, keys) if self.earlier else node, keys, path, at)
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            self.say(at, path, " ".join(str(error).split()))

    def many(self, node: Node, kind: ListOf, path: str) -> Any:
        if not isinstance(node.value, list):
            return self.say(node.at, path, f"{quoted(node.plain())} is not a list")
        items = enumerate(node.value)
        return kind.make(
            self.value(item, Parameter(kind.item), f"{path}[{i}]", item.at) for i, item in items
        )

    def named(self, node: Node, kind: MapOf, path: str) -> Any:
        """Items by names of the recipe's own; `name` is none, for it names what a choice picks."""
        if not isinstance(node.value, dict) or "name" in node.value:
            return self.say(node.at, path, "give each a name of its own: {mine: …, other: …}")
        for name, (where, _) in node.value.items():
            if not SET_NAME.fullmatch(name):
                self.say(where, path, f"{quoted(name)} is no name: letters, digits, _, - and .")
        return {
            name: self.value(item, Parameter(kind.item), join(path, name), where)
            for name, (where, item) in node.value.items()
        }

    def spec(self, node: Node, choice: Choice, path: str, at: Position) -> Any:
        members = dict(node.value) if isinstance(node.value, dict) else {"name": (node.at, node)}
        makers = choice.makers()
        if "name" not in members:
            return self.say(at, join(path, "name"), f"missing, {listed(makers)}")
        named = members.pop("name")[1]
        if not isinstance(named.value, str) or named.value not in makers:
            place = join(path, "name") if named is not node else path
            text = f"{quoted(named.plain())} is unknown, {suggestion(named.value, makers)}"
            return self.say(named.at, place, text)
        rest = Node(members, node.at)
        args = self.keywords(rest, choice.keys(named.value), path, at, choice.refused(path))
        return Spec(named.value, args, makers[named.value])

    def leaf(self, node: Node, wanted: Parameter, path: str) -> Any:
        if infinite := list(not_finite(node, path)):
            for place, inner in infinite:
                self.say(place.at, inner, f"{quoted(place.value)} is not a finite number")
            return None
        adapter = wanted.adapter()
        try:
            return adapter.validate_json(json.dumps(node.plain()))
        except ValidationError as error:
            for place, inner, text in sentences(error, node, path, adapter.json_schema()):
                self.say(place.at, inner, f"{quoted(place.plain())} {text}")
