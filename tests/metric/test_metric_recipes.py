"""The recipes of metric learning: each trains, and each objective of our own has one."""

import math
from pathlib import Path

import pytest
import torch

import lookalike
import toy
from lookalike.metric.objectives import OWN
from lookalike.recipe import read

FOLDER = Path(__file__).parents[2] / "recipes" / "metric"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_every_objective_of_our_own_has_a_recipe():
    texts = [path.read_text() for path in RECIPES]
    for kind in OWN:
        assert any(kind.__name__ in text for text in texts), kind.__name__


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_trains_an_embedding(path, tmp_path):
    """Three steps, and batches as large as the data allow; the header says how to run it."""
    assert f"lookalike run recipes/metric/{path.name} --out runs/{path.stem}" in path.read_text()
    words = ["finetune.epochs=1", "finetune.per_class=40", "finetune.log_every=1"]
    plain = read(path.read_text(), path.name).plain()
    if "memory" in plain["finetune"]:
        words.append("finetune.memory.warmup_steps=1")
    recipe = lookalike.load_recipe(path, words)
    torch.manual_seed(0)
    folder = lookalike.finetune(toy.architecture().build(), recipe, tmp_path)
    curve = toy.curve(tmp_path / "finetune")
    assert [step for step, _ in curve] == [1, 2, 3]
    assert all(math.isfinite(loss) for _, loss in curve)
    z = lookalike.load_model(folder)(torch.rand(4, 1, 16, 16))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(4))
