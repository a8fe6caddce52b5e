"""The signatures as a page: every section, key and name that a recipe may give, in Markdown."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lookalike.recipe.check import Choice, ListOf, MapOf, kind_of
from lookalike.recipe.docstrings import said_of, summary
from lookalike.recipe.json_schema import inlined
from lookalike.recipe.signatures import Parameter, keys_of
from lookalike.recipe.values import Spec, is_json, plain_of
from lookalike.recipe.words import cell, code, words

_HEAD = """\
# Recipes: every section and key

Made from signatures and docstrings by `make docs-recipes`; `lookalike schema` prints the same as a
JSON schema for editors.

- *resume*: whether an earlier run goes on with another value of the key without
  `--accept-changes`.
- *one of … names*: a section with a `name` and the keys of that name; where none of these is
  required, the name alone will do: `method: barlow_twins`.
- `[0, 1)`: from 0 on, up to 1, without 1.
"""
_COLUMNS = ["| key | value | default | resume | what |", "|---|---|---|---|---|"]
_NAMES = ["| name | what | keys |", "|---|---|---|"]


def page(kind: type) -> str:
    """Markdown of all sections of this kind of recipe, then of all names."""
    return "\n".join([_HEAD, *_Page(keys_of(kind, set(), {}), kind).blocks()]).rstrip()


class _Page:
    """Blocks that are still to be written: a section's own sections follow it, names come last."""

    def __init__(self, keys: Mapping[str, Parameter], about: Any) -> None:
        self.waiting: list[Callable[[], list[str]]] = [
            partial(self.section, "", keys, about, free=False)
        ]
        self.inner: list[Callable[[], list[str]]] = []
        self.tables: list[tuple[str, Mapping[str, Any]]] = []

    def blocks(self) -> list[str]:
        found = []
        while self.waiting:
            found.append("\n".join([*self.waiting.pop(0)(), ""]))
            self.waiting, self.inner = [*self.inner, *self.waiting], []
        return found

    def section(
        self, path: str, keys: Mapping[str, Parameter], make: Any, *, free: bool
    ) -> list[str]:
        """Heading, what it is, and a row for each key; `free`: whether the section is marked so."""
        rows = []
        for key, wanted in keys.items():
            own = wanted.resume.free if wanted.resume else free
            value = self.value(wanted, f"{path}.{key}" if path else key, free=own)
            said = said_of(make, key, keys) or _said_of_section(wanted)
            resume = "yes" if own else "no"
            cells = [f"`{key}`", value, _default(wanted) or "", resume, cell(said)]
            rows.append(f"| {' | '.join(cells)} |")
        return [*_heading(f"`{path}`" if path else "The sections", make), *_COLUMNS, *rows]

    def names(self, path: str, choice: Choice) -> list[str]:
        """Heading and a row for each name."""
        rows = []
        for name, make in choice.makers().items():
            keys = choice.keys(name)
            lines = (self.key(path, key, wanted, make, keys) for key, wanted in keys.items())
            what = summary(make) or f"see {make.__module__.partition('.')[0].replace('_', '-')}"
            rows.append(f"| `{name}` | {cell(what)} | {'<br>'.join(lines)} |")
        return [*_heading(f"`{path}`: names", None), *_NAMES, *rows]

    def key(
        self, path: str, key: str, wanted: Parameter, make: Any, keys: Mapping[str, Parameter]
    ) -> str:
        """A key of a name, on one line."""
        parts = [self.value(wanted, f"{path}.{key}", free=wanted.free)]
        if default := _default(wanted):
            parts.append(default if wanted.required else f"default {default}")
        if wanted.resume:
            parts.append(f"resume: {'yes' if wanted.free else 'no'}")
        if said := said_of(make, key, keys):
            parts.append(cell(said))
        return f"`{key}`: {'; '.join(parts)}"

    def value(self, wanted: Parameter, path: str, *, free: bool) -> str:
        """What a key may hold; sections and names that it may hold get blocks of their own."""
        kind, optional = kind_of(wanted.annotation)
        if kind is None:
            return words(inlined(wanted.adapter().json_schema()))
        return self.linked(kind, path, free=free) + (" or null" if optional else "")

    def linked(self, kind: Any, path: str, *, free: bool) -> str:
        if isinstance(kind, ListOf):
            return f"list, each {self.value(Parameter(kind.item), path, free=free)}"
        if isinstance(kind, MapOf):
            item = self.value(Parameter(kind.item), path, free=free)
            return f"names of your own, each {item}"
        if isinstance(kind, Choice):
            return f"one of [{len(kind.makers())} names]({_anchor(self.table(kind, path))}-names)"
        self.inner.append(partial(self.section, path, keys_of(kind, set(), {}), kind, free=free))
        return f"[a section]({_anchor(path)})"

    def table(self, choice: Choice, path: str) -> str:
        """The path under which the names of the choice are listed: of the first key that has
        them.
        """
        for known, makers in self.tables:
            if choice.makers().items() <= makers.items():
                return known
        self.tables.append((path, choice.makers()))
        self.waiting.append(partial(self.names, path, choice))
        return path


def _heading(title: str, make: Any) -> list[str]:
    what = summary(make)
    return [f"## {title}", "", *([what, ""] if what else [])]


def _anchor(path: str) -> str:
    """The link to a heading of this path, as GitHub names it."""
    return "#" + re.sub(r"[^a-z0-9_-]", "", path.lower())


def _said_of_section(wanted: Parameter) -> str:
    kind = kind_of(wanted.annotation)[0]
    return summary(kind) if isinstance(kind, type) else ""


def _default(wanted: Parameter) -> str | None:
    """The default as code, `required` without one, None for one that no recipe can say."""
    if wanted.required:
        return "required"
    if isinstance(wanted.default, Spec):
        return code(_given(wanted.default, kind_of(wanted.annotation)[0]))
    return code(plain_of(wanted.default)) if is_json(wanted.default) else None


def _given(spec: Spec, choice: Choice) -> Any:
    """The Spec as one would write it: without the arguments that are as they would be anyway."""
    keys = choice.keys(spec.name)
    args = {
        key: plain_of(value)
        for key, value in spec.args.items()
        if keys[key].required or plain_of(value) != plain_of(keys[key].default)
    }
    return {"name": spec.name, **args} if args else spec.name
