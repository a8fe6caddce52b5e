"""The last guard of the shell: one line, no traceback, nothing that moves a cursor; places refused
before the work.
"""

import builtins
import re
import sys
import warnings
from pathlib import Path

import pytest

import toy
from lookalike import cli, errors
from lookalike.errors import LOST, BackboneError, Error, LostError, RecipeError, RunError, printable
from lookalike.experiment import load_recipe
from lookalike.process import fault
from lookalike.show import show
from lookalike.stages import export as exporting
from lookalike.stages.evaluate import evaluate
from lookalike.stages.export import export
from lookalike.stages.finetune import finetune
from lookalike.stages.pretrain import pretrain
from lookalike.stages.probe import probe

# What a terminal would obey: escape sequences, their 8-bit forms, turned writing, line ends, bells,
# bytes astray.
HOSTILE = "\x1b[31mx\x9b31my\u202ekey\u2066\u200f\r\x07\x00\u2028\udc9b"


def classes(of: type[BaseException]) -> list[type[BaseException]]:
    return [of, *(inner for each in of.__subclasses__() for inner in classes(each))]


def made(kind: type[BaseException], text: str) -> BaseException | None:
    """An exception of this class; None for one that cannot be made without what it is about."""
    unicode = (("utf-8", b"x", 0, 1, text), ("utf-8", "x", 0, 1, text), ("x", 0, 1, text))
    for arguments in ((text,), (), *unicode, (text, [ValueError(text)]), (1, text)):
        try:
            return kind(*arguments)
        except Exception:
            continue
    return None


LEAVING = {SystemExit, GeneratorExit}
OURS_AND_PYTHONS = {
    kind
    for module in (builtins, errors)
    for kind in vars(module).values()
    if isinstance(kind, type)
}
KINDS = sorted(OURS_AND_PYTHONS.intersection(classes(BaseException)), key=str)


def test_there_is_a_class_of_every_kind():
    assert {
        RecursionError,
        NotImplementedError,
        KeyError,
        MemoryError,
        ExceptionGroup,
        LostError,
    } <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_exception_ends_in_one_line_and_never_in_a_traceback(kind, capsys):
    error = made(kind, f"a{HOSTILE}b")
    assert error is not None

    def verb() -> None:
        raise error

    if kind in LEAVING:
        with pytest.raises(kind):
            cli.guarded(verb)
        return
    code = cli.guarded(verb)
    err = capsys.readouterr().err
    assert code in (
        (LOST,) if issubclass(kind, LostError) else (130,) if kind is KeyboardInterrupt else (1, 2)
    )
    assert code != 1 or "a defect of lookalike" in err
    assert "Traceback" not in err
    assert err.startswith("lookalike: ")
    assert all(line.isprintable() for line in err.split("\n")), err
    assert err.count("\n") == 1 or issubclass(kind, Error)


def test_a_recursion_that_is_too_deep_is_told_as_one(capsys):
    def verb() -> None:
        verb()

    assert cli.guarded(verb) == 2
    assert re.fullmatch(
        r"lookalike: RecursionError: .*: --debug shows where\n", capsys.readouterr().err
    )


def test_printable_escapes_what_a_terminal_would_obey_and_nothing_else():
    assert printable(HOSTILE).isprintable()
    assert printable("\x1b\n\u202e\udcff") == "\\x1b\\n\\u202e\\udcff"
    assert printable("Straße 猫 → ±½ «x»") == "Straße 猫 → ±½ «x»"
    assert printable(Path("a\tb")) == "a\\tb"


def yaml_text(text: str) -> str:
    """A double-quoted scalar of YAML, its odd characters as escapes."""
    return (
        '"'
        + "".join(
            f"\\U{ord(c):08x}" if not c.isalnum() else c
            for c in text
            if not 0xD800 <= ord(c) < 0xE000
        )
        + '"'
    )


