"""A recipe: YAML to checked values, each problem with line and column; signatures are the schema.

Nothing in a recipe names an import path or runs code: a `Choice` picks from a table the program passes in.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from lookalike.errors import RecipeError
from lookalike.yaml12 import MAX_BYTES, MAX_DEPTH, Node, Position, Refusal, decode, dump, node_of, read

__all__ = [
    "Choice",
    "Count",
    "Fraction",
    "Index",
    "Node",
    "NonNegative",
    "Position",
    "Positive",
    "Recipe",
    "Spec",
    "from_text",
    "load",
    "read",
    "schema",
]

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]

T = TypeVar("T")
_NONE_GIVEN = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


@dataclass(frozen=True)
class Spec:
    """A constructor by its name in a table, with checked keyword arguments, not yet called."""

    name: str
    args: Mapping[str, Any]
    make: Callable[..., Any] = field(repr=False, compare=False)

    def build(self, *positional: Any, **given: Any) -> Any:
        """Calls the constructor with `positional`, the arguments (nested Specs built first) and `given`."""
        return self.make(*positional, **{key: _built(value) for key, value in self.args.items()}, **given)


@dataclass(frozen=True, eq=False)
class Choice:
    """Marks `Annotated[Spec, Choice(TABLE)]`: `{name: a key of the table, **its constructor's arguments}`.

    `table` may be a function that returns the table, called only for a recipe that has the section. `given`
    are arguments the program supplies; `nested` are arguments, of constructors without annotations, that are
    Choices themselves.
    """

    table: Mapping[str, Callable[..., Any]] | Callable[[], Mapping[str, Callable[..., Any]]]
    given: frozenset[str] | set[str] = frozenset()
    nested: Mapping[str, "Choice"] = field(default_factory=dict)

    def makers(self) -> Mapping[str, Callable[..., Any]]:
        return self.table() if callable(self.table) else self.table

    def keys(self, name: str) -> dict[str, "_Key"]:
        return _keys(self.makers()[name], {*self.given, "name"}, self.nested)

    def spec(self, name: str, **args: Any) -> Spec:
        """A Spec from Python, checked as one from a recipe. Raises RecipeError."""
        check = _Check()
        at = Position("<python>", 1, 1)
        spec = check.spec(node_of({"name": name, **_plain(args)}, at), self, name, at)
        check.finish(["<python>"])
        return spec  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Recipe:
    """Checked values by root key."""

    name: str = field(compare=False)
    values: Mapping[str, Any]
    sections: Mapping[str, Any] = field(repr=False, compare=False)

    def section(self, kind: type[T]) -> T:
        """The section of this dataclass. Raises RecipeError when the recipe has none."""
        for value in self.values.values():
            if type(value) is kind:
                return value
        kinds = {_kind(wanted.annotation)[0]: key for key, wanted in _roots(self.sections).items()}
        raise RecipeError(f"{self.name} has no `{kinds.get(kind, kind.__name__.lower())}:` section, add one")

    def plain(self) -> dict[str, Any]:
        """JSON data of the whole recipe, defaults filled in."""
        return {key: _plain(value) for key, value in self.values.items()}

    def text(self) -> str:
        """YAML of `plain()`, which reads back as an equal recipe."""
        return dump(self.plain())

    def digest(self, *keys: str) -> str:
        """Hex sha256 of the canonical JSON of these root keys, of all when none is named."""
        plain = self.plain()
        chosen = {key: plain[key] for key in keys} if keys else plain
        canonical = json.dumps(chosen, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load(path: str | os.PathLike[str], overrides: Sequence[str], sections: Mapping[str, Any]) -> Recipe:
    """The recipe file, changed by `key.path=value`s and checked. Raises RecipeError with every problem."""
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{name}: no such recipe, check the path") from None
    except IsADirectoryError:
        raise RecipeError(f"{name}: a folder, name the recipe file in it") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{name}: cannot be read ({error}), check the path") from None
    return from_text(decode(data, name), name, overrides, sections)


def from_text(text: str, name: str, overrides: Sequence[str], sections: Mapping[str, Any]) -> Recipe:
    """The same from text named `name`; each section is an annotation or (annotation, default).

    Raises RecipeError, one line a problem, in the order of the file and then of the overrides.
    """
    check = _Check()
    root = read(text, name)
    for override in overrides:
        try:
            root = _overridden(root, override)
        except Refusal as refusal:
            check.problems.append((refusal.at, refusal.text))
    values = check.keywords(root, _roots(sections), "", Position(name, 1, 1))
    check.finish([name, *map(_override_name, overrides)])
    return Recipe(name, values, sections)


def schema(sections: Mapping[str, Any]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the recipes that `load` accepts."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object_schema(_roots(sections))}


def _built(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.build()
    return type(value)(map(_built, value)) if type(value) in (list, tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return {"name": value.name, **_plain(value.args)}
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(getattr(value, key)) for key in inspect.signature(type(value)).parameters}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(part) for part in value)
    return _ANY.dump_python(value, mode="json")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(_plain(value), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


# Overrides


def _override_name(override: str) -> str:
    return f"<override {_shown(override)}>"


def _overridden(root: Node, override: str) -> Node:
    path, equals, value = override.partition("=")
    parts = path.split(".")
    at = Position(_override_name(override), 1, 1)
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise Refusal(at, "not an override, write key.path=value")
    node = read(" " * (len(path) + 1) + value, at.name)
    return _placed(root, parts, node if value else Node(None, at._replace(column=len(override) + 1)), at)


def _placed(node: Node, parts: Sequence[str], value: Node, at: Position) -> Node:
    """`node` with `value` at the path `parts`; `at` is where the path's first part stands."""
    head, *rest = parts
    members = _members(node, at)
    place, child = members.get(head, (at, Node(None, at)))
    if rest:
        members[head] = (place, _placed(child, rest, value, at._replace(column=at.column + len(head) + 1)))
    else:
        members[head] = (at, value)
    return Node(members, node.at)


