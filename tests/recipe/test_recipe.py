"""Laws of recipes: what is read, what is refused and where, and that the signature is the
schema.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import yaml
from pydantic import Field

import toy
from lookalike.errors import RecipeError
from lookalike.experiment import load_recipe, recipe_schema
from lookalike.recipe import (
    FIXED,
    FREE,
    Choice,
    Count,
    Fraction,
    Index,
    NonNegative,
    Positive,
    Recipe,
    Resume,
    Spec,
    digest,
    from_text,
    load,
    read,
    schema,
)
from lookalike.recipe.signatures import Parameter, keys_of


class Barlow:
    """A stand-in method."""

    def __init__(
        self,
        backbone: Any,
        *,
        projector: Sequence[Count] = (8, 8),
        off_diagonal: NonNegative = 0.0051,
    ) -> None:
        self.backbone, self.projector, self.off_diagonal = backbone, projector, off_diagonal


def simclr(backbone: Any, *, temperature: Positive) -> dict[str, Any]:
    """A stand-in method that is a function."""
    return {"backbone": backbone, "temperature": temperature}


class Recorded:
    def __init__(self, collect=None):
        self.collect = collect


class Distance(Recorded):
    def __init__(self, p=2, power=1, inverted=False, **kwargs):
        super().__init__(**kwargs)
        self.p, self.power, self.inverted = p, power, inverted


class Cosine(Distance):
    def __init__(self, **kwargs):
        super().__init__(inverted=True, **kwargs)


class PairLoss(Recorded):
    def __init__(self, by_matrix, distance=None, **kwargs):
        if "collect" in kwargs:
            raise ValueError("collect was passed though nobody asked for it")
        super().__init__(**kwargs)
        self.by_matrix, self.distance = by_matrix, distance


class MarginLoss(PairLoss):
    """A stand-in for a third-party loss."""

    def __init__(self, margin=0.05, beta=50, swap=False, triplets="all", weights=(1, 2), **kwargs):
        super().__init__(by_matrix=True, **kwargs)
        self.margin, self.beta, self.swap, self.triplets, self.weights = (
            margin,
            beta,
            swap,
            triplets,
            weights,
        )


class Deaf:
    def __init__(self, margin=1.0, **kwargs):
        self.margin = margin


METHOD = Choice({"barlow_twins": Barlow, "simclr": simclr}, supplied={"backbone"})
LOSS = Choice(
    {"MarginLoss": MarginLoss, "Deaf": Deaf},
    nested={"distance": Choice({"Lp": Distance, "Cosine": Cosine})},
)


@dataclass(frozen=True)
class Schedule:
    """How the rate moves."""

    warmup: Fraction = 0.1
    shape: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pretraining."""

    epochs: Count
    method: Annotated[Spec, METHOD]
    lr: Positive = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    sizes: list[Count] = field(default_factory=list)
    blur: Fraction | tuple[Fraction, ...] = 0.5
    pool: Literal["avg", "max"] | None = None
    label: str = ""
    schedule: Schedule = Schedule()
    also: tuple[Annotated[Spec, METHOD], ...] = ()
    args: dict[str, Any] = field(default_factory=dict)
    amp: bool = False
    widths: Annotated[list[int], Field(min_length=1, max_length=3)] = field(
        default_factory=lambda: [1]
    )

    def __post_init__(self) -> None:
        if self.epochs * self.lr > 1000:
            raise ValueError("epochs times lr is over 1000")


@dataclass(frozen=True)
class Probe:
    """A linear probe."""

    epochs: Count = 90


SECTIONS = toy.sections(
    seed=(Index, 0),
    pretrain=Pretrain,
    loss=Annotated[Spec, LOSS] | None,
    probe=Probe | None,
)
GOOD = """\
seed: 3
pretrain:
  epochs: 10
  method:
    name: barlow_twins
    off_diagonal: 1e-3
  betas: [.9, 1]
  schedule: {warmup: 0}
loss: {name: MarginLoss, margin: 1, distance: {name: Lp, power: 2}}
"""


def made(text: str, *overrides: str) -> Recipe:
    return from_text(text, "x.yaml", overrides, SECTIONS)


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        made(text, *overrides)
    return str(caught.value).split("\n")


def in_pretrain(line: str) -> str:
    return f"pretrain:\n  epochs: 1\n  method: barlow_twins\n  {line}\n"


# Reading

