"""An estimator of a recipe: what it learned is what the embedding folder computes, and no gradient
is taken.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import lookalike
import toy
from lookalike.data.sources import Digits
from lookalike.errors import Error, RecipeError, RunError
from lookalike.evaluation.features import embedder, extract
from lookalike.experiment import Experiment, Finetune
from lookalike.folder import write_folder
from lookalike.geometry import DISTANCES
from lookalike.metric.classes import of_classes
from lookalike.metric.estimators import ESTIMATORS
from lookalike.metric.fit_head import ESTIMATOR, build, folded
from lookalike.models import card, folder_files
from lookalike.models.embedding import Embedding, embedding_files, load_model
from lookalike.process import fault
from lookalike.recipe import from_text
from lookalike.scoring import retrieval

FAST = {
    "csml": "{name: csml, betas: [0.1], folds: 2, rounds: 1}",
    "itml": "{name: itml, tol: 0.05, n_constraints: 60}",
    "lda": "{name: lda}",
    "lmnn": "{name: lmnn, n_components: 5, max_iter: 30}",
    "mmc": "{name: mmc}",
    "nca": "{name: nca, max_iter: 20}",
    "rca": "{name: rca}",
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fold") / "backbone"
    made = toy.architecture().build().eval()
    card.write_model(folder, folder_files(made), card.facts(made.architecture, made.dim, {}))
    return folder


def recipe(backbone: Path, estimator: str, *more: str):
    words = ("pretrain=null", "probe=null", "export=null", f"backbone={{folder: {backbone}}}")
    return toy.recipe(*words, f"finetune={{estimator: {estimator}}}", *more)


def seen(backbone: Path):
    model = lookalike.load_backbone(backbone)
    return extract(
        embedder(model, model.architecture), of_classes(Digits().split("train"), range(5))[0]
    )


def test_every_estimator_is_tried_here():
    assert set(FAST) == set(ESTIMATORS)


@pytest.mark.parametrize("name", FAST)
def test_the_folder_computes_what_the_estimator_learned(name, backbone, tmp_path):
    made = recipe(backbone, FAST[name])
    with fault.plan("raise:rank=0,step=1"):  # no gradient is taken
        model = lookalike.load_model(lookalike.finetune(backbone, made, tmp_path / "run"))
    x_ND, labels_N, *_ = seen(backbone)
    x = x_ND.double().numpy()
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).mean())
    learner = build(made.section(Finetune).estimator, made.seed)
    with pytest.MonkeyPatch.context() as quiet:
        quiet.setattr("warnings.warn", lambda *_, **__: None)
        z = learner.fit(x, labels_N.numpy()).transform(x)
    assert model.distance == learner.distance == ("cosine" if name == "csml" else "euclidean")
    assert model.dim == z.shape[1]
    h = (
        extract(
            embedder(model, model.architecture), of_classes(Digits().split("train"), range(5))[0]
        )
        .x_ND.double()
        .numpy()
    )
    if model.distance == "cosine":
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    wanted, found = (np.square(each[:80, None] - each[None, :80]).sum(axis=2) for each in (z, h))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * wanted.max())


@pytest.mark.slow
def test_a_whole_run_scores_by_euclidean_distance_exports_and_is_done(backbone, tmp_path):
    made = recipe(backbone, "{name: rca, n_components: 6}", "export={}")
    run = lookalike.run(made, tmp_path / "run")
    assert (run / "export/embedding/model.onnx").exists()
    facts = card.read(run / "finetune/embedding")
    assert (facts["method"], facts["distance"], facts["features"], facts["classes"]) == (
        "rca",
        "euclidean",
        6,
        5,
    )
    model = lookalike.load_model(run / "export/embedding")
    images, labels_N = of_classes(Digits().split("test"), range(5, 10))
    z_ND = extract(embedder(model, model.architecture), images).x_ND
    scores = json.loads((run / "evaluate.json").read_text())["fine-tuned"]
    assert scores["map@r"] == pytest.approx(
        retrieval.scores(z_ND, labels_N, distance="euclidean")["map@r"], abs=1e-6
    )
    assert scores["map@r"] != pytest.approx(retrieval.scores(z_ND, labels_N)["map@r"], abs=1e-4)
    before = (run / "finetune/embedding/manifest.json").stat().st_mtime_ns
    lookalike.run(recipe(backbone, "{name: rca, n_components: 6}"), run)
    assert (run / "finetune/embedding/manifest.json").stat().st_mtime_ns == before
    lookalike.finetune(backbone, recipe(backbone, "{name: lda}"), run)
    assert lookalike.load_model(run / "finetune/embedding").dim == 4


def over_ranks(backbone: Path, out: Path) -> list[float]:
    folder = lookalike.finetune(backbone, recipe(backbone, FAST["csml"]), out)
    return load_model(folder).head.weight.flatten().tolist()


def test_two_ranks_end_with_the_map_of_one(ranks, backbone, tmp_path):
    alone = over_ranks(backbone, tmp_path / "one")
    assert ranks.run(over_ranks, backbone, tmp_path / "two") == [alone, alone]


def test_the_recipe_as_resolved_reads_back(backbone):
    made = recipe(backbone, FAST["lmnn"])
    assert from_text(made.text(), "again.yaml", [], Experiment) == made


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (
            "{estimator: {name: rca}, epochs: 3}",
            "finetune: epochs: not for an estimator, .* delete it",
        ),
        (
            "{estimator: {name: rca}, optimizer: {name: adamw, lr: 1e-3}}",
            "optimizer: not for an estimator",
        ),
        ("{estimator: {name: rca}, miner: MultiSimilarityMiner}", "miner: not for an estimator"),
        ("{estimator: {name: rca}, dim: 16}", "dim: not for an estimator"),
        ("{}", r"finetune: optimizer: missing, add it \(or an estimator"),
        ("{estimator: {name: rcaa}}", 'did you mean "rca"'),
        ("{estimator: {name: nca, random_state: 1}}", "set by the program, delete it"),
    ],
)
def test_what_an_estimator_has_no_use_for_is_refused(words, pattern):
    with pytest.raises(RecipeError, match=pattern):
        toy.recipe(f"finetune={words}")


@pytest.mark.parametrize(
    ("estimator", "pattern"),
    [
        (
            "{name: lda, n_components: 5}",
            r"finetune\.estimator: lda: n_components: 5, but 16 features of 5 classes allow",
        ),
        (
            "{name: rca, n_components: 17}",
            r"rca: n_components: 17, but 16 features of 5 classes allow 1 to 16",
        ),
    ],
)
def test_more_components_than_there_are_is_refused_before_anything_is_trained(
    estimator, pattern, tmp_path
):
    with pytest.raises(Error, match=pattern):
        lookalike.run(toy.recipe(f"finetune={{estimator: {estimator}}}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_estimator_refuses_is_a_users_error_and_what_it_warns_of_is_said(backbone, capfd):
    model, x_ND = (
        lookalike.load_backbone(backbone),
        torch.randn(12, 16, generator=torch.Generator().manual_seed(0)),
    )
    labels_N = torch.arange(12) % 3
    with pytest.raises(
        RunError, match=r"finetune\.estimator: rca: RCA: rows of one class .* raise shrinkage"
    ):
        folded(model, ESTIMATOR.spec("rca"), x_ND, labels_N, 0)
    folded(model, ESTIMATOR.spec("lmnn", max_iter=1), x_ND, labels_N, 0)
    assert "finetune.estimator: LMNN: not yet at its minimum" in "".join(capfd.readouterr())


def test_a_head_off_the_unit_sphere_comes_back_so_and_one_on_it_says_nothing(backbone, tmp_path):
    x = torch.rand(3, 1, 16, 16)
    for distance in DISTANCES:
        model = Embedding(lookalike.load_backbone(backbone), 6, distance=distance).eval()
        write_folder(tmp_path / distance, embedding_files(model))
        assert torch.equal(load_model(tmp_path / distance)(x), model(x))
        assert (model(x).norm(dim=1) - 1).abs().max().lt(1e-5) == (distance == "cosine")
    assert b"unit" not in (tmp_path / "cosine/head.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", [pytest.param("digits_csml", marks=pytest.mark.slow), "digits_mahalanobis"]
)
def test_the_shipped_recipes_run(name, tmp_path):
    path = Path(__file__).parents[2] / "recipes" / f"{name}.yaml"
    quick = (
        "pretrain.epochs=1",
        "backbone.size=16",
        "backbone.args.channels=[8, 8, 16, 16]",
        "export=null",
    )
    run = lookalike.run(lookalike.load_recipe(path, quick), tmp_path / "run")
    assert 0 < json.loads((run / "evaluate.json").read_text())["fine-tuned"]["recall@1"] <= 1
