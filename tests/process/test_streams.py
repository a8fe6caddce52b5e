"""stdout and stderr of any encoding, closed, full, read by nobody: nothing is lost that could be
said, no word too much, and no training ends of it.
"""

import contextlib
import io
import os
import pty
import subprocess
import sys
import threading

import pytest
from rich.console import Console
from rich.progress import Progress

import children
import toy
from forked import forked
from lookalike import log
from lookalike.process import streams

ASCII = (
    "import io, sys\n"
    "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='ascii')\n"
    "sys.stderr = io.TextIOWrapper(sys.stderr.buffer, encoding='ascii')\n"
)
# What the test's own process does at its end, it does with streams that work.
CLI = (
    "import os, sys\nfrom lookalike import cli\ntry:\n    cli.main()\n"
    "finally:\n    sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
)
AGAIN = "import sys; sys.{0} = open({1}, 'w', closefd=False)\n"
GONE = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, {1})\n" + AGAIN
FULL = "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), {1})\n" + AGAIN
OUT, ERR = ("stdout", 1), ("stderr", 2)
CLOSED = "import os, sys; os.close(1); os.close(2); sys.stdout = sys.stderr = None\n"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> str:
    """With a name that no small encoding has."""
    return str(toy.write(tmp_path_factory.mktemp("recipe") / "réseau 画像.yaml"))


def test_show_in_ascii_is_show_escaped(recipe):
    usual, odd = (children.run(code + children.CLI, "show", recipe) for code in ("", ASCII))
    assert (usual.returncode, odd.returncode) == (0, 0), odd.stderr
    assert "1438 images of 1×8×8" in usual.stdout
    assert odd.stdout == usual.stdout.encode("ascii", "backslashreplace").decode()
    assert not odd.stderr


def test_errors_in_ascii_are_escaped(recipe):
    done = children.run(ASCII + children.CLI, "show", recipe, "pretrain.method.naïve=1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "na\\xefve" in done.stderr
    done = children.run(ASCII + children.CLI, "show", f"{recipe}.画像")
    assert done.returncode == 2
    assert "r\\xe9seau \\u753b\\u50cf.yaml.\\u753b\\u50cf: no such recipe" in done.stderr


def test_a_run_in_ascii_says_every_line(recipe, tmp_path):
    out = tmp_path / "é"
    words = ("pretrain", recipe, "pretrain.epochs=1", "--out", str(out))
    done = children.run(ASCII + children.CLI, *words)
    assert (done.returncode, done.stderr) == (0, "")
    *_, last = done.stdout.splitlines()
    assert last == f"pretrain: backbone in {tmp_path}/\\xe9/backbone"
    assert "step 9/9" in done.stdout


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["nosuch"]])
def test_help_and_misuse_in_a_locale_of_ascii(words):
    """From the interpreter's start on: what a locale does, it does then."""
    path = os.pathsep.join(sys.path)
    odd = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "lookalike", *words],
        capture_output=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], **odd},
    )
    assert done.returncode == (2 if words == ["nosuch"] else 0)
    said = (done.stdout + done.stderr).decode("ascii")
    assert "Usage" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "shift-jis"])
def test_say_loses_no_line_whatever_the_encoding(monkeypatch, encoding):
    """Also in a program that is not ours, which left its stream as Python makes it."""
    lines = ["plain", "é × ∞ 画像 \udcff", "last"]
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding=encoding))
    for line in lines:
        log.say(line)
        log.note(line)
    wanted = [line for line in lines for _ in range(2)]
    assert raw.getvalue().splitlines() == [x.encode(encoding, "backslashreplace") for x in wanted]


def test_a_reader_that_has_seen_enough_ends_the_program_without_a_word(recipe):
    for words in (["show", recipe], ["schema"]):
        done = children.run(GONE.format(*OUT) + CLI, *words)
        assert (done.returncode, done.stderr) == (141, "")


def test_a_run_that_nobody_reads_ends_as_any(recipe, tmp_path):
    for name, code in {
        "gone": GONE.format(*OUT) + GONE.format(*ERR),
        "closed": CLOSED,
        "full": FULL.format(*OUT) + FULL.format(*ERR),
    }.items():
        out = tmp_path / name
        words = ("pretrain", recipe, "pretrain.epochs=1", "--out", str(out))
        done = children.run(code + CLI, *words, LOOKALIKE_FAULT="raise:rank=7,step=1")
        assert done.returncode == 0, done
        assert (out / "backbone").is_dir()
        # What libraries write to 1 and 2 is in no file of the run.
        assert all(line["step"] for line in toy.lines(out / "metrics.jsonl"))
    assert toy.curve(tmp_path / "gone") == toy.curve(tmp_path / "closed")


def test_no_file_gets_the_number_of_a_stream_that_a_shell_closed(tmp_path):
    def work() -> list[int]:
        for number in range(3):
            os.close(number)
        streams.prepare()
        return [os.open(tmp_path / str(n), os.O_CREAT | os.O_RDWR) for n in range(3)]

    assert min(forked(work).value) > 2


def test_an_answer_that_cannot_be_written_is_told(recipe):
    done = children.run(FULL.format(*OUT) + CLI, "show", recipe)
    assert done.returncode == 2
    assert done.stderr.startswith("lookalike: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1
    done = children.run(FULL.format(*ERR) + CLI, "show", "no such recipe")
    assert done.returncode == 2


def test_a_terminal_that_is_closed_stops_no_bar(monkeypatch):
    """As of a session over ssh that was lost."""
    ours, theirs = pty.openpty()
    terminal = os.fdopen(theirs, "w")
    console = Console(file=terminal, force_terminal=True)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with log.Bar(Progress(console=console), "x", 3) as bar:
        bar.update(completed=1)
        os.close(ours)
        bar.update(completed=2, refresh=True)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(theirs, b"x")
    with contextlib.suppress(OSError):
        terminal.close()


def test_a_bar_in_ascii_is_drawn_in_ascii():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="backslashreplace")
    console = Console(file=file, force_terminal=True, width=60)
    with log.Bar(Progress(console=console), "é", 2) as bar:
        bar.update(completed=2)
    file.flush()
    assert b"\\xe9" in raw.getvalue()
    assert b"100%" in raw.getvalue()