SCALARS = {
    "1e-3": 0.001, "1.": 1.0, ".5": 0.5, "-2E+5": -200000.0, "+1.5": 1.5, "6.02e23": 6.02e23,
    "0.0": 0.0,
    "12": 12, "-7": -7, "+3": 3, "0123": 123, "0o17": 15, "0x1F": 31,
    "9223372036854775807": 2**63 - 1,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    "null": None, "Null": None, "NULL": None, "~": None, "": None,
    "yes": "yes", "no": "no", "on": "on", "off": "off", "y": "y", "tRUE": "tRUE", "nULL": "nULL",
    "1:30": "1:30", "190:20:30": "190:20:30", "2026-01-01": "2026-01-01",
    "1_000": "1_000", "1e": "1e",
    "0b11": "0b11", "-0x1F": "-0x1F", "0o8": "0o8", "1.5.2": "1.5.2", ".": ".",
    "<<": "<<", "=": "=",
    "-": [None],
    "e3": "e3", "'1'": "1", '"true"': "true", "'~'": "~", ".inf": math.inf,
    "-.INF": -math.inf, "é": "é",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    found = read(text, "x").plain()
    assert found == value
    assert type(found) is type(value)


def test_nan_is_read() -> None:
    assert math.isnan(read(".NaN", "x").plain())


def test_structure_equals_pyyaml_where_1_1_and_1_2_agree() -> None:
    text = (
        "a: [1, {b: c}, [2.5]]\nd:\n- e: |\n    two\n    lines\n"
        "  f: 'it''s'\n- >-\n  folded\n  text\n"
    )
    assert read(text, "x").plain() == yaml.safe_load(text)


def test_positions_are_those_of_the_text() -> None:
    root = read("a: 1\nb:\n  - x\n  - {c:  2}\n", "x").value
    assert isinstance(root, dict)
    (at, node) = root["b"]
    assert tuple(at) == ("x", 2, 1)
    assert isinstance(node.value, list)
    assert [item.at[1:] for item in node.value] == [(3, 5), (4, 5)]
    inner = node.value[1].value
    assert isinstance(inner, dict)
    assert (inner["c"][0][1:], inner["c"][1].at[1:]) == ((4, 6), (4, 10))


REFUSED = [
    ("a: 1\nb:\n  c: 1\n  c: 2", "x:4:3: 'c' a second time (first at line 3, column 3), keep one"),
    ("a: &x 1\nb: *x", "x:1:4: anchor &x, delete it"),
    ("a: 1\nb: *x", "x:2:4: alias *x, write the value out"),
    (
        "a: !!python/object/apply:os.system [ls]",
        "x:1:4: tag 'tag:yaml.org,2002:python/object/apply:os.system', delete it "
        "(a recipe names no types and runs no code)",
    ),
    ("a: !x 1", "x:1:4: tag '!x', delete it (a recipe names no types and runs no code)"),
    ("a: ! 1", "x:1:4: tag '!', delete it (a recipe names no types and runs no code)"),
    ("a:\n  <<: {b: 1}", "x:2:3: merge key <<, write the keys out"),
    ("1: a", "x:1:1: key 1 is not text, put it in quotes"),
    ("{true: a}", "x:1:2: key true is not text, put it in quotes"),
    ("? [a]\n: b", "x:1:3: a list or mapping as a key, a key is text"),
    ("a: 1\n--- \nb: 1", "x:2:1: a second document, keep one in a file"),
    ("%YAML 1.1\n---\na: yes", "x:1:1: a % directive, delete the line"),
    ("[" * 40, "x:1:33: nested deeper than 32 levels, flatten it"),
    ("- " * 40, "x:1:65: nested deeper than 32 levels, flatten it"),
    ("x" * (64 * 1024 + 1), "x:1:1: over 64 KiB, shorten it"),
    ("é" * (32 * 1024 + 1), "x:1:1: over 64 KiB, shorten it"),
    ("- 1\n" * 3000, "x:1999:3: too many values, shorten the recipe"),
    ("a: b\x07", "x:1:5: control character U+0007, delete it"),
    ("a: 1\r\nb: \x00", "x:2:4: control character U+0000, delete it"),
    ('a: "\\ud800"', "x:1:4: half a surrogate pair, write the character itself"),
    ('a: "\\UFFFFFFFF"', "x:1:7: an escape that names no character"),
    (
        "a: 9223372036854775808",
        "x:1:4: 9223372036854775808 does not fit 64 bits, write a smaller number",
    ),
    ("a: " + "1" * 101, "x:1:4: a number of more than 100 characters, round it"),
    (
        "a: 1\nb: c: d",
        "x:2:5: not YAML (mapping values are not allowed here), check indentation, colons, quotes "
        "and "
        "brackets up to here",
    ),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:20] for text, _ in REFUSED])
