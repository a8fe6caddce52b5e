"""The recipes of published data sets, each on a miniature of its data: every key works, the
protocol is its own.
"""

import json
from pathlib import Path

import pytest
import torch

import lookalike
from lookalike.models import Architecture, card, folder_files
from miniatures import trainable_cub, trainable_lfw, trainable_market, trainable_sop

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = (
    "finetune.epochs=1",
    "finetune.warmup_epochs=0",
    "finetune.schedule=cosine",
    "finetune.classes_per_batch=4",
    "export=null",
)


TRIED = [
    (
        "cub_proxy_anchor_resnet50",
        trainable_cub,
        64,
        {"task": "retrieval", "queries": 20, "gallery": 20},
    ),
    (
        "sop_proxy_anchor_resnet50",
        trainable_sop,
        64,
        {"task": "retrieval", "queries": 16, "gallery": 16},
    ),
    ("sop_dino_vit_small", trainable_sop, 64, {"task": "retrieval", "queries": 16, "gallery": 16}),
    (
        "market1501_baseline_resnet50",
        trainable_market,
        (64, 32),
        {"task": "reidentification", "queries": 8, "gallery": 17},
    ),
    ("lfw_arcface_resnet50", trainable_lfw, 64, {"task": "verification", "pairs": 12}),
]


@pytest.mark.filterwarnings("ignore:.*where the published set has")
@pytest.mark.parametrize(
    ("name", "make", "size", "expected"),
    TRIED,
)
def test_a_published_recipe_runs_on_a_miniature_of_its_data(name, make, size, expected, tmp_path):
    torch.manual_seed(0)
    args = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
    backbone = Architecture("resnet18", size=size, pool="avg", args=args).build()
    card.write_model(
        tmp_path / "drawn",
        folder_files(backbone),
        card.facts(backbone.architecture, backbone.dim, {}),
    )
    words = [*make(tmp_path / "data"), f"backbone={{folder: {tmp_path / 'drawn'}}}"]
    path = RECIPES / f"{name}.yaml"
    tuned = "finetune:" in path.read_text()
    run = lookalike.run(
        lookalike.load_recipe(path, [*words, *(SHORT if tuned else ())]), tmp_path / "run"
    )
    scores = json.loads((run / "evaluate.json").read_text())
    assert set(scores) == ({"backbone", "fine-tuned"} if tuned else {"backbone"})
    for found in scores.values():
        assert {key: found[key] for key in expected} == expected
    assert "not yet run" in path.read_text()


def test_every_such_recipe_is_tried_here():
    words = ("cub_", "sop_", "market1501_", "lfw_")
    listed = {path.stem for path in RECIPES.glob("*.yaml") if path.stem.startswith(words)}
    assert listed == {name for name, *_ in TRIED}