PLACES = [
    "data: {{name: {0}}}",
    "data: {{name: digits, {0}: 1}}",
    "data: {{name: folder, path: {0}}}",
    "{0}: 1",
    "backbone: {{name: {0}}}",
    "backbone: {{name: resnet18, args: {{{0}: 1}}}}",
    "backbone: {{name: resnet18, args: {{block_args: {{{0}: 1}}}}}}",
    "backbone: {{name: resnet18, pool: {0}}}",
    "backbone: {{folder: {0}}}",
    "pretrain: {{method: {{name: {0}}}, batch: 8, epochs: 1, optimizer: {{name: adamw, lr: 1}}}}",
    "pretrain: {{method: {{name: simclr}}, batch: {0}, epochs: 1, optimizer: {{name: adamw, lr: "
    "1}}}}",
    "pretrain: {{method: {{name: simclr}}, batch: 8, epochs: 1, optimizer: {{name: adamw, {0}: "
    "1}}}}",
    "finetune: {{optimizer: {{name: adamw, lr: 1}}, objective: {{name: {0}}}}}",
    "evaluate: {{data: {{name: manifest, path: {0}}}}}",
]


@pytest.mark.parametrize("nul", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_text_of_a_recipe_reaches_no_terminal_raw(tmp_path, capsys, place, nul):
    lines = {"data": "data: digits", "backbone": "backbone: {name: resnet18, channels: 1}"}
    own = place.format(yaml_text(HOSTILE if nul else HOSTILE.replace("\0", "")))
    lines[own.split(":")[0]] = own
    (tmp_path / "r.yaml").write_text("\n".join(lines.values()) + "\n")
    cli.guarded(lambda: cli.app(["show", str(tmp_path / "r.yaml")], standalone_mode=False))
    out, err = capsys.readouterr()
    assert err
    assert all(line.isprintable() for line in (out + err).split("\n")), ascii(out + err)
    with pytest.raises(Error) as caught:
        show(load_recipe(tmp_path / "r.yaml"))
    assert all(line.isprintable() for line in str(caught.value).split("\n")), ascii(
        str(caught.value)
    )


def test_overrides_and_paths_reach_no_terminal_raw(tmp_path, capsys):
    recipe = toy.write(tmp_path / "r.yaml")
    for words in (
        [str(recipe), f"a{HOSTILE}=1"],
        [str(recipe), f"seed={HOSTILE}"],
        [f"/no{HOSTILE}".replace("\0", "")],
    ):
        cli.guarded(lambda words=words: cli.app(["show", *words], standalone_mode=False))
        err = capsys.readouterr().err
        assert err
        assert all(line.isprintable() for line in err.split("\n")), ascii(err)


def test_warnings_reach_no_terminal_raw(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", cli._one_line)
    cli._one_line(f"odd {HOSTILE}", UserWarning, "x.py", 1)
    assert all(line.isprintable() for line in capsys.readouterr().err.split("\n"))


# ---- places that cannot be written are refused before the work


def refuse(*arguments, **how):
    pytest.fail("the work was begun")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that even root cannot write")
@pytest.mark.parametrize(
    "verb", ["pretrain", "finetune", "probe", "evaluate", "export", "run", "search", "preview"]
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(whole, monkeypatch, verb):
    out, backbone, wanted = Path("/proc/fs/run"), whole / "backbone", toy.recipe()
    for module in ("probe", "evaluate", "finetune"):
        monkeypatch.setattr(f"lookalike.stages.{module}.extracted", refuse)
    monkeypatch.setattr("lookalike.stages.search.embedded", refuse)
    monkeypatch.setattr("lookalike.stages.preview.read", refuse)
    monkeypatch.setattr(exporting, "to_onnx", refuse)
    from lookalike.pipeline import draw, run
    from lookalike.stages.search import open_search

    verbs = {
        "pretrain": lambda: pretrain(wanted, out),
        "finetune": lambda: finetune(backbone, wanted, out),
        "probe": lambda: probe(backbone, wanted, out),
        "evaluate": lambda: evaluate(backbone, wanted, out),
        "export": lambda: export(backbone, wanted, out / "export"),
        "run": lambda: run(wanted, out),
        "search": lambda: open_search(out, str(whole.parent), str(backbone)),
        "preview": lambda: draw(wanted, out / "x.html", images=2, epoch=0),
    }
    said = r"/proc/fs\S*: cannot be written \(.*\): choose another"
    with fault.plan("raise:rank=0,step=1"), pytest.raises(RunError, match=said):
        verbs[verb]()
    assert not out.exists()


def test_kinds_of_errors_are_errors():
    assert all(issubclass(kind, Error) for kind in (RecipeError, BackboneError, RunError))
