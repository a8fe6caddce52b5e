"""A run goes on with other ranks, workers and ZeRO stages; with another recipe or other data only
when asked to.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toy
from lookalike.errors import RunError
from lookalike.methods import METHODS
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain

STEPS = 18


def test_a_refused_change_leaves_the_run_as_it_was(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    other = toy.recipe("pretrain.method.projector=[16, 16]", "pretrain.epochs=3")
    misfit = rf"checkpoints: step {STEPS} does not fit the recipe's model: projector"
    with (
        pytest.warns(UserWarning, match="goes on with another recipe"),
        pytest.raises(RunError, match=misfit),
    ):
        pretrain(other, run, accept_changes=True)
    assert (run / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()
    pretrain(toy.recipe(), run)
    shutil.rmtree(run / "backbone")
    with pytest.warns(UserWarning, match="goes on with another recipe"):
        pretrain(
            toy.recipe("pretrain.optimizer.lr=1e-3", "pretrain.epochs=3"), run, accept_changes=True
        )
    assert "lr: 0.001" in (run / "recipe.yaml").read_text()


def test_a_resume_may_change_the_engine_but_not_the_precision(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    pretrain(toy.recipe("pretrain.engine={name: plain}"), run)
    with pytest.raises(RunError, match=r"made by another recipe \(pretrain\.precision"):
        pretrain(toy.recipe("pretrain.precision=bf16"), run)


def mine(backbone):
    """A method of a user's own."""
    return METHODS["barlow_twins"](backbone, projector=[16, 32])


def test_a_custom_method_is_recorded_and_no_other_resumes_its_run(tmp_path):
    pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run", method=mine)
    card = json.loads((tmp_path / "run/backbone/card.json").read_text())
    assert card["method"].endswith("test_resume.mine")
    with pytest.raises(
        RunError, match=r"was trained on something else \(method: .*test_resume\.mine"
    ):
        pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run")


def test_workers_change_no_bit(tmp_path, whole):
    pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))


@pytest.mark.parametrize(
    ("worlds", "stages"),
    [
        ((1, 2), (0, 0)),
        ((2, 1), (1, 3)),
        pytest.param((2, 1), (0, 0), marks=pytest.mark.slow),
        pytest.param((2, 2), (2, 0), marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_on_other_ranks_and_another_zero_stage(ranks, tmp_path, worlds, stages):
    """A ViT, on which rounding does not grow: every step's loss within 1e-6 of the one
    process's.
    """
    pretrain(toy.recipe(ADAMW, backbone=toy.VIT), tmp_path / "whole")
    run, faults = str(tmp_path / "run"), ([f"term:rank={r},step=7" for r in range(2)], [])
    for world, stage, planned in zip(worlds, stages, faults, strict=True):
        ranks.run(part_of_a_run, run, stage, planned, world=world)
    one, two = (toy.lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    assert [line["step"] for line in two] == list(range(1, STEPS + 1))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)


ADAMW = "pretrain.optimizer={name: adamw, lr: 5e-4}"


def part_of_a_run(out: str, stage: int, faults: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), fault.plan(*faults):
        warnings.simplefilter("ignore")
        patch.setattr(
            "lookalike.checkpoint.run.lock", lambda out: None
        )  # the ranks of earlier groups still live
        engine = f"pretrain.engine={{name: zero, stage: {stage}}}"
        try:
            pretrain(toy.recipe(ADAMW, engine, backbone=toy.VIT), out)
        except Stopped:
            assert faults


@pytest.mark.parametrize("on", ["device", "host"])
def test_files_give_the_same_bits_with_workers_and_after_a_stop(tmp_path, on):
    """R1, R7 and R18 of images in files, wherever their crops are made."""
    images, words = toy.folder_of_images(tmp_path / "images"), (f"pretrain.crop_on={on}",)
    pretrain(toy.on_folder(images, *words), tmp_path / "whole")
    with fault.plan("term:rank=0,step=6"), pytest.raises(Stopped):
        pretrain(toy.on_folder(images, *words, "pretrain.workers=2"), tmp_path / "run")
    pretrain(toy.on_folder(images, *words, "pretrain.workers=1"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run", 10), toy.tensors(tmp_path / "whole", 10))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "added": lambda p: shutil.copy(p / "train/00.png", p / "train/zz.png"),
    "removed": lambda p: (p / "train/07.png").unlink(),
    "replaced": lambda p: (p / "train/07.png").write_bytes(
        (p / "train/07.png").read_bytes() + b"more"
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_images_are_refused_with_a_difference_unless_asked_for(tmp_path, kind):
    images = toy.folder_of_images(tmp_path / "images")
    with fault.plan("term:rank=0,step=6"), pytest.raises(Stopped):
        pretrain(toy.on_folder(images), tmp_path / "run")
    CHANGES[kind](images)
    shown = "data: " if kind == "replaced" else r"images: 40 -> (41|39)"
    with pytest.raises(
        RunError, match=rf"was trained on something else \(.*{shown}.*--accept-changes"
    ):
        pretrain(toy.on_folder(images), tmp_path / "run")
    with toy.heard() as texts:
        pretrain(toy.on_folder(images), tmp_path / "run", accept_changes=True)
    assert "goes on with something else" in texts[0]
    assert toy.lines(tmp_path / "run/metrics.jsonl")[-1]["step"] >= 8


def test_another_batch_is_refused_unless_asked_for(tmp_path):
    with fault.plan("term:rank=0,step=6"), pytest.raises(Stopped):
        pretrain(toy.recipe(), tmp_path / "run")
    with pytest.raises(RunError, match=r"pretrain\.batch: 144 -> 72.*--accept-changes"):
        pretrain(toy.recipe("pretrain.batch=72"), tmp_path / "run")
    with toy.heard() as texts:
        pretrain(toy.recipe("pretrain.batch=72"), tmp_path / "run", accept_changes=True)
    assert "batch: 144 -> 72" in texts[0]
    assert [line["step"] for line in toy.lines(tmp_path / "run/metrics.jsonl")] == list(
        range(1, 39)
    )
