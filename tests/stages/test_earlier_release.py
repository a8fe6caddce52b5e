"""Run folders of release 0.1.0 go on: the stopped one to the same bits, the finished one stays."""

import math
import shutil
from pathlib import Path

import pytest

import toy
from lookalike.stages.evaluate import evaluate
from lookalike.stages.pretrain import pretrain
from lookalike.stages.probe import probe

FIXTURES = Path(__file__).parents[1] / "fixtures"
# What the runs were made with, as a recipe spells it now.
WORDS = [
    f"{stage}.{key}" for stage in ("pretrain", "finetune") for key in ("engine=plain", "clip=3.0")
]
SMALL = toy.RESNET.replace("[8, 8, 16, 16]", "[4, 4, 8, 8]")


@pytest.fixture
def earlier(tmp_path):
    """Gives a copy, which may be written to, of a run folder of release 0.1.0."""
    return lambda name: shutil.copytree(FIXTURES / name, tmp_path / name)


def recipe():
    return toy.recipe(*WORDS, backbone=SMALL)


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time of last change and content of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_stopped_run_goes_on_to_the_bits_of_one_without_a_break(tmp_path, earlier):
    """Of today's code and of the release's own; where a processor or torch rounds otherwise than
    there, the first step from the same state still has the same loss.
    """
    run, finished = earlier("run-0.1.0"), FIXTURES / "run-0.1.0-finished"
    begun, told = toy.tensors(run, 9), (run / "metrics.jsonl").read_bytes()
    pretrain(recipe(), run)
    whole = pretrain(recipe(), tmp_path / "whole").parent
    assert (run / "metrics.jsonl").read_bytes().startswith(told)
    assert [step for step, _ in toy.curve(run)] == list(range(1, 19))
    assert toy.curve(run)[11][1] == pytest.approx(toy.curve(finished)[11][1], rel=1e-3)
    if toy.same(toy.tensors(whole, 9), begun):
        for other in (whole, finished):
            assert toy.same(toy.tensors(run), toy.tensors(other))
            assert toy.curve(run) == toy.curve(other)


def test_a_finished_backbone_stays_and_is_probed_and_scored(monkeypatch, earlier):
    run = earlier("run-0.1.0-finished")
    parts = [run / name for name in ("backbone", "checkpoints", "finetune")]
    before = [state(part) for part in parts]
    monkeypatch.setattr("lookalike.stages.pretrain.loop.train", pytest.fail)
    assert pretrain(recipe(), run) == run / "backbone"
    scores = probe(run / "backbone", recipe(), run)
    assert all(math.isfinite(value) for value in scores.values())
    for folder in ("backbone", "finetune/embedding"):
        found = evaluate(run / folder, recipe(), run, name=folder)
        assert 0.2 < found["recall@1"] <= 1
    assert [state(part) for part in parts] == before
