"""Decide once, then do: `check` refuses what `run` refuses, with the same words, and what it
accepts reaches its first step; nothing is built a second time.
"""

import copy
import itertools
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lookalike
import toy
from lookalike.data import sources
from lookalike.data.sources import Digits
from lookalike.errors import Error
from lookalike.experiment import Experiment, load_recipe
from lookalike.pipeline import check, plan
from lookalike.process import fault
from lookalike.recipe import from_text
from lookalike.recipe.yaml12 import dump
from lookalike.runs import Run

RECIPES = Path(__file__).parents[2] / "recipes"
# What people write into a key by mistake.
VALUES: list[Any] = [None, 0, 1, 2, 3, 7, 16, 64, 200, 1000, 2000, 10**6, 0.1, 0.5, 0.99, 1.0]
VALUES += [1e-9, 1e9, -1, True, False, "auto", "digits", "symmetric", "multi_crop", "sgd", "lars"]
VALUES += ["plain", "zero", "bf16", "host", "gem", "token", "stop", "supcon", "dino", [], [16, 4]]
# What a recipe may hold, and only some data, model or neighbour of it allows.
EDGES: dict[str, list[Any]] = {
    "backbone.pool": ["token", "cls_gem", "gem", "max"],
    "backbone.size": [8, 24, [16, 8]],
    "data": [{"name": "folder", "path": "/nowhere", "channels": 1}, "cub", "digits"],
    "data.test_fraction": [0.001, 0.5, 0.999],
    "pretrain.batch": [2, 720, 1438, 1439, 2000],
    "pretrain.method": [
        {"name": "w_mse", "projector": [16, 8], "slice_size": 8},
        {"name": "byol", "projector": [16, 8], "predictor": [16, 4]},
        {"name": "nnclr", "projector": [16, 8], "predictor": [16, 8]},
        "simclr",
        "supcon",
    ],
    "pretrain.micro_batch": [2, 72, 144],
    "pretrain.knn_every_epochs": [1],
    "finetune.objective": ["ProxyAnchorLoss", "ConstellationLoss", "CSMLLoss", "ArcFaceLoss"],
    "finetune.miner": ["MultiSimilarityMiner", "TripletMarginMiner"],
    "finetune.held_out": [0, 0.05, 0.2, 0.9],
    "finetune.cameras": ["distinct"],
    "finetune.classes_per_batch": [1, 5, 6, 20],
    "finetune.per_class": [1, 2, 90],
    "finetune.pool": ["token", "cls_gem", "gem"],
    "finetune.dim": [None, 1, 4],
    "finetune.train_blocks": [0, 1, 99],
    "finetune.estimator": [{"name": "lda", "n_components": 99}, {"name": "csml"}, {"name": "nca"}],
    "evaluate.task": ["retrieval", "reidentification", "verification"],
    "evaluate.data": ["digits", {"name": "folder", "path": "/nowhere"}],
    "evaluate.rerank": [True],
    "evaluate.multi_query": [True],
    "evaluate.fars": [[0.1]],
    "evaluate.nmi": [True],
}


class Reached(Exception):
    """A run has come to its first step."""


def stop(step: int) -> None:
    raise Reached


def starts() -> list[dict[str, Any]]:
    """Real recipes, small: every stage; an estimator; the quickstart; one for metric learning."""
    estimated = "finetune={estimator: {name: rca, n_components: 4}}"
    small = ["backbone=" + toy.RESNET, "pretrain.batch=144", "pretrain.warmup_epochs=0.5"]
    return [
        toy.recipe().plain(),
        toy.recipe(estimated, "evaluate=null").plain(),
        toy.recipe("pretrain.method=supcon", "pretrain.knn_every_epochs=1").plain(),
        load_recipe(RECIPES / "quickstart.yaml", small).plain(),
        load_recipe(RECIPES / "metric" / "csml.yaml", small).plain(),
    ]