def test_refused_with_place_and_remedy(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(text, "x")
    assert str(caught.value) == message


def test_the_deepest_allowed_nesting_is_read() -> None:
    assert read("[" * 32 + "]" * 32, "x").plain() == json.loads("[" * 32 + "]" * 32)


HOSTILE = {
    "flow": "[" * 60_000,
    "flow mappings": "{" * 60_000,
    "blocks": "- " * 30_000,
    "keys": "? " * 30_000,
    "pairs": "k: [" + "a: b, " * 9_000 + "]",
    "bomb": "a: &a [x]\n" + "".join(f"a{i}: &a{i} [{'*a, ' * 100}]\n" for i in range(100)),
    "digits": "a: " + "9" * 60_000,
    "unclosed": "a: '" + "''" * 30_000,
    "unknown": "".join(f"key{i}: {i}\n" for i in range(900)),
    "long key": "? " + "k" * 60_000 + "\n: 1",
    "huge": "a" * 10_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_at_once(text: str) -> None:
    """Fewer calls than half a second takes, on however slow a machine."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        found = problems(text)
    finally:
        sys.setprofile(None)
    assert calls < 1_000_000
    assert max(map(len, found)) < 400


# Checking


def test_a_good_recipe_becomes_values() -> None:
    recipe = made(GOOD)
    pretrain = recipe.section(Pretrain)
    assert (recipe.seed, pretrain.epochs, pretrain.betas) == (3, 10, (0.9, 1.0))
    assert pretrain.schedule == Schedule(warmup=0.0)
    assert (pretrain.method.name, pretrain.method.args) == (
        "barlow_twins",
        {"projector": [8, 8], "off_diagonal": 0.001},
    )
    assert recipe.probe is None


def test_a_name_alone_is_short_for_a_mapping_with_that_name() -> None:
    assert made(in_pretrain("")) == made("pretrain: {epochs: 1, method: {name: barlow_twins}}")


PROBLEMS = [
    ("epoch: 3", 'x.yaml:4:3: pretrain.epoch: unknown, did you mean "epochs"?'),
    (
        "zzz: 3",
        "x.yaml:4:3: pretrain.zzz: unknown, one of 13: epochs, method, lr, betas, sizes, blur, "
        "pool, label, "
        "schedule, also, args, amp, …",
    ),
    ("lr: -0.1", "x.yaml:4:7: pretrain.lr: -0.1 must be greater than 0"),
    ("lr: '1'", 'x.yaml:4:7: pretrain.lr: "1" is not a number'),
    ("lr: true", "x.yaml:4:7: pretrain.lr: true is not a number"),
    ("lr: .nan", "x.yaml:4:7: pretrain.lr: NaN is not a finite number"),
    ("lr: 1e999", "x.yaml:4:7: pretrain.lr: Infinity is not a finite number"),
    ("lr: 1001", "x.yaml:1:1: pretrain: epochs times lr is over 1000"),
    ("lr:", "x.yaml:4:6: pretrain.lr: null is not a number"),
    ("amp: 1", "x.yaml:4:8: pretrain.amp: 1 is not true or false"),
    ("amp: yes", 'x.yaml:4:8: pretrain.amp: "yes" is not true or false'),
    ("label: 3", "x.yaml:4:10: pretrain.label: 3 is not text, put it in quotes"),
    ("pool: blue", 'x.yaml:4:9: pretrain.pool: "blue" is not one of "avg", "max"'),
    ("betas: [1, 1, 0]", "x.yaml:4:10: pretrain.betas: [1, 1, 0] must hold 2 values"),
    ("betas: [1]", "x.yaml:4:10: pretrain.betas: [1] must hold 2 values"),
    ("betas: [1, 1.5]", "x.yaml:4:14: pretrain.betas[1]: 1.5 must be at most 1"),
    ("betas: 1", "x.yaml:4:10: pretrain.betas: 1 is not a list"),
    ("widths: []", "x.yaml:4:11: pretrain.widths: [] must hold at least 1 values"),
    ("widths: [1, 2, 3, 4]",
     "x.yaml:4:11: pretrain.widths: [1, 2, 3, 4] must hold at most 3 values"),
    ("sizes: [1, 2, 2.5]", "x.yaml:4:17: pretrain.sizes[2]: 2.5 is not a whole number"),
    ("sizes: [1, 0]", "x.yaml:4:14: pretrain.sizes[1]: 0 must be at least 1"),
    ("blur: 2", "x.yaml:4:9: pretrain.blur: 2 must be at most 1"),
    ("blur: x", 'x.yaml:4:9: pretrain.blur: "x" is not a number and is not a list'),
    ("blur: [0, 2]", "x.yaml:4:13: pretrain.blur[1]: 2 must be at most 1"),
    ("args: [1]", "x.yaml:4:9: pretrain.args: [1] is not a mapping of keys to values"),
    ("args: {a: {b: [.inf]}}",
     "x.yaml:4:18: pretrain.args.a.b[0]: Infinity is not a finite number"),
    ("schedule: {warmup: 2}", "x.yaml:4:22: pretrain.schedule.warmup: 2 must be at most 1"),
    ("schedule: 3",
     "x.yaml:4:13: pretrain.schedule: 3 is not a section, give it keys, one of 2: warmup, shape"),
    ("also: simclr", 'x.yaml:4:9: pretrain.also: "simclr" is not a list'),
    ("also: [simclr]", "x.yaml:4:10: pretrain.also[0].temperature: missing, add it"),
    ('"a\\nb": 1',
     'x.yaml:4:3: pretrain."a\\nb": unknown, one of 13: epochs, method, lr, betas, sizes, blur, '
     'pool, label, '
     "schedule, also, args, amp, …"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message"), PROBLEMS, ids=[line for line, _ in PROBLEMS])
def test_a_wrong_value_is_named_with_place_and_reason(line: str, message: str) -> None:
    assert problems(in_pretrain(line)) == [message]


METHODS = [
    (
        "barlow_twin",
        'x.yaml:1:31: pretrain.method: "barlow_twin" is unknown, did you mean "barlow_twins"?',
    ),
    ("zzz", 'x.yaml:1:31: pretrain.method: "zzz" is unknown, one of 2: "barlow_twins", "simclr"'),
    ("[a]", 'x.yaml:1:31: pretrain.method: ["a"] is unknown, one of 2: "barlow_twins", "simclr"'),
    (
        "{name: 3}",
        'x.yaml:1:38: pretrain.method.name: 3 is unknown, one of 2: "barlow_twins", "simclr"',
    ),
    ("{}", 'x.yaml:1:23: pretrain.method.name: missing, one of 2: "barlow_twins", "simclr"'),
    ("simclr", "x.yaml:1:23: pretrain.method.temperature: missing, add it"),
    (
        "{name: simclr, temperature: 0}",
        "x.yaml:1:59: pretrain.method.temperature: 0 must be greater than 0",
    ),
    (
        "{name: barlow_twins, off_diagnal: 1}",
        'x.yaml:1:52: pretrain.method.off_diagnal: unknown, did you mean "off_diagonal"?',
    ),
    (
        "{name: barlow_twins, backbone: os.system}",
        "x.yaml:1:52: pretrain.method.backbone: set by the program, delete it",
    ),
]


@pytest.mark.parametrize(("method", "message"), METHODS, ids=[method for method, _ in METHODS])
def test_a_wrong_choice_is_named_with_place_and_reason(method: str, message: str) -> None:
    assert problems(f"pretrain: {{epochs: 1, method: {method}}}") == [message]


def test_a_long_table_is_listed_up_to_twelve_names() -> None:
    table = {f"m{i:02}": simclr for i in range(30)}
    with pytest.raises(RecipeError) as caught:
        from_text("m: qqqq", "x", [], toy.sections(m=Annotated[Spec, Choice(table)]))
    listed = ", ".join(f'"m{i:02}"' for i in range(12))
    assert str(caught.value) == f'x:1:4: m: "qqqq" is unknown, one of 30: {listed}, …'


def test_every_problem_is_named_at_once_and_in_order() -> None:
    text = (
        "sed: 1\npretrain:\n  lr: 0\n  method: {name: barlow_twins, off: 1}\n"
        "  sizes: [x, 1, 0]\nloss: 3\n"
    )
    assert problems(text, "probe.epochs=none", "novalue") == [
        'x.yaml:1:1: sed: unknown, did you mean "seed"?',
        "x.yaml:2:1: pretrain.epochs: missing, add it",
        "x.yaml:3:7: pretrain.lr: 0 must be greater than 0",
        "x.yaml:4:32: pretrain.method.off: unknown, one of 2: projector, off_diagonal",
        'x.yaml:5:11: pretrain.sizes[0]: "x" is not a whole number',
        "x.yaml:5:17: pretrain.sizes[2]: 0 must be at least 1",
        'x.yaml:6:7: loss: 3 is unknown, one of 2: "MarginLoss", "Deaf"',
        '<override "probe.epochs=none">:1:14: probe.epochs: "none" is not a whole number',
        '<override "novalue">:1:1: not an override, write key.path=value',
    ]


def test_an_empty_recipe_is_told_what_goes_in() -> None:
    listed = "one of 4: seed, pretrain, loss, probe"
    assert problems("") == [f"x.yaml:1:1: null is not a section, give it keys, {listed}"]
    assert problems("{}") == ["x.yaml:1:1: pretrain: missing, add it"]


def test_an_absent_section_is_asked_for_by_its_key() -> None:
    with pytest.raises(RecipeError, match=r"^x.yaml has no `probe:` section, add one$"):
        made(GOOD).section(Probe)


# Overrides


def test_overrides_change_create_and_remove() -> None:
    recipe = made(GOOD, "pretrain.epochs=2", "probe.epochs=5", "loss=null", "pretrain.betas=[0, 1]")
    assert recipe.section(Pretrain).epochs == 2
    assert recipe.section(Pretrain).betas == (0.0, 1.0)
    assert recipe.section(Probe) == Probe(5)
    assert recipe.loss is None


def test_overrides_equal_the_edited_text() -> None:
    edited = GOOD.replace("epochs: 10", "epochs: 2").replace("1e-3", "0.5")
    overrides = ["pretrain.epochs=7", "pretrain.method.off_diagonal=.5", "pretrain.epochs=2"]
    assert made(GOOD, *overrides) == made(edited)


def test_an_override_reaches_into_a_name_alone() -> None:
    recipe = made(in_pretrain(""), "pretrain.method.off_diagonal=2")
    assert recipe.section(Pretrain).method.args["off_diagonal"] == 2.0


OVERRIDES = [
    ("pretrain.epochs=x", 'pretrain.epochs=x">:1:17: pretrain.epochs: "x" is not a whole number'),
    ("pretrain.epoch=3",
     'pretrain.epoch=3">:1:10: pretrain.epoch: unknown, did you mean "epochs"?'),
    ("pretrain.epochs=", 'pretrain.epochs=">:1:17: pretrain.epochs: null is not a whole number'),
    ("pretrain.epochs=[1",
     "pretrain.epochs=[1\">:1:19: not YAML (while parsing a flow sequence expected ',' or ']', but "
     "got "
     "'<stream end>'), check indentation, colons, quotes and brackets up to here"),
    ("pretrain.epochs.x=1",
     'pretrain.epochs.x=1">:1:17: 10 at x.yaml:3:11 is no section, override it as a whole'),
    ("novalue", 'novalue">:1:1: not an override, write key.path=value'),
    ("=3", '=3">:1:1: not an override, write key.path=value'),
    ("a..b=3", 'a..b=3">:1:1: not an override, write key.path=value'),
    ("seed=!!int 3",
     "seed=!!int 3\">:1:6: tag 'tag:yaml.org,2002:int', delete it "
     "(a recipe names no types and runs no code)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"), OVERRIDES, ids=[override for override, _ in OVERRIDES]
)
def test_overrides_pass_the_same_checks(override: str, message: str) -> None:
    assert problems(GOOD, override) == [f'<override "{message}']


# Files


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    recipe = load(path, ["seed=4"], SECTIONS)
    assert recipe == made(GOOD, "seed=4")
    assert recipe.name == str(path)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes("seed: 1\né: ".encode() + b"\xff")
    cases = {
        tmp_path / "none.yaml": "no such recipe, check the path",
        tmp_path: "a folder, name the recipe file in it",
        bad: "2:4: byte 0xff is not UTF-8, save the file as UTF-8",
    }
    for path, message in cases.items():
        with pytest.raises(RecipeError) as caught:
            load(path, [], SECTIONS)
        assert str(caught.value).replace(f"{path}:", "").strip() == message


# Out again


@pytest.mark.parametrize(
    "text", [GOOD, in_pretrain(""), in_pretrain("args: {a: [1, 1.0, 1e-05, 'yes', ~]}")]
)
def test_text_reads_back_as_the_same_recipe(text: str) -> None:
    recipe = made(text)
    again = from_text(recipe.text(), "y", [], SECTIONS)
    assert again == recipe
    assert again.plain() == recipe.plain() == read(recipe.text(), "y").plain()
    assert again.text() == recipe.text()


def test_any_text_and_number_survives_the_round_trip() -> None:
    odd = [
        "a: b",
        "# c",
        " x ",
        "\n",
        "a\n b\n",
        "\x00\x1b",
        "\u2028",
        "\U0001f600",
        "0o7",
        "x" * 300,
    ]
    texts = [*SCALARS, *HOSTILE, *odd]
    numbers = [
        1e-05,
        1e16,
        1e22,
        0.1 + 0.2,
        5e-324,
        1.7976931348623157e308,
        -0.0,
        2**63 - 1,
        -(2**63),
    ]
    args = {"texts": texts, "numbers": numbers, **{text: i for i, text in enumerate(texts)}}
    recipe = made(in_pretrain(f"args: {json.dumps(args)}"))
    again = read(recipe.text(), "y").plain()["pretrain"]["args"]
    assert json.dumps(again) == json.dumps(args)


def test_plain_holds_the_defaults_and_is_json() -> None:
    plain = made(in_pretrain("")).plain()
    assert json.loads(json.dumps(plain)) == plain
    method = {"name": "barlow_twins", "projector": [8, 8], "off_diagonal": 0.0051}
    assert plain["pretrain"]["method"] == method
    assert (plain["pretrain"]["lr"], plain["seed"], plain["probe"]) == (1e-05, 0, None)


def test_digest_changes_iff_a_value_changes() -> None:
    one = made(GOOD)
    rewritten = (
        "# a comment\n"
        + GOOD.replace("1e-3", "0.001").replace("seed: 3\n", "")
        + "seed: 3\nprobe:\n"
    )
    assert digest(made(rewritten, "pretrain.lr=1.0e-5", "loss.margin=1.0")) == digest(one)
    assert digest(made(GOOD, "loss.beta=2")) == digest(made(GOOD, "loss.beta=2.0"))
    assert made(GOOD, "pretrain.args={a: 1, b: 2}") == made(GOOD, "pretrain.args={b: 2, a: 1}")
    digests = {
        digest(made(GOOD, f"pretrain.args={args}")) for args in ("{a: 1, b: 2}", "{b: 2, a: 1}")
    }
    assert len(digests) == 1
    changes = [
        "seed=4",
        "pretrain.lr=2e-5",
        "pretrain.method.off_diagonal=1",
        "loss.beta=3",
        "probe={}",
    ]
    changes += ["loss.distance.power=3", "pretrain.sizes=[1]", "loss=null"]
    digests = {digest(made(GOOD, change)) for change in changes} | {digest(one)}
    assert len(digests) == len(changes) + 1
    assert (
        digest(made(GOOD, "seed=4"), "pretrain") == digest(one, "pretrain") != digest(one, "seed")
    )


# Building


def test_build_gives_nested_specs_built_and_the_program_its_say() -> None:
    recipe = made(GOOD)
    method = recipe.section(Pretrain).method.build("net")
    assert (method.backbone, method.off_diagonal) == ("net", 0.001)
    assert recipe.section(Pretrain).method.build(backbone="net").backbone == "net"
    loss = recipe.loss.build()
    assert (type(loss), loss.margin, loss.by_matrix) == (MarginLoss, 1.0, True)
    assert (type(loss.distance), loss.distance.power) == (Distance, 2)


def test_specs_compare_and_read_well() -> None:
    assert METHOD.spec("simclr", temperature=1) == METHOD.spec("simclr", temperature=1.0)
    assert METHOD.spec("simclr", temperature=1) != METHOD.spec("simclr", temperature=2)
    assert (
        repr(METHOD.spec("simclr", temperature=1))
        == "Spec(name='simclr', args={'temperature': 1.0})"
    )
    with pytest.raises(RecipeError, match="temperature: 0 must be greater than 0"):
        METHOD.spec("simclr", temperature=0)


def test_a_table_behind_a_function_is_fetched_only_for_its_section() -> None:
    def heavy() -> dict[str, Any]:
        raise ImportError("heavy")

    sections = toy.sections(a=int, b=Annotated[Spec, Choice(heavy)] | None)
    assert from_text("a: 1", "x", [], sections) == sections(a=1, b=None)
    with pytest.raises(ImportError):
        from_text("a: 1\nb: c", "x", [], sections)


TOWER = [
    ("margin: x", 'loss.margin: "x" is not a number'),
    ("margin: true", "loss.margin: true is not a number"),
    ("beta: x", 'loss.beta: "x" is not a whole number and is not a number'),
    ("swap: 1", "loss.swap: 1 is not true or false"),
    ("triplets: 1", "loss.triplets: 1 is not text, put it in quotes"),
    ("weights: 1", "loss.weights: 1 is not a list"),
    (
        "by_matrix: false",
        "loss.by_matrix: unknown, one of 7: margin, beta, swap, triplets, weights, distance, "
        "collect",
    ),
    ("distance: {name: Lp, inverted: 1}", "loss.distance.inverted: 1 is not true or false"),
    (
        "distance: {name: Cosine, inverted: true}",
        "loss.distance.inverted: unknown, one of 3: p, power, collect",
    ),
]


@pytest.mark.parametrize(("argument", "message"), TOWER, ids=[argument for argument, _ in TOWER])
def test_bare_constructors_are_checked_by_their_defaults_and_towers(
    argument: str, message: str
) -> None:
    (found,) = problems(f"{in_pretrain('')}loss: {{name: MarginLoss, {argument}}}")
    assert found.split(": ", 1)[1] == message


def test_unheeded_kwargs_take_no_keys() -> None:
    assert "unknown" in problems(f"{in_pretrain('')}loss: {{name: Deaf, other: 1}}")[0]


@pytest.mark.parametrize("beta", ["2", "2.0", "2.5"])
def test_a_whole_default_takes_any_number(beta: str) -> None:
    assert made(GOOD, f"loss.beta={beta}").loss.args["beta"] == float(beta)


def test_a_foreign_annotation_counts_as_its_default() -> None:
    class Foreign:
        pass

    def optimizer(lr: float | Foreign = 0.1) -> None: ...

    sections = toy.sections(optimizer=Annotated[Spec, Choice({"sgd": optimizer})])
    recipe = from_text("optimizer: {name: sgd, lr: 1}", "x", [], sections)
    assert recipe.plain() == {"optimizer": {"name": "sgd", "lr": 1.0}}
    with pytest.raises(RecipeError, match='lr: "a" is not a number'):
        from_text("optimizer: {name: sgd, lr: a}", "x", [], sections)


# What may change in a resume

MARKED = [
    (Count, None),
    (Annotated[Count, FREE], FREE),
    (Annotated[Fraction | None, FREE], FREE),
    (Annotated[Count, FREE] | None, FREE),
    (Annotated[Literal["a", "b"], FREE], FREE),
    (Annotated[Annotated[Count, FREE], FIXED], FIXED),
    (Annotated[Spec, METHOD, FREE], FREE),
    (Annotated[Annotated[Spec, METHOD] | None, FREE], FREE),
    (tuple[Annotated[Count, FREE], ...], None),
]


@pytest.mark.parametrize(("annotation", "mark"), MARKED)
def test_a_key_is_marked_where_it_is_declared(annotation: Any, mark: Resume | None) -> None:
    wanted = Parameter(annotation)
    assert (wanted.resume, wanted.free) == (mark, mark is FREE)


def test_a_mark_is_found_in_signatures_and_changes_no_check() -> None:
    @dataclass(frozen=True)
    class Marked:
        workers: Annotated[Count | None, FREE] = None
        keep: Annotated[Count, FREE] = 2
        clip: Annotated[NonNegative, FIXED] = 0.0
        method: Annotated[Annotated[Spec, METHOD] | None, FREE] = None

    def maker(a: Annotated[Count, FREE] = None, b: Count = 1) -> None: ...  # type: ignore[assignment]

    free = {name: key.free for name, key in keys_of(Marked, set(), {}).items()}
    assert free == {"workers": True, "keep": True, "clip": False, "method": True}
    assert {name: key.free for name, key in Choice({"m": maker}).keys("m").items()} == {
        "a": True,
        "b": False,
    }
    build = partial(from_text, name="x", overrides=[], kind=toy.sections(m=Marked))
    assert build("m: {keep: 3, method: barlow_twins}").section(Marked).keep == 3
    with pytest.raises(RecipeError, match=r"^x:1:11: m\.keep: 0 must be at least 1$"):
        build("m: {keep: 0}")


# The schema


def complaints(plain: object) -> list[str]:
    found = schema(SECTIONS)
    jsonschema.Draft202012Validator.check_schema(found)
    return [error.message for error in jsonschema.Draft202012Validator(found).iter_errors(plain)]


ACCEPTED = [GOOD, in_pretrain(""), in_pretrain("also: [barlow_twins]"), GOOD + "probe:"]


@pytest.mark.parametrize("text", ACCEPTED)
def test_schema_accepts_what_load_accepts(text: str) -> None:
    assert complaints(read(text, "x").plain()) == []
    assert complaints(made(text).plain()) == []


@pytest.mark.parametrize(
    "line",
    [
        "lr: 0",
        "epoch: 1",
        "pool: x",
        "betas: [1]",
        "also: [simclr]",
        "schedule: {x: 1}",
        "sizes: [a]",
    ],
)
def test_schema_refuses_what_load_refuses(line: str) -> None:
    problems(in_pretrain(line))
    assert complaints(read(in_pretrain(line), "x").plain())


def test_schema_holds_docstrings_defaults_and_no_references() -> None:
    found = schema(SECTIONS)
    pretrain = found["properties"]["pretrain"]
    assert pretrain["description"] == "Pretraining."
    assert pretrain["properties"]["lr"]["default"] == 1e-05
    assert (found["required"], pretrain["required"]) == (["pretrain"], ["epochs", "method"])
    first, second, short = pretrain["properties"]["method"]["anyOf"]
    assert (first["description"], first["required"]) == ("A stand-in method.", ["name"])
    assert (second["required"], short) == (["name", "temperature"], {"enum": ["barlow_twins"]})
    assert "$ref" not in json.dumps(found)


# A real third party


def metric_learning() -> type[Recipe]:
    from pytorch_metric_learning import distances, losses

    distance = Choice(
        {"LpDistance": distances.LpDistance, "CosineSimilarity": distances.CosineSimilarity}
    )
    names = ("TripletMarginLoss", "ContrastiveLoss", "MultiSimilarityLoss", "VICRegLoss")
    table = Choice({name: getattr(losses, name) for name in names}, nested={"distance": distance})
    return toy.sections(loss=Annotated[Spec, table])


@pytest.mark.filterwarnings("default")
def test_pytorch_metric_learning_losses() -> None:
    sections = metric_learning()
    build = partial(from_text, name="x", overrides=[], kind=sections)
    text = "loss: {name: TripletMarginLoss, margin: 1, distance: {name: LpDistance, power: 2}}"
    triplet = build(text).loss.build()
    assert (triplet.margin, triplet.distance.power, triplet.distance.p) == (1.0, 2, 2)
    contrastive = build("loss: {name: ContrastiveLoss, neg_margin: .5}").loss.build()
    assert (contrastive.pos_margin, contrastive.neg_margin) == (0, 0.5)
    similarity = build("loss: {name: MultiSimilarityLoss, distance: CosineSimilarity}").loss.build()
    assert (similarity.alpha, type(similarity.distance).__name__) == (2, "CosineSimilarity")
    assert build("loss: VICRegLoss").loss.build() is not None
    for wrong in (
        "{name: MultiSimilarityLoss, mat_based_loss: true}",
        "{name: TripletMarginLoss, margn: 1}",
    ):
        with pytest.raises(RecipeError, match="unknown"):
            build(f"loss: {wrong}")
    recipe = build(text)
    assert build(recipe.text()) == recipe
    jsonschema.validate(recipe.plain(), schema(sections))


# The recipes we ship

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def pipeline_schema() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.slow
def test_the_schema_is_one_of_json_schema(pipeline_schema) -> None:
    jsonschema.Draft202012Validator.check_schema(pipeline_schema.schema)


def test_recipes_are_found() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=[path.name for path in RECIPES])
def test_a_shipped_recipe_loads_and_fits_the_schema(
    path: Path, pipeline_schema: jsonschema.Draft202012Validator
) -> None:
    recipe = load_recipe(path)
    for plain in (read(path.read_text(encoding="utf-8"), path.name).plain(), recipe.plain()):
        assert [error.message for error in pipeline_schema.iter_errors(plain)] == []


# Names of one's own
NAMED = toy.sections(sets=(dict[str, Annotated[Spec, METHOD]] | None, None), seed=(Index, 0))


def named(text: str, *overrides: str) -> Any:
    return from_text(text, "x.yaml", overrides, NAMED)


def test_sections_under_names_of_one_s_own_are_read_written_and_told_apart() -> None:
    text = "sets:\n  mine: barlow_twins\n  other: {name: barlow_twins, off_diagonal: 0.5}\n"
    recipe = named(text)
    assert list(recipe.sets) == ["mine", "other"]
    assert {spec.name for spec in recipe.sets.values()} == {"barlow_twins"}
    assert recipe.sets["other"].args["off_diagonal"] == 0.5
    assert named(recipe.text()) == recipe
    jsonschema.validate(recipe.plain(), schema(NAMED))
    assert named(text, "sets.mine.off_diagonal=0.5").sets["mine"] == recipe.sets["other"]
    assert digest(recipe) != digest(named(text, "sets.other.off_diagonal=0.25"))
    assert digest(recipe) != digest(named(text.replace("mine", "yours")))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sets: barlow_twins", "sets: give each a name of its own"),
        ("sets: {name: barlow_twins, off_diagonal: 0.5}", "sets: give each a name of its own"),
        ("sets: {'a b': barlow_twins}", 'sets: "a b" is no name'),
        ("sets: {mine: barlow_twin}", 'sets.mine: "barlow_twin" is unknown'),
        ("sets: {mine: {name: barlow_twins, off: 1}}", "sets.mine.off: unknown"),
    ],
)
def test_a_name_of_one_s_own_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        named(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
