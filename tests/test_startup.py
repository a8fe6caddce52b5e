"""What each verb imports: read in the modules of a process that has done it, never timed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.folder import write_folder
from lookalike.models import Architecture, folder_files

# Each costs a start from a tenth of torch's import (jinja2 less) to as much again (the compiler).
HEAVY = {
    "deepspeed",
    "kornia",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "pyarrow",
    "pytorch_metric_learning",
    "scipy.stats",
    "sklearn",
    "sympy",
    "tensorboard",
    "torch._dynamo",
    "torch._inductor",
    "triton",
}
COMPILER = {"sympy", "torch._dynamo", "torch._inductor", "triton"}
# A child that does one verb after another, and says after each what has come in.
CHILD = """
import contextlib, io, json, sys
heavy, verbs = json.loads(sys.argv[1])
from lookalike import cli
for verb in verbs:
    sys.argv = ["lookalike", *verb]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([code or 0, [name for name in heavy if name in sys.modules]]))
"""
RECIPE = """
data: {name: folder, path: IMAGES, test_fraction: 0.5}
backbone:
  name: resnet18
  size: 16
  pool: avg
  args: {channels: [8, 8, 8, 8], layers: [1, 1, 1, 1]}
pretrain:
  method: {name: simclr, projector: [8, 4]}
  optimizer: {name: adamw, lr: 1e-3}
  epochs: 1
  batch: 8
  warmup_epochs: 0
probe: {}
classify: {optimizer: {name: sgd, lr: 0.1}, batch: 8}
evaluate: {}
export: {}
"""


def imported(*verbs: list[str]) -> list[set[str]]:
    """What of HEAVY is there after each verb, one after another in one process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([sorted(HEAVY), verbs])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [code for code, _ in found] == [0] * len(verbs), done.stderr[-2000:]
    return [set(names) for _, names in found]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recipe, its images, and a small model."""
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels_HWC = np.random.default_rng(i).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels_HWC).save(path)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("IMAGES", str(tmp_path / "images")))
    torch.manual_seed(0)
    small = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
    model = Architecture(name="resnet18", size=16, args=small).build()
    write_folder(tmp_path / "model", folder_files(model))
    return tmp_path


def test_verbs_import_nothing_heavy_that_they_do_not_use(place):
    """An objective or an estimator of a recipe is asked for by its name alone."""
    recipe, index = str(place / "r.yaml"), str(place / "index")
    verbs = [
        ["--help"],
        ["check", recipe, "--out", str(place / "run")],
        ["show", recipe],
        ["search", index, "--from", str(place / "images"), "--model", str(place / "model")],
        ["search", index, str(next((place / "images").rglob("*.png")))],
    ]
    *found, of_search = imported(*verbs)
    assert found[:3] == [set()] * 3
    assert of_search <= COMPILER  # which torch asks for BatchNorm on the meta device


@pytest.mark.slow
def test_a_training_imports_the_compiler_for_its_optimizer_alone(place):
    """torch's own optimizers import it at their first step."""
    (found,) = imported(["pretrain", str(place / "r.yaml"), "--out", str(place / "run")])
    assert found <= COMPILER | {"tensorboard"}


@pytest.mark.slow
def test_the_stand_in_gives_way_to_the_compiler():
    """timm and torchvision without it, then compiled as ever."""
    code = """
import sys
from lookalike.lean import without, without_compiler
with without_compiler():
    import torchvision, timm
assert "torch._dynamo" not in sys.modules
import torch
from torchvision.ops import roi_align
assert torch.compiler.disable.__module__ == "torch.compiler"
roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)
import torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
assert "is_compile_supported" in vars(torch._dynamo.utils) and len(vars(torch._dynamo.utils)) > 50
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2)).tolist() == [2, 2]
with without("scipy.stats"):
    import scipy.stats
assert "scipy.stats" not in sys.modules
assert scipy.stats.rankdata([3, 1]).tolist() == [2, 1]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_a_compiler_that_is_asked_for_meanwhile_is_the_true_one():
    code = """
from lookalike.lean import without_compiler
with without_compiler():
    import torch._dynamo
import sys
assert len(vars(sys.modules["torch._dynamo.utils"])) > 50
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
