"""The comparison of run folders sees every bit, and passes over what is listed only."""

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from folders import differences, graph

WEIGHT = torch.tensor([1.0, float("nan"), 0.0, -2.0])
NAMES = ("sub", "images", "layer.weight")


def write(folder: Path, weight=WEIGHT, names=NAMES, factor=2.0, **beside) -> Path:
    """A run folder; `beside`: other content of its JSON files, by name."""
    for step, tensor in ((9, torch.zeros(3)), (18, weight)):
        checkpoint = folder / "checkpoints" / f"step_{step:08d}"
        checkpoint.mkdir(parents=True)
        save_file({"weight": tensor}, checkpoint / "model.safetensors")
    line = {"step": 1, "loss": 0.1, "images_per_s": 100.0, "waiting": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line | beside.get("metrics", {})) + "\n")
    card = {"images": 3, "versions": {"torch": "2"}, "scores": {"top1": 0.1}}
    (folder / "card.json").write_text(json.dumps(beside.get("card", card)))
    engine = {"engine": {"name": "plain"}, "precision": "fp32", "seed": 0}
    plain = beside.get("recipe", {"pretrain": engine})
    (folder / "recipe.yaml").write_text(json.dumps(plain))
    value, given, constant = names
    nodes = [
        helper.make_node("Mul", [given, constant], [value], doc_string=f"File {folder}"),
        helper.make_node("Relu", [value], ["features"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in (given, "features")]
    held = helper.make_tensor(constant, TensorProto.FLOAT, [1], [factor])
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [held])),
        folder / "model.onnx",
    )
    return folder


def told(tmp_path, **other) -> list[str]:
    return differences(write(tmp_path / "a"), write(tmp_path / "b", **other), {})


def flipped(index: int) -> torch.Tensor:
    """The weight with the last bit of one number turned."""
    whole = WEIGHT.clone().view(torch.int32)
    whole[index] ^= 1
    return whole.view(torch.float32)


def test_what_may_differ_is_passed_over_and_noted(tmp_path):
    other = {
        "names": ("mul_1", "pictures", "net.weight"),
        "metrics": {"images_per_s": 7.0, "waiting": 0.0},
        "card": {"pictures": 3, "versions": {"torch": "3"}, "scores": {"top1": 0.1}},
        "recipe": {"pretrain": {"engine": {"name": "plain", "precision": "fp32"}, "seed": 0}},
    }
    noted = {}
    assert not differences(write(tmp_path / "a"), write(tmp_path / "b", **other), noted)
    assert noted == {"a time": {"images_per_s", "waiting"}, "versions of packages": {"torch"}}


@pytest.mark.parametrize("index", [0, 2, 3])
def test_one_bit_of_a_tensor_is_seen(tmp_path, index):
    (line,) = told(tmp_path, weight=flipped(index))
    assert line.startswith("checkpoints/step_00000018/model.safetensors: weight: 1 of 4 numbers")


def test_a_minus_before_a_zero_is_seen(tmp_path):
    (line,) = told(tmp_path, weight=WEIGHT * torch.tensor([1.0, 1.0, -1.0, 1.0]))
    assert line.endswith("weight: 1 of 4 numbers, at most 0.0e+00 apart")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"weight": WEIGHT.double()}, "torch.float32 (4,) -> torch.float64 (4,)"),
        ({"weight": WEIGHT[None]}, "torch.float32 (4,) -> torch.float32 (1, 4)"),
        ({"metrics": {"loss": 0.10000000000000002}}, "step 1.loss: 0.1 -> 0.10000000000000002"),
        ({"card": {"images": 4, "versions": {}, "scores": {"top1": 0.1}}}, "images: 3 -> 4"),
        ({"card": {"images": 3, "scores": {}}}, "scores.top1: 0.1 -> nothing"),
        ({"recipe": {"pretrain": {"seed": 1}}}, "recipe.yaml: pretrain.seed: 0 -> 1"),
        ({"factor": 2.0000002}, "model.onnx: node 0"),
    ],
    ids=str,
)
def test_a_difference_is_told_with_its_place(tmp_path, other, line):
    assert [each for each in told(tmp_path, **other) if line in each]


def test_a_missing_file_is_told(tmp_path):
    base, tree = write(tmp_path / "a"), write(tmp_path / "b")
    (tree / "metrics.jsonl").unlink()
    assert differences(base, tree, {}) == ["metrics.jsonl: only in BASE's run"]
    assert differences(tree, base, {}) == ["metrics.jsonl: only in the new run"]


def test_of_a_graph_names_inside_do_not_count_and_constants_do(tmp_path):
    made = {"a": {}, "b": {"names": ("x", "pictures", "y")}, "c": {"factor": 3.0}}
    graphs = [graph(write(tmp_path / n, **how) / "model.onnx") for n, how in made.items()]
    assert graphs[0] == graphs[1] != graphs[2]
