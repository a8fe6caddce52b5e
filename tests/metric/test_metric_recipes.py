"""The recipes of metric learning: each trains, and each objective of our own has one."""

import math
from pathlib import Path

import pytest
import torch

import lookalike
import toy
from lookalike.experiment import Finetune
from lookalike.metric.objectives import OWN
from lookalike.recipe import Spec, read

FOLDER = Path(__file__).parents[2] / "recipes" / "metric"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def objectives(spec: Spec) -> set[str]:
    """The names of an objective and of those that it is a sum of."""
    parts = [part.objective for part in spec.args.get("parts", [])]
    return {spec.name}.union(*map(objectives, parts))


def test_every_objective_of_our_own_has_a_recipe():
    used = set()
    for path in RECIPES:
        settings = lookalike.load_recipe(path).section(Finetune)
        if settings.objective is not None:
            used |= objectives(settings.objective)
    assert {kind.__name__ for kind in OWN} - used == set()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_trains_an_embedding(path, tmp_path):
    """Three steps, and batches as large as the data allow; the header says how to run it."""
    assert f"lookalike run recipes/metric/{path.name} --out runs/{path.stem}" in path.read_text()
    words = ["finetune.epochs=1", "finetune.per_class=40", "finetune.log_every=1"]
    words += ["finetune.schedule=cosine"]  # steps lie beyond one epoch
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
