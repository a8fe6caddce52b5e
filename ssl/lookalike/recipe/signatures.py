"""Constructors to the keys that a recipe may give them; the signature is the schema."""

import ast
import dataclasses
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError

from lookalike.recipe.values import Resume, Since, not_given

T = TypeVar("T")

_NONE_GIVEN = inspect.Parameter.empty
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Parameter:
    """What a signature asks for by one name; `bare` when it says so by the default alone."""

    annotation: Any
    default: Any = _NONE_GIVEN
    bare: bool = False

    @property
    def required(self) -> bool:
        return self.default is _NONE_GIVEN

    @property
    def resume(self) -> Resume | None:
        """The outermost mark of the annotation; None: as the section around it."""
        return _mark(self.annotation, Resume)

    @property
    def since(self) -> Since | None:
        """The mark of the release that brought the key; None: 0.1.0 or none."""
        return _mark(self.annotation, Since)

    @property
    def free(self) -> bool:
        """Whether the key itself is marked as one that may change in a resume."""
        return self.resume is not None and self.resume.free

    def omit(self, value: Any) -> bool:
        """A None that says nothing; some constructors without annotations refuse to be told it."""
        return self.bare and value is None and self.default is None

    def adapter(self) -> TypeAdapter[Any]:
        """The validator of a leaf; a type that pydantic does not know counts as that of its
        default.
        """
        try:
            return TypeAdapter(self.annotation, config=_STRICT)
        except PydanticSchemaGenerationError:
            if self.required or self.default is None:
                raise
            return TypeAdapter(_inferred(self.default), config=_STRICT)


def _mark(annotation: Any, kind: type[T]) -> T | None:
    if get_origin(annotation) is Annotated:
        marks = [mark for mark in annotation.__metadata__ if isinstance(mark, kind)]
        return marks[-1] if marks else _mark(annotation.__origin__, kind)
    if get_origin(annotation) in (Union, types.UnionType):
        found = (_mark(part, kind) for part in get_args(annotation))
        return next((mark for mark in found if mark is not None), None)
    return None


def keys_of(make: Any, given: set[str], nested: Mapping[str, Any]) -> dict[str, Parameter]:
    """The keyword arguments of a constructor, those its classes hand on through **kwargs included.

    Not those `given`; `nested` are annotations by name, for constructors that have none.
    """
    keys: dict[str, Parameter] = {}
    hidden = given | not_given(make)
    for parameters, hints, passed in _signatures(make):
        for parameter in parameters:
            name = parameter.name
            if parameter.kind in _NAMED and name not in hidden:
                keys.setdefault(name, _key(parameter, hints.get(name), nested.get(name)))
        hidden |= passed
    return keys


def _key(parameter: inspect.Parameter, hint: Any, nested: Any) -> Parameter:
    annotation = (
        nested if nested is not None else _inferred(parameter.default) if hint is None else hint
    )
    if parameter.default is None:
        annotation = Union[annotation, None]  # noqa: UP007 (a string annotation has no |)
    return Parameter(annotation, parameter.default, bare=hint is None)


def _whole(value: float) -> int | float:
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        else value
    )


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


def _signatures(make: Any) -> Iterator[tuple[list[inspect.Parameter], dict[str, Any], Set[str]]]:
    """Parameters, annotations and names set on the way up: of `make`, then of each class it hands
    on to.
    """
    if not isinstance(make, type) or is_dataclass(make):
        parameters = [_with_factory(make, p) for p in inspect.signature(make).parameters.values()]
        yield parameters, get_type_hints(make, include_extras=True), frozenset()
        return
    for owner in make.__mro__[:-1]:
        if init := vars(owner).get("__init__"):
            passed = _passed_on(init)
            parameters = list(inspect.signature(init).parameters.values())[1:]
            yield parameters, get_type_hints(init, include_extras=True), passed or frozenset()
            if passed is None:
                return


def _with_factory(make: Any, parameter: inspect.Parameter) -> inspect.Parameter:
    factories = (
        {f.name: f.default_factory for f in dataclasses.fields(make)} if is_dataclass(make) else {}
    )
    factory = factories.get(parameter.name, dataclasses.MISSING)
    return parameter if factory is dataclasses.MISSING else parameter.replace(default=factory())


@functools.cache
def _passed_on(init: Any) -> frozenset[str] | None:
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
            if extra & {
                getattr(word.value, "id", "") for word in call.keywords if word.arg is None
            }:
                return frozenset(name for name in names if name)
    return None
