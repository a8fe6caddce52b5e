"""benchmarks/gpu.sh: its parts are whole, one that fails ends no other, and its dry run passes."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lookalike.methods import METHODS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The module, without a trace in the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        spec = importlib.util.spec_from_file_location("gpu", SCRIPT.with_suffix(".py"))
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "gpu", module)
        spec.loader.exec_module(module)
        yield module


def test_the_shell_part_is_shell_and_quotes_what_it_hands_on():
    assert subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True).stderr == b""
    assert os.access(SCRIPT, os.X_OK)
    for line in SCRIPT.read_text().splitlines():
        code = re.sub(r"'[^']*'|^\s*#.*", "", line).replace('$(dirname "$0")', "")
        bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", code)
        assert not re.search(r"\$\{?\w", re.sub(r"\b\w+=\$\S+", "", bare)), line


@pytest.mark.parametrize(("code", "kept"), [(0, True), (1, True), (2, False), (137, False)])
def test_the_table_is_there_whole_or_not_at_all(tmp_path, code, kept):
    """1 says that a check failed, which the table tells."""
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (tmp_path / "python").chmod(0o755)
    out = tmp_path / "a table.md"
    words = [str(SCRIPT), str(out), "--dry", "--only", "a b"]
    environment = {**os.environ, "PYTHON": str(tmp_path / "python")}
    done = subprocess.run(["bash", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == code, done.stderr
    assert out.exists() == kept
    assert not kept or out.read_text() == f"{SCRIPT.with_suffix('.py')} --dry --only a b\n"
    assert len(list(tmp_path.iterdir())) == 1 + kept


def test_an_unknown_section_is_refused(gpu, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--only", "methods,nothing"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "no section nothing: methods, " in capsys.readouterr().err


def test_every_method_has_heads_and_every_section_its_time(gpu):
    assert gpu.HEADS.keys() == METHODS.keys()
    assert gpu.BUDGET <= 530
    assert sum(seconds for seconds, _ in gpu.SECTIONS.values()) <= gpu.BUDGET
    assert list(gpu.SECTIONS)[:4] == ["methods", "training", "same_views", "waits"]  # first of all
    assert {"fp32", "bf16", "fp16"} == gpu.NEAR.keys()
    assert set(gpu.ON_A_GPU) < gpu.OPTIONS.keys()


def test_a_section_that_raises_dies_or_hangs_is_a_line_and_ends_no_other(gpu, monkeypatch):
    def raises(setting):
        yield gpu.Row("first", "1")
        raise ValueError("two\nlines | and a bar")

    def dies(setting):
        yield gpu.Row("before", gpu.PASSED)
        os._exit(9)

    def hangs(setting):
        yield gpu.Row("kept", gpu.PASSED)
        time.sleep(60)

    def stands(setting):
        yield gpu.judged("sum", 1 + 1 == 2, "exact")

    parts = {"raises": raises, "dies": dies, "hangs": hangs, "stands": stands}
    monkeypatch.setattr(gpu, "SECTIONS", {name: (1, part) for name, part in parts.items()})
    found = {name: gpu.section(name, True, 1.0) for name in parts}
    assert [row.result for row in found["raises"]] == ["1", gpu.FAILED]
    assert "ValueError: two lines | and a bar at test_gpu_script.py:" in found["raises"][1].remark
    assert [row.result for row in found["dies"]] == [gpu.PASSED, gpu.FAILED]
    assert [row.result for row in found["hangs"]] == [gpu.PASSED, gpu.FAILED]
    assert found["stands"] == [gpu.Row("sum", gpu.PASSED, "exact", "")]
    text = gpu.table([(name, row) for name, rows in found.items() for row in rows])
    assert all(line.count("|") - line.count("\\|") == 6 for line in text.splitlines())


def test_pairs_give_their_median_ratio_and_quartiles(gpu):
    assert gpu.ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0]) == ("2.000", "2.000 to 3.000 of 3 pairs")


def test_every_benchmark_stands_in_the_table_of_all():
    text = (SCRIPT.parent / "README.md").read_text().partition("## On a GPU")[0]
    for path in [*SCRIPT.parent.glob("*.py"), SCRIPT]:
        assert f"`{path.name}`" in text or path.name == "gpu.py", path.name


def test_every_section_is_explained(gpu):
    text = (SCRIPT.parent / "README.md").read_text().partition("## On a GPU")[2]
    for name in gpu.SECTIONS:
        assert f"`{name}`" in text or f"`…_{name.rpartition('_')[2]}`" in text, name


@pytest.mark.slow
def test_its_dry_run_passes_and_every_section_says_something(gpu, tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out.md"
    command = ["bash", str(SCRIPT), str(out), "--dry"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    text = out.read_text()
    assert done.returncode == 0, text + done.stderr[-3000:]
    told = {line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("|")}
    assert told - {"section", "---|---|---|---|---|"} == gpu.SECTIONS.keys()
    assert gpu.FAILED not in text
