"""NaN and Inf in a loss or a gradient: skipped on all ranks, then rolled back, then a stop."""

import itertools
import warnings

import pytest
import torch

import toy
from lookalike.engine import Plain
from lookalike.errors import RunError
from lookalike.folder import verify
from lookalike.process import fault
from lookalike.stages.pretrain import pretrain


def skipping(monkeypatch, steps: set[int]) -> None:
    """An engine that calls the gradients of these steps NaN, though they are sound."""
    calls = itertools.count(1)
    monkeypatch.setattr(Plain, "finite", lambda _: torch.tensor(next(calls) not in steps))


def test_a_nan_step_is_skipped_without_a_trace(tmp_path, monkeypatch):
    """Parameters, moments and running statistics are those of a run whose step was simply left
    out.
    """
    with fault.plan("nan:rank=0,step=4,steps=2;nan:rank=0,step=12"), toy.heard() as texts:
        pretrain(toy.recipe(), tmp_path / "nan")
    assert texts == [
        f"step {k}: loss or gradient is NaN or Inf: skipped on all ranks" for k in (4, 5, 12)
    ]
    skipping(monkeypatch, {4, 5, 12})
    with pytest.warns(UserWarning, match="skipped on all ranks"):
        pretrain(toy.recipe(), tmp_path / "left out")
    assert toy.same(toy.tensors(tmp_path / "nan"), toy.tensors(tmp_path / "left out"))
    found = toy.lines(tmp_path / "nan/metrics.jsonl")
    assert [line["step"] for line in found] == [s for s in range(1, 19) if s not in (4, 5, 12)]
    assert found[-1]["skipped"] == 3


def test_three_nan_steps_roll_back_to_the_checkpoint_and_end_bit_equal(tmp_path, whole):
    with fault.plan(toy.once_nan(tmp_path)), toy.heard() as texts:
        pretrain(toy.recipe(), tmp_path / "run")
    assert "step 14: goes back to the checkpoint of step 9" in texts[-1]
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))
    assert [line["step"] for line in toy.lines(tmp_path / "run/metrics.jsonl")] == list(
        range(1, 19)
    )
    about = verify(tmp_path / "run/nonfinite")
    assert [s["step"] for s in about["steps"]] == [11, 12, 13]
    assert all(len(s["samples"]) == 144 for s in about["steps"])


def test_repeated_nan_steps_stop_the_run(tmp_path):
    said = r"NaN or Inf at step 14, the third in a row, again.*lower pretrain\.optimizer\.lr"
    with (
        fault.plan("nan:rank=0,step=12,steps=3"),
        toy.heard(),
        pytest.raises(RunError, match=said),
    ):
        pretrain(toy.recipe(), tmp_path / "run")
    assert toy.tensors(tmp_path / "run", 9)


def test_nan_on_one_rank_is_skipped_and_rolled_back_on_all(ranks, tmp_path):
    ranks.run(train_quietly, str(tmp_path / "whole"))
    ranks.run(train_quietly, str(tmp_path / "run"), toy.once_nan(tmp_path, rank=1))
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(tmp_path / "whole"))


def train_quietly(out: str, *faults: str) -> None:
    with fault.plan(*faults), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pretrain(toy.recipe(backbone=toy.VIT), out)