def places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value below a mapping."""
    if not isinstance(plain, dict):
        return [path]
    inner = [places(part, (*path, key)) for key, part in plain.items()]
    return [path, *itertools.chain.from_iterable(inner)] if path else [*itertools.chain(*inner)]


def mutated(plain: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """One to three values of the recipe are others, or gone."""
    made = copy.deepcopy(plain)
    for _ in range(draw.choice([1, 1, 2, 3])):
        edge = draw.random() < 0.7
        name = draw.choice(sorted(EDGES))
        *path, last = name.split(".") if edge else draw.choice(places(made))
        node = made
        for step in path:
            node = node.get(step) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            continue
        if draw.random() < 0.05:
            node.pop(last, None)
        else:
            node[last] = draw.choice(EDGES[name] if edge else VALUES)
    return made


def told(recipe: Experiment, out: Path) -> tuple[str, str]:
    """What `check` says of a recipe, and what `run` does: nothing where they accept it."""
    words = []
    for verb in (lambda: check(Run(recipe, out)), lambda: lookalike.run(recipe, out)):
        try:
            verb()
            words.append("done without a step")
        except Reached:
            words.append("")
        except Error as error:
            words.append(str(error))
    return "" if words[0] == "done without a step" else words[0], words[1]


@pytest.mark.parametrize("count", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_check_refuses_what_run_refuses_with_the_same_words(tmp_path, count):
    begun, draw, seen = starts(), random.Random(count), Counter()
    with fault.plan(stop), warnings.catch_warnings(action="ignore"):
        while seen["refused"] + seen["reached"] < count:
            plain = mutated(draw.choice(begun), draw)
            try:
                recipe = from_text(dump(plain), "m.yaml", (), Experiment)
            except Error:
                seen["no recipe"] += 1
                continue
            if recipe.pretrain is None:
                continue
            out = tmp_path / str(sum(seen.values()))
            checked, ran = told(recipe, out)
            assert checked == ran, dump(plain)
            seen["reached" if not ran else "refused"] += 1
            assert out.exists() == (not ran)
            shutil.rmtree(out, ignore_errors=True)
    assert min(seen["reached"], seen["refused"]) > count // 6, seen


def test_one_run_builds_its_source_once_and_splits_it_once_a_set(tmp_path, monkeypatch):
    built: list[Digits] = []
    asked: Counter[tuple[str, Any]] = Counter()

    class Counted(Digits):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            built.append(self)

        def split(self, name: sources.Split, size: Any = None) -> Any:
            asked[name, size] += 1
            return super().split(name, size)

    monkeypatch.setitem(lookalike.data.SOURCES, "digits", Counted)
    words = ["pretrain.epochs=1", "pretrain.warmup_epochs=0", "finetune.epochs=1", "export=null"]
    words += ["backbone=" + toy.RESNET, "probe.max_iterations=5", "probe.grid=[1.0]"]
    lookalike.run(load_recipe(RECIPES / "quickstart.yaml", words), tmp_path / "run")
    assert len(built) == 1
    assert asked == {("train", 16): 1, ("test", 16): 1}


def test_a_plan_holds_a_job_a_stage_and_no_more():
    whole = plan(Run(toy.recipe()))
    assert len(list(whole.jobs())) == 5
    assert whole.fetch is None
    bare = plan(Run(toy.recipe("probe=null", "finetune=null", "evaluate=null", "export=null")))
    assert list(bare.jobs()) == [bare.pretrain]


def test_an_old_spelling_is_refused_with_the_new_one():
    with pytest.raises(Error) as refused:
        toy.recipe("pretrain.engine={name: plain, precision: bf16, clip: 3.0}")
    lines = str(refused.value).splitlines()
    assert [line.partition(">:1:")[2].split(": ", 1)[1] for line in lines] == [
        "pretrain.engine.precision: has moved: write pretrain.precision",
        "pretrain.engine.clip: has moved: write pretrain.clip",
    ]
