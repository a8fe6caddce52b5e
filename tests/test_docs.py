"""README and docs/: every block runs or is checked, every link and every named file is there."""

import contextlib
import json
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

import lookalike
from lookalike import cli
from lookalike.data import SOURCES
from lookalike.methods import METHODS
from lookalike.metric.estimators import ESTIMATORS
from lookalike.metric.objectives import OBJECTIVES, OWN, SINGLE
from lookalike.recipe import read
from lookalike.views import VIEWS

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
LANGUAGES = {"python", "yaml", "bash", "console", "text"}
# Makes a recipe of the digits so small that a page's examples take seconds.
TINY = (
    "backbone={name: resnet18, size: 16, channels: 1, pool: avg, "
    "args: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}}",
    "data={name: digits, test_fraction: 0.3}",
    "pretrain.method={name: barlow_twins, projector: [16, 32], off_diagonal: 0.02}",
    "pretrain.epochs=1",
    "pretrain.warmup_epochs=0",
    "pretrain.batch=256",
    "probe={grid: [1e-2, 1.0], max_iterations: 20}",
    "finetune.epochs=1",
    "finetune.warmup_epochs=0",
    "finetune.per_class=32",
    "finetune.dim=16",
    "evaluate.examples=2",
    "export.onnx=false",
)
PROGRAMS = {"make", "pip", "lookalike", "sbatch"}
# The launchers: how many words stand before the recipe.
LAUNCHERS = {"local.sh": 1, "torchrun.sh": 3, "hostfile.sh": 1, "slurm.sbatch": 0}


class Block(NamedTuple):
    """A fenced block: where it is, its language, its text, and why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    skipped: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    lines, start, reason = page.read_text().splitlines(), None, ""
    for number, line in enumerate(lines, 1):
        if start is None and line.startswith("```"):
            start, language = number, line[3:].strip()
            found = re.fullmatch(r"<!-- not run: (.+) -->", lines[number - 2])
            reason = found[1] if found else ""
        elif start is not None and line == "```":
            yield Block(page, start, language, "\n".join(lines[start : number - 1]) + "\n", reason)
            start = None
    assert start is None, f"{page}:{start}: a block without an end"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(*languages: str) -> list[Block]:
    """The blocks that are run or checked. There are some."""
    found = [block for block in BLOCKS if block.language in languages and not block.skipped]
    assert found
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a reader's: recipes whose quickstart is tiny, its run, some photos."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "recipes").mkdir()
    tiny = lookalike.load_recipe(ROOT / "recipes" / "quickstart.yaml", TINY)
    (folder / "recipes" / "quickstart.yaml").write_text(tiny.text())
    for place in ("a", "b", "photos/red/0", "photos/red/1", "photos/blue/0", "photos/blue/1"):
        path = folder / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(place)).integers(0, 255, (24, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    torch.set_num_threads(1)
    lookalike.run(tiny, folder / "runs" / "quickstart")
    exporting = lookalike.load_recipe(folder / "recipes" / "quickstart.yaml", ["export={}"])
    run = folder / "runs" / "quickstart"
    lookalike.export(run / "backbone", exporting, run / "export" / "backbone")  # with ONNX, once
    return folder


@pytest.fixture
def _tables_as_they_were() -> Iterator[None]:
    """What a page adds to a table goes again."""
    with contextlib.ExitStack() as stack:
        for table in (METHODS, OBJECTIVES, SINGLE, SOURCES, VIEWS):
            stack.enter_context(patch.dict(table))
        yield


@pytest.mark.usefixtures("_tables_as_they_were")
@pytest.mark.parametrize(
    "page", dict.fromkeys(b.page for b in blocks("python")), ids=lambda page: page.stem
)
def test_python_blocks_run(page, workspace, monkeypatch):
    """One after another, in one module a page."""
    monkeypatch.chdir(workspace)
    module = types.ModuleType(f"blocks_of_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks("python"):
        if block.page == page:
            # Lines are counted as on the page, so that a failure names its own.
            code = compile("\n" * block.line + block.text, str(page), "exec")
            exec(code, vars(module))


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_yaml_blocks_are_parts_of_recipes(block):
    """Each is laid over quickstart's recipe."""
    given = read(block.text, block.place).plain()
    overrides = [] if "backbone" in given else [f"backbone.channels={channels(given)}"]
    for section, keys in given.items():
        if section in ("pretrain", "finetune") and "estimator" not in keys:
            overrides += [f"{section}.{key}={json.dumps(value)}" for key, value in keys.items()]
        else:
            overrides.append(f"{section}={json.dumps(keys)}")
    if "backbone" in given and "data" not in given:
        overrides.append('data={"name": "folder", "path": "photos"}')
    lookalike.load_recipe(ROOT / "recipes" / "quickstart.yaml", overrides)


def channels(given: Mapping[str, Any]) -> int:
    """Of the images that a recipe with these sections reads."""
    return 1 if given.get("data", {"name": "digits"})["name"] in ("digits", "idx") else 3


