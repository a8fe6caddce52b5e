"""A file of weights in a recipe: training begins with it, cards name it, another file is refused,
and what was trained stands alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import lookalike
import toy
from lookalike import pipeline
from lookalike.errors import BackboneError, RecipeError, RunError
from lookalike.experiment import Experiment
from lookalike.models import card, load_backbone
from lookalike.recipe import digests, from_text
from lookalike.runs import Run
from lookalike.show import show
from lookalike.stages import fetch
from lookalike.stages.pretrain import build_method, pretrain

ARGS: dict[str, Any] = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
SHORT = ("pretrain.epochs=1", "pretrain.batch=718", "pretrain.warmup_epochs=0")


def theirs(path: Path, seed: int = 0) -> Path:
    """MoCo's checkpoint of a grey ResNet."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet18", in_chans=1, num_classes=5, **ARGS)
    state = {f"module.encoder_q.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": {**state, "module.queue": torch.ones(2)}}, path)
    return path


def beginning(path: Path, *words: str) -> Experiment:
    return toy.recipe(*SHORT, f"backbone.weights='{path}'", *words)


def without_pretraining(*words: str) -> Experiment:
    start, _, rest = toy.TEXT.format(backbone=toy.RESNET).partition("pretrain:\n")
    text = start + "probe:" + rest.partition("probe:")[2]
    return from_text(text, "toy.yaml", list(words), Experiment)


def test_training_begins_with_the_file(tmp_path):
    path = theirs(tmp_path / "moco.pth.tar")
    recipe = beginning(path)
    given = torch.load(path, weights_only=True)["state_dict"]
    state = build_method(recipe).backbone.model.state_dict()
    assert all(given[f"module.encoder_q.{name}"].equal(tensor) for name, tensor in state.items())


def test_heads_are_drawn_as_without_the_file(tmp_path):
    method = build_method(beginning(theirs(tmp_path / "moco.pth.tar")))
    plain = build_method(toy.recipe(*SHORT))
    own = {n: t for n, t in plain.state_dict().items() if not n.startswith("backbone.")}
    assert own
    assert all(method.state_dict()[name].equal(tensor) for name, tensor in own.items())


def test_the_card_and_the_run_folder_say_what_was_taken(tmp_path, capsys):
    path = theirs(tmp_path / "moco.pth.tar")
    folder = pretrain(beginning(path), tmp_path / "run")
    said = card.read(folder)["weights"]
    assert said.startswith("sha256 ")
    assert said.endswith(", moco.pth.tar")
    assert said in (folder / "README.md").read_text()
    told = json.loads((tmp_path / "run" / "weights.json").read_bytes())
    assert told["heads"] == ["fc.bias", "fc.weight"]
    assert told["beside"] == {"state_dict.module.queue": 1}
    out = capsys.readouterr().out
    assert out.count("weights: moco.pth.tar: 78 tensors, state_dict.module.encoder_q.*; left") == 1


def test_a_resume_with_another_file_is_refused(tmp_path):
    path = theirs(tmp_path / "moco.pth.tar")
    recipe = beginning(path, "pretrain.epochs=2")
    pretrain(recipe, tmp_path / "run")
    theirs(path, seed=1)
    with pytest.raises(RunError, match=r"backbone: began with other weights \(weights: .*sha256"):
        pretrain(recipe, tmp_path / "run")
    for file in (tmp_path / "run" / "backbone").iterdir():
        file.unlink()
    (tmp_path / "run" / "backbone").rmdir()
    with pytest.raises(RunError, match=r"trained on something else \(weights: .*--accept-changes"):
        pretrain(recipe, tmp_path / "run")
    theirs(path)
    pretrain(recipe, tmp_path / "run")


def test_what_was_trained_stands_alone(tmp_path):
    path = theirs(tmp_path / "moco.pth.tar")
    recipe = beginning(path, "export.onnx=false")
    folder = pretrain(recipe, tmp_path / "run")
    path.unlink()
    exported = lookalike.export(folder, recipe, tmp_path / "export")
    model = timm.create_model(f"local-dir:{exported}", pretrained=True)
    assert toy.same(model.state_dict(), load_file(folder / "model.safetensors"))
    assert card.read(exported)["weights"].endswith("moco.pth.tar")


def test_check_and_show_say_what_was_taken_and_write_nothing(tmp_path, capsys):
    recipe = beginning(theirs(tmp_path / "moco.pth.tar"))
    pipeline.check(Run(recipe, tmp_path / "run", ranks=1))
    assert capsys.readouterr().out.startswith("weights: moco.pth.tar: 78 tensors, state_dict.")
    assert "weights     moco.pth.tar: 78 tensors, state_dict." in show(recipe)
    assert not (tmp_path / "run").exists()


def test_check_refuses_what_does_not_fit(tmp_path):
    recipe = beginning(theirs(tmp_path / "moco.pth.tar"), "backbone.args.layers=[1, 1, 1, 2]")
    with pytest.raises(BackboneError, match=r"moco\.pth\.tar: .* weights that resnet18 has are mi"):
        pipeline.check(Run(recipe, tmp_path / "run", ranks=1))


def test_a_run_without_pretraining_works_on_the_file(tmp_path):
    path = theirs(tmp_path / "moco.pth.tar")
    recipe, out = without_pretraining(f"backbone.weights='{path}'"), tmp_path / "run"
    planned = pipeline.check(Run(recipe, out, ranks=1))
    assert planned.fetch.taken.count == 78
    run = Run(recipe, out)
    run.join()
    run.claim()
    folder = fetch.do(fetch.job(run))
    given = torch.load(path, weights_only=True)["state_dict"]
    state = load_backbone(folder).model.state_dict()
    assert all(given[f"module.encoder_q.{name}"].equal(tensor) for name, tensor in state.items())
    assert card.read(folder)["method"] == "weights of a file"
    theirs(path, seed=1)
    with pytest.raises(RunError, match=r"made from other weights \(weights: .*--accept-changes"):
        fetch.job(Run(recipe, out))


def test_a_recipe_without_any_weights_is_told_of_all_ways(tmp_path):
    recipe = without_pretraining()
    with pytest.raises(RecipeError, match=r"backbone\.folder, backbone\.weights or backbone\.pre"):
        pipeline.check(Run(recipe, tmp_path / "run", ranks=1))


def test_the_key_leaves_earlier_runs_as_they_are():
    recipe = toy.recipe()
    assert digests(recipe, "backbone") == digests(toy.recipe("backbone.weights=null"), "backbone")
    assert digests(recipe, "backbone") != digests(toy.recipe("backbone.weights=x"), "backbone")


def test_a_file_may_be_probed_as_the_recipes_architecture(tmp_path):
    path = theirs(tmp_path / "moco.pth.tar")
    words = ("probe.baselines=false", "probe.grid=[1.0]", "probe.max_iterations=2")
    scores = lookalike.probe(str(path), toy.recipe(*words))
    assert 0.1 < scores["knn20/top1"] <= 1
