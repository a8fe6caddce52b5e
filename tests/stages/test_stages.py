"""The stages together: what one writes the next reads, unseen classes stay unseen, nothing is done
twice.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

import lookalike
import toy
from lookalike.data.sources import Digits
from lookalike.errors import Error, RecipeError
from lookalike.evaluation.features import embedder, extract, pixels
from lookalike.evaluation.protocols import PROTOCOLS, Numbers, Subject
from lookalike.folder import verify
from lookalike.scoring import knn
from lookalike.views import normalise, resize_crop, scale

# Enough steps, on views mild enough, for the tiny network to learn something on any seed.
LONGER = (
    "pretrain.epochs=6",
    "pretrain.batch=48",
    "pretrain.views={name: symmetric, crop: [0.7, 1.0], flip: 0.0, grey: 0.0, blur: 0.0}",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return lookalike.run(toy.recipe(*LONGER), tmp_path_factory.mktemp("stages") / "run")


def test_a_run_leaves_what_it_promises(run):
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints/latest.json",
        "backbone/card.json",
        "probe.json",
        "finetune/metrics.jsonl",
        "finetune/embedding/head.safetensors",
        "evaluate.json",
        "export/backbone/model.onnx",
        "export/embedding/model.onnx",
    ):
        assert (run / name).exists(), name
    for folder in ("backbone", "finetune/embedding", "export/backbone", "export/embedding"):
        assert verify(run / folder)
    assert not list(run.rglob(".tmp-*"))


def test_the_same_run_again_trains_nothing(run):
    trained = [run / name for name in ("backbone", "checkpoints", "finetune")]
    before, scores = toy.marks(*trained), (run / "probe.json").read_text()
    lookalike.run(toy.recipe(*LONGER, "export=null"), run)
    assert toy.marks(*trained) == before
    assert (run / "probe.json").read_text() == scores


def test_the_probe_stands_beside_raw_pixels_and_the_untrained_backbone(run):
    scores = json.loads((run / "probe.json").read_text())
    for prefix in ("", "untrained/", "pixels/"):
        assert 0 < scores[f"{prefix}linear/top1"] <= 1
        assert 0 < scores[f"{prefix}knn20/top1"] <= 1
    assert scores["knn20/top1"] > scores["untrained/knn20/top1"] + 0.05


def test_another_model_s_probe_stands_beside_the_run_s_own(run, tmp_path):
    recipe, own = toy.recipe(*LONGER), json.loads((run / "probe.json").read_text())
    (tmp_path / "probe.json").write_text(json.dumps(own))
    lookalike.probe(toy.architecture("vit").build().eval(), recipe, tmp_path, name="another")
    held = json.loads((tmp_path / "probe.json").read_text())
    assert held.pop("others")["another"]["linear/top1"] != own["linear/top1"]
    assert held == own
    lookalike.probe(run / "backbone", recipe, tmp_path)
    assert set(json.loads((tmp_path / "probe.json").read_text())["others"]) == {"another"}


def test_raw_pixels_score_as_scikit_learn_says():
    source = Digits()
    sets = source.split("train"), source.split("test")
    train, test = (extract(pixels, images) for images in sets)
    numbers = Numbers((1e-2,), 0.2, 50, 256, None, "fp32", 0)
    found = PROTOCOLS["lbfgs"]().score(Subject((train, test), sets, None, numbers)).scores
    near = knn.accuracies(train.x_ND, train.labels_N, test.x_ND, test.labels_N, ks=(1,))[1]

    def unit(x):
        return x.x_ND.numpy() / np.linalg.norm(x.x_ND.numpy(), axis=1, keepdims=True)

    oracle = (
        KNeighborsClassifier(1).fit(unit(train), train.labels_N).score(unit(test), test.labels_N)
    )
    assert near["top1"] == pytest.approx(oracle, abs=0.003)
    assert found["linear/top1"] > 0.94


def test_features_are_those_of_the_model_on_the_test_view(run):
    backbone = lookalike.load_backbone(run / "backbone")
    images = Digits().split("test")
    found = extract(embedder(backbone, backbone.architecture), images, batch=100)
    canvas = torch.stack([images.read(i) for i in (0, 17, 150)])
    with torch.no_grad():
        x = normalise(resize_crop(scale(canvas), 16), *backbone.architecture.normalisation())
        torch.testing.assert_close(found.x_ND[[0, 17, 150]], backbone(x), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels_N, images.labels)


def test_evaluation_shows_only_classes_that_fine_tuning_never_saw(run):
    recipe = toy.recipe(*LONGER)
    assert set(toy.scored(recipe).labels.tolist()) == {5, 6, 7, 8, 9}
    scores = json.loads((run / "evaluate.json").read_text())
    assert set(scores) == {"backbone", "fine-tuned"}
    for found in scores.values():
        assert found["classes"] == 5
        assert found["queries"] == len(toy.scored(recipe))
        assert {"recall@1", "recall@5", "map@r", "r_precision"} <= set(found)
    assert json.loads((run / "finetune/embedding/card.json").read_text())["classes"] == 5


def test_from_python_as_the_readme_says(run):
    recipe = toy.recipe(*LONGER)
    scores = lookalike.probe(run / "backbone", recipe)
    assert scores["linear/top1"] == json.loads((run / "probe.json").read_text())["linear/top1"]
    backbone = lookalike.load_backbone(run / "backbone")
    assert not backbone.training
    assert backbone(torch.rand(2, 1, 16, 16)).shape == (2, backbone.dim)


def test_a_method_of_ones_own_trains_from_python(tmp_path):
    from lookalike.methods import Method
    from lookalike.nn.heads import mlp
    from lookalike.nn.loss import Loss

    class Mine(Method):
        n_views = 2

        def __init__(self, backbone):
            super().__init__()
            self.backbone, self.head = backbone, mlp([backbone.dim, 8])

        def forward(self, views):
            a, b = (self.head(self.backbone(view)) for view in views)
            return Loss((a - b).square().mean() + (a.std(0) - 1).square().mean(), {})

    folder = lookalike.pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run", method=Mine)
    assert lookalike.load_backbone(folder).dim == 16

    class Other(torch.nn.Module):
        n_views = 2

        def __init__(self, backbone):
            super().__init__()

    with pytest.raises(Error, match=r"^method: Other is not a lookalike\.methods\.Method: derive"):
        lookalike.pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "other", method=Other)


def test_the_exported_backbone_loads_in_a_process_without_lookalike(run):
    script = (
        "import sys, timm, torch; torch.set_num_threads(1)\n"
        f"model = timm.create_model('local-dir:{run / 'export/backbone'}', "
        "pretrained=True).eval()\n"
        "x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))\n"
        "assert 'lookalike' not in sys.modules\n"
        "print(model(x).flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    backbone = lookalike.load_backbone(run / "backbone")
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, backbone(x).flatten())
    assert timm.create_model(f"local-dir:{run / 'backbone'}", pretrained=True).num_features == 16


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_exported_embedding_gives_unit_vectors_in_onnxruntime(run, batch):
    session = onnxruntime.InferenceSession(
        run / "export/embedding/model.onnx", providers=["CPUExecutionProvider"]
    )
    images = torch.rand(batch, 1, 16, 16)
    (found,) = session.run(None, {"images": images.numpy()})
    model = lookalike.load_model(run / "finetune/embedding")
    wanted = model(normalise(images, *model.architecture.normalisation())).detach()
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_another_fine_tuning_in_the_same_run_sets_the_earlier_one_aside(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    recipe = toy.recipe(*LONGER, "finetune.dim=8")
    folder = lookalike.finetune(tmp_path / "run/backbone", recipe, tmp_path / "run")
    assert lookalike.load_model(folder).dim == 8
    assert lookalike.load_model(tmp_path / "run/finetune.1/embedding").dim == 16


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        ("finetune.classes_per_batch=100", "classes_per_batch: 100 classes a batch, but only 5"),
        ("finetune.held_out=0.95", "leaves fewer than 2"),
        (
            "finetune.objective={name: TripletMarginLoss, reducer: PerAnchorReducer}",
            r"finetune\.objective: TripletMarginLoss",
        ),
        ("pretrain.batch=2000", "fewer than one batch"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_anything_is_trained(
    tmp_path, change, pattern
):
    with pytest.raises(Error, match=pattern):
        lookalike.run(toy.recipe(change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_evaluated_is_refused_before_anything_is_trained(tmp_path):
    rows = [
        "path,label,split",
        *(f"{i}.png,{i % 2},train" for i in range(8)),
        "8.png,2,test",
        "9.png,3,test",
    ]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    for i in range(10):
        (tmp_path / f"{i}.png").touch()
    data = f"evaluate.data={{name: manifest, path: {tmp_path / 't.csv'}, channels: 1}}"
    with pytest.raises(
        Error, match="none of 2 queries has another image of its class in the gallery"
    ):
        lookalike.run(toy.recipe(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_any_backbone_says_so(tmp_path):
    with pytest.raises(RecipeError, match=r"neither pretrain: nor backbone\.folder"):
        lookalike.run(toy.recipe("pretrain=null"), tmp_path / "run")


def test_a_backbone_folder_takes_the_place_of_pretraining(run, tmp_path):
    words = (
        "pretrain=null",
        f"backbone={{folder: {run / 'backbone'}}}",
        "finetune=null",
        "export=null",
    )
    out = lookalike.run(toy.recipe(*words), tmp_path / "run")
    scores = json.loads((out / "evaluate.json").read_text())
    assert scores["backbone"]["classes"] == 10
    assert scores["backbone"]["queries"] == len(Digits().split("test"))


def test_a_stage_without_its_section_says_so(run):
    with pytest.raises(RecipeError, match="probe"):
        lookalike.probe(run / "backbone", toy.recipe("probe=null"))


def test_images_without_labels_cannot_be_scored():
    class Unlabelled:
        labels = None

    with pytest.raises(Error, match="no labels"):
        extract(pixels, Unlabelled())


def two_ranks(out: str) -> str:
    return str(lookalike.run(toy.recipe("pretrain.epochs=1", "export=null", backbone=toy.VIT), out))


def test_two_ranks_run_every_stage_as_one_does(ranks, tmp_path):
    """Fine-tuning starts on the same batch from the same weights, so its first loss tells whether
    all agreed.
    """
    ranks.run(two_ranks, str(tmp_path / "two"))
    two_ranks(str(tmp_path / "one"))
    one, two = (toy.lines(tmp_path / n / "finetune/metrics.jsonl") for n in ("one", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-2)
    for name in ("probe.json", "evaluate.json"):
        written = [json.loads((tmp_path / n / name).read_text()) for n in ("one", "two")]
        assert written[0].keys() == written[1].keys()
    assert (tmp_path / "one/backbone/config.json").read_text() == (
        tmp_path / "two/backbone/config.json"
    ).read_text()


def test_a_recipe_without_pretraining_may_go_on_from_published_weights(tmp_path, monkeypatch):
    """Published weights as timm gives them, without the network: drawn from a seed of their own."""
    asked, create = [], timm.create_model

    def published(name, pretrained=False, **how):
        asked.append(pretrained)
        torch.manual_seed(11 if pretrained else 12)
        return create(name, **how)

    monkeypatch.setattr(timm, "create_model", published)
    monkeypatch.setattr("lookalike.models.hub.published", lambda name: {})
    recipe = toy.recipe(
        "pretrain=null", "probe=null", "finetune=null", "backbone.pretrained=true", "export=null"
    )
    run = lookalike.run(recipe, tmp_path / "run")
    torch.manual_seed(11)
    expected = create("resnet18", **recipe.backbone.timm_args()).state_dict()
    found = lookalike.load_backbone(run / "backbone").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert asked.count(True) == 1
    assert json.loads((run / "backbone/card.json").read_text())["method"] == "published weights"
    lookalike.run(recipe, run)
    assert asked.count(True) == 1