def commands(block: Block) -> list[list[str]]:
    """The words of each command, without prompt, variables and comment."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


COMMANDS = [(block, words) for block in blocks("bash", "console") for words in commands(block)]


@pytest.mark.parametrize(
    ("block", "words"), COMMANDS, ids=lambda value: getattr(value, "place", "")
)
def test_commands_are_accepted(block, words):
    program, *rest = words
    if program == "sbatch":
        rest = rest[next(n for n, word in enumerate(rest) if "/" in word) :]
        program, *rest = rest
    if program.startswith("launch/"):
        assert (ROOT / program).is_file()
        rest = ["run", *rest[LAUNCHERS[Path(program).name] :]]
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
        return
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        named = {name for found in extras for name in found.split(",")}
        assert named <= project["optional-dependencies"].keys()
        return
    else:
        assert program == "lookalike", f"{block.place}: {program}: not checked: mark it as not run"
    accepted(rest)


def accepted(words: Sequence[str]) -> None:
    """The command line parses, and its recipe with its overrides is one."""
    verb, *rest = words
    command = typer.main.get_command(cli.app).commands[verb]
    given = command.make_context(verb, list(rest)).params
    named = given.get("recipe") or (given.get("source") if verb != "search" else None)
    if named and named.endswith(".yaml"):
        lookalike.load_recipe(ROOT / named, given["overrides"] or ())


def test_every_block_is_of_a_known_kind():
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block.place}: {block.language!r}"


@cache
def anchors(page: Path) -> set[str]:
    """What can be linked to on a page, as GitHub and zensical name headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    for place in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        file, _, anchor = place.partition("#")
        assert "://" not in place, f"{page.name}: {place}: outside"
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {place}: no such file"
        assert not anchor or anchor in anchors(target), f"{page.name}: {place}: no such heading"
        if page.parent == ROOT / "docs":
            assert target.resolve().parent == page.parent, f"{page.name}: {place}: not of the site"


def test_named_files_are_there():
    """Files and folders of the source that stand between backticks."""
    tops = "recipes|docs|launch|benchmarks|tests|ssl"
    count = 0
    for page in [*PAGES, ROOT / "benchmarks" / "README.md"]:
        for path in re.findall(rf"`((?:{tops})/[\w./*-]+)`", page.read_text()):
            count += 1
            assert list(ROOT.glob(path.rstrip("/"))), f"{page.name}: {path}: no such file"
    assert count > 20


def test_modules_that_are_named_are_there():
    """As `methods/tico.py` or `scoring/`, below the package."""
    house, count = ROOT / "ssl" / "lookalike", 0
    folders = {path.name for path in house.iterdir() if (path / "__init__.py").exists()}
    for name in ("architecture", "extending", "index"):
        text = (ROOT / "docs" / f"{name}.md").read_text()
        for folder, file in re.findall(r"`(\w+)/(\w*\.py)?`", text):
            if folder in folders:
                count += 1
                assert (house / folder / file).exists(), f"{name}.md: {folder}/{file}"
    assert count > 20


def test_the_readme_is_short_and_names_every_verb():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    table = text.split("## Verbs")[1].split("\n## ")[0]
    verbs = typer.main.get_command(cli.app).commands
    assert [verb for verb in verbs if not re.search(rf"`(?:lookalike )?{verb}\b", table)] == []


def test_the_readmes_tree_is_the_packages():
    tree = (ROOT / "README.md").read_text().split("## Folders")[1].split("```")[1]
    inner = tree.split("lookalike/", 1)[1].split("\nrecipes/")[0]
    named = set(re.findall(r"\b(\w+)/", inner))
    house = ROOT / "ssl" / "lookalike"
    assert named == {path.parent.name for path in house.glob("*/__init__.py")}
    loose = re.findall(r"\w+", inner.splitlines()[0])
    assert sorted(loose) == sorted(path.stem for path in house.glob("*.py"))


def test_the_site_has_every_page_and_the_index_names_it():
    nav = re.findall(r'"([\w]+\.md)"', (ROOT / "zensical.toml").read_text())
    pages = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert sorted(nav) == pages
    index = (ROOT / "docs" / "index.md").read_text()
    assert [name for name in pages if f"({name})" not in index and name != "index.md"] == []


def test_the_methods_and_objectives_page_name_what_there_is():
    for page, names in (
        ("pretraining", METHODS),
        ("finetuning", [*(kind.__name__ for kind in OWN), *ESTIMATORS]),
        ("data", SOURCES),
        ("views", VIEWS),
    ):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        assert [name for name in names if f"`{name}`" not in text] == [], page


def test_environment_variables_are_documented():
    found = set()
    for path in [*(ROOT / "ssl").rglob("*.py"), *(ROOT / "launch").iterdir()]:
        found |= set(re.findall(r"(?<!-D)LOOKALIKE_[A-Z]+", path.read_text()))  # -D: a compiler's
    text = (ROOT / "docs" / "distributed.md").read_text()
    # Set by the program itself, for its own processes.
    assert sorted(n for n in found - {"LOOKALIKE_PARENT", "LOOKALIKE_DEBUG"} if n not in text) == []
