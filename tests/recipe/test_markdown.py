"""Laws of the page of recipes: it is docs/recipes.md, has every key, and links to what it has."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

import toy
from lookalike.experiment import recipe_page, recipe_schema
from lookalike.recipe import FIXED, FREE, Choice, Count, Fraction, Share, Size, Spec, Widths, page
from lookalike.recipe.docstrings import said_of, summary
from lookalike.recipe.json_schema import inlined
from lookalike.recipe.signatures import Parameter
from lookalike.recipe.words import code, words

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.fixture(scope="module")
def whole() -> str:
    return recipe_page()


def test_the_file_is_the_page(whole: str) -> None:
    assert DOCS.read_text(encoding="utf-8") == f"{whole}\n", (
        "docs/recipes.md is old: make docs-recipes"
    )


def test_every_link_has_a_heading_and_every_heading_is_one(whole: str) -> None:
    titles = [line.removeprefix("## ") for line in whole.splitlines() if line.startswith("## ")]
    anchors = [re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\(#([^)]*)\)", whole)) == set(anchors) - {"the-sections"}


def keys_in(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("properties"), dict):
            yield from part["properties"]
            yield from (p["const"] for p in part["properties"].values() if "const" in p)
        for inner in part.values():
            yield from keys_in(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from keys_in(inner)


def test_every_key_and_name_of_the_schema_is_on_the_page(whole: str) -> None:
    assert [
        name for name in sorted(set(keys_in(recipe_schema()))) if f"`{name}`" not in whole
    ] == []


def test_every_row_has_the_cells_of_its_table(whole: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", f"{whole}\n", re.MULTILINE):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(cells) == 1, block[:200]
    assert set(re.findall(r"<[a-z]+>", re.sub(r"`[^`]*`", "", whole))) <= {"<br>"}


# A small recipe, word by word


class Plain:
    """One process. More of it."""

    def __init__(self, module: Any, *, clip: Annotated[Share, FIXED] = 1.0) -> None: ...


def own(*, lr: float) -> None:
    """Args:
    lr: not here.
    """


OWN = Choice({"plain": Plain, "own": own}, {"module"})


@dataclass(frozen=True)
class Inner:
    """Inside; `size` is said here."""

    size: Count = 1
    kept: Annotated[bool, FIXED] = False


@dataclass(frozen=True)
class Outer(Inner):
    """Around `inner`. `mode` or `size`: how (a; b); and `x` so; `share`: of all.

    `engine`: a | b.
    """

    share: Fraction = 0.5
    mode: Literal["a", "b"] | None = None
    engine: Annotated[Annotated[Spec, Choice({"plain": Plain}, {"module"})] | None, FREE] = None
    inner: Annotated[Inner, FREE] = Inner()
    chosen: Annotated[Spec, OWN] = OWN.spec("own", lr=1)
    several: tuple[Annotated[Spec, OWN], ...] = ()


SMALL = """\
## The sections

| key | value | default | resume | what |
|---|---|---|---|---|
| `seed` | whole number in [1, 2^40] | `0` | no |  |
| `outer` | [a section](#outer) or null | `null` | no | Around `inner`. |

## `outer`

Around `inner`.

| key | value | default | resume | what |
|---|---|---|---|---|
| `size` | whole number in [1, 2^40] | `1` | no | `mode` or `size`: how (a; b); and `x` so |
| `kept` | true or false | `false` | no |  |
| `share` | number in [0, 1] | `0.5` | no | of all |
| `mode` | `a` or `b` or null | `null` | no | `mode` or `size`: how (a; b); and `x` so |
| `engine` | one of [1 names](#outerengine-names) or null | `null` | yes | a \\| b |
| `inner` | [a section](#outerinner) | `{"size": 1, "kept": false}` | yes | Around `inner` |
| `chosen` | one of [2 names](#outerchosen-names) | `{"name": "own", "lr": 1.0}` | no |  |
| `several` | list, each one of [2 names](#outerchosen-names) | `[]` | no |  |

## `outer.inner`

Inside; `size` is said here.

| key | value | default | resume | what |
|---|---|---|---|---|
| `size` | whole number in [1, 2^40] | `1` | yes | `size` is said here |
| `kept` | true or false | `false` | no |  |

## `outer.engine`: names

| name | what | keys |
|---|---|---|
| `plain` | One process. | `clip`: number in (0, 1]; default `1.0`; resume: no |

## `outer.chosen`: names

| name | what | keys |
|---|---|---|
| `plain` | One process. | `clip`: number in (0, 1]; default `1.0`; resume: no |
| `own` | see test-markdown | `lr`: number; required |
"""


def test_a_small_recipe() -> None:
    made = page(toy.sections(seed=(Count, 0), outer=Outer | None))
    assert made[made.index("## The sections") :] == SMALL.rstrip()


WORDS = [
    (Size, "whole number in [1, 2^40] or list of 2 whole numbers in [1, 2^40]"),
    (Widths, "list of 1 or more whole numbers in [1, 2^20]"),
    (tuple[int | str, ...], "list of (whole number or text)"),
    (list[list[float]], "list of list of numbers"),
    (tuple[int, str], "list of 2 (whole number), (text)"),
    (int | float | None, "number or null"),
    (Any | None, "anything"),
    (Literal["all"] | bool, "`all` or true or false"),
    (Literal["a", "b", "c"], "`a`, `b` or `c`"),
    (dict[str, Any], "mapping"),
    (Annotated[int, Field(gt=0, lt=1234567)], "whole number in (0, 1234567)"),
    (Annotated[float, Field(le=1e6)], "number ≤ 1e6"),
]


@pytest.mark.parametrize(("annotation", "text"), WORDS, ids=[text for _, text in WORDS])
def test_types_in_words(annotation: Any, text: str) -> None:
    assert words(inlined(Parameter(annotation).adapter().json_schema())) == text


CODES = {
    "adamw": "`adamw`", "yes": "`yes`", "true": '`"true"`', "1e3": '`"1e3"`', "": '`""`',
    "a|b": '`"a\\|b"`', "a b": '`"a b"`',
}  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), CODES.items())
def test_text_is_quoted_where_a_recipe_must(text: str, shown: str) -> None:
    assert code(text) == shown


def test_summary_is_a_sentence_whatever_the_line_ends() -> None:
    def long() -> None:
        """One, that
        goes on (arXiv 1. of 2.). Two.
        """

    def args() -> None:
        """Args:
        x: no.
        """

    assert (summary(long), summary(args)) == ("One, that goes on (arXiv 1. of 2.).", "")
    assert summary(dataclass(type("Bare", (), {}))) == ""


def test_a_key_is_said_by_its_own_class_before_that_above() -> None:
    assert (
        said_of(Outer, "size", {"size", "mode"})
        == "`mode` or `size`: how (a; b); and `x` so; `share`: of all"
    )
    assert said_of(Inner, "kept", {"kept"}) == ""


def test_the_schema_says_the_same_sentence() -> None:
    assert recipe_schema()["properties"]["backbone"]["description"].endswith("or a folder.")
    assert json.dumps(recipe_schema()).count('"description": "Args:') == 0
