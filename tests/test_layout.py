"""The house: imports go down only, walls hold, the face is as promised, nothing runs code from
data.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lookalike

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "ssl" / "lookalike"
FLOORS = [
    {"errors", "rng"},
    {"comm", "recipe", "folder", "log"},
    {"process", "views", "models", "optim", "checkpoint"},
    {"nn", "data", "scoring"},
    {"engine", "methods", "metric", "evaluation"},
    {"report"},
    {"training", "search", "doctor"},
    {"stages"},
    {"pipeline"},
    {"show"},
    {"__init__", "__main__", "cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
PML_ROOMS = [
    "library",
    "tuples",
    "quadruplet",
    "constellation",
    "n_pair",
    "csml",
    "sentence",
    "facenet",
]
PML_ROOMS += ["cross_entropy", "barlow_twins"]
# Third-party packages that may be imported in these rooms only.
WALLS = {
    "deepspeed": {"engine/zero.py"},
    "kornia": {"views/augmentation.py"},
    "timm": {
        *(f"models/{name}.py" for name in ("backbone", "cifar", "layers", "weights")),
        "optim.py",
        "stages/export.py",
    },
    "pytorch_metric_learning": {f"metric/{name}.py" for name in PML_ROOMS},
    "onnx": {"stages/export.py"},
    "onnxruntime": {"stages/export.py"},
    "yaml": {"recipe/yaml12.py"},
    "typer": {"cli.py"},
    "rich": {"log.py"},
    "sklearn": {
        "data/sources.py",
        "scoring/clustering.py",
        *(
            f"metric/estimators/{name}.py"
            for name in ("csml", "descent", "itml", "lda", "linear_map", "nca")
        ),
    },
    "scipy": {f"metric/estimators/{name}.py" for name in ("descent", "itml", "scatter")},
    "PIL": {"data/decode.py", "data/pixels.py"},
    "fsspec": {"data/remote.py"},
    "pyarrow": {"data/parquet.py"},
    "faiss": {"scoring/cells.py"},
}


def files() -> list[Path]:
    found = sorted(HOUSE.rglob("*.py"))
    assert len(found) > 30
    return found


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def room(path: Path) -> str:
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return parts[0]


def test_every_room_has_a_floor_and_every_floor_its_rooms():
    assert {room(path) for path in files()} == set(FLOOR)


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(HOUSE)))
def test_imports_go_down_only(path):
    here = room(path)
    for name, _ in imports(path):
        if name.startswith("lookalike.") and FLOOR[here] < FLOOR["cli"]:
            other = name.split(".")[1]
            assert other == here or FLOOR[other] < FLOOR[here], (
                f"{path}: {name} lies on no lower floor"
            )


def test_stages_do_not_import_each_other():
    for path in (HOUSE / "stages").glob("[a-z]*.py"):
        assert not [name for name, _ in imports(path) if name.startswith("lookalike.stages")]


@pytest.mark.parametrize("package", WALLS)
def test_a_package_stays_in_its_rooms(package):
    found = {
        str(path.relative_to(HOUSE))
        for path in files()
        for name, _ in imports(path)
        if name == package or name.startswith(f"{package}.")
    }
    assert found == WALLS[package]


def test_torch_distributed_stays_in_comm_and_the_engines():
    for path in files():
        if room(path) not in {"comm", "engine"}:
            assert "torch.distributed" not in path.read_text(), path


def test_our_own_modules_are_not_imported_inside_functions():
    for path in files():
        if path.name in {"cli.py", "__init__.py"} and path.parent == HOUSE:
            continue
        for function in (
            n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)
        ):
            inner = [n for n in ast.walk(function) if isinstance(n, ast.ImportFrom)]
            assert not [n for n in inner if (n.module or "").startswith("lookalike")], (
                f"{path}: {function.name}"
            )


FORBIDDEN = (
    r"\beval\(|\bexec\(|__import__|\bpickle\b|shell=True|torch\.load\(|yaml\.load\(|os\.system"
)


def test_nothing_can_run_code_from_data():
    for path in files():
        code = re.sub(r'""".*?"""|#[^\n]*', "", path.read_text(), flags=re.S).replace(".eval()", "")
        assert not re.search(FORBIDDEN, code), path


def test_ssl_is_pythons_own():
    assert not list((ROOT / "ssl").glob("*.py"))
    text = subprocess.run(
        [
            sys.executable,
            "-c",
            "import lookalike, ssl; print(ssl.__file__); ssl.create_default_context()",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert str(ROOT) not in text


def test_the_face_holds_what_it_lists_and_nothing_more():
    for name in lookalike.__all__:
        assert callable(getattr(lookalike, name)), name
    assert set(dir(lookalike)) == set(lookalike.__all__)
    with pytest.raises(AttributeError):
        _ = lookalike.nothing_of_this_name


def loaded(code: str) -> set[str]:
    """The top-level modules in memory after `code`, in a fresh interpreter."""
    script = f"import sys\n{code}\nprint(' '.join(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[-2].split())


def test_help_needs_neither_torch_nor_deepspeed():
    code = "from lookalike.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "deepspeed", "timm", "kornia", "numpy", "pydantic"} & loaded(code)


def test_importing_everything_but_an_engine_needs_no_deepspeed():
    assert "deepspeed" not in loaded("import lookalike.pipeline")


def test_every_public_thing_has_a_docstring():
    for path in files():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                lazy = path == HOUSE / "__init__.py"
                assert lazy or ast.get_docstring(node), f"{path}: {node.name}"


def test_the_readmes_tree_names_every_room():
    text = (ROOT / "README.md").read_text()
    missing = [room for room in FLOOR if not re.search(rf"\b{re.escape(room)}\b", text)]
    assert not missing