def _members(node: Node, at: Position) -> dict[str, tuple[Position, Node]]:
    if isinstance(node.value, dict):
        return dict(node.value)
    if isinstance(node.value, str):
        return {"name": (node.at, node)}
    if node.value is None:
        return {}
    raise Refusal(at, f"{_shown(node.plain())} at {node.at} is no section, override it as a whole")


# What a signature asks for


@dataclass(frozen=True)
class _Key:
    annotation: Any
    default: Any = _NONE_GIVEN
    bare: bool = False

    @property
    def required(self) -> bool:
        return self.default is _NONE_GIVEN

    def idle(self, value: Any) -> bool:
        """A None that says nothing; some constructors without annotations refuse to be told it."""
        return self.bare and value is None and self.default is None

    def adapter(self) -> TypeAdapter[Any]:
        """The validator of a leaf; a type that pydantic does not know counts as that of its default."""
        try:
            return TypeAdapter(self.annotation, config=_STRICT)
        except PydanticSchemaGenerationError:
            if self.required or self.default is None:
                raise
            return TypeAdapter(_inferred(self.default), config=_STRICT)


@dataclass(frozen=True)
class _Many:
    item: Any
    make: type


def _roots(sections: Mapping[str, Any]) -> dict[str, _Key]:
    keys = {}
    for name, wanted in sections.items():
        if isinstance(wanted, tuple):
            keys[name] = _Key(*wanted)
        else:
            keys[name] = _Key(wanted, None if _kind(wanted)[1] else _NONE_GIVEN)
    return keys


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Choice, dataclass, _Many of these or None for a leaf; and whether the annotation allows null."""
    if get_origin(annotation) is Annotated:
        kind, optional = _kind(get_args(annotation)[0])
        return next((mark for mark in annotation.__metadata__ if isinstance(mark, Choice)), kind), optional
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [part for part in get_args(annotation) if part is not types.NoneType]
        return _kind(rest[0])[0] if len(rest) == 1 else None, len(rest) < len(get_args(annotation))
    if (make := get_origin(annotation)) in (list, tuple) and get_args(annotation):
        item = get_args(annotation)[0]
        return (None if _kind(item)[0] is None else _Many(item, make)), False
    wanted = isinstance(annotation, type) and is_dataclass(annotation) and annotation is not Spec
    return annotation if wanted else None, False


def _keys(make: Any, given: set[str], nested: Mapping[str, Choice]) -> dict[str, _Key]:
    """The keyword arguments of a constructor, those its classes hand on through **kwargs included."""
    keys: dict[str, _Key] = {}
    hidden = set(given)
    for parameters, hints, passed in _signatures(make):
        for parameter in parameters:
            name = parameter.name
            if parameter.kind in _NAMED and name not in hidden:
                keys.setdefault(name, _key(parameter, hints.get(name), nested.get(name)))
        hidden |= passed
    return keys


def _key(parameter: inspect.Parameter, hint: Any, choice: Choice | None) -> _Key:
    annotation = Annotated[Spec, choice] if choice else _inferred(parameter.default) if hint is None else hint
    if parameter.default is None:
        annotation = Union[annotation, None]  # noqa: UP007 (a string annotation has no |)
    return _Key(annotation, parameter.default, bare=hint is None)


def _whole(value: float) -> int | float:
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _inferred(default: Any) -> Any:
    known = {
        bool: bool,
        int: Annotated[int | float, AfterValidator(_whole)],
        float: float,
        str: str,
        tuple: tuple[Any, ...],
        list: list[Any],
    }
    return known.get(type(default), Any)


def _signatures(make: Any) -> Iterator[tuple[list[inspect.Parameter], dict[str, Any], set[str]]]:
    """Parameters, annotations and names set on the way up: of `make`, then of each class it hands on to."""
    if not isinstance(make, type) or is_dataclass(make):
        parameters = [_with_factory(make, p) for p in inspect.signature(make).parameters.values()]
        yield parameters, get_type_hints(make, include_extras=True), set()
        return
    for owner in make.__mro__[:-1]:
        if init := vars(owner).get("__init__"):
            passed = _passed_on(init)
            parameters = list(inspect.signature(init).parameters.values())[1:]
            yield parameters, get_type_hints(init, include_extras=True), passed or set()
            if passed is None:
                return


def _with_factory(make: Any, parameter: inspect.Parameter) -> inspect.Parameter:
    factories = {f.name: f.default_factory for f in dataclasses.fields(make)} if is_dataclass(make) else {}
    factory = factories.get(parameter.name, dataclasses.MISSING)
    return parameter if factory is dataclasses.MISSING else parameter.replace(default=factory())


def _passed_on(init: Any) -> set[str] | None:
    """Names that `init` sets where it hands its **kwargs to the next class, None when it does not.

    A signature cannot tell, the source can: `super().__init__(mat_based_loss=True, **kwargs)`.
    """
    parameters = inspect.signature(init).parameters.values()
    extra = {p.name for p in parameters if p.kind is p.VAR_KEYWORD}
    try:
        tree = ast.parse("if 1:\n" + inspect.getsource(init))
    except (OSError, TypeError, SyntaxError):
        return None
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "__init__":
            names = {word.arg for word in call.keywords}
            if extra & {getattr(word.value, "id", "") for word in call.keywords if word.arg is None}:
                return {name for name in names if name}
    return None


# The check


class _Check:
    """Walks nodes and signatures together; gathers problems and goes on."""

    def __init__(self) -> None:
        self.problems: list[tuple[Position, str]] = []

    def say(self, at: Position, path: str, text: str) -> None:
        self.problems.append((at, f"{path}: {text}" if path else text))

    def finish(self, names: Sequence[str]) -> None:
        """Raises RecipeError when there are problems, sorted by place; `names` orders the sources."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda found: (names.index(found[0].name), found[0][1:]))
            raise RecipeError("\n".join(dict.fromkeys(f"{at}: {text}" for at, text in ordered)))

    def keywords(
        self, node: Node, keys: Mapping[str, _Key], path: str, at: Position, given: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The value of each key, in the order of the signature; whole only if no problem was added."""
        if not isinstance(node.value, dict):
            text = f"{_shown(node.plain())} is not a section, give it keys, {_listed(keys, '{}')}"
            self.say(node.at, path, text)
            return {}
        values = {}
        for name, (where, child) in node.value.items():
            if name in keys:
                values[name] = self.value(child, keys[name], _join(path, name), where)
            elif name in given:
                self.say(where, _join(path, name), "set by the program, delete it")
            else:
                self.say(where, _join(path, name), f"unknown, {_suggestion(name, keys, '{}')}")
        for name in keys:
            if name not in node.value:
                self.absent(values, name, keys[name], path, at)
        return {name: values[name] for name in keys if name in values and not keys[name].idle(values[name])}

    def absent(self, values: dict[str, Any], name: str, wanted: _Key, path: str, at: Position) -> None:
        if wanted.required:
            self.say(at, _join(path, name), "missing, add it")
        elif _kind(wanted.annotation)[0] is not None:
            values[name] = wanted.default
        elif _is_json(wanted.default):
            values[name] = self.leaf(node_of(_plain(wanted.default), at), wanted, _join(path, name))

    def value(self, node: Node, wanted: _Key, path: str, at: Position) -> Any:
        kind, optional = _kind(wanted.annotation)
        if kind is None:
            return self.leaf(node, wanted, path)
        if optional and node.value is None:
            return None
        if isinstance(kind, Choice):
            return self.spec(node, kind, path, at)
        return self.many(node, kind, path) if isinstance(kind, _Many) else self.section(node, kind, path, at)

    def section(self, node: Node, kind: Any, path: str, at: Position) -> Any:
        before = len(self.problems)
        values = self.keywords(node, _keys(kind, set(), {}), path, at)
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:
            self.say(at, path, " ".join(str(error).split()))

    def many(self, node: Node, kind: _Many, path: str) -> Any:
        if not isinstance(node.value, list):
            return self.say(node.at, path, f"{_shown(node.plain())} is not a list")
        items = enumerate(node.value)
        return kind.make(self.value(item, _Key(kind.item), f"{path}[{i}]", item.at) for i, item in items)

    def spec(self, node: Node, choice: Choice, path: str, at: Position) -> Any:
        members = dict(node.value) if isinstance(node.value, dict) else {"name": (node.at, node)}
        makers = choice.makers()
        if "name" not in members:
            return self.say(at, _join(path, "name"), f"missing, {_listed(makers)}")
        named = members.pop("name")[1]
        if not isinstance(named.value, str) or named.value not in makers:
            place = _join(path, "name") if named is not node else path
            text = f"{_shown(named.plain())} is unknown, {_suggestion(named.value, makers)}"
            return self.say(named.at, place, text)
        rest = Node(members, node.at)
        args = self.keywords(rest, choice.keys(named.value), path, at, sorted(choice.given))
        return Spec(named.value, args, makers[named.value])

    def leaf(self, node: Node, wanted: _Key, path: str) -> Any:
        if infinite := list(_not_finite(node, path)):
            for place, inner in infinite:
                self.say(place.at, inner, f"{_shown(place.value)} is not a finite number")
            return None
        adapter = wanted.adapter()
        try:
            return adapter.validate_json(json.dumps(node.plain()))
        except ValidationError as error:
            for place, inner, text in _sentences(error, node, path, _sizes(adapter.json_schema())):
                self.say(place.at, inner, f"{_shown(place.plain())} {text}")


def _join(path: str, name: str) -> str:
    step = name if re.fullmatch(r"[\w-]{1,60}", name) else _shown(name)
    return f"{path}.{step}" if path else step


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _listed(names: Mapping[str, Any], form: str = '"{}"') -> str:
    """`one of 14: a, b, …`, at most twelve of the names."""
    some = [form.format(name) for name in names][:12]
    return f"one of {len(names)}: {', '.join(some)}{', …' if len(names) > 12 else ''}"


def _suggestion(name: Any, names: Mapping[str, Any], form: str = '"{}"') -> str:
    close = difflib.get_close_matches(name, names, 1) if isinstance(name, str) else []
    return f'did you mean "{close[0]}"?' if close else _listed(names, form)


def _children(node: Node, path: str) -> Iterator[tuple[int | str, Node, str]]:
    if isinstance(node.value, dict):
        yield from ((key, child, _join(path, key)) for key, (_, child) in node.value.items())
    elif isinstance(node.value, list):
        yield from ((i, child, f"{path}[{i}]") for i, child in enumerate(node.value))


def _not_finite(node: Node, path: str) -> Iterator[tuple[Node, str]]:
    if isinstance(node.value, float) and not abs(node.value) < float("inf"):
        yield node, path
    for _, child, inner in _children(node, path):
        yield from _not_finite(child, inner)


# pydantic's errors in our words

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


def _sentences(
    error: ValidationError, node: Node, path: str, sizes: set[int]
) -> Iterator[tuple[Node, str, str]]:
    """Node, path and words of each wrong part; where a union failed, of its deepest parts."""
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
    return phrase.format(**context) if phrase else f"is refused: {item['msg']}"


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sizes(part: Any) -> set[int]:
    """The fixed lengths of lists in a JSON schema."""
    if isinstance(part, list):
        return {size for item in part for size in _sizes(item)}
    if not isinstance(part, dict):
        return set()
    own = {part["minItems"]} if "minItems" in part and part["minItems"] == part.get("maxItems") else set()
    return own | _sizes(list(part.values()))


# JSON schema


def _object_schema(keys: Mapping[str, _Key], make: Any = None, name: str | None = None) -> dict[str, Any]:
    first = {} if name is None else {"name": {"const": name}}
    return {
        "type": "object",
        **_description(make),
        "properties": {**first, **{key: _value_schema(wanted) for key, wanted in keys.items()}},
        "required": [*first, *(key for key, wanted in keys.items() if wanted.required)],
        "additionalProperties": False,
    }


def _description(make: Any) -> dict[str, str]:
    """The first line of the docstring; not the signature that dataclass writes where there is none."""
    doc = inspect.cleandoc(getattr(make, "__doc__", None) or "")
    written = doc and not doc.startswith(f"{make.__name__}(")
    return {"description": doc.splitlines()[0]} if written else {}


def _value_schema(wanted: _Key) -> dict[str, Any]:
    kind, optional = _kind(wanted.annotation)
    if kind is None:
        found = wanted.adapter().json_schema()
        found = _inlined(found, found.pop("$defs", {}))
    elif isinstance(kind, Choice):
        found = _choice_schema(kind)
    elif isinstance(kind, _Many):
        found = {"type": "array", "items": _value_schema(_Key(kind.item))}
    else:
        found = _object_schema(_keys(kind, set(), {}), kind)
    if optional and kind is not None:
        found = {"anyOf": [found, {"type": "null"}]}
    return {**found, "default": _plain(wanted.default)} if _is_json(wanted.default) else found


def _choice_schema(choice: Choice) -> dict[str, Any]:
    keys = {name: choice.keys(name) for name in choice.makers()}
    short = [name for name in keys if not any(wanted.required for wanted in keys[name].values())]
    whole = [_object_schema(keys[name], make, name) for name, make in choice.makers().items()]
    return {"anyOf": [*whole, *([{"enum": short}] if short else [])]}


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(definitions[part["$ref"].rsplit("/", 1)[1]], definitions)
    return {key: _inlined(item, definitions) for key, item in part.items()}
